"""Figures of clusters whose replicas are not all alike, or share more than a router."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from batchsim.figures.axes import facet_title, set_axis
from batchsim.figures.findings import contrast, gain, within_slo_in_each
from batchsim.figures.results import SweepResults, averages
from batchsim.figures.schedulers import ATTAINMENT, RATE, Drawing, over, panels_of
from batchsim.figures.style import SMALLEST, draw_line, legend_handles, looks_of
from batchsim.results.particulars import TENANTS

PROMPT = "workload.generator.prompt.mean"
VIEW_AGE = "policy.routing.view_age_s"
TIER, HOST_GB = "cluster.tier", "host_gb"
NUM_GPUS, COLD_START, COST = "cluster.num_gpus", "autoscaler.cold_start_s", "gpu_hours"
TIME_BETWEEN = "failures.time_between_s"
TOTAL_RATE, WHOSE, OTHERS = "workload.request_rate", "whose", "others"

#: Of a fleet that stays as it is, in the experiment.
FIXED = "fixed"


def disaggregation(results: SweepResults) -> Drawing:
    """Prefill and decode apart or together, over the request rate and the length of prompts."""
    metrics = ["ttft_p99_s", "tpot_mean_s", ATTAINMENT]
    finding = within_slo_in_each("case", RATE)
    return over(results, RATE, metrics, by="case", x_scale="log", finding=finding)


def router_views(results: SweepResults) -> Drawing:
    """Ways to choose a replica, over the age of what the router sees."""
    metrics = ["ttft_mean_s", "e2e_mean_s", "prefix_hit_rate"]
    finding = gain("case", VIEW_AGE, "ttft_mean_s")
    return over(results, VIEW_AGE, metrics, by="case", has_steps=True, finding=finding)


def kv_tiers(results: SweepResults) -> Drawing:
    """Host memory below the KV cache, over its size; dotted: without any."""
    results.need(TIER)
    tiers = results.runs[TIER].map(json.loads)
    is_there = tiers.map(bool)
    sizes_gb = tiers[is_there].map(lambda given: given[0]["capacity_bytes"] / 1e9)
    without, runs = results.runs[~is_there], results.runs[is_there].assign(**{HOST_GB: sizes_gb})
    metrics = ["prefix_hit_rate", "ttft_mean_s", "ttft_tier_mean_s"]

    def finding(table: pd.DataFrame) -> str:
        most = table[table[HOST_GB] == table[HOST_GB].max()]
        ratios = most["ttft_mean_s"] / without["ttft_mean_s"].mean()
        said = [f"{case} {ratio:.2g}x" for case, ratio in zip(most["case"], ratios, strict=True)]
        where = facet_title([HOST_GB], [table[HOST_GB].max()])
        return (
            f"TTFT mean with {where} of host memory, beside none: {', '.join(said)}" if len(without) else ""
        )

    figure, table = over(
        replace(results, runs=runs), HOST_GB, metrics, by="case", has_steps=True, finding=finding
    )
    for axes, metric in zip(figure.axes, metrics, strict=False):
        for value in without[metric].dropna():
            axes.axhline(value, color=".2", ls=":", lw=1)
    return figure, table


def autoscaling(results: SweepResults) -> Drawing:
    """What is missed against what is paid for, as replicas take longer and longer to start."""
    results.having([ATTAINMENT])
    metrics = ["missed", "ttft_p99_s"]
    runs = results.runs.assign(missed=1 - results.runs[ATTAINMENT])
    table = averages(replace(results, runs=runs), ["case", NUM_GPUS, COLD_START], [COST, *metrics])
    looks = looks_of(runs, "case")
    handles = legend_handles(looks, runs, {})
    figure, panels = panels_of(results, table, [], metrics, _cost_of_as_much(table), handles)
    for part, metric, axes in panels:
        for number, (case, points) in enumerate(part.groupby("case", sort=False)):
            draw_line(axes, points, COST, metric, looks[str(case)])
            _name_ends(axes, points, metric, is_fixed=case == FIXED, is_left=number % 2 == 0)
        set_axis(axes, "x", COST)
        set_axis(axes, "y", metric)
    return figure, table


def _name_ends(axes: Axes, points: pd.DataFrame, metric: str, *, is_fixed: bool, is_left: bool) -> None:
    """Write beside the first point and the last how many GPUs there are, or how long a start takes.

    On the left or on the right, in turn, as lines may stand close.
    """
    for end, place in ((0, (5.0, -2.0)), (-1, (4.0, 5.0))):
        point = points.iloc[end]
        told = facet_title([NUM_GPUS], [point[NUM_GPUS]]) if is_fixed else f"{point[COLD_START]:g} s"
        is_left = end == -1 if is_fixed else is_left
        axes.annotate(
            told,
            (point[COST], point[metric]),
            place if is_fixed else (-5.0 if is_left else 5.0, -2.0),
            textcoords="offset points",
            ha="right" if is_left else "left",
            fontsize=SMALLEST,
            color=".35",
        )


def _cost_of_as_much(table: pd.DataFrame) -> str:
    """Say what each case costs beside a fixed fleet that misses as much, with short and with long starts.

    Fleets between two sizes cost and miss what lies between.
    """
    fixed = table[table["case"] == FIXED].sort_values("missed")
    said = []
    for case, part in table[table["case"] != FIXED].groupby("case", sort=False):
        ends = part.sort_values(COLD_START).iloc[[0, -1]]
        if ends["missed"].between(fixed["missed"].min(), fixed["missed"].max()).all():
            shares = ends[COST] / np.interp(ends["missed"], fixed["missed"], fixed[COST])
            said.append(f"{case} {shares.iloc[0]:.2g}x to {shares.iloc[1]:.2g}x")
    if not said:
        return ""
    starts = f"{table[COLD_START].min():g} to {table[COLD_START].max():g} s to start"
    return f"Cost beside a fixed fleet that attains as much, with {starts}: {', '.join(said)}"


def failures(results: SweepResults) -> Drawing:
    """What becomes of requests whose replica fails, over the time between failures."""
    metrics = [ATTAINMENT, "goodput_requests_per_s", "ttft_p99_s"]
    finding = contrast("case", ATTAINMENT, TIME_BETWEEN, at="min")
    return over(results, TIME_BETWEEN, metrics, by="case", has_steps=True, finding=finding)


def fairness(results: SweepResults) -> Drawing:
    """What the tenant that sends most gets, and the others on average, over the request rate."""
    parts = [_by_tenant(results, run) for run in results.runs.to_dict("records")]
    split = replace(results, runs=pd.concat(parts, ignore_index=True))
    metrics = ["ttft_mean_s", ATTAINMENT, "served_share"]
    return over(split, TOTAL_RATE, metrics, by=WHOSE, finding=_of_others)


def _by_tenant(results: SweepResults, run: dict[Any, Any]) -> pd.DataFrame:
    """A run as two: of the tenant that sent most, and of the others, each of whom counts as much."""
    tenants = results.kept(TENANTS, str(run["run_id"])).query("kind == 'tenant'")
    is_greedy = tenants["num_requests"] == tenants["num_requests"].max()
    of_each = tenants.groupby(np.where(is_greedy, tenants["name"], OTHERS), sort=False)[
        ["ttft_mean_s", ATTAINMENT, "service_tokens", "demand_tokens"]
    ].mean()
    measured = of_each.assign(
        served_share=of_each["service_tokens"] / of_each["demand_tokens"],
        **{WHOSE: f"{run['case']}, " + of_each.index},
    )
    return pd.DataFrame([run] * len(measured)).assign(
        **{str(name): measured[name].tolist() for name in measured}
    )


def _of_others(table: pd.DataFrame) -> str:
    """Say who of those who are not greedy are within the limit at the highest rate."""
    last = table[table[TOTAL_RATE] == table[TOTAL_RATE].max()]
    others = last[last[WHOSE].str.endswith(f", {OTHERS}")]
    said = [
        f"{whose.removesuffix(f', {OTHERS}')} {100 * share:.0f} %"
        for whose, share in zip(others[WHOSE], others[ATTAINMENT], strict=True)
    ]
    where = facet_title([TOTAL_RATE], [table[TOTAL_RATE].max()])
    return f"Of the others' requests at {where}, within the limit: {', '.join(said)}" if said else ""
