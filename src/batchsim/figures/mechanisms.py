"""Figures that look inside: the multi-bin theorem, what prediction errors cost, a controller at work."""

from __future__ import annotations

import textwrap
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from batchsim.config import flat
from batchsim.config.figure import THROUGHPUT
from batchsim.errors import ConfigError
from batchsim.figures.axes import label_of, set_axis
from batchsim.figures.findings import contrast
from batchsim.figures.layout import canvas, num_columns
from batchsim.figures.results import SweepResults, averages, over_seeds, reach
from batchsim.figures.schedulers import panels_of
from batchsim.figures.style import PALETTE, SMALLEST, WIDTHS, color_of, face_of
from batchsim.results.particulars import DECISIONS

Drawing = tuple[Figure, pd.DataFrame]

#: Of those without bins, whatever predicts their lengths.
_NO_BINS = (0.6, 0.6, 0.6)

BINS, BATCH_SIZE = "policy.num_bins", "policy.batch_size"

#: Of ``experiments/unit_latency.json``, with which the theorem is drawn: a batch takes 1 ms per output token.
SECONDS_PER_TOKEN = 0.001


def multi_bin_theorem(results: SweepResults) -> Drawing:
    """Saturated throughput over the number of bins, on the closed form for uniform lengths."""
    settings = flat(results.sweep.base)
    low_s, high_s = (
        settings[f"workload.generator.output.{end}"] * SECONDS_PER_TOKEN for end in ("low", "high")
    )
    (metric,) = results.having(["whole_run_request_throughput_per_s"])
    table = over_seeds(results.runs, [BATCH_SIZE, BINS], [metric])
    table["closed_form_per_s"] = saturated_throughput(table[BATCH_SIZE], table[BINS], low_s, high_s)
    table["relative_error"] = table[metric] / table["closed_form_per_s"] - 1
    sizes = table[BATCH_SIZE].unique().tolist()
    columns = num_columns(len(sizes))
    finding = f"Simulated and closed form agree within {table['relative_error'].abs().max():.2%}"
    figure, rows = canvas(results, -(-len(sizes) // columns), columns, table, finding=finding)
    for size, axes in zip(sizes, [axes for row in rows for axes in row], strict=False):
        points = table[table[BATCH_SIZE] == size]
        bins = np.geomspace(1, points[BINS].max(), 200)
        axes.plot(bins, saturated_throughput(size, bins, low_s, high_s), color=".5", label="closed form")
        axes.axhline(2 * size / (low_s + high_s), color=".5", ls=":", label="its limit for many bins")
        look = {"fmt": "o", "markersize": 4, "capsize": 2, "color": color_of("multi_bin")}
        axes.errorbar(points[BINS], points[metric], reach(points, metric), label="simulated", **look)
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
    facets = results.facets("case", "predictor")
    metrics = results.having(["bin_accuracy", THROUGHPUT, "e2e_mean_s", "slo_attainment"])
    table = averages(results, [*facets, "case", "predictor"], metrics)
    finding = contrast("case", THROUGHPUT)(table)
    faces = _faces(table)
    figure, panels = panels_of(results, table, facets, metrics, finding, _marks(table), columns=2)
    for part, metric, axes in panels:
        hatches = ["////" if saturated else "" for saturated in part["num_saturated"]]
        axes.barh(
            part["case"],
            part[metric],
            xerr=reach(part, metric),
            error_kw={"lw": 1},
            color=list(faces[part.index]),
            hatch=hatches,
            edgecolor="white",
        )
        axes.axvline(part[metric].iloc[0], color=".4", ls=":", lw=1)
        set_axis(axes, "x", metric)
        if axes.get_xscale() == "log":
            axes.set(xscale="linear", xlim=(0, None))
        if not part[metric].any():
            axes.text(0.5, 0.5, "0 in all", transform=axes.transAxes, ha="center", va="center", color=".35")
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(part) - 0.5, -0.5)
        place = axes.get_subplotspec()
        if place is not None and not place.is_first_col():
            axes.set_yticklabels([])
        if mpl.rcParams["figure.figsize"][0] < WIDTHS["two"]:
            axes.set_xlabel(textwrap.fill(label_of(metric), 14))
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.tick_params(axis="y", labelsize=SMALLEST)
    return figure, table


def _faces(table: pd.DataFrame) -> pd.Series[Any]:
    """A colour for each kind of predictor, grey where there are no bins to predict."""
    kinds = list(table["predictor"].unique())
    has_bins = table["bin_accuracy"].notna() if "bin_accuracy" in table else pd.Series(True, table.index)
    colors = [
        PALETTE[kinds.index(kind) % len(PALETTE)] if bins else _NO_BINS
        for kind, bins in zip(table["predictor"], has_bins, strict=True)
    ]
    faces = [
        face_of("transient" if is_pale else "stable", color)
        for color, is_pale in zip(colors, _is_pale(table), strict=True)
    ]
    return pd.Series(faces, table.index)


def _is_pale(table: pd.DataFrame) -> pd.Series[bool]:
    return (table["num_transient"] > 0) & (table["num_saturated"] == 0)


def _marks(table: pd.DataFrame) -> list[Artist]:
    """What hatches, pale bars and the dotted line mean, where there are any."""
    first = Line2D([], [], color=".4", ls=":", lw=1, label=f"dotted: {table['case'].iloc[0]}")
    hatched = Patch(facecolor=".5", edgecolor="white", hatch="////", label="hatched: saturated")
    pale = Patch(facecolor=face_of("transient", (0.5, 0.5, 0.5)), label="pale: too short to tell")
    shown = (True, (table["num_saturated"] > 0).any(), _is_pale(table).any())
    return [mark for mark, is_there in zip((first, hatched, pale), shown, strict=True) if is_there]


def controller_trajectory(results: SweepResults) -> Drawing:
    """What an SLO controller allowed over time, and what it had measured."""
    runs = results.runs
    if "replication" in runs:  # the course of one run; that of several has no mean
        runs = runs[runs["replication"] == 0]
    table = pd.concat([_decisions(results, run) for run in runs.to_dict("records")], ignore_index=True)
    if table.empty:
        raise ConfigError(f"{results.folder}: no controller decided anything in these runs")
    cases = list(table["case"].unique())
    target_ms = results.limits.tpot_ms
    columns = num_columns(len(cases))
    depth = -(-len(cases) // columns)
    colors = {bin_: PALETTE[(bin_ + 1) % len(PALETTE)] for bin_ in sorted(table["bin"].unique())}
    handles: list[Artist] = [
        Line2D([], [], color=color, lw=1, label="allowed" if bin_ < 0 else f"allowed in bin {bin_}")
        for bin_, color in colors.items()
    ]
    handles.append(Line2D([], [], color=".3", lw=0, marker="o", markersize=2, label="as it ran"))
    if target_ms is not None:
        handles.append(Line2D([], [], color=".2", ls=":", label="target"))
    finding = _steered(table, target_ms)
    figure, rows = canvas(results, 2 * depth, columns, table, finding=finding, handles=handles)
    for i, case in enumerate(cases):
        cap_axes, time_axes = (rows[2 * (i // columns) + lower][i % columns] for lower in (0, 1))
        decisions = table[table["case"] == case]
        for bin_, part in decisions.groupby("bin"):
            color = colors[bin_]
            cap_axes.step(part["time_s"], part["batch_size"], where="post", color=color, lw=1)
            cap_axes.scatter(part["time_s"], part["measured_batch_size"], s=2, lw=0, color=color)
            time_axes.scatter(part["time_s"], part["measured"] * 1000, s=2, lw=0, color=color)
        cap_axes.set(ylabel="Batch size\n(requests)", ylim=(0, None))
        cap_axes.set_title(case, loc="left")
        time_axes.set(xlabel="Time (s)", ylabel="Time per token\n(ms)")
        if target_ms is not None:
            time_axes.axhline(target_ms, color=".2", ls=":")
    for axes in [axes for row in rows for axes in row if not axes.has_data()]:
        axes.remove()
    return figure, table


def _steered(table: pd.DataFrame, target_ms: float | None) -> str:
    """Say how near the measured times came to the target, of whoever came nearest."""
    if target_ms is None:
        return ""
    means_ms = table.groupby("case", sort=False)["measured"].mean() * 1000
    case = str((means_ms - target_ms).abs().idxmin())
    return f"{case}: {means_ms[case]:.3g} ms per token on average, with a target of {target_ms:g} ms"


def _decisions(results: SweepResults, run: dict[Any, Any]) -> pd.DataFrame:
    """All decisions of a run, with its case and policy in front."""
    decided = results.kept(DECISIONS, str(run["run_id"]))
    named = decided.assign(case=run["case"] or run["policy"], policy=run["policy"])
    return named[["case", "policy", *decided.columns]]
