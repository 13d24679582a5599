"""From the results of sweeps to files: the figure as PDF and PNG, and the table behind it as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from batchsim.errors import ConfigError
from batchsim.figures.plots import find_plot
from batchsim.figures.results import SweepResults, read_sweeps
from batchsim.figures.save import render
from batchsim.figures.style import look
from batchsim.files import write_whole


def draw_figures(results_dir: str | Path, names: Sequence[str] | None = None) -> list[Path]:
    """Draw the figure of each sweep in a folder of results, or of those named.

    Returns
    -------
    list of Path
        ``<name>.pdf``, ``.png`` and ``.csv`` (the table behind the plot) in each sweep's folder.

    Raises
    ------
    ConfigError
        If there are no results, or a sweep names an unknown figure.
    """
    return [file for results in read_sweeps(results_dir, names) for file in _draw(results)]


def _draw(results: SweepResults) -> list[Path]:
    plot = find_plot(results)
    with look():
        try:
            figure, table = plot.draw(results)
        except KeyError as error:
            raise ConfigError(
                f"{results.sweep.name}: figure {results.sweep.figure} needs {error}, which these runs lack"
            ) from error
        if results.share:  # a part of the grid must not be taken for all of it
            figure.text(0.995, 0.005, results.share, ha="right", va="bottom", color="tab:red")
            table = table.assign(share=results.share)
        contents = {**render(figure), "csv": table.to_csv(index=False, lineterminator="\n").encode()}
    files = [results.folder / f"{results.sweep.name}.{kind}" for kind in contents]
    for file, content in zip(files, contents.values(), strict=True):
        write_whole(file, content)
    return files
