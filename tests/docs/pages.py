"""The code of a page: its fenced blocks, and what comments above them say about running them.

A comment is invisible to readers and stands right above its block::

    <!-- run: --num-requests 200 -->     options that each command of the block is given besides
    <!-- needs: aiconfigurator_core -->  run where this module is installed
    <!-- given: BurstGPT_1.csv -->       made up by `tests.docs.given`, where readers bring their own
    <!-- file: gpu.json -->              saved under this name, for later blocks
    <!-- not run: needs CUDA -->         why nobody runs it here; its commands and options have to exist
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "calibration" / "README.md",
    ROOT / "workloads" / "README.md",
]

#: What a comment above a block may say.
MARKERS = {"run", "needs", "given", "file", "not run"}
_COMMENT = re.compile(r"<!-- ([a-z ]+): (.*?) -->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, what it is, and what is said about running it."""

    where: str
    language: str
    text: str
    markers: dict[str, str] = field(default_factory=dict)
    printed: str = ""  # the `text` block that follows at once: what this one prints

    @property
    def file_name(self) -> str | None:
        """The name under which it is saved: that of its comment, or of its own first line."""
        named = re.match(r"# ([\w.]+\.(?:py|toml))\b", self.text)
        return self.markers.get("file") or (named.group(1) if named else None)


def blocks(text: str, page: str) -> list[Block]:
    """All fenced blocks of a page; one that is only indented has no language, which nobody accepts."""
    tokens = MarkdownIt("commonmark").parse(text)
    code = [place for place, token in enumerate(tokens) if token.type in ("fence", "code_block")]
    found = []
    for place in code:
        token = tokens[place]
        line = token.map[0] + 1 if token.map else 0
        after = tokens[place + 1] if place + 1 < len(tokens) else None
        printed = after.content if after and after.type == "fence" and after.info == "text" else ""
        found.append(Block(f"{page}:{line}", token.info, token.content, _markers(tokens[:place]), printed))
    return found


def _markers(before: list[Token]) -> dict[str, str]:
    above = list(takewhile(lambda token: token.type == "html_block", reversed(before)))
    said = "\n".join(token.content for token in reversed(above))
    return {name: " ".join(value.split()) for name, value in _COMMENT.findall(said)}


def inline_code(text: str, page: str) -> Iterator[tuple[str, str]]:
    """Where, and what, of all code within paragraphs and tables."""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        for child in token.children or ():
            if child.type == "code_inline":
                yield f"{page}:{token.map[0] + 1 if token.map else '?'}", child.content
