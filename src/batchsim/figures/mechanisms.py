"""Figures that look inside: the multi-bin theorem, what prediction errors cost, a controller at work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from batchsim.config import flat
from batchsim.figures.results import SweepResults, over_seeds
from batchsim.figures.schedulers import THROUGHPUT, averages
from batchsim.figures.style import PALETTE, canvas, color_of, facet_title, set_axis

Drawing = tuple[Figure, pd.DataFrame]

BINS, BATCH_SIZE = "policy.num_bins", "policy.batch_size"

#: Of ``experiments/unit_latency.json``, with which the theorem is drawn: a batch takes 1 ms per output token.
SECONDS_PER_TOKEN = 0.001


def multi_bin_theorem(results: SweepResults) -> Drawing:
    """Saturated throughput over the number of bins, on the closed form for uniform lengths."""
    settings = flat(results.sweep.base)
    low_s, high_s = (
        settings[f"workload.generator.output.{end}"] * SECONDS_PER_TOKEN for end in ("low", "high")
    )
    metric = "whole_run_request_throughput_per_s"
    table = over_seeds(results.runs, [BATCH_SIZE, BINS], [metric])
    table["closed_form_per_s"] = saturated_throughput(table[BATCH_SIZE], table[BINS], low_s, high_s)
    table["relative_error"] = table[metric] / table["closed_form_per_s"] - 1
    sizes = table[BATCH_SIZE].unique().tolist()
    figure, rows = canvas(results, 1, len(sizes), has_legend=False)
    for size, axes in zip(sizes, rows[0], strict=True):
        points = table[table[BATCH_SIZE] == size]
        bins = np.geomspace(1, points[BINS].max(), 200)
        axes.plot(bins, saturated_throughput(size, bins, low_s, high_s), color=".5", label="B / (m + A / k)")
        axes.axhline(2 * size / (low_s + high_s), color=".5", ls=":", label="limit B / m")
        look = {"fmt": "o", "markersize": 5, "capsize": 2, "color": color_of("multi_bin")}
        axes.errorbar(points[BINS], points[metric], points[f"{metric}_ci95"], label="simulated", **look)
        set_axis(axes, "x", BINS, steps=points[BINS])
        set_axis(axes, "y", metric)
        axes.set_title(f"batch size {size}", loc="left")
        axes.legend(loc="lower right")
    return figure, table


def saturated_throughput(
    batch_size: ArrayLike, num_bins: ArrayLike, low_s: float, high_s: float
) -> NDArray[np.float64]:
    """Requests per second of one GPU whose service times are uniform on ``[low_s, high_s]``.

    Theorem 4.2 of arXiv 2412.04504: ``B / (m + A / k)`` with the mean ``m`` and
    ``A = (high - low) / 2 * (B - 1) / (B + 1)``.
    """
    size, bins = np.asarray(batch_size, dtype=np.float64), np.asarray(num_bins, dtype=np.float64)
    spread_s = (high_s - low_s) / 2 * (size - 1) / (size + 1)
    throughput: NDArray[np.float64] = size / ((low_s + high_s) / 2 + spread_s / bins)
    return throughput


def prediction_error(results: SweepResults) -> Drawing:
    """Every predictor beside the oracle: how often it names the right bin, and what its errors cost."""
    facets = results.facets()
    metrics = ["bin_accuracy", THROUGHPUT, "e2e_mean_s", "slo_attainment"]
    table = averages(results, [*facets, "case", "predictor"], metrics)
    groups = list(table.groupby(facets, sort=False)) if facets else [((), table)]
    figure, rows = canvas(results, len(groups), len(metrics), has_legend=False)
    kinds = list(table["predictor"].unique())
    for (values, part), row in zip(groups, rows, strict=True):
        colors = [PALETTE[kinds.index(kind) % len(PALETTE)] for kind in part["predictor"]]
        for metric, axes in zip(metrics, row, strict=True):
            hatches = ["////" if saturated else "" for saturated in part["num_saturated"]]
            axes.barh(
                part["case"],
                part[metric],
                xerr=part[f"{metric}_ci95"],
                color=colors,
                hatch=hatches,
                edgecolor="white",
            )
            axes.axvline(part[metric].iloc[0], color=".4", ls=":", lw=1)
            set_axis(axes, "x", metric)
            if axes.get_xscale() == "log":
                axes.set(xscale="linear", xlim=(0, None))
            axes.grid(visible=False, axis="y")
            axes.set_ylim(len(part) - 0.5, -0.5)
            if axes is not row[0]:
                axes.set_yticklabels([])
        note = " (hatched: saturated)" if part["num_saturated"].any() else ""
        row[0].set_title(facet_title(facets, values) + note, loc="left")
    return figure, table


def controller_trajectory(results: SweepResults) -> Drawing:
    """What an SLO controller allowed over time, and what it had measured."""
    table = pd.concat(
        [_decisions(results, run) for run in results.runs.to_dict("records")], ignore_index=True
    )
    cases = list(table["case"].unique())
    figure, rows = canvas(results, 2, len(cases), has_legend=False)
    target_ms = flat(results.sweep.base)["slo.tpot_ms"]
    for case, cap_axes, time_axes in zip(cases, *rows, strict=True):
        decisions = table[table["case"] == case]
        for bin_, part in decisions.groupby("bin"):
            color = PALETTE[(bin_ + 1) % len(PALETTE)]
            name = "allowed" if bin_ < 0 else f"allowed in bin {bin_}"
            cap_axes.step(part["time_s"], part["batch_size"], where="post", color=color, lw=1, label=name)
            cap_axes.scatter(part["time_s"], part["measured_batch_size"], s=3, color=color)
            time_axes.scatter(part["time_s"], part["measured"] * 1000, s=3, color=color)
        cap_axes.scatter([], [], s=3, color=".3", label="batch as it ran")
        time_axes.axhline(target_ms, color=".2", ls=":", label="target")
        cap_axes.set(ylabel="Batch size (requests)", ylim=(0, 1.5 * decisions["batch_size"].max()))
        cap_axes.set_title(case, loc="left")
        time_axes.set(xlabel="Time (s)", ylabel="Time per token (ms)")
        cap_axes.legend(loc="upper right", ncols=2, fontsize="small")
        time_axes.legend(loc="upper right", fontsize="small")
    return figure, table


def _decisions(results: SweepResults, run: dict[Any, Any]) -> pd.DataFrame:
    """All decisions of a run, with its case and policy in front and the size of the measured batch behind."""
    tables = results.tables(run["run_id"])
    decisions, batches = tables["controllers"], tables["batches"].drop_duplicates("finish_s")
    sizes = batches.set_index("finish_s")["batch_size"]
    named = decisions.assign(
        case=run["case"] or run["policy"],
        policy=run["policy"],
        measured_batch_size=decisions["time_s"].map(sizes),
    )
    return named[["case", "policy", *decisions.columns, "measured_batch_size"]]
