"""Figures that set policies beside each other: over load, GPUs and bins, as trade-offs, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from batchsim.config import flat
from batchsim.config.figure import OUTPUT_TOKENS, THROUGHPUT
from batchsim.figures.axes import facet_title, label_of, set_axis, stacked
from batchsim.figures.findings import ENOUGH, Finding, contrast, gain, no_finding, within_slo
from batchsim.figures.layout import canvas, num_columns
from batchsim.figures.results import SweepResults, averages, over_seeds, reach, states
from batchsim.figures.style import draw_line, face_of, legend_handles, looks_of

Drawing = tuple[Figure, pd.DataFrame]

RATE, GPUS = "workload.request_rate_per_gpu", "cluster.num_gpus"
ATTAINMENT = "slo_attainment"
#: Of more panels a page holds low ones only; letters of a line of their labels, and of one that stays whole.
_MOST_HIGH, _LOW = 12, (13, 11)


def scheduler_comparison(results: SweepResults) -> Drawing:
    """Policies over the request rate."""
    metrics = ["e2e_mean_s", "e2e_p99_s", ATTAINMENT, THROUGHPUT, "busy_fraction", "batch_size_mean"]
    return over(results, RATE, metrics, by="case", finding=within_slo("case", RATE))


def scaling(results: SweepResults) -> Drawing:
    """Policies over the number of GPUs, at the same request rate and number of requests per GPU."""
    metrics = [OUTPUT_TOKENS, ATTAINMENT, "e2e_mean_s"]
    return over(results, GPUS, metrics, has_steps=True, finding=contrast("policy", OUTPUT_TOKENS, GPUS))


def bin_sensitivity(results: SweepResults) -> Drawing:
    """Policies over the number of their bins."""
    bins = "policy.num_bins"
    metrics = [THROUGHPUT, "e2e_mean_s", ATTAINMENT, "padding_waste_output"]
    return over(results, bins, metrics, has_steps=True, finding=gain("policy", bins, THROUGHPUT))


def latency_throughput(results: SweepResults) -> Drawing:
    """Latency against the throughput that was reached, a point for each request rate."""
    latencies = results.having(["e2e_mean_s", "e2e_p99_s"])
    results.having([THROUGHPUT])
    facets = results.facets("policy", RATE)
    table = averages(results, [*facets, "policy", RATE], [THROUGHPUT, *latencies])
    looks = looks_of(results.runs, "policy")
    same = same_lines(table, "policy", [THROUGHPUT, *latencies])
    finding = contrast("policy", THROUGHPUT, RATE)(table)
    figure, panels = panels_of(
        results, table, facets, latencies, finding, legend_handles(looks, results.runs, same)
    )
    for part, metric, axes in panels:
        for policy, points in part.groupby("policy", sort=False):
            draw_line(axes, points, THROUGHPUT, metric, looks[str(policy)])
        set_axis(axes, "x", THROUGHPUT)
        set_axis(axes, "y", metric)
    return figure, table


def slo_pareto(results: SweepResults) -> Drawing:
    """Attainment against throughput of every setting and rate; those no other of the policy beats, joined."""
    of_cases = dict.fromkeys(key for case in results.sweep.cases for key in flat(case))
    settings = [key for key in of_cases if key not in ("label", "policy.preset") and key in results.runs]
    both = [THROUGHPUT, ATTAINMENT]
    for metric in both:
        results.having([metric])
    table = averages(results, ["policy", "case", *settings, RATE], both)
    table["on_frontier"] = False
    for _, points in table.groupby("policy"):
        table.loc[points.index, "on_frontier"] = is_undominated(points[both])
    looks = looks_of(results.runs, "policy")
    is_told = (table["num_saturated"] + table["num_transient"]) == 0
    best_within = (
        table[is_told & (table[ATTAINMENT] >= ENOUGH)].groupby("policy", sort=False)[THROUGHPUT].max()
    )
    figure, rows = canvas(
        results, 1, 1, table, finding=_best_of(best_within), handles=legend_handles(looks, results.runs, {})
    )
    axes = rows[0][0]
    for policy, points in table.groupby("policy", sort=False):
        look = looks[str(policy)]
        color, marker, size = look.color, look.marker, look.marker_size
        for state, chosen in points.groupby(_state_of(points)):
            axes.scatter(
                chosen[THROUGHPUT], chosen[ATTAINMENT], s=size**2, marker=marker, alpha=0.45, lw=0.6,
                edgecolor=color, color=[face_of(str(state), color)],
            )  # fmt: skip
        best = points[points["on_frontier"]].sort_values(THROUGHPUT)
        axes.plot(best[THROUGHPUT], best[ATTAINMENT], lw=look.line_width, color=color)
        axes.errorbar(
            best[THROUGHPUT], best[ATTAINMENT], reach(best, ATTAINMENT), reach(best, THROUGHPUT),
            fmt="none", color=color, lw=0.7,
        )  # fmt: skip
        for state, chosen in best.groupby(_state_of(best)):
            axes.scatter(
                chosen[THROUGHPUT], chosen[ATTAINMENT], s=size**2, marker=marker, lw=0.8, zorder=3,
                edgecolor=color, color=[face_of(str(state), color)],
            )  # fmt: skip
    set_axis(axes, "x", THROUGHPUT)
    set_axis(axes, "y", ATTAINMENT)
    return figure, table


def seed_variance(results: SweepResults) -> Drawing:
    """Each seed's result, and the mean over seeds with its interval."""
    metrics = results.having(["e2e_mean_s", "e2e_p99_s", ATTAINMENT])
    facets = results.facets("policy")
    table = over_seeds(results.runs, [*facets, "policy"], metrics)
    policies = list(table["policy"].unique())
    runs = results.runs
    looks = looks_of(runs, "policy")
    finding = contrast("policy", metrics[0])(table)
    figure, panels = panels_of(results, table, facets, metrics, finding, legend_handles(looks, runs, {}))
    is_column = len(metrics) > 1 and num_columns(len(metrics)) == 1
    for part, metric, axes in panels:
        means = part.set_index("policy")
        below, above = reach(means, metric)
        for position, policy in enumerate(policies):
            color, marker = looks[policy].color, looks[policy].marker
            of_policy = _runs_of(runs, part, facets)
            of_policy = of_policy[of_policy["policy"] == policy]
            axes.scatter(
                np.full(len(of_policy), position - 0.1),
                of_policy[metric],
                s=14,
                marker=marker,
                edgecolor=color,
                color=[face_of(state, color) for state in states(of_policy)],
            )
            mean, ends = means.loc[policy, metric], ([below[policy]], [above[policy]])
            axes.errorbar(position + 0.15, mean, ends, color=color, marker="_", markersize=8, capsize=2)
        set_axis(axes, "y", metric)
        axes.set_xticks(range(len(policies)), policies, rotation=20, ha="right")
        axes.set_xlim(-0.5, len(policies) - 0.5)
        axes.grid(visible=False, axis="x")
        if is_column:
            _stack(axes, metric, is_lowest=metric == metrics[-1], is_low=len(panels) > 6)
        elif len(panels) > _MOST_HIGH:
            axes.set_ylabel(stacked(label_of(metric), *_LOW))
    return figure, table


