"""The part of a summary that differs between the worlds: what batches, or engines, were busy with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from batchsim.metrics import engine, system
from batchsim.metrics import requests as per_request
from batchsim.metrics.efficiency import Hardware, mbu, mfu, work
from batchsim.metrics.system import Window, ratio
from batchsim.metrics.tokens import itl_and_worst_gap_s
from batchsim.records import FINISHED, Records

PERCENTILES = (50, 90, 95, 99)


def batch_load(records: Records, window: Window) -> dict[str, Any]:
    """Run to completion: sizes and padding of the batches that finish in the window, and time averages."""
    requests, batches = records.requests, records.batches
    num_replicas, capacity = records.num_replicas, records.kv_capacity_tokens
    inside = system.finished_in(batches, window)
    sizes = inside["batch_size"]
    return {
        "num_flushed": batches.loc[batches["is_flush"], "batch_size"].sum(),
        "num_evicted": requests["num_evictions"].sum(),
        "num_batches": len(batches),
        "num_extrapolated_batches": batches["is_extrapolated"].sum(),
        "busy_fraction": system.busy_fraction(batches, num_replicas, window),
        "waiting_mean": system.waiting_mean(requests, num_replicas, window),
        "batch_size_mean": sizes.mean(),
        "batch_size_p50": sizes.median(),
        "batch_size_max": sizes.max(),
        "batch_fill": system.batch_fill(batches, window),
        "padding_waste_output": system.padding_waste_output(inside),
        "padding_waste_prompt": system.padding_waste_prompt(inside),
        "kv_use_mean": system.kv_use(batches, num_replicas, capacity, window),
        "kv_use_max": inside["kv_tokens"].max() / capacity,
    }


def engine_load(
    records: Records, covered: pd.DataFrame, window: Window, hardware: Hardware | None
) -> dict[str, Any]:
    """Iteration level: time averages of the window, gaps between tokens of the covered, totals of the run."""
    requests, iterations = records.requests, records.iterations
    num_iterations = iterations["num_iterations"].sum()
    num_started = requests["scheduled_s"].count()
    prefill_tokens = iterations["prefill_tokens"].sum()
    decode_tokens = engine.decoded_tokens(iterations).sum()
    is_finished = covered["status"] == FINISHED
    finished = covered if is_finished.all() else covered[is_finished]
    return {
        "busy_fraction": system.busy_fraction(iterations, records.num_replicas, window),
        **_running(records, window),
        "waiting_mean": system.waiting_mean(requests, records.num_replicas, window),
        "kv_use_mean": engine.kv_use(iterations, records.kv_blocks, window),
        "kv_use_max": _kv_use_max(records, window),
        "num_preemptions": len(records.preemptions),
        "num_preempted_requests": (requests["num_preemptions"] > 0).sum(),
        "preemptions_per_request": ratio(len(records.preemptions), num_started),
        "recomputed_tokens": requests["recomputed_tokens"].sum(),
        "recomputed_share": engine.recomputed_share(requests, iterations),
        "prefix_hit_rate": engine.prefix_hit_rate(covered),
        "iterations_total": num_iterations,
        "spans_total": len(iterations),
        "num_extrapolated_iterations": iterations.loc[iterations["is_extrapolated"], "num_iterations"].sum(),
        "prefill_tokens_total": prefill_tokens,
        "prefill_tokens_per_iteration_mean": ratio(prefill_tokens, num_iterations),
        "decode_seqs_per_iteration_mean": ratio(decode_tokens, num_iterations),
        **_token_gaps(records, finished),
        **_ttft_parts(finished, iterations),
        **({} if hardware is None else _efficiency(records, window, hardware)),
    }


def _running(records: Records, window: Window) -> dict[str, float]:
    running = engine.running_sequences(records.iterations, records.num_replicas, window)
    inside = system.finished_in(records.iterations[["finish_s", "num_running"]], window)
    return {
        "running_mean": running.mean,
        "running_p95": running.percentiles([95])[0],
        "running_max": inside["num_running"].max(),
    }


def _kv_use_max(records: Records, window: Window) -> float:
    inside = system.finished_in(records.iterations[["gpu_id", "finish_s", "kv_blocks"]], window)
    return float(engine.kv_share(inside, records.kv_blocks).max())


def _token_gaps(records: Records, finished: pd.DataFrame) -> dict[str, float]:
    gaps, worst_s = itl_and_worst_gap_s(finished, records.iterations, records.preemptions)
    worst_s = worst_s.dropna()
    worst = np.percentile(worst_s, (50, 99)) if len(worst_s) else (math.nan, math.nan)
    return {
        "itl_mean_s": gaps.mean,
        **{f"itl_p{p}_s": gap for p, gap in zip(PERCENTILES, gaps.percentiles(PERCENTILES), strict=True)},
        "itl_max_s": gaps.max,
        "worst_gap_p50_s": worst[0],
        "worst_gap_p99_s": worst[1],
    }


def _ttft_parts(finished: pd.DataFrame, iterations: pd.DataFrame) -> dict[str, float]:
    host_s = per_request.host_s(finished, iterations)
    queueing_s = per_request.queueing_s(finished)
    return {
        "ttft_queueing_mean_s": queueing_s.mean(),
        "ttft_prefill_mean_s": (per_request.ttft_s(finished) - queueing_s - host_s).mean(),
        "ttft_host_mean_s": host_s.mean(),
    }


def _efficiency(records: Records, window: Window, hardware: Hardware) -> dict[str, float]:
    done = work(records.iterations, window)
    wall_s = records.num_replicas * window.length_s
    return {
        "mfu": mfu(done, hardware, done.busy_s),
        "mfu_wall": mfu(done, hardware, wall_s),
        "mbu": mbu(done, hardware, done.busy_s),
        "mbu_wall": mbu(done, hardware, wall_s),
    }
