"""One look for all figures: a colour per policy, the finding above, what the numbers hold for below."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from batchsim.config import flat
from batchsim.figures.axes import label_of, quantity
from batchsim.figures.results import SweepResults, outside_range, reach, states

PALETTE = sns.color_palette("colorblind")
_MARKERS = "osD^vPX*"
# In an order that gives policies that share a figure colours that are easy to tell apart.
_KNOWN_POLICIES = (
    "static_fifo",
    "multi_bin",
    "dynamic_no_bins",
    "multi_bin_dynamic",
    "vllm_v1",
    "vllm_v0",
    "dynamic_batching",
    "orca",
    "multi_bin_continuous",
    "sarathi",
    "sjf",
    "vllm_v0_swap",
)

#: Inches of a figure in a paper's one column, or across two.
WIDTHS: Mapping[str, float] = {"one": 3.3, "two": 7.0}
#: Points of the smallest type, in print.
SMALLEST = 7.0

#: What `metrics.verdict` says where there is no load to sustain.
_ALL_AT_ONCE = "all requests arrive at once"
_MARKER = 0.03  # share of a panel's height that half a marker takes: a shorter bar is not seen


class Look(NamedTuple):
    """How a line is drawn."""

    color: Any
    marker: str
    dashes: str = "-"
    #: 1 for the first line, 0 for the last: it is thinner, so that no line hides another that it lies on.
    breadth: float = 0.5

    @property
    def line_width(self) -> float:
        """Points."""
        return 0.8 + 1.1 * self.breadth

    @property
    def marker_size(self) -> float:
        """Points across."""
        return 3.8 + 1.6 * self.breadth


def looks_of(runs: pd.DataFrame, by: str) -> dict[str, Look]:
    """Give each known policy the look it has in every figure, and other names one that is free, in order.

    Where both worlds meet in one figure, policies whose batches run to completion have dashed lines.
    """
    names = [str(name) for name in runs[by].unique()]
    own = {name: _index_of(name) for name in names if name in _KNOWN_POLICIES}
    free = (index for index in count() if index not in own.values())
    indices = {name: own[name] if name in own else next(free) for name in names}
    breadths = np.linspace(1, 0, len(indices)) if len(indices) > 1 else [0.5]
    looks = {
        name: Look(PALETTE[index % len(PALETTE)], _MARKERS[index % len(_MARKERS)], breadth=float(breadth))
        for (name, index), breadth in zip(indices.items(), breadths, strict=True)
    }
    if {"num_batches", "iterations_total"} <= set(runs):
        for name in map(str, runs.loc[runs["num_batches"].notna(), by].unique()):
            looks[name] = looks[name]._replace(dashes="--")
    return looks


def color_of(policy: str) -> Any:
    """The colour a policy has in every figure."""
    return PALETTE[_index_of(policy) % len(PALETTE)]


@contextmanager
def look(width: str = "two") -> Iterator[None]:
    """Draw inside this block, in a paper's type and as wide as its columns; `layout.canvas` keeps to it."""
    with (
        sns.axes_style("whitegrid", {"grid.color": ".92", "axes.edgecolor": ".4"}),
        sns.plotting_context("paper"),
        mpl.rc_context(
            {
                "font.size": 7.5,
                "axes.titlesize": 7.5,
                "axes.labelsize": 7.5,
                "legend.fontsize": 7.5,
                "xtick.labelsize": SMALLEST,
                "ytick.labelsize": SMALLEST,
                "axes.linewidth": 0.8,
                "grid.linewidth": 0.6,
                "figure.figsize": (WIDTHS[width], 3.0),
                "text.parse_math": False,  # a dollar sign in a name is one
            }
        ),
    ):
        yield


def conditions(results: SweepResults, table: pd.DataFrame) -> str:
    """Say what the numbers of a sweep hold for, and which intervals a figure shows."""
    runs = results.runs
    slo = results.limits
    gpus = "GPU" if (runs["num_gpus"] == 1).all() else "GPUs"
    limits_s = {name: limit / 1000 for name, limit in slo.told_ms.items()}
    limits_s |= {name.upper(): limit_s for name, limit_s in slo.statistics_s.items()}
    shown = ", ".join(f"{name} {limit_s:g} s" for name, limit_s in limits_s.items())
    return (
        f"Workload: {_workload(results)} ({_each(runs['workload_kind'])}){_pace(results)}, "
        f"{_each(runs['num_requests'])} requests a run, on {_each(runs['num_gpus'])} {gpus}. "
        f"Latency model: {_each(runs['latency_model'])} ({_each(runs['latency_provenance'])})"
        f"{_expected_error(runs)}. "
        f"SLO: {shown or 'none'}. "
        f"Output lengths from: {_each(runs['predictor'])}. {_window_of(runs)}{_outside(runs)}"
        f"{_intervals(table, 'replications' if 'replication' in runs else 'seeds')}"
    )


