"""Figures of engines that batch at every iteration: beside static batches, and what their settings do."""

from __future__ import annotations

from batchsim.config.figure import OUTPUT_TOKENS, THROUGHPUT
from batchsim.figures.findings import contrast, gain, within_slo
from batchsim.figures.results import SweepResults
from batchsim.figures.schedulers import RATE, Drawing, over

CHUNK = "policy.batching.max_num_batched_tokens"
LIMIT = "policy.batch_size"
BLOCKS = "engine.num_kv_blocks"
TOTAL_RATE = "workload.request_rate"


def continuous_vs_static(results: SweepResults) -> Drawing:
    """Batches that run to completion and engines that batch at every iteration, over the request rate."""
    metrics = ["normalized_latency_mean_s", "e2e_mean_s", THROUGHPUT]
    return over(results, RATE, metrics, x_scale="log", finding=contrast("policy", THROUGHPUT, RATE))


def chunk_size(results: SweepResults) -> Drawing:
    """Policies over the tokens that an iteration may process."""
    metrics = ["ttft_p99_s", "itl_p99_s", "e2e_mean_s"]
    return over(results, CHUNK, metrics, has_steps=True, finding=gain("policy", CHUNK, "itl_p99_s"))


def memory_controller(results: SweepResults) -> Drawing:
    """A fixed limit on running sequences and one that a controller keeps below it, over that limit."""
    metrics = [OUTPUT_TOKENS, "running_mean", "preemptions_per_request"]
    finding = contrast("case", OUTPUT_TOKENS, LIMIT)
    return over(results, LIMIT, metrics, by="case", has_steps=True, finding=finding)


def tbt_controller(results: SweepResults) -> Drawing:
    """Fixed limits and a controller that steers to a target time between tokens, over the request rate."""
    metrics = ["itl_mean_s", "slo_attainment_tpot", "e2e_mean_s"]
    finding = within_slo("case", TOTAL_RATE, "slo_attainment_tpot")
    figure, table = over(results, TOTAL_RATE, metrics, by="case", finding=finding)
    target_ms = results.limits.tpot_ms
    if target_ms is not None and "itl_mean_s" in table:
        figure.axes[0].axhline(target_ms / 1000, color=".2", ls=":", lw=1)
    return figure, table


def preemption_cliff(results: SweepResults) -> Drawing:
    """Policies over the KV blocks of a replica, under a load that they cannot serve."""
    metrics = [OUTPUT_TOKENS, "preemptions_per_request", "recomputed_share"]
    finding = contrast("case", OUTPUT_TOKENS, BLOCKS, at="min")
    return over(results, BLOCKS, metrics, by="case", has_steps=True, finding=finding)


def routing(results: SweepResults) -> Drawing:
    """Ways to choose a replica, over the request rate."""
    metrics = ["ttft_p99_s", "ttft_mean_s", "prefix_hit_rate"]
    return over(results, RATE, metrics, by="case", finding=contrast("case", "ttft_p99_s", RATE))


def prefix_caching(results: SweepResults) -> Drawing:
    """Prefix caching on and off, over the request rate."""
    metrics = ["ttft_mean_s", "ttft_p99_s", "prefix_hit_rate"]
    return over(results, RATE, metrics, by="case", finding=contrast("case", "ttft_mean_s", RATE))
