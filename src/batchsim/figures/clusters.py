"""Figures of clusters whose replicas are not all alike, or share more than a router."""

from __future__ import annotations

from batchsim.figures.findings import within_slo_in_each
from batchsim.figures.results import SweepResults
from batchsim.figures.schedulers import ATTAINMENT, RATE, Drawing, over

PROMPT = "workload.generator.prompt.mean"


def disaggregation(results: SweepResults) -> Drawing:
    """Prefill and decode apart or together, over the request rate and the length of prompts."""
    metrics = ["ttft_p99_s", "tpot_mean_s", ATTAINMENT]
    finding = within_slo_in_each("case", RATE)
    return over(results, RATE, metrics, by="case", x_scale="log", finding=finding)
