"""Figures as files, without dates, so that the same results make the same files.

Beside each stands what it takes to use it in a paper, and to make it again: caption, command, versions, seeds
and hashes.
"""

from __future__ import annotations

import hashlib
import io
import shlex
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from batchsim._version import __version__
from batchsim.figures.results import SweepResults
from batchsim.figures.style import WIDTHS, conditions
from batchsim.files import json_text, write_whole

_METADATA: dict[str, dict[str, None]] = {
    "pdf": {"CreationDate": None, "ModDate": None},
    "png": {"Software": None},
}


def render(figure: Figure) -> dict[str, bytes]:
    """Return the content of a figure's files, by suffix."""
    contents = {}
    for suffix, metadata in _METADATA.items():
        buffer = io.BytesIO()
        # TrueType fonts, as publishers ask: text in the file can be searched and edited.
        with mpl.rc_context({"pdf.fonttype": 42, "ps.fonttype": 42}):
            figure.savefig(buffer, format=suffix, dpi=200, metadata=metadata)
        contents[suffix] = buffer.getvalue()
    return contents


def save(figure: Figure, path_stem: str | Path) -> Path:
    """Write ``<path_stem>.pdf`` and ``.png``; return the path of the latter."""
    stem = Path(path_stem)
    for suffix, content in render(figure).items():
        write_whole(stem.with_name(f"{stem.name}.{suffix}"), content)
    return stem.with_name(f"{stem.name}.png")


def sidecar(
    results: SweepResults, figure: Figure, table: pd.DataFrame, caption: str, width: str
) -> dict[str, Any]:
    """Say of a figure what is in it and how it was made, JSON-ready.

    Parameters
    ----------
    table
        What is drawn.
    caption
        How to read it.
    """
    runs = results.runs
    told = results.described
    given = ["batchsim", "figures", str(results.folder), results.sweep.name, "--width", width]
    return {
        "name": results.sweep.name,
        "title": str(figure.get_label()),
        "caption": f"{caption} {conditions(results, table)}",
        "command": shlex.join(given),
        "width_inches": WIDTHS[width],
        "height_inches": round(float(figure.get_figheight()), 4),
        "drawn_from": results.file.name,
        "sweep": {
            "title": results.sweep.title,
            **{name: told.get(name) for name in ("file", "sha256", "is_full", "inputs")},
            "num_runs": len(runs),
            "seeds": sorted(set(runs["seed"].tolist())),
            "num_replications": int(runs["replication"].nunique()) if "replication" in runs else 1,
        },
        "versions": {"batchsim of the runs": told.get("batchsim"), **versions()},
        "sha256": {results.file.name: hashlib.sha256(results.file.read_bytes()).hexdigest()},
    }


def versions() -> dict[str, str]:
    """What draws, and in which version."""
    drawing = ("matplotlib", "seaborn", "numpy", "pandas")
    return {"batchsim": __version__, **{name: version(name) for name in drawing}}


def sidecar_text(described: Mapping[str, Any], contents: Mapping[str, bytes]) -> bytes:
    """Return the file, with the hashes of those it describes, by their names."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return json_text({**described, "sha256": {**described["sha256"], **hashes}}).encode()