def is_undominated(points: pd.DataFrame) -> list[bool]:
    """Tell which rows no other row beats: at least as high in every column and higher in one."""
    values = points.to_numpy()
    return [not ((values >= row).all(axis=1) & (values > row).any(axis=1)).any() for row in values]


def over(
    results: SweepResults,
    x: str,
    metrics: Sequence[str],
    *,
    by: str = "policy",
    has_steps: bool = False,
    x_scale: str | None = None,
    finding: Finding = no_finding,
) -> Drawing:
    """Draw a panel for each metric over one setting, and again for each combination of the others.

    Parameters
    ----------
    by
        What has a line of its own.
    has_steps
        Ticks are where the values are.
    x_scale
        Instead of the setting's usual scale.
    finding
        Says from the table what the title is.
    """
    metrics = results.having(metrics)
    facets = results.facets(by, x)
    table = averages(results, [*facets, by, x], metrics)
    looks = looks_of(results.runs, by)
    handles = legend_handles(looks, results.runs, same_lines(table, by, metrics))
    figure, panels = panels_of(results, table, facets, metrics, finding(table), handles)
    is_column = len(metrics) > 1 and num_columns(len(metrics)) == 1
    for part, metric, axes in panels:
        for name, points in part.groupby(by, sort=False):
            draw_line(axes, points, x, metric, looks[str(name)])
        set_axis(axes, "x", x, steps=table[x] if has_steps else None, scale=x_scale)
        set_axis(axes, "y", metric)
        if is_column:
            _stack(axes, metric, is_lowest=metric == metrics[-1], is_low=len(panels) > 6)
        elif len(panels) > _MOST_HIGH:
            axes.set_ylabel(stacked(label_of(metric), *_LOW))
    return figure, table


