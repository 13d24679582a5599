"""Where things stand on a figure: the finding above, a legend, panels, and below what the numbers hold for.

Text is measured, not estimated, so that nothing is cut in a column of 3.3 inches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from batchsim.figures.results import SweepResults
from batchsim.figures.style import SMALLEST, conditions

# Inches of a line of the title, of the legend and of the small print, of a panel, and of an edge.
_TITLE, _LEGEND, _PRINT, _PANEL, _EDGE = 0.17, 0.17, 0.12, 1.8, 0.07
_LOW_PANEL, _LOWEST_PANEL = 1.0, 0.6
_PANEL_OF_A_SCROLL = 1.3  # where no page holds them all, low ones would be no help
_PAGE = 9.0  # of text, at most
_NARROWEST = 2.0  # of a panel
_TITLE_SIZE, _LEGEND_SIZE = 9.0, 7.5  # points
# Of a legend, in letters' heights: a line and the room behind it, and the room between columns.
_HANDLE, _BETWEEN = 2.8, 1.2
_HINTED = 1.04  # letters of pixels are up to so much wider than those of a PDF


def num_columns(num_panels: int) -> int:
    """How many panels stand side by side, in rows as equal as can be."""
    most = max(1, int(mpl.rcParams["figure.figsize"][0] / _NARROWEST))
    return -(-num_panels // -(-num_panels // most))


def canvas(
    results: SweepResults,
    num_rows: int,
    num_columns: int,
    table: pd.DataFrame,
    *,
    finding: str = "",
    handles: Sequence[Artist] = (),
) -> tuple[Figure, list[list[Axes]]]:
    """Make empty panels below what was found and a legend, and above what the numbers hold for.

    Where nothing was found, what is shown is the title. ``table`` is what will be drawn: its intervals are
    named in the small print.
    """
    width = mpl.rcParams["figure.figsize"][0]
    room = width - 2 * _EDGE
    shown = results.sweep.title or results.sweep.name
    title = wrapped(finding or shown, room, _TITLE_SIZE, is_bold=True)
    subtitle = wrapped(shown, room, _LEGEND_SIZE) if finding else []
    small_print = wrapped(conditions(results, table), room, SMALLEST)
    legend_columns, legend_lines = _set_legend(handles, room)
    top_of_legend = _EDGE + _TITLE * len(title) + _LEGEND * len(subtitle)
    head = top_of_legend + _LEGEND * legend_lines + _EDGE
    foot = _PRINT * len(small_print) + _EDGE
    panel = _PANEL if width < 5 * num_columns else 1.5 * _PANEL
    if num_rows > 3 and num_columns == 1:
        panel = _LOW_PANEL
    of_a_page = (_PAGE - head - foot) / num_rows
    panel = min(panel, of_a_page) if of_a_page >= _LOWEST_PANEL else _PANEL_OF_A_SCROLL
    height = panel * num_rows + head + foot
    figure = Figure(figsize=(width, height))
    figure.set_label(finding or shown)
    figure.set_layout_engine("constrained", rect=(0, foot / height, 1, 1 - (head + foot) / height))
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    figure.align_ylabels(axes)
    for each in axes.flat:
        each.set_ymargin(0.05 * max(1.0, _PANEL / panel))  # markers stay whole in a low panel, too
    left, top = _EDGE / width, 1 - _EDGE / height
    figure.text(left, top, "\n".join(title), va="top", fontweight="bold", fontsize=_TITLE_SIZE)
    if subtitle:
        below = top - _TITLE * len(title) / height
        figure.text(left, below, "\n".join(subtitle), va="top", color=".35")
    if handles:
        figure.legend(
            handles=list(handles), loc="upper left", bbox_to_anchor=(left, 1 - top_of_legend / height),
            ncols=legend_columns, frameon=False, borderaxespad=0, borderpad=0, columnspacing=_BETWEEN,
        )  # fmt: skip
    below = 0.5 * _EDGE / height
    figure.text(left, below, "\n".join(small_print), va="bottom", fontsize=SMALLEST, color=".35")
    return figure, axes.tolist()


def wrapped(text: str, inches: float, size: float, *, is_bold: bool = False) -> list[str]:
    """Break a text between words into lines no wider than that; a longer word has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _inches(longer, size, is_bold=is_bold) <= inches:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _set_legend(handles: Sequence[Artist], inches: float) -> tuple[int, int]:
    """Break labels that are too long; return how many columns fit, and how many lines they take."""
    em = _LEGEND_SIZE / 72
    labels = [str(handle.get_label()) for handle in handles]
    for handle, label in zip(handles, labels, strict=True):
        if _inches(label, _LEGEND_SIZE) > inches - _HANDLE * em:
            start = " " * label.startswith(" ")  # matplotlib leaves labels out that begin with an underscore
            handle.set_label(start + "\n".join(wrapped(label, inches - _HANDLE * em, _LEGEND_SIZE)))
    labels = [str(handle.get_label()) for handle in handles]
    widths = [
        _HANDLE * em + max(_inches(line, _LEGEND_SIZE) for line in label.split("\n")) for label in labels
    ]
    for columns in range(len(handles), 1, -1):
        widest = [max(part) for part in np.array_split(widths, columns)]
        if sum(widest) + (columns - 1) * _BETWEEN * em <= inches:
            break
    else:
        columns = 1
    num_lines = [label.count("\n") + 1 for label in labels]
    return columns, max((int(sum(part)) for part in np.array_split(num_lines, columns)), default=0)


@lru_cache(maxsize=4096)
def _inches(text: str, size: float, *, is_bold: bool = False) -> float:
    font = FontProperties(size=size, weight="bold" if is_bold else "normal")
    width, _, _ = TextToPath().get_text_width_height_descent(text, font, ismath=False)
    return _HINTED * float(width) / 72
