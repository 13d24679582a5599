"""What a search for the cheapest configuration saw: cost against attainment, throughput against speed."""

from __future__ import annotations

import hashlib
import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from batchsim.figures.results import blamed_on
from batchsim.figures.save import render, sidecar_text, versions
from batchsim.figures.style import WIDTHS, Look, look, looks_of
from batchsim.files import read_json, write_whole
from batchsim.files.tables import read_csv_text
from batchsim.study.recommend import CANDIDATES, RECOMMENDATION

PARETO = "pareto"
_CAPTION = (
    "What a search for the cheapest configuration saw. Each point is a configuration that was run: filled "
    "where it attains or seems to, hollow where it misses, with a ring around the one that is recommended; a "
    "grey line joins those that no other beats in both respects. {}: cost against the share of {}, as it "
    "would be on the replications of the recommended one, with 95 % intervals of the difference from it "
    "(Student's t). {}: output tokens per second of a GPU against those of a request, on the "
    "replications that all had."
)
#: Where the two panels stand, by width.
_PLACES = {"one": ("Above", "Below"), "two": ("Left", "Right")}

# Inches of the panels, of a line of the legend and of the title, and of an edge; letters of a title per inch.
_PANELS, _LEGEND, _TITLE, _EDGE, _LETTERS = 2.4, 0.17, 0.17, 0.07, 12.5
#: Inches that a name in the legend takes.
_NAME = 2.2


class _Panel(NamedTuple):
    """Columns that are drawn, which rows no other beats in both, and how those are joined."""

    x: str
    y: str
    is_on_front: str
    drawstyle: str


def draw_fronts(folder: str | Path, width: str = "two") -> list[Path]:
    """Draw the Pareto fronts of a search from the files in its folder; return the figure's files.

    These are ``pareto.pdf``, ``.png`` and ``.figure.json``: its caption, and the commands that draw it and
    that searched.

    Raises
    ------
    ConfigError
        If what the search left cannot be read.
    """
    folder = Path(folder)
    file = folder / CANDIDATES
    told = read_json(folder / RECOMMENDATION)
    with blamed_on(file, "drawn"), look(width):
        figure = plot_fronts(read_csv_text(file), told["share"], told["wanted"])
        contents = {f"{PARETO}.{kind}": content for kind, content in render(figure).items()}
        described = _described(folder, told, figure, width)
    contents[f"{PARETO}.figure.json"] = sidecar_text(described, contents)
    for name, content in contents.items():
        write_whole(folder / name, content)
    return [folder / name for name in contents]


def _described(folder: Path, told: Mapping[str, Any], figure: Figure, width: str) -> dict[str, Any]:
    """What is in the figure and how it was made, as `save.sidecar`."""
    conditions = [
        f"Wanted: {told['wanted']}, {100 * told['confidence']:.4g} % sure.",
        f"{told['num_candidates']:,} configurations, {told['num_simulations']:,} replications of "
        f"{told['num_requests']:,} requests.",
        *(f"{one[0].upper()}{one[1:]}." for one in told["stands_on"]),
    ]
    counted = "good requests (dotted: what is wanted)"
    if told["share"] is None:
        counted = "requests within the limit that is the tightest"
    first, second = _PLACES[width]
    return {
        "name": PARETO,
        "title": figure.texts[0].get_text().replace("\n", " "),
        "caption": " ".join([_CAPTION.format(first, counted, second), *conditions]),
        "command": shlex.join(["batchsim", "figures", str(folder), PARETO, "--width", width]),
        "searched_with": told["command"],
        "width_inches": WIDTHS[width],
        "height_inches": round(float(figure.get_figheight()), 4),
        "drawn_from": f"{CANDIDATES} and {RECOMMENDATION}",
        "versions": versions(),
        "sha256": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in (CANDIDATES, RECOMMENDATION)
        },
    }


