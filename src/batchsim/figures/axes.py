"""Words, units and scales of axes, one for each column of the results wherever it is drawn."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import (
    AutoLocator,
    FixedLocator,
    FuncFormatter,
    Locator,
    LogLocator,
    NullLocator,
    PercentFormatter,
)

_HIGHEST = 20  # letters of a label beside a panel
_MANY = 100  # ticks: matplotlib leaves out all but decades, and then those, where it wants fewer


class Quantity(NamedTuple):
    """How a column of the results is drawn."""

    label: str
    scale: str = "linear"  # or "log"; "share": 0 to 100 %; "part": per cent from 0 up to what there is


QUANTITIES = {
    "e2e_mean_s": Quantity("E2E mean (s)", "log"),
    "e2e_p99_s": Quantity("E2E P99 (s)", "log"),
    "slo_attainment": Quantity("SLO attainment", "share"),
    "worst_tenant_slo_attainment": Quantity("SLO attainment, worst tenant", "share"),
    "jain_index": Quantity("Jain's index of tenants' service"),
    "whole_run_request_throughput_per_s": Quantity("Throughput, whole run (1/s)"),
    "output_tokens_per_gpu_per_s": Quantity("Output tokens (1/s per GPU)"),
    "throughput_per_gpu_per_s": Quantity("Throughput (1/s per GPU)"),
    "usd_per_million_output_tokens": Quantity("Cost (USD per million output tokens)", "log"),
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
    "whole_run_output_throughput_tokens_per_s": Quantity("Output tokens, whole run (1/s)"),
    "preemptions_per_request": Quantity("Preemptions per request"),
    "recomputed_share": Quantity("Recomputed (share of all tokens)", "part"),
    "prefix_hit_rate": Quantity("Prompt tokens found in cache", "share"),
    "running_mean": Quantity("Running sequences, mean"),
    "workload.request_rate": Quantity("Request rate (1/s)"),
    "policy.batch_size": Quantity("Limit on running sequences", "log"),
    "policy.batching.max_num_batched_tokens": Quantity("Tokens per iteration, at most", "log"),
    "engine.num_kv_blocks": Quantity("KV blocks", "log"),
    "engine.speculation.num_speculative_tokens": Quantity("Drafts of a step"),
    "engine.speculation.acceptance": Quantity("Rate at which drafts are accepted"),
    "engine.speculation.draft_ratio": Quantity("Seconds of a draft (share of a decode iteration)"),
    "tokens_per_step_mean": Quantity("Tokens of a step, mean"),
    "draft_acceptance_rate": Quantity("Drafts accepted", "share"),
    "host_gb": Quantity("Host memory for KV (GB)", "log"),
    "ttft_tier_mean_s": Quantity("TTFT, wait for copies, mean (s)"),
    "gpu_hours": Quantity("GPU hours paid for"),
    "missed": Quantity("Requests outside the limits (share)", "log"),
    "failures.time_between_s": Quantity("Time between failures (s)", "log"),
    "goodput_requests_per_s": Quantity("Goodput (requests/s)"),
    "policy.routing.view_age_s": Quantity("Age of what the router sees (s)", "log"),
    "served_share": Quantity("Served (share of what was asked for)", "share"),
}

_FACET_WORDS = {
    "workload.request_rate_per_gpu": "{} requests/s per GPU",
    "workload.request_rate": "{} requests/s",
    "workload.load": "load {}",
    "workload.num_requests": "{} requests",
    "workload.num_requests_per_gpu": "{} requests per GPU",
    "workload.generator.prompt.mean": "prompts of {} tokens",
    "cluster.num_gpus": "{} GPUs",
    "policy.num_bins": "{} bins",
    "policy.batch_size": "batch size {}",
    "policy.batching.max_num_batched_tokens": "{} tokens",
    "engine.num_kv_blocks": "{} KV blocks",
    "engine.speculation.num_speculative_tokens": "{} drafts",
    "engine.speculation.acceptance": "{} accepted",
    "host_gb": "{} GB",
    "failures.time_between_s": "{} s between failures",
    "policy.routing.view_age_s": "views {} s old",
    "policy": "{}",
    "policy.preset": "{}",
    "case": "{}",
}


def quantity(column: str) -> Quantity:
    """How a column is drawn; times of requests that are not listed by the words in their names."""
    if column in QUANTITIES:
        return QUANTITIES[column]
    if time := re.fullmatch(r"(e2e|ttft|tpot|itl|queueing)_?(mean|p\d+)?_s", column):
        what, statistic = time.groups()
        what = "Queueing" if what == "queueing" else what.upper()
        words = [what] if statistic is None else [what, statistic.replace("p", "P")]
        return Quantity(f"{' '.join(words)} (s)", "log")
    return Quantity(column, "share" if column.startswith("slo_attainment") else "linear")


def label_of(column: str) -> str:
    """What stands on an axis of this column."""
    return quantity(column).label


def facet_title(keys: Sequence[str], values: Sequence[Any]) -> str:
    """Say which settings a row of panels is for."""
    return ", ".join(_setting(key, value) for key, value in zip(keys, values, strict=True))


def _setting(key: str, value: Any) -> str:
    shown = f"{value:,g}" if isinstance(value, int | float) else str(value)
    words = _FACET_WORDS.get(key, f"{key} {{}}")
    is_one = shown == "1" and not words.endswith("/s")
    return (words.removesuffix("s") if is_one else words).format(shown)


def set_axis(
    axes: Axes,
    which: Literal["x", "y"],
    column: str,
    steps: pd.Series[Any] | None = None,
    scale: str | None = None,
) -> None:
    """Label and scale an axis, as its quantity is if not told; one with ``steps`` has its ticks there."""
    scale = scale or quantity(column).scale
    axis = axes.xaxis if which == "x" else axes.yaxis
    label = label_of(column)
    axis.set_label_text(label if which == "x" else stacked(label, _HIGHEST))
    if steps is not None and not pd.api.types.is_numeric_dtype(steps):
        return  # names: matplotlib sets them side by side
    if scale == "share":
        axes.set(**{f"{which}lim": (-0.06, 1.06)})  # with the markers at its ends
        axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    elif scale == "log":
        axes.set(**{f"{which}scale": "log"})
        axis.set_major_locator(
            _log_locator(axes, which) if steps is None else FixedLocator(sorted(steps.unique()))
        )
        unlabelled = _crowded(sorted(steps.unique())) if steps is not None else ()
        axis.set_major_formatter(FuncFormatter(lambda value, _: "" if value in unlabelled else f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    else:
        if scale == "part":
            axis.set_major_formatter(PercentFormatter(xmax=1))
        most = axes.dataLim.xmax if which == "x" else axes.dataLim.ymax
        axes.set(**{f"{which}lim": (0, 1.08 * most or 1)})


def stacked(label: str, letters: int, least: int | None = None) -> str:
    """Break a label into lines of so many letters; what is in brackets, the unit, begins a line.

    One of at most ``least`` letters, the same where it is left out, stays whole.
    """
    if len(label) <= (letters if least is None else least):
        return label
    what, bracket, unit = label.partition(" (")
    lines = textwrap.wrap(what, letters) + (textwrap.wrap(f"({unit}", letters) if bracket else [])
    return "\n".join(lines)


def _crowded(steps: Sequence[float]) -> list[float]:
    """Those whose labels would run into another, on a logarithmic axis; doublings of the first come first."""
    labelled: list[float] = [steps[0]]
    crowded: list[float] = []
    span = math.log2(steps[-1] / steps[0])
    for step in sorted(steps[1:], key=lambda step: not math.log2(step / steps[0]).is_integer()):
        apart = min(abs(math.log2(step / other)) for other in labelled)
        (labelled if apart > 0.13 * span else crowded).append(step)
    return crowded


def _log_locator(axes: Axes, which: Literal["x", "y"]) -> Locator:
    least, most = axes.dataLim.intervalx if which == "x" else axes.dataLim.intervaly
    if least <= 0:  # a bar that reaches below zero, which the axis cannot show
        least = axes.dataLim.minposx if which == "x" else axes.dataLim.minposy
    # Within a decade, 1, 2 and 5 may leave an axis with a single tick.
    if most <= 10 * least:
        return AutoLocator()
    return _Decades(which)


class _Decades(LogLocator):
    """Ticks at 1, 2 and 5 of each decade, at 1 and 3, at 1, or at some decades: as there is room for."""

    def __init__(self, which: Literal["x", "y"]) -> None:
        super().__init__(numticks=_MANY)
        self._is_high = which == "y"
        # A tick's label with what parts it from the next, in the heights of a letter.
        letter = FontProperties(size=mpl.rcParams["xtick.labelsize"]).get_size_in_points()
        self._points = (1.3 if which == "y" else 4.0) * letter

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Place them for the room that the axis has when it is drawn."""
        axis: Any = self.axis
        axes = axis.axes
        pixels = axes.bbox.height if self._is_high else axes.bbox.width
        room = max(2, int(pixels / axes.figure.dpi * 72 / self._points))
        for subs in ((1, 2, 5), (1, 3), (1,)):
            self.set_params(subs=subs)
            ticks = np.asarray(super().tick_values(vmin, vmax))
            if np.count_nonzero((ticks >= vmin) & (ticks <= vmax)) <= room:
                return ticks
        return ticks[:: -(-len(ticks) // room)]
