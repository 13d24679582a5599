"""The part of a summary that differs between the worlds: what batches, or engines, were busy with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from batchsim.metrics import engine, system
from batchsim.metrics import requests as per_request
from batchsim.metrics.cluster.fleet import mean_replicas
from batchsim.metrics.efficiency import Hardware, mbu, mfu, work
from batchsim.metrics.system import Window, finishes_in, known, largest, mean, ratio
from batchsim.metrics.tokens import itl_and_worst_gap_s
from batchsim.records import PREEMPTIONS, Records, arrays, rows

PERCENTILES = (50, 90, 95, 99)

Arrays = Mapping[str, Any]


def batch_load(records: Records, requests: Arrays, window: Window) -> dict[str, Any]:
    """Run to completion: sizes and padding of the batches that finish in the window, and time averages."""
    batches = arrays(records.batches)
    num_replicas, capacity = records.num_replicas, records.kv_capacity_tokens
    inside = rows(batches, finishes_in(batches, window))
    sizes = inside["batch_size"]
    return {
        "num_flushed": batches["batch_size"][batches["is_flush"]].sum(),
        "num_evicted": requests["num_evictions"].sum(),
        "num_batches": len(batches["batch_size"]),
        "num_extrapolated_batches": batches["is_extrapolated"].sum(),
        "busy_fraction": system.busy_fraction(batches, num_replicas, window),
        "waiting_mean": system.waiting_mean(requests, num_replicas, window),
        "batch_size_mean": mean(sizes),
        "batch_size_p50": np.median(sizes) if len(sizes) else math.nan,
        "batch_size_max": largest(sizes),
        "batch_fill": system.batch_fill(batches, window),
        "padding_waste_output": system.padding_waste_output(inside),
        "padding_waste_prompt": system.padding_waste_prompt(inside),
        "kv_use_mean": system.kv_use(batches, num_replicas, capacity, window),
        "kv_use_max": largest(inside["kv_tokens"]) / capacity,
    }


def engine_load(
    records: Records,
    requests: Arrays,
    covered: Arrays,
    finished: Arrays,
    window: Window,
    hardware: Hardware | None,
) -> dict[str, Any]:
    """Iteration level: time averages of the window, gaps between tokens of the covered, totals of the run.

    The tables of requests are given as `arrays`: all, those covered, and those of these that finished.
    """
    iterations = arrays(records.iterations)
    mode = records.preemptions["mode"]
    num_preemptions = sum(int(np.count_nonzero(mode == one)) for one in PREEMPTIONS)
    num_iterations = iterations["num_iterations"].sum()
    num_started = len(known(requests["scheduled_s"]))
    prefill_tokens = iterations["prefill_tokens"].sum()
    decode_steps = engine.decode_steps(iterations).sum()
    num_replicas, kv_blocks = mean_replicas(records, window), records.kv_blocks
    return {
        "busy_fraction": system.busy_fraction(iterations, num_replicas, window),
        **_running(iterations, num_replicas, window),
        "waiting_mean": system.waiting_mean(requests, num_replicas, window),
        "kv_use_mean": engine.kv_use(iterations, kv_blocks, window, num_replicas),
        "kv_use_max": largest(engine.kv_share(iterations, kv_blocks)[finishes_in(iterations, window)]),
        "num_preemptions": num_preemptions,
        "num_preempted_requests": np.count_nonzero(requests["num_preemptions"]),
        "preemptions_per_request": ratio(num_preemptions, num_started),
        "recomputed_tokens": requests["recomputed_tokens"].sum(),
        "recomputed_share": engine.recomputed_share(requests, iterations),
        "prefix_hit_rate": engine.prefix_hit_rate(covered),
        "iterations_total": num_iterations,
        "spans_total": len(iterations["start_s"]),
        "num_extrapolated_iterations": iterations["num_iterations"][iterations["is_extrapolated"]].sum(),
        "prefill_tokens_total": prefill_tokens,
        "prefill_tokens_per_iteration_mean": ratio(prefill_tokens, num_iterations),
        "decode_seqs_per_iteration_mean": ratio(decode_steps, num_iterations),
        **_token_gaps(finished, iterations, arrays(records.preemptions)),
        **_ttft_parts(finished, iterations),
        **({} if hardware is None else _efficiency(iterations, num_replicas, window, hardware)),
    }


def _running(iterations: Arrays, num_replicas: float, window: Window) -> dict[str, float]:
    running = engine.running_sequences(iterations, num_replicas, window)
    return {
        "running_mean": running.mean,
        "running_p95": running.percentiles([95])[0],
        "running_max": largest(iterations["num_running"][finishes_in(iterations, window)]),
    }


def _token_gaps(finished: Arrays, iterations: Arrays, preemptions: Arrays) -> dict[str, float]:
    gaps, worst_s = itl_and_worst_gap_s(finished, iterations, preemptions)
    worst_s = known(worst_s)
    worst = np.percentile(worst_s, (50, 99)) if len(worst_s) else (math.nan, math.nan)
    return {
        "itl_mean_s": gaps.mean,
        **{f"itl_p{p}_s": gap for p, gap in zip(PERCENTILES, gaps.percentiles(PERCENTILES), strict=True)},
        "itl_max_s": gaps.max,
        "worst_gap_p50_s": worst[0],
        "worst_gap_p99_s": worst[1],
    }


def _ttft_parts(finished: Arrays, iterations: Arrays) -> dict[str, float]:
    host_s = per_request.host_s(finished, iterations)
    queueing_s = per_request.queueing_s(finished)
    return {
        "ttft_queueing_mean_s": mean(known(queueing_s)),
        "ttft_prefill_mean_s": mean(known(per_request.ttft_s(finished) - queueing_s - host_s)),
        "ttft_host_mean_s": mean(known(host_s)),
    }


def _efficiency(
    iterations: Arrays, num_replicas: float, window: Window, hardware: Hardware
) -> dict[str, float]:
    done = work(iterations, window, hardware.model)
    wall_s = num_replicas * window.length_s
    return {
        "mfu": mfu(done, hardware, done.busy_s),
        "mfu_wall": mfu(done, hardware, wall_s),
        "mbu": mbu(done, hardware, done.busy_s),
        "mbu_wall": mbu(done, hardware, wall_s),
    }