def _stack(axes: Axes, metric: str, *, is_lowest: bool, is_low: bool) -> None:
    """Fit a panel into a column of such over the same axis, which the lowest tells for all."""
    axes.set_ylabel(stacked(label_of(metric), *_LOW[: 2 if is_low else 1]))
    if not is_lowest:
        axes.set_xlabel("")
        axes.tick_params(labelbottom=False)


def same_lines(table: pd.DataFrame, by: str, metrics: Sequence[str]) -> dict[str, str]:
    """Find lines equal to an earlier one in every panel, and the name of the first such."""
    same: dict[str, str] = {}
    lines = {str(name): part[list(metrics)].to_numpy(float) for name, part in table.groupby(by, sort=False)}
    for name, values in lines.items():
        for earlier, others in lines.items():
            if earlier == name:
                break
            if values.shape == others.shape and np.allclose(values, others, rtol=1e-9, equal_nan=True):
                same[name] = earlier
                break
    return same


Panel = tuple[pd.DataFrame, str, Axes]


def panels_of(
    results: SweepResults,
    table: pd.DataFrame,
    facets: Sequence[str],
    metrics: Sequence[str],
    finding: str = "",
    handles: Sequence[Any] = (),
    columns: int | None = None,
) -> tuple[Figure, list[Panel]]:
    """Lay out a panel per metric, in as many rows as the width takes, for each combination of facets."""
    groups = list(table.groupby(list(facets), sort=False, dropna=False)) if facets else [((), table)]
    columns = columns or num_columns(len(metrics))
    depth = -(-len(metrics) // columns)
    figure, rows = canvas(results, depth * len(groups), columns, table, finding=finding, handles=handles)
    panels = []
    for i, (values, part) in enumerate(groups):
        cells = [axes for row in rows[i * depth : (i + 1) * depth] for axes in row]
        if facets:
            cells[0].set_title(facet_title(facets, values), loc="left")
        panels += [(part, metric, axes) for metric, axes in zip(metrics, cells, strict=False)]
        for axes in cells[len(metrics) :]:
            axes.remove()
    return figure, panels


def _runs_of(runs: pd.DataFrame, part: pd.DataFrame, facets: Sequence[str]) -> pd.DataFrame:
    """The runs that a part of the table averages."""
    for key in facets:
        runs = runs[runs[key] == part[key].iloc[0]]
    return runs


def _state_of(points: pd.DataFrame) -> pd.Series[str]:
    state = pd.Series("stable", points.index).mask(points["num_transient"] > 0, "transient")
    return state.mask(points["num_saturated"] > 0, "saturated")


def _best_of(within: pd.Series[float]) -> str:
    """Say by how much the best policy beats the next best in throughput with enough requests in time."""
    held = f"with at least {100 * ENOUGH:.0f} % within the limit"
    if within.empty:
        return f"No setting serves {100 * ENOUGH:.0f} % of the requests within the limit"
    best, others = str(within.idxmax()), within.drop(within.idxmax())
    if others.empty or within[best] < 1.05 * others.max():
        return f"{best}: {within[best]:.2g} requests/s per GPU {held}"
    return f"{best}: {within[best] / others.max():.2g}x the throughput of {others.idxmax()} {held}"
