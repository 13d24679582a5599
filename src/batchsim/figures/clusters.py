"""Figures of clusters whose replicas are not all alike, or share more than a router."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from batchsim.figures.axes import facet_title
from batchsim.figures.findings import gain, within_slo_in_each
from batchsim.figures.results import SweepResults
from batchsim.figures.schedulers import ATTAINMENT, RATE, Drawing, over

PROMPT = "workload.generator.prompt.mean"
VIEW_AGE = "policy.routing.view_age_s"
TOTAL_RATE, WHOSE, OTHERS = "workload.request_rate", "whose", "others"


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


def fairness(results: SweepResults) -> Drawing:
    """What the tenant that sends most gets, and the others on average, over the request rate."""
    parts = [_by_tenant(results, run) for run in results.runs.to_dict("records")]
    split = replace(results, runs=pd.concat(parts, ignore_index=True))
    metrics = ["ttft_mean_s", ATTAINMENT, "served_share"]
    return over(split, TOTAL_RATE, metrics, by=WHOSE, finding=_of_others)


def _by_tenant(results: SweepResults, run: dict[Any, Any]) -> pd.DataFrame:
    """A run as two: of the tenant that sent most, and of the others, each of whom counts as much."""
    tenants = results.tables(str(run["run_id"]))["tenants"].query("kind == 'tenant'")
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
