"""Figures of engines that batch at every iteration: beside static batches, and what their settings do."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from batchsim.config import flat
from batchsim.figures.results import SweepResults
from batchsim.figures.schedulers import RATE, THROUGHPUT, over

Drawing = tuple[Figure, pd.DataFrame]

TOKENS = "whole_run_output_throughput_tokens_per_s"
CHUNK = "policy.batching.max_num_batched_tokens"


def continuous_vs_static(results: SweepResults) -> Drawing:
    """Batches that run to completion and engines that batch at every iteration, over the request rate."""
    return over(results, RATE, ["normalized_latency_mean_s", "e2e_mean_s", THROUGHPUT], x_scale="log")


def chunk_size(results: SweepResults) -> Drawing:
    """Policies over the tokens that an iteration may process."""
    return over(results, CHUNK, ["ttft_p99_s", "itl_p99_s", "e2e_mean_s"], has_steps=True)


def memory_controller(results: SweepResults) -> Drawing:
    """A fixed limit on running sequences and one that a controller keeps below it, over that limit."""
    metrics = [TOKENS, "running_mean", "preemptions_per_request"]
    return over(results, "policy.batch_size", metrics, by="case", has_steps=True)


def tbt_controller(results: SweepResults) -> Drawing:
    """Fixed limits and a controller that steers to a target time between tokens, over the request rate."""
    figure, table = over(
        results, "workload.request_rate", ["itl_mean_s", "slo_attainment_tpot", "e2e_mean_s"], by="case"
    )
    target_s = flat(results.sweep.base)["slo.tpot_ms"] / 1000
    figure.axes[0].axhline(target_s, color=".2", ls=":", lw=1)
    return figure, table


def preemption_cliff(results: SweepResults) -> Drawing:
    """Policies over the KV blocks of a replica, under a load that they cannot serve."""
    metrics = [TOKENS, "preemptions_per_request", "recomputed_share"]
    return over(results, "engine.num_kv_blocks", metrics, by="case", has_steps=True)


def routing(results: SweepResults) -> Drawing:
    """Ways to choose a replica, over the request rate."""
    return over(results, RATE, ["ttft_p99_s", "ttft_mean_s", "prefix_hit_rate"], by="case")


def prefix_caching(results: SweepResults) -> Drawing:
    """Prefix caching on and off, over the request rate."""
    return over(results, RATE, ["ttft_mean_s", "ttft_p99_s", "prefix_hit_rate"], by="case")
