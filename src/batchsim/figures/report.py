"""One self-contained HTML page per folder of results: figures, how to read them, and their tables."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

import pandas as pd

from batchsim.errors import BatchsimError, ConfigError
from batchsim.figures.plots import find_plot
from batchsim.figures.results import SweepResults, outside_range, read_sweep, sweep_folders
from batchsim.files import reason, write_whole
from batchsim.files.tables import read_csv_text

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
not how fast the policy is; transient where it was too short to tell.</p>
{warnings}
<ul>
{contents}
</ul>
{sections}
</body>
</html>
"""

_SECTION = """<section id="{name}">
<h2>{title}</h2>
{figure}
<details><summary>The numbers ({shown})</summary><div class="table">
{table}
</div></details>
</section>"""

_FIGURE = """<img alt="{title}" src="data:image/png;base64,{png}">
<p>{caption}</p>"""

_FAULT = """<section id="{name}">
<h2>{name}</h2>
<p>Not drawn: {sentence}</p>
</section>"""


def write_report(results_dir: str | Path) -> Path:
    """Write ``figures.html`` from the figures that `draw_figures` left in the folder, and return its path.

    A sweep whose results are damaged, or whose figure was not drawn, has a sentence in place of it.

    Raises
    ------
    ConfigError
        If there are no results.
    """
    contents, sections, outside = [], [], []
    for folder in sweep_folders(results_dir):
        name = html.escape(folder.resolve().name)
        try:
            results = read_sweep(folder)
            title, section = html.escape(_title(results)), _section(results, name)
            if said := outside_range(results.runs):
                outside.append(f"<p><strong>{title}: {html.escape(said)}.</strong></p>")
        except BatchsimError as fault:
            title, section = name, _FAULT.format(name=name, sentence=html.escape(str(fault)))
        contents.append(f'<li><a href="#{name}">{title}</a></li>')
        sections.append(section)
    file = Path(results_dir) / "figures.html"
    page = _PAGE.format(
        title="Batching policies compared",
        warnings="\n".join(outside),
        contents="\n".join(contents),
        sections="\n".join(sections),
    )
    write_whole(file, page)
    return file


def _section(results: SweepResults, name: str) -> str:
    title, plot = html.escape(_title(results)), find_plot(results)
    if plot is None:
        figure, file, table = "", results.file, results.runs
    else:
        file = results.folder / f"{results.sweep.name}.csv"
        png, table = _read_drawn(file)
        figure = _FIGURE.format(title=title, png=png, caption=html.escape(f"{_note(results)}{plot.caption}"))
    shown = (
        f"{len(table)} rows" if len(table) <= _MOST_ROWS else f"the first {_MOST_ROWS} of {len(table):,} rows"
    )
    return _SECTION.format(
        name=name,
        title=title,
        figure=figure,
        shown=f"{shown}; all are in {name}/{file.name}",
        table=table.head(_MOST_ROWS).to_html(index=False, border=0, na_rep="", float_format=_number),
    )


def _read_drawn(file: Path) -> tuple[str, pd.DataFrame]:
    """The picture of a figure, as text, and its table."""
    try:
        png = file.with_suffix(".png").read_bytes()
        return base64.b64encode(png).decode("ascii"), read_csv_text(file)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{getattr(error, 'filename', None) or file}: cannot be read ({reason(error)}); "
            "`batchsim figures` draws it"
        ) from error


def _note(results: SweepResults) -> str:
    return f"Not all: {results.share}. " if results.share else ""


def _title(results: SweepResults) -> str:
    return results.sweep.title or results.sweep.name


def _number(value: Any) -> str:
    return f"{value:.4g}"
