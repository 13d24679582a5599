"""One look for all figures: a colour per policy, words and units on the axes, conditions below."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Literal, NamedTuple

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    AutoLocator,
    FixedLocator,
    FuncFormatter,
    Locator,
    LogLocator,
    NullLocator,
    PercentFormatter,
)

from batchsim.config import flat
from batchsim.figures.results import SweepResults

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

# Inches of a figure above and below its panels.
_TITLE, _LEGEND, _FOOT = 0.4, 0.35, 0.55


class Quantity(NamedTuple):
    """How a column of the results is drawn."""

    label: str
    scale: str = "linear"  # or "log", or "share": 0 to 100 %


QUANTITIES = {
    "e2e_mean_s": Quantity("E2E mean (s)", "log"),
    "e2e_p99_s": Quantity("E2E P99 (s)", "log"),
    "slo_attainment": Quantity("SLO attainment", "share"),
    "whole_run_request_throughput_per_s": Quantity("Throughput (1/s)"),
    "throughput_per_gpu_per_s": Quantity("Throughput (1/s per GPU)"),
    "busy_fraction": Quantity("GPU busy fraction", "share"),
    "batch_size_mean": Quantity("Mean batch size (requests)", "log"),
    "padding_waste_output": Quantity("Padding (share of output slots)", "share"),
    "workload.request_rate_per_gpu": Quantity("Request rate (1/s per GPU)"),
    "workload.load": Quantity("Load (share of what the baseline serves)"),
    "cluster.num_gpus": Quantity("GPUs", "log"),
    "policy.num_bins": Quantity("Bins", "log"),
    "bin_accuracy": Quantity("Requests in the right bin", "share"),
    "normalized_latency_mean_s": Quantity("E2E / output tokens, mean (s)", "log"),
    "ttft_mean_s": Quantity("TTFT mean (s)", "log"),
    "ttft_p99_s": Quantity("TTFT P99 (s)", "log"),
    "itl_mean_s": Quantity("ITL mean (s)"),
    "itl_p99_s": Quantity("ITL P99 (s)", "log"),
    "worst_gap_p99_s": Quantity("Longest gap of a request, P99 (s)", "log"),
    "slo_attainment_tpot": Quantity("Requests within the TPOT limit", "share"),
    "whole_run_output_throughput_tokens_per_s": Quantity("Output tokens (1/s)"),
    "preemptions_per_request": Quantity("Preemptions per request"),
    "recomputed_share": Quantity("Recomputed (share of all tokens)", "share"),
    "prefix_hit_rate": Quantity("Prompt tokens found in cache", "share"),
    "running_mean": Quantity("Running sequences, mean"),
    "workload.request_rate": Quantity("Request rate (1/s)"),
    "policy.batch_size": Quantity("Limit on running sequences", "log"),
    "policy.batching.max_num_batched_tokens": Quantity("Tokens per iteration, at most", "log"),
    "engine.num_kv_blocks": Quantity("KV blocks", "log"),
}

_FACET_WORDS = {
    "workload.request_rate_per_gpu": "{} requests/s per GPU",
    "workload.load": "load {}",
    "workload.num_requests": "{} requests",
    "workload.num_requests_per_gpu": "{} requests per GPU",
    "cluster.num_gpus": "{} GPUs",
    "policy.num_bins": "{} bins",
    "policy.batch_size": "batch size {}",
}


class Look(NamedTuple):
    """How a line is drawn."""

    color: Any
    marker: str
    dashes: str = "-"


def looks_of(runs: pd.DataFrame, by: Literal["policy", "case"]) -> dict[str, Look]:
    """Give each policy the look it has in every figure, and cases not named like one a look by their order.

    Where both worlds meet in one figure, policies whose batches run to completion have dashed lines.
    """
    names = [str(name) for name in runs[by].unique()]
    own = {name: _index_of(name) for name in names if by == "policy" or name in _KNOWN_POLICIES}
    free = (index for index in count() if index not in own.values())
    indices = {name: own[name] if name in own else next(free) for name in names}
    looks = {
        name: Look(PALETTE[index % len(PALETTE)], _MARKERS[index % len(_MARKERS)])
        for name, index in indices.items()
    }
    if {"num_batches", "iterations_total"} <= set(runs):
        for name in runs.loc[runs["num_batches"].notna(), by].unique():
            looks[name] = looks[name]._replace(dashes="--")
    return looks


def color_of(policy: str) -> Any:
    """The colour a policy has in every figure."""
    return PALETTE[_index_of(policy) % len(PALETTE)]


def marker_of(policy: str) -> str:
    """The marker a policy has in every figure."""
    return _MARKERS[_index_of(policy) % len(_MARKERS)]


@contextmanager
def look() -> Iterator[None]:
    """Draw inside this block."""
    with (
        sns.axes_style("whitegrid", {"grid.color": ".92", "axes.edgecolor": ".4"}),
        sns.plotting_context("notebook", font_scale=0.8),
    ):
        yield


def canvas(
    results: SweepResults, num_rows: int, num_columns: int, *, has_legend: bool = True
) -> tuple[Figure, list[list[Axes]]]:
    """Make empty panels below a title and room for a legend, and above what the numbers hold for."""
    head = _TITLE + (_LEGEND if has_legend else 0)
    width, height = max(7.5, 3.7 * num_columns), 2.8 * num_rows + head + _FOOT
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", rect=(0, _FOOT / height, 1, 1 - (head + _FOOT) / height))
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    title = results.sweep.title or results.sweep.name
    figure.text(0.1 / width, 1 - 0.1 / height, title, va="top", fontweight="bold", fontsize=12)
    footer = textwrap.fill(conditions(results), int(15 * width))
    figure.text(0.1 / width, 0.08 / height, footer, va="bottom", fontsize=7.5, color=".35")
    return figure, axes.tolist()


def conditions(results: SweepResults) -> str:
    """Say what the numbers of a sweep hold for."""
    runs = results.runs
    limits = {
        key[4:-3].upper(): limit for key, limit in flat(results.sweep.base).items() if key.startswith("slo.")
    }
    num_seeds = runs["seed"].nunique()
    if num_seeds > 1:
        intervals = f"95 % over {num_seeds} seeds"
    else:
        intervals = "95 %, for the E2E mean alone, from batch means of the one run"
    return (
        f"Workload: {_each(runs['workload'])} ({_each(runs['workload_kind'])}), "
        f"{_each(runs['num_requests'])} requests a run, on {_each(runs['num_gpus'])} GPU(s). "
        f"Latency model: {_each(runs['latency_model'])} ({_each(runs['latency_provenance'])}). "
        f"SLO: {', '.join(f'{name} {limit / 1000:g} s' for name, limit in limits.items()) or 'none'}. "
        f"Output lengths from: {_each(runs['predictor'])}. Intervals: {intervals}."
    )


def _each(column: pd.Series[Any]) -> str:
    """All values of a column, or the first and last of many."""
    values = [
        f"{value:,}" if isinstance(value, int) else str(value) for value in column.drop_duplicates().tolist()
    ]
    return ", ".join(values) if len(values) <= 4 else f"{values[0]} to {values[-1]} ({len(values)} values)"


def facet_title(keys: Sequence[str], values: Sequence[Any]) -> str:
    """Say which settings a row of panels is for."""
    return ", ".join(
        _FACET_WORDS.get(key, f"{key} {{}}").format(
            f"{value:,g}" if isinstance(value, int | float) else value
        )
        for key, value in zip(keys, values, strict=True)
    )


def set_axis(
    axes: Axes,
    which: Literal["x", "y"],
    column: str,
    steps: pd.Series[Any] | None = None,
    scale: str | None = None,
) -> None:
    """Label and scale an axis, as its quantity is if not told; one with ``steps`` has its ticks there."""
    quantity = QUANTITIES[column]
    scale = scale or quantity.scale
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_label_text(quantity.label)
    if scale == "share":
        axes.set(**{f"{which}lim": (-0.04, 1.04)})
        axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    elif scale == "log":
        axes.set(**{f"{which}scale": "log"})
        axis.set_major_locator(
            _log_locator(axes, which) if steps is None else FixedLocator(sorted(steps.unique()))
        )
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    else:
        most = axes.dataLim.xmax if which == "x" else axes.dataLim.ymax
        axes.set(**{f"{which}lim": (0, 1.08 * most or 1)})


def _log_locator(axes: Axes, which: Literal["x", "y"]) -> Locator:
    least, most = axes.dataLim.intervalx if which == "x" else axes.dataLim.intervaly
    # Within a decade, 1, 2 and 5 may leave an axis with a single tick.
    return LogLocator(subs=(1, 2, 5)) if most > 10 * least else AutoLocator()


def draw_line(axes: Axes, part: pd.DataFrame, x: str, y: str, look: Look) -> None:
    """Draw the points of one policy or case, joined in order, with intervals; saturated points are hollow."""
    axes.plot(part[x], part[y], color=look.color, ls=look.dashes, lw=1.4)
    has_interval = part[f"{y}_ci95"].notna()
    axes.errorbar(
        part[x][has_interval],
        part[y][has_interval],
        part[f"{y}_ci95"][has_interval],
        color=look.color,
        fmt="none",
        lw=1,
        capsize=2,
    )
    for is_saturated, points in part.groupby(part["num_saturated"] > 0):
        axes.scatter(
            points[x],
            points[y],
            s=26,
            marker=look.marker,
            edgecolor=look.color,
            color="white" if is_saturated else look.color,
            zorder=3,
        )


def add_legend(figure: Figure, looks: Mapping[str, Look], *, saturated: bool) -> None:
    """Name the lines below the title, and say what dashes and hollow markers mean where there are any."""
    handles = [
        Line2D([], [], color=look.color, marker=look.marker, ls=look.dashes, markersize=5, lw=1.4, label=name)
        for name, look in looks.items()
    ]
    if any(look.dashes != "-" for look in looks.values()):
        handles.append(Line2D([], [], color=".3", ls="--", lw=1.4, label="dashed: runs to completion"))
    if saturated:
        hollow: dict[str, Any] = {
            "color": ".3",
            "marker": "o",
            "markerfacecolor": "white",
            "markersize": 5,
            "lw": 0,
        }
        handles.append(Line2D([], [], label="hollow: saturated", **hollow))
    top = 1 - (_TITLE - 0.07) / figure.get_figheight()
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, top), ncols=len(handles), frameon=False
    )


def _index_of(policy: str) -> int:
    if policy in _KNOWN_POLICIES:
        return _KNOWN_POLICIES.index(policy)
    return len(_KNOWN_POLICIES) + sum(policy.encode())