def _workload(results: SweepResults) -> str:
    """The name of a trace; a generator in words, without the rate that it was paced away from."""
    base = flat(results.sweep.base)
    kind = base.get("workload.generator.kind")
    laws = [_law(base, which) for which in ("prompt", "output")]
    if kind is None or not all(laws):
        return _each(results.runs["workload"])
    arrivals = {"poisson": "Poisson arrivals", "all_at_once": "all there at the start"}.get(kind, kind)
    return f"{arrivals}, prompts {laws[0]}, answers {laws[1]}"


def _law(base: Mapping[str, Any], which: str) -> str:
    """Lengths as "lognormal (mean 530, sigma 1) tokens"; empty where they are not of the sweep's base."""
    start = f"workload.generator.{which}."
    law = {key.removeprefix(start): value for key, value in base.items() if key.startswith(start)}
    kind = law.pop("kind", None)
    named = [f"{name.removesuffix('_tokens')} {value:,g}" for name, value in law.items()]
    shown = ", ".join(named).removeprefix("tokens ")  # of one length there is no more to say
    return "" if kind is None else f"{kind} ({shown} token{'' if shown == '1' else 's'})"


def _pace(results: SweepResults) -> str:
    """At which rates the runs were made, where these are set."""
    base = flat(results.sweep.base)
    for key, unit in (("request_rate_per_gpu", "requests/s per GPU"), ("request_rate", "requests/s")):
        name = f"workload.{key}"
        given = sorted(results.runs[name].dropna().unique()) if name in results.runs else []
        rates = given or ([base[name]] if name in base else [])
        if rates:
            span = f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"
            return f", at {span} {unit}"
    return ""


def _window_of(runs: pd.DataFrame) -> str:
    """Say what time rates and time averages are of."""
    if "window" not in runs:
        return ""
    num_whole = int((runs["window"] == "whole run").sum())
    if num_whole == 0:
        return "Rates and time averages: of the steady window. "
    if num_whole == len(runs):
        return "Rates and time averages: of the whole run. "
    return (
        f"Rates and time averages: of the steady window; of the whole run in the {num_whole} of {len(runs)} "
        "runs that are too short for one. "
    )


def _outside(runs: pd.DataFrame) -> str:
    """Say how far the runs left the range of the latency model, with a full stop and a space."""
    said = outside_range(runs)
    return f"{said}. " if said else ""


def _expected_error(runs: pd.DataFrame) -> str:
    """How far times could be off, where that is known and the same for all runs."""
    ends = runs.filter(regex="^expected_error_.*_low$")
    if ends.isna().all(axis=None) or len(runs["expected_error"].unique()) > 1:
        return ""
    return f"; {runs['expected_error'].iloc[0]}"


def _intervals(table: pd.DataFrame, several: str) -> str:
    """Say what bands and bars are drawn, and that there are none where there are none."""
    all_metrics = [name.removesuffix("_ci95") for name in map(str, table) if name.endswith("_ci95")]
    having = [metric for metric in all_metrics if table[f"{metric}_ci95"].notna().any()]
    num_runs = int(table["num_runs"].max()) if "num_runs" in table else 1
    lead = "Bands or bars" if num_runs > 1 else "Bars"
    if not any(_is_seen(table, metric) for metric in having):
        lead = "Hidden by the markers"
    if not having:
        same = f"The same for all {num_runs} {several}: no" if num_runs > 1 else "No"
        return f"{same} intervals are drawn, and none claimed."
    if num_runs > 1:
        is_same = table[[f"{metric}_ci95" for metric in all_metrics]].isna().all(axis=1).any()
        rest = f"; where a row has none, the same for all {several}" if is_same else ""
        fewest = int(table["num_runs"].min())
        over = f"{num_runs}" if fewest == num_runs else f"{fewest} to {num_runs}"
        return f"{lead}: 95 % intervals of the mean over {over} {several} (Student's t){rest}."
    named = ", ".join(label_of(metric).split(" (")[0] for metric in having)
    rest = "; the others are of one run and claim none" if len(having) < len(all_metrics) else ""
    return f"{lead}: 95 % interval of {named} within the one run{rest}."


def _is_seen(table: pd.DataFrame, metric: str) -> bool:
    """Whether some interval reaches beyond the marker in its middle."""
    values, half_widths = table[metric], table[f"{metric}_ci95"]
    ends, scale = values + half_widths.fillna(0), quantity(metric).scale
    if scale == "log" and values.min() > 0:
        lengths = np.log(ends / values) / np.log(ends.max() / values.min())
    else:
        lengths = half_widths / (1 if scale == "share" else ends.max())
    return bool((lengths > _MARKER).any())


