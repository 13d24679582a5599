"""The page: template, style and scripts of `assets`, plotly's bundle, and what is shown as one JSON block."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from batchsim._version import __version__
from batchsim.errors import BatchsimError, ConfigError
from batchsim.figures.results import blamed_on, read_sweep, sweep_folders
from batchsim.files import write_whole
from batchsim.metrics.student import t_quantile
from batchsim.report.coding import LEAST_S, STEP, steps, thinned
from batchsim.report.sweep import Sketches, describe
from batchsim.results.sketches import PROBABILITIES

_ALL, _FEW = 10_000, 8
#: Bytes that a page stays below.
MOST_BYTES = 6_000_000

#: How many quantiles of a distribution are on the page, and how many metrics, as room allows.
_ROOM = ((96, _ALL), (64, _ALL), (40, _ALL), (24, _ALL), (24, 32), (12, 32), (0, 32), (0, 16), (0, _FEW))
_SCRIPTS = ("data.js", "charts.js", "sections.js", "closeup.js", "table.js", "page.js")
#: Close-ups of a page with many sweeps, all together.
_MOST_CLOSEUPS = 24


def write_page(results_dir: str | Path, output: str | Path, *, closeups: int = 5) -> list[str]:
    """Write the page of a sweep, or of all in a folder of results; return what there was no room for.

    Parameters
    ----------
    closeups
        At most so many runs of a sweep are looked at closely; those whose tables were not kept are simulated
        once more for it, if they are short.

    Raises
    ------
    ConfigError
        If there are no results, those of the only sweep are damaged, or plotly is not installed.
    """
    plotly = plotly_script()
    folders = sweep_folders(results_dir)
    each = min(closeups, max(1, _MOST_CLOSEUPS // len(folders))) if closeups else 0
    sweeps: list[tuple[dict[str, Any], Sketches]] = []
    faults: list[str] = []
    for folder in folders:
        try:
            sweeps.append(_described(folder, each))
        except BatchsimError as fault:
            if len(folders) == 1:
                raise
            faults.append(str(fault))
    if not sweeps:
        raise ConfigError(faults[0])
    title = sweeps[0][0]["title"] if len(sweeps) == 1 else f"{len(sweeps)} sweeps"
    before, after = _frame(title, plotly)
    for content, left_out in _contents(title, sweeps, faults):
        page = f"{before}{_json(content)}{after}"
        if len(page.encode()) < MOST_BYTES:
            write_whole(Path(output), page)
            return left_out
    most = f"{MOST_BYTES / 1e6:g} MB"
    raise ConfigError(
        f"{results_dir}: so many runs make a page of more than {most}; give the folder of one sweep"
    )


def _described(folder: Path, most_closeups: int) -> tuple[dict[str, Any], Sketches]:
    results = read_sweep(folder)
    with blamed_on(results.file, "shown"):
        return describe(results, most_closeups)


def plotly_script() -> str:
    """Plotly's bundle; `ConfigError` where it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigError(
            "the report page needs plotly, which is not installed: pip install 'batchsim[report]'"
        ) from error
    script: str = get_plotlyjs()
    return script


def _frame(title: str, plotly: str) -> tuple[str, str]:
    """What stands before the data, and after."""
    assets = files("batchsim.report") / "assets"

    def read(name: str) -> str:
        return (assets / name).read_text(encoding="utf-8")

    fillings = {
        "TITLE": html.escape(title),
        "VERSION": html.escape(__version__),
        "STYLE": read("style.css"),
        "SCRIPTS": "\n".join(map(read, _SCRIPTS)),
        "PLOTLY": plotly.replace("</script", "<\\/script"),
    }
    # Both at once: what is filled in is not looked through for places to fill.
    before, after = (
        re.sub("@([A-Z]+)@", lambda place: fillings[place[1]], part)
        for part in read("page.html").split("@DATA@")
    )
    return before, after


def _contents(
    title: str, sweeps: Sequence[tuple[Mapping[str, Any], Sketches]], faults: Sequence[str]
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """What could be on the page, from all of it to what is left where there is no room."""
    for points, most in _ROOM:
        places = thinned(PROBABILITIES, points) if points else []
        left_out = []
        if not points:
            left_out.append("distributions of latencies")
        if most <= _FEW:
            left_out.append("names of runs")
        if most < _ALL:
            left_out.append(f"columns of the results but {most} metrics (dataset.parquet has them)")
        yield (
            {
                "title": title,
                "version": __version__,
                "t975": [round(t_quantile(0.975, degrees), 4) for degrees in range(1, 61)],
                "probabilities": [float(f"{PROBABILITIES[place]:.6g}") for place in places],
                "least": LEAST_S,
                "step": STEP,
                "faults": list(faults),
                "left_out": left_out,
                "sweeps": [
                    {**(sweep if most == _ALL else _lean(sweep, most)), "sketches": _coded(sketches, places)}
                    for sweep, sketches in sweeps
                ],
            },
            left_out,
        )


def _coded(sketches: Sketches, places: Sequence[int]) -> dict[str, Any]:
    if not places:
        return {}
    return {
        metric: [None if values is None else steps(values[list(places)]) for values in of_runs]
        for metric, of_runs in sketches.items()
    }


def _lean(sweep: Mapping[str, Any], most: int) -> dict[str, Any]:
    """A sweep with its first metrics alone."""
    dropped = {name for metric in sweep["metrics"][most:] for name in (metric["key"], *metric["interval"])}
    if most <= _FEW:
        dropped |= {"run_id", "verdict_reason"}
    columns = {name: values for name, values in sweep["columns"].items() if name not in dropped}
    return {**sweep, "columns": columns, "metrics": sweep["metrics"][:most]}


def _json(content: Mapping[str, Any]) -> str:
    """JSON that no text in it can lead out of its block."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
