"""From the results of sweeps to files: the figure as PDF and PNG, and the table behind it as CSV."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from batchsim.errors import BatchsimError
from batchsim.figures.plots import find_plot
from batchsim.figures.results import blamed_on, outside_range, read_sweep, sweep_folders
from batchsim.figures.save import render, sidecar, sidecar_text
from batchsim.figures.style import look
from batchsim.files import write_whole
from batchsim.files.tables import csv_text


def draw_figures(
    results_dir: str | Path,
    names: Sequence[str] | None = None,
    *,
    width: str = "two",
    on_fault: Callable[[BatchsimError], None] | None = None,
) -> list[Path]:
    """Draw the figure of each sweep in a folder of results, or of those named.

    Parameters
    ----------
    width
        ``one`` column of a paper, or ``two``.
    on_fault
        Called for each sweep that cannot be drawn, after which the others are; if left out, the first fault
        is raised when the others are drawn.

    Returns
    -------
    list of Path
        ``<name>.pdf``, ``.png``, ``.csv`` (the table behind the plot) and ``.figure.json`` (its caption, and
        how it was made: `save.sidecar`) in each sweep's folder; none of a sweep without a figure.

    Raises
    ------
    ConfigError
        If there are no results; and, without ``on_fault``, if a sweep's are damaged or name no known figure.
    """
    files: list[Path] = []
    faults: list[BatchsimError] = []
    for folder in sweep_folders(results_dir, names):
        try:
            files += _draw(folder, width)
        except BatchsimError as fault:
            (faults.append if on_fault is None else on_fault)(fault)
    if faults:
        raise faults[0]
    return files


def _draw(folder: Path, width: str) -> list[Path]:
    results = read_sweep(folder)
    plot = find_plot(results)
    if plot is None:
        return []
    if outside := outside_range(results.runs):
        warnings.warn(f"{results.sweep.name}: {outside[0].lower()}{outside[1:]}", stacklevel=2)
    with look(width), blamed_on(results.file, "drawn"):
        figure, table = plot.draw(results)
        if results.share:  # a part of the grid must not be taken for all of it
            figure.text(0.995, 0.005, results.share, ha="right", va="bottom", color="tab:red")
            table = table.assign(share=results.share)
        parts = {**render(figure), "csv": csv_text(table).encode()}
        contents = {f"{results.sweep.name}.{kind}": content for kind, content in parts.items()}
        described = sidecar(results, figure, table, plot.caption, width)
        contents[f"{results.sweep.name}.figure.json"] = sidecar_text(described, contents)
    for name, content in contents.items():
        write_whole(folder / name, content)
    return [folder / name for name in contents]
