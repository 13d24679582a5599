"""One self-contained HTML page per folder of results: figures, how to read them, and their tables."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

import pandas as pd

from batchsim.errors import ConfigError
from batchsim.figures.plots import find_plot
from batchsim.figures.results import SweepResults, read_sweeps
from batchsim.files import write_whole

_MOST_ROWS = 100

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; }}
body {{ margin: 2rem auto; padding: 0 1rem; }}
img {{ max-width: 100%; }}
p {{ max-width: 46rem; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.8rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>Simulated by batchsim, not measured on a cluster. Below each figure stands which workload and latency model
its numbers hold for; <em>synthetic</em> and <em>derived</em> mean that nothing was measured. Times are in
seconds. A run is called saturated where its queue kept growing: its latency then says how long the trace is,
not how fast the policy is.</p>
<ul>
{contents}
</ul>
{sections}
</body>
</html>
"""

_SECTION = """<section id="{name}">
<h2>{title}</h2>
<img alt="{title}" src="data:image/png;base64,{png}">
<p>{caption}</p>
<details><summary>The numbers ({shown})</summary><div class="table">
{table}
</div></details>
</section>"""


def write_report(results_dir: str | Path) -> Path:
    """Write ``report.html`` from the figures that `draw_figures` left in the folder, and return its path.

    Raises
    ------
    ConfigError
        If there are no results, or a figure was not drawn.
    """
    sweeps = read_sweeps(results_dir)
    contents = "\n".join(
        f'<li><a href="#{results.sweep.name}">{html.escape(_title(results))}</a></li>' for results in sweeps
    )
    sections = "\n".join(map(_section, sweeps))
    file = Path(results_dir) / "report.html"
    write_whole(file, _PAGE.format(title="Batching policies compared", contents=contents, sections=sections))
    return file


def _section(results: SweepResults) -> str:
    name = results.sweep.name
    try:
        png = (results.folder / f"{name}.png").read_bytes()
        table = pd.read_csv(results.folder / f"{name}.csv")
    except OSError as error:
        raise ConfigError(f"{error.filename}: not there; `batchsim figures` draws it") from error
    shown = (
        f"{len(table)} rows" if len(table) <= _MOST_ROWS else f"the first {_MOST_ROWS} of {len(table):,} rows"
    )
    return _SECTION.format(
        name=name,
        title=html.escape(_title(results)),
        png=base64.b64encode(png).decode("ascii"),
        caption=html.escape(f"{_note(results)}{find_plot(results).caption}"),
        shown=f"{shown}; all are in {name}/{name}.csv",
        table=table.head(_MOST_ROWS).to_html(index=False, border=0, na_rep="", float_format=_number),
    )


def _note(results: SweepResults) -> str:
    return f"Not all: {results.share}. " if results.share else ""


def _title(results: SweepResults) -> str:
    return results.sweep.title or results.sweep.name


def _number(value: Any) -> str:
    return f"{value:.4g}"