def _each(column: pd.Series[Any]) -> str:
    """All values of a column, on one line, or of many numbers the first and last."""
    values = [
        f"{value:,}" if isinstance(value, int) else " ".join(str(value).split())
        for value in column.drop_duplicates().tolist()
    ]
    if len(values) <= (4 if pd.api.types.is_numeric_dtype(column) else 8):
        return ", ".join(values)
    return f"{values[0]} to {values[-1]} ({len(values)} values)"


def draw_line(axes: Axes, part: pd.DataFrame, x: str, y: str, look: Look) -> None:
    """Draw the points of one policy or case, joined in order, with intervals.

    Those over several runs are a band; those of one run, or of a point whose neighbours have none, are bars.
    Saturated points are hollow; those of runs too short to tell are pale.
    """
    axes.plot(part[x], part[y], color=look.color, ls=look.dashes, lw=look.line_width)
    below, above = reach(part, y)
    is_mean = above.notna() & (part["num_runs"] > 1)
    is_in_band = is_mean & (is_mean.shift(1, fill_value=False) | is_mean.shift(-1, fill_value=False))
    low, high = (part[y] - below).where(is_in_band), (part[y] + above).where(is_in_band)
    axes.fill_between(part[x], low, high, color=look.color, alpha=0.2, lw=0)
    has_bar = above.notna() & ~is_in_band
    axes.errorbar(
        part[x][has_bar],
        part[y][has_bar],
        [below[has_bar], above[has_bar]],
        color=look.color,
        fmt="none",
        lw=1,
        capsize=2,
    )
    measured = part.dropna(subset=[y])  # an axis of names takes no point that is nowhere
    faces = [_face(row, look.color) for _, row in measured.iterrows()]
    for face, points in measured.groupby(pd.Series(faces, measured.index, dtype=object)):
        axes.scatter(
            points[x],
            points[y],
            s=look.marker_size**2,
            marker=look.marker,
            edgecolor=look.color,
            lw=0.8,
            color=[face],
            zorder=3,
        )


def _face(point: pd.Series[Any], color: Any) -> Any:
    """The inside of a marker: white where any run was saturated, pale where any was too short to tell."""
    state = "saturated" if point["num_saturated"] else "transient" if point["num_transient"] else "stable"
    return face_of(state, color)


def face_of(state: str, color: Any) -> Any:
    """The inside of the marker of a run in this state."""
    faces = {"saturated": (1.0, 1.0, 1.0), "transient": tuple(0.6 + 0.4 * part for part in color)}
    return faces.get(state, tuple(color))


def legend_handles(
    looks: Mapping[str, Look], runs: pd.DataFrame, same: Mapping[str, str], *, has_markers: bool = True
) -> list[Line2D]:
    """Name the lines, those that lie on another too, and say what dashes and pale markers mean.

    ``same`` gives, for a line that another hides or would hide, the name of the first that is equal.
    """
    handles = [
        Line2D(
            [], [], color=look.color, marker=look.marker, ls=look.dashes, markersize=look.marker_size,
            lw=look.line_width, label=f"{_shown(name)} (same as {_shown(same[name])})" if name in same
            else _shown(name),
        )
        for name, look in looks.items()
    ]  # fmt: skip
    if any(look.dashes != "-" for look in looks.values()):
        handles.append(Line2D([], [], color=".3", ls="--", lw=1.4, label="dashed: runs to completion"))
    there = set(states(runs)) if has_markers else set()
    for state, label in (("saturated", "hollow: saturated"), ("transient", f"pale: {_why_pale(runs)}")):
        if state in there:
            face = face_of(state, (0.3, 0.3, 0.3))
            inside: dict[str, Any] = {"marker": "o", "markerfacecolor": face, "markersize": 4.5, "lw": 0}
            handles.append(Line2D([], [], color=".3", label=label, **inside))
    return handles


def _why_pale(runs: pd.DataFrame) -> str:
    reasons = set(runs["verdict_reason"][states(runs) == "transient"]) if "verdict_reason" in runs else set()
    return _ALL_AT_ONCE if reasons == {_ALL_AT_ONCE} else "too short to tell"


def _shown(name: str) -> str:
    """A name as a label; matplotlib leaves those out that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _index_of(policy: str) -> int:
    if policy in _KNOWN_POLICIES:
        return _KNOWN_POLICIES.index(policy)
    return len(_KNOWN_POLICIES) + sum(policy.encode())
