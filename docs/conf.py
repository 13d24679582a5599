"""Sphinx over the repository as it lies, so that a link of a page leads to the same place here and on GitHub.

The sources are the repository's root (`sphinx-build -c docs .`). The side bar has the headings and links of
`docs/index.md`, in their order.
"""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from batchsim import __version__  # noqa: E402

project = "batchsim"
author = "The batchsim authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "docs/*.md", "calibration/README.md", "workloads/README.md"]
exclude_patterns = [".*", "build", "data", "results", "docs/_build"]

myst_heading_anchors = 4
myst_links_external_new_tab = True

default_role = "py:obj"
suppress_warnings = ["ref.python"]  # names in docstrings are short, and some are of several classes
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"batchsim {release}"
html_extra_path = ["site"]
html_static_path = ["style"]
html_css_files = ["wide.css"]

_LINK = re.compile(r"\[([^]]+)\]\((?!https?:)([\w./-]+)\.md\)")


def _with_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """Put a side bar's entries behind the front page: a part for each heading, a page for each link."""
    if name != root_doc:
        return
    parts = re.split(r"^## (.*)\n", source[0], flags=re.MULTILINE)[1:]
    for heading, text in zip(parts[::2], parts[1::2], strict=True):
        entries = "\n".join(
            f"{title[0].upper()}{title[1:]} <{page.replace('../', '/')}>"
            for title, page in _LINK.findall(text)
        )
        if entries:
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{entries}\n```\n"


def _with_colons(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Undo napoleon's reading of what stands before the colon in a property's first sentence as its type."""
    types = [place for place, line in enumerate(lines) if line.startswith(":type: ")]
    if what == "property" and types:
        lines[0] = f"{lines.pop(types[0]).removeprefix(':type: ')}: {lines[0]}"


def setup(app: Sphinx) -> None:
    """Watch the front page, and docstrings after napoleon."""
    app.connect("source-read", _with_contents)
    app.connect("autodoc-process-docstring", _with_colons, priority=900)
