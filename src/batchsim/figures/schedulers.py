"""Figures that set policies beside each other: over load, GPUs and bins, as trade-offs, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from batchsim.config import flat
from batchsim.figures.results import SweepResults, over_seeds
from batchsim.figures.style import (
    add_legend,
    canvas,
    color_of,
    draw_line,
    facet_title,
    looks_of,
    marker_of,
    set_axis,
)

Drawing = tuple[Figure, pd.DataFrame]

RATE = "workload.request_rate_per_gpu"
THROUGHPUT = "throughput_per_gpu_per_s"


def scheduler_comparison(results: SweepResults) -> Drawing:
    """Policies over the request rate."""
    metrics = ["e2e_mean_s", "e2e_p99_s", "slo_attainment", THROUGHPUT, "busy_fraction", "batch_size_mean"]
    return over(results, RATE, metrics)


def scaling(results: SweepResults) -> Drawing:
    """Policies over the number of GPUs, at the same request rate per GPU."""
    return over(results, "cluster.num_gpus", [THROUGHPUT, "slo_attainment", "e2e_mean_s"], has_steps=True)


def bin_sensitivity(results: SweepResults) -> Drawing:
    """Policies over the number of their bins."""
    metrics = [THROUGHPUT, "e2e_mean_s", "slo_attainment", "padding_waste_output"]
    return over(results, "policy.num_bins", metrics, has_steps=True)


def latency_throughput(results: SweepResults) -> Drawing:
    """Latency against the throughput that was reached, a point for each request rate."""
    latencies = ["e2e_mean_s", "e2e_p99_s"]
    facets = results.facets(RATE)
    table = averages(results, [*facets, "policy", RATE], [THROUGHPUT, *latencies])
    looks = looks_of(results.runs, "policy")
    figure, panels = panels_of(results, table, facets, latencies)
    for part, metric, axes in panels:
        for policy, points in part.groupby("policy", sort=False):
            draw_line(axes, points, THROUGHPUT, metric, looks[str(policy)])
        set_axis(axes, "x", THROUGHPUT)
        set_axis(axes, "y", metric)
    add_legend(figure, looks, saturated=bool(table["num_saturated"].any()))
    return figure, table


def slo_pareto(results: SweepResults) -> Drawing:
    """Attainment against throughput of every setting and rate; those no other of the policy beats, joined."""
    of_cases = dict.fromkeys(key for case in results.sweep.cases for key in flat(case))
    settings = [key for key in of_cases if key not in ("label", "policy.preset")]
    table = averages(results, ["policy", "case", *settings, RATE], [THROUGHPUT, "slo_attainment"])
    table["on_frontier"] = False
    for _, points in table.groupby("policy"):
        table.loc[points.index, "on_frontier"] = is_undominated(points[[THROUGHPUT, "slo_attainment"]])
    figure, rows = canvas(results, 1, 1)
    axes = rows[0][0]
    for policy, points in table.groupby("policy", sort=False):
        color, marker = color_of(str(policy)), marker_of(str(policy))
        axes.scatter(
            points[THROUGHPUT], points["slo_attainment"], s=14, alpha=0.35, lw=0, color=color, marker=marker
        )
        best = points[points["on_frontier"]].sort_values(THROUGHPUT)
        axes.plot(best[THROUGHPUT], best["slo_attainment"], lw=1.4, markersize=5, color=color, marker=marker)
    set_axis(axes, "x", THROUGHPUT)
    set_axis(axes, "y", "slo_attainment")
    add_legend(figure, looks_of(results.runs, "policy"), saturated=False)
    return figure, table


def seed_variance(results: SweepResults) -> Drawing:
    """Each seed's result, and the mean over seeds with its interval."""
    metrics = ["e2e_mean_s", "e2e_p99_s", "slo_attainment"]
    facets = results.facets()
    table = over_seeds(results.runs, [*facets, "policy"], metrics)
    policies = list(table["policy"].unique())
    runs = results.runs
    figure, panels = panels_of(results, runs, facets, metrics)
    for part, metric, axes in panels:
        means = over_seeds(part, ["policy"], [metric]).set_index("policy")
        for position, policy in enumerate(policies):
            color, marker = color_of(policy), marker_of(policy)
            of_policy = part[part["policy"] == policy]
            face = of_policy["saturated"].map({True: "white", False: color})
            axes.scatter(
                np.full(len(of_policy), position - 0.1),
                of_policy[metric],
                s=18,
                marker=marker,
                edgecolor=color,
                color=face,
            )
            mean, half_width = means.loc[policy, metric], means.loc[policy, f"{metric}_ci95"]
            axes.errorbar(
                position + 0.15, mean, half_width, color=color, marker="_", markersize=12, capsize=3
            )
        set_axis(axes, "y", metric)
        axes.set_xticks(range(len(policies)), policies, rotation=20, ha="right")
        axes.set_xlim(-0.5, len(policies) - 0.5)
        axes.grid(visible=False, axis="x")
    add_legend(figure, looks_of(runs, "policy"), saturated=bool(runs["saturated"].any()))
    return figure, table