def plot_fronts(table: pd.DataFrame, share: float | None, wanted: str) -> Figure:
    """Draw both Pareto fronts of a table as `Recommendation.table` makes it.

    A point is a configuration that was run: filled where it attains or seems to, hollow where it misses, with
    a ring around the one that is recommended. A grey line joins those that no other beats in both. Shares are
    of good requests, of which there are to be ``share``; without it, of those within a limited statistic.
    """
    series = table["policy"] + (" on " + table["gpu"] if "gpu" in table else "")
    ran = table.assign(series=series)[table["num_replications"] > 0]
    looks = looks_of(ran, "series")
    handles = [_handle(name, look) for name, look in looks.items()]
    handles.append(Line2D([], [], color=".55", lw=1.5, label="Pareto front"))
    width = mpl.rcParams["figure.figsize"][0]
    columns = max(1, int(width / _NAME))
    counted = "good" if share is not None else "within the limit"
    title = textwrap.wrap(_finding(table, counted), int(_LETTERS * width))
    subtitle = textwrap.wrap(
        f"Wanted: {wanted}. Hollow: misses. Bars: 95 % intervals, paired.", int(17 * width)
    )
    top_of_legend = _EDGE + _TITLE * len(title) + _LEGEND * len(subtitle) + 0.03
    head = top_of_legend + _LEGEND * -(-len(handles) // columns) + _EDGE
    is_narrow = width < WIDTHS["two"]
    height = head + (2 if is_narrow else 1) * _PANELS
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - head / height))
    cost, speed = figure.subplots(2, 1) if is_narrow else figure.subplots(1, 2)
    _draw(cost, ran, _Panel("usd_per_hour", "attained_alike", "on_cost_front", "steps-post"), looks)
    if share is not None:
        cost.axhline(share, color=".3", ls=":", lw=1)
    cost.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    cost.set(xlabel="Cost (USD/hour)", ylabel=f"Requests {counted}", ylim=(-0.04, 1.04))
    _draw(speed, ran, _Panel("tokens_per_user_s", "tokens_per_gpu_s", "on_speed_front", "default"), looks)
    speed.set(xlabel="Output tokens/s of a request", ylabel="Output tokens/s of a GPU")
    for axes in (cost, speed):
        axes.set_xlim(0, 1.06 * max(axes.dataLim.x1, 1e-9))
    speed.set_ylim(0, 1.1 * max(speed.dataLim.y1, 1e-9))
    left, top = _EDGE / width, 1 - _EDGE / height
    figure.text(left, top, "\n".join(title), va="top", fontweight="bold", fontsize=9)
    below = top - _TITLE * len(title) / height
    figure.text(left, below, "\n".join(subtitle), va="top", color=".35")
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(left, 1 - top_of_legend / height), ncols=columns,
        frameon=False, borderaxespad=0, borderpad=0, columnspacing=1.2,
    )  # fmt: skip
    return figure


def _draw(axes: Axes, ran: pd.DataFrame, panel: _Panel, looks: Mapping[str, Look]) -> None:
    front = ran[ran[panel.is_on_front]].sort_values([panel.x, panel.y]).drop_duplicates([panel.x, panel.y])
    axes.plot(front[panel.x], front[panel.y], color=".55", lw=1.5, zorder=1, drawstyle=panel.drawstyle)
    for name, part in ran.groupby("series", sort=False):
        look = looks[str(name)]
        if panel.y == "attained_alike":
            low, high = _ends(part)
            axes.vlines(part[panel.x], low, high, color=look.color, lw=0.8, alpha=0.6)
        seems = part["margin"] >= 0
        for rows, face in ((part[seems], look.color), (part[~seems], "white")):
            axes.plot(
                rows[panel.x], rows[panel.y], ls="", marker=look.marker, ms=look.marker_size, mew=0.9,
                color=look.color, markerfacecolor=face,
            )  # fmt: skip
    best = ran[ran["verdict"] == "best"]
    axes.plot(
        best[panel.x], best[panel.y], ls="", marker="o", ms=11, mew=1.4, color="k", mfc="none", zorder=4
    )


def _ends(part: pd.DataFrame) -> tuple[pd.Series[float], pd.Series[float]]:
    """Ends of the interval of the difference from the best, where there is one, else of the share itself."""
    reach, attained = part["attained_less_best_ci95"], part["attained_alike"]
    low = (attained - reach).fillna(part["attained_ci95_low"])
    high = (attained + reach).fillna(part["attained_ci95_high"])
    return low.clip(0, 1), high.clip(0, 1)


def _handle(name: str, look: Look) -> Line2D:
    return Line2D([], [], ls="", marker=look.marker, ms=look.marker_size, color=look.color, label=name)


def _finding(table: pd.DataFrame, counted: str) -> str:
    best = table[table["verdict"] == "best"]
    if best.empty:
        return "No configuration is sure to attain the SLO"
    row = best.iloc[0]
    return (
        f"{row['name']} is the cheapest that attains: {row['usd_per_hour']:,.2f} USD/hour, "
        f"{row['attained']:.1%} {counted}"
    )
