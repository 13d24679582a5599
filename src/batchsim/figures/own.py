"""Figures that a sweep file describes itself: lines, distributions, heat maps, and runs over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from batchsim.config.figure import Cdf, Heatmap, Lines, OverTime, OwnFigure
from batchsim.figures.axes import label_of, set_axis
from batchsim.figures.findings import Finding, contrast, no_finding, within_slo
from batchsim.figures.needs import Need, has_controller, measured, readable, varied
from batchsim.figures.results import SweepResults, averages
from batchsim.figures.schedulers import Drawing, Panel, over, panels_of
from batchsim.figures.style import SMALLEST, legend_handles, looks_of
from batchsim.metrics.statistics import t_intervals
from batchsim.results import particulars
from batchsim.results.sketches import PROBABILITIES

#: Points of a line in a distribution or over time: more than a page can show.
_MOST_POINTS = 500


def needs_of(spec: OwnFigure) -> Sequence[Need]:
    """What it needs of a sweep."""
    match spec:
        case Lines():
            return varied(spec.x, spec.hue), measured(*spec.y), readable(spec.hue, spec.x)
        case Heatmap():
            return varied(spec.x, spec.y), measured(spec.value), readable(spec.y, spec.x)
        case Cdf():
            return varied(spec.hue), readable(spec.hue)
        case OverTime():
            of_controllers = () if {"waiting", "running"} & set(spec.y) else (has_controller,)
            return varied(spec.hue), *of_controllers, readable(spec.hue)


def draw_own(spec: OwnFigure, results: SweepResults) -> Drawing:
    """Draw what a sweep file describes."""
    match spec:
        case Lines():
            return _lines(spec, _named(results, spec.hue))
        case Cdf():
            return _cdf(spec, _named(results, spec.hue))
        case Heatmap():
            return _heatmap(spec, _named(results, spec.x, spec.y))
        case OverTime():
            return _over_time(spec, _named(results, spec.hue))


def caption_of(spec: OwnFigure) -> str:
    """How to read it."""
    match spec:
        case Lines():
            return f"{_list(spec.y)} over {spec.x}, a line for each {spec.hue}, averaged over seeds."
        case Cdf():
            return (
                f"Share of the finished requests, after the warm-up, whose {_list(spec.x)} is at most so "
                f"long; a line for each {spec.hue} and seed, or the mean of replications with its interval."
            )
        case Heatmap():
            return f"{spec.value} over {spec.x} and {spec.y}. {', '.join(_MARKS)}."
        case OverTime():
            return (
                f"{_list(spec.y)} over the time of the run, a line for each {spec.hue} and seed, "
                "or the mean of replications with its interval. Waiting: "
                "arrived and not yet scheduled for the first time; running: scheduled and not finished."
            )


def _named(results: SweepResults, *settings: str) -> SweepResults:
    """Give what leaves one of these settings open, as one case of several may, a place to stand."""
    results.need(*settings)
    runs = results.runs
    named = {
        key: runs[key].astype(object).where(runs[key].notna(), "not set")
        for key in settings
        if runs[key].isna().any()
    }
    return replace(results, runs=runs.assign(**named)) if named else results


def _lines(spec: Lines, results: SweepResults) -> Drawing:
    if not pd.api.types.is_numeric_dtype(results.runs[spec.x]):
        results = _named(results, spec.x)
    has_steps = results.runs[spec.x].nunique() <= 8
    finding: Finding = contrast(spec.hue, spec.y[0], spec.x)
    if not pd.api.types.is_numeric_dtype(results.runs[spec.x]):
        finding = no_finding
    elif "slo_attainment" in spec.y and "rate" in spec.x:
        finding = within_slo(spec.hue, spec.x)
    return over(results, spec.x, spec.y, by=spec.hue, has_steps=has_steps, finding=finding)


def _heatmap(spec: Heatmap, results: SweepResults) -> Drawing:
    results.having([spec.value])
    facets = results.facets(spec.x, spec.y)
    table = averages(results, [*facets, spec.y, spec.x], [spec.value])
    without_bars = table.drop(columns=f"{spec.value}_ci95")
    marks = {_mark(row) for _, row in table.iterrows()}
    handles = [Line2D([], [], lw=0, label=label) for label in _MARKS if label[0] in marks]
    figure, panels = panels_of(results, without_bars, facets, [spec.value], handles=handles)
    for part, value, axes in panels:
        part = part.assign(words=[f"{row[value]:.3g}{_mark(row)}" for _, row in part.iterrows()])
        cells, words = (
            part.pivot_table(name, spec.y, spec.x, aggfunc="first", sort=False, dropna=False).iloc[::-1]
            for name in (value, "words")
        )
        sns.heatmap(
            cells, annot=words, fmt="", cmap="viridis", ax=axes, annot_kws={"size": SMALLEST},
            cbar_kws={"label": label_of(value)},
        )  # fmt: skip
        axes.set(xlabel=label_of(spec.x), ylabel=label_of(spec.y))
        axes.tick_params(axis="y", labelrotation=0)
    return figure, table


_MARKS = ("* saturated", "~ too short to tell")


def _mark(point: pd.Series[Any]) -> str:
    return "*" if point["num_saturated"] else "~" if point["num_transient"] else ""


def _cdf(spec: Cdf, results: SweepResults) -> Drawing:
    quantiles = {name: results.quantiles(name) for name in spec.x}

    def distributions(run: Mapping[Any, Any]) -> Mapping[str, pd.DataFrame]:
        of_run = {name: of_runs.get(str(run["run_id"])) for name, of_runs in quantiles.items()}
        return {
            name: pd.DataFrame({"at": values, "value": PROBABILITIES})
            for name, values in of_run.items()
            if values is not None
        }

    figure, table, panels = _by_run(results, spec.hue, spec.x, distributions, before=0.0)
    for part, name, axes in panels:
        axes.set(ylim=(0, 1.02), ylabel="Requests")
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        seconds = part.loc[part["what"] == name, "at"]
        is_wide = seconds.min() > 0 and seconds.max() > 50 * seconds.min()
        set_axis(axes, "x", name, scale="log" if is_wide else "linear")
    return figure, table


def _over_time(spec: OverTime, results: SweepResults) -> Drawing:
    def courses(run: Mapping[Any, Any]) -> Mapping[str, pd.DataFrame]:
        return {name: _course(results, name, str(run["run_id"])) for name in spec.y}

    figure, table, panels = _by_run(results, spec.hue, spec.y, courses, before=math.nan)
    for _, name, axes in panels:
        axes.set(xlabel="Time (s)", ylabel=COURSES[name].label, ylim=(0, None))
    return figure, table


class _Course(NamedTuple):
    """What is drawn over time: a column of what is kept of a run."""

    label: str
    what: str
    at: str
    value: str


#: What can be drawn over time.
COURSES: Mapping[str, _Course] = {
    "waiting": _Course("Waiting requests", particulars.COURSES, "at_s", "waiting"),
    "running": _Course("Running requests", particulars.COURSES, "at_s", "running"),
    "allowed": _Course("Allowed by the\ncontroller", particulars.DECISIONS, "time_s", "batch_size"),
    "measured_s": _Course("Measured by the\ncontroller (s)", particulars.DECISIONS, "time_s", "measured"),
}


def _course(results: SweepResults, name: str, run_id: str) -> pd.DataFrame:
    course = COURSES[name]
    kept = results.kept(course.what, run_id)
    return pd.DataFrame({"at": kept[course.at], "value": kept[course.value]})


def _by_run(
    results: SweepResults,
    hue: str,
    names: Sequence[str],
    lines_of: Callable[[Mapping[Any, Any]], Mapping[str, pd.DataFrame]],
    *,
    before: float,
) -> tuple[Figure, pd.DataFrame, list[Panel]]:
    """Draw a line per run in a panel for each name; the table has the points, with what varies in front.

    Replications have one line, their mean, and a band. ``before`` is the value up to a line's first point.
    """
    facets = results.facets(hue)
    front = list(dict.fromkeys([*facets, hue, "seed", "run_id"]))
    parts = []
    for run in results.runs.to_dict("records"):
        lines = lines_of(run)
        same_run = {key: run[key] for key in front}
        parts += [points.assign(what=name, **same_run) for name, points in lines.items()]
    if not parts:
        results.there_are(names, [])
    table = pd.concat(parts, ignore_index=True)[[*front, "what", "at", "value"]]
    if is_replicated := "replication" in results.runs:
        table = _means(table, [*facets, hue, "what"], before)
    there = results.there_are(names, [name for name in names if (table["what"] == name).any()])
    looks = {name: look._replace(marker="") for name, look in looks_of(results.runs, hue).items()}
    figure, panels = panels_of(
        results, table, facets, there, handles=legend_handles(looks, results.runs, {}, has_markers=False)
    )
    for part, name, axes in panels:
        drawn = part[part["what"] == name].groupby([hue] if is_replicated else [hue, "run_id"], sort=False)
        for (value, *_), line in drawn:
            look = looks[str(value)]
            if is_replicated:
                low = (line["value"] - line["value_ci95"]).clip(lower=0)  # counts, sizes, seconds and shares
                high = line["value"] + line["value_ci95"]
                axes.fill_between(line["at"], low, high, step="post", color=look.color, alpha=0.2, lw=0)
            axes.step(
                line["at"],
                line["value"],
                where="post",
                color=look.color,
                ls=look.dashes,
                lw=look.line_width / 1.4,
            )
    return figure, table, panels


def _means(table: pd.DataFrame, by: Sequence[str], before: float) -> pd.DataFrame:
    """Average lines of steps that differ in the seed alone, at evenly many of all their points."""
    parts = []
    for values, part in table.groupby(list(by), sort=False, dropna=False):
        steps = [run.sort_values("at", kind="stable") for _, run in part.groupby("run_id", sort=False)]
        points = np.unique(part["at"])
        at = points[np.linspace(0, len(points) - 1, min(len(points), _MOST_POINTS)).astype(np.intp)]
        lines = [
            np.append(before, run["value"])[np.searchsorted(run["at"], at, side="right")] for run in steps
        ]
        mean, half_width = t_intervals(np.array(lines).T)
        told = {"at": at, "value": mean, "value_ci95": half_width, "num_runs": len(steps)}
        parts.append(pd.DataFrame({**dict(zip(by, values, strict=True)), **told}))
    return pd.concat(parts, ignore_index=True).dropna(subset=["value"])


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