def averages(results: SweepResults, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Average over seeds as `over_seeds`, with the throughput per GPU besides."""
    return over_seeds(with_throughput_per_gpu(results.runs), by, metrics)


def with_throughput_per_gpu(runs: pd.DataFrame) -> pd.DataFrame:
    """Add requests per second and GPU, from first arrival to last finish.

    Over the whole run all policies have done the same work by the end; a window that ends with the last
    arrival counts other requests for a policy that lags behind.
    """
    return runs.assign(**{THROUGHPUT: runs["whole_run_request_throughput_per_s"] / runs["num_gpus"]})


def is_undominated(points: pd.DataFrame) -> list[bool]:
    """Tell which rows no other row beats: at least as high in every column and higher in one."""
    values = points.to_numpy()
    return [not ((values >= row).all(axis=1) & (values > row).any(axis=1)).any() for row in values]


def over(
    results: SweepResults,
    x: str,
    metrics: Sequence[str],
    *,
    by: Literal["policy", "case"] = "policy",
    has_steps: bool = False,
    x_scale: str | None = None,
) -> Drawing:
    """Draw a panel for each metric over one setting, a row of them for each combination of the others.

    Parameters
    ----------
    by
        What has a line of its own.
    has_steps
        Ticks are where the values are.
    x_scale
        Instead of the setting's usual scale.
    """
    facets = results.facets(x)
    table = averages(results, [*facets, by, x], metrics)
    looks = looks_of(results.runs, by)
    figure, panels = panels_of(results, table, facets, metrics)
    for part, metric, axes in panels:
        for name, points in part.groupby(by, sort=False):
            draw_line(axes, points, x, metric, looks[str(name)])
        set_axis(axes, "x", x, steps=table[x] if has_steps else None, scale=x_scale)
        set_axis(axes, "y", metric)
    add_legend(figure, looks, saturated=bool(table["num_saturated"].any()))
    return figure, table


Panel = tuple[pd.DataFrame, str, Axes]


def panels_of(
    results: SweepResults, table: pd.DataFrame, facets: Sequence[str], metrics: Sequence[str]
) -> tuple[Figure, list[Panel]]:
    """Lay out a row per combination of facets and a column per metric; a single row breaks at three."""
    if not facets:
        num_columns = min(3, len(metrics))
        figure, rows = canvas(results, -(-len(metrics) // num_columns), num_columns)
        cells = [axes for row in rows for axes in row]
        for axes in cells[len(metrics) :]:
            axes.remove()
        return figure, [(table, metric, axes) for metric, axes in zip(metrics, cells, strict=False)]
    groups = list(table.groupby(list(facets), sort=False))
    figure, rows = canvas(results, len(groups), len(metrics))
    panels = []
    for (values, part), row in zip(groups, rows, strict=True):
        row[0].set_title(facet_title(facets, values), loc="left")
        panels += [(part, metric, axes) for metric, axes in zip(metrics, row, strict=True)]
    return figure, panels
