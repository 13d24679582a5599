"""Figures as files, without dates, so that the same results make the same files."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from batchsim.files import write_whole

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
