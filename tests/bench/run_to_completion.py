"""Speed of the run-to-completion world, beside a bare heap loop that does the same work in the same process.

    python tests/bench/run_to_completion.py [--requests 1000000]

Prints CPU seconds, requests per second, the ratio to the heap loop, the exponent of time in the number of
requests, and the peak memory of a run as long as the public BurstGPT trace. Nothing is asserted: machines
differ.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import Any

import numpy as np

from batchsim import Workload, load_latency, simulate
from batchsim.latency.base import BatchShape

PRESETS = ("static_fifo", "multi_bin", "dynamic_no_bins", "multi_bin_dynamic")
RATE_PER_S = 6.0
NUM_GPUS = 4
BURSTGPT_ROWS = 1_429_737


def make_workload(num_requests: int, seed: int = 0, rate_per_s: float = RATE_PER_S) -> Workload:
    """Poisson arrivals, lognormal lengths about as long as BurstGPT's."""
    rng = np.random.default_rng(seed)
    return Workload(
        np.arange(num_requests),
        np.cumsum(rng.exponential(1 / rate_per_s, num_requests)),
        np.clip(rng.lognormal(6.0, 0.9, num_requests).round(), 8, 3000).astype(np.int64),
        np.clip(rng.lognormal(4.5, 0.8, num_requests).round(), 1, 1000).astype(np.int64),
    )


def heap_loop(workload: Workload, batch_size: int = 8) -> np.ndarray:
    """Static FIFO batches as a bare event loop: no processes, no Stores, no records but the ends."""
    latency = load_latency(None)
    arrivals = workload.arrival_s.tolist()
    prompts, outputs = workload.prompt_tokens.tolist(), workload.output_tokens.tolist()
    finish_s = np.full(len(workload), np.nan)
    waiting: deque[int] = deque()
    idle, events, upcoming = NUM_GPUS, [(arrivals[0], 0)], 1
    while events:
        now_s, kind = heappop(events)
        if kind == 0:
            waiting.append(upcoming - 1)
            if upcoming < len(arrivals):
                heappush(events, (arrivals[upcoming], 0))
                upcoming += 1
        else:
            idle += 1
        while idle and waiting:
            members = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
            shape = BatchShape(
                len(members), max(prompts[i] for i in members), max(outputs[i] for i in members)
            )
            end_s = now_s + latency.batch_time(shape).total_s
            finish_s[members] = end_s
            heappush(events, (end_s, 1))
            idle -= 1
    return finish_s


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of one call, and what it returned."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def run_preset(preset: str, workload: Workload) -> Any:
    """Simulate with all defaults but the cluster size."""
    config = {"policy": {"preset": preset}, "cluster": {"num_gpus": NUM_GPUS}, "metrics": {"warmup": 0.0}}
    return simulate(config | {"workload": {"training_fraction": 0.01}}, workload)


def print_by_batch_size(num_requests: int) -> None:
    """Static batches at three loads: at the lowest, nearly every request runs alone."""
    for rate_per_s, limit in ((0.5, 8), (4.8, 8), (8.0, 16)):
        workload = make_workload(num_requests, rate_per_s=rate_per_s)
        config = {"policy": {"preset": "static_fifo", "batch_size": limit}, "cluster": {"num_gpus": NUM_GPUS}}
        bare_s, _ = cpu_seconds(partial(heap_loop, workload, limit))
        spent_s, result = cpu_seconds(partial(simulate, {**config, "metrics": {"warmup": 0.0}}, workload))
        a_request_s, a_batch_s = spent_s / num_requests, spent_s / len(result.records.batches)
        print(
            f"batches of {result.summary['batch_size_mean']:4.1f}: {a_request_s * 1e6:5.1f} us a request, "
            f"{1 / a_request_s:8,.0f} requests/s, {a_batch_s * 1e6:5.1f} us a batch; "
            f"heap loop is {spent_s / bare_s:.1f}x"
        )


def peak_memory_gib(num_requests: int) -> float:
    """Peak resident memory of a process that simulates this many requests and nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_one_run, (num_requests,))


def _peak_of_one_run(num_requests: int) -> float:
    import resource  # POSIX only; nothing else here is

    run_preset("static_fifo", make_workload(num_requests))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Run all and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    num_requests = parser.parse_args().requests
    workload = make_workload(num_requests)

    bare_s, finish_s = cpu_seconds(lambda: heap_loop(workload))
    print(f"{num_requests:,} requests, {NUM_GPUS} GPUs, {RATE_PER_S}/s")
    print(f"{'bare heap loop':20} {bare_s:7.2f} s  {num_requests / bare_s:10,.0f} requests/s")
    for preset in PRESETS:
        spent_s, result = cpu_seconds(partial(run_preset, preset, workload))
        num_run = len(result.requests)
        rate = num_run / spent_s
        print(
            f"{preset:20} {spent_s:7.2f} s  {rate:10,.0f} requests/s  "
            f"heap loop is {num_requests / bare_s / rate:.1f}x  "
            f"busy {result.summary['busy_fraction']:.2f}  batch {result.summary['batch_size_mean']:.1f}"
        )
        if preset == "static_fifo":
            # The same requests without the training part, so that both loops can be held against each other.
            same = simulate({"cluster": {"num_gpus": NUM_GPUS}, "metrics": {"warmup": 0.0}}, workload)
            worst_s = np.abs(same.requests["finish_s"].to_numpy() - finish_s).max()
            print(f"{'':20} largest difference to the heap loop: {worst_s:.3g} s")

    print_by_batch_size(min(num_requests, 100_000))
    sizes = [size for size in (10_000, 100_000, 1_000_000) if size <= num_requests]
    times = [
        min(
            cpu_seconds(partial(run_preset, "static_fifo", workload.take(slice(0, size))))[0]
            for _ in range(2)
        )
        for size in sizes
    ]
    exponent = np.polyfit(np.log(sizes), np.log(times), 1)[0]
    print(
        "static_fifo: "
        + ", ".join(f"{size:,}: {spent:.2f} s" for size, spent in zip(sizes, times, strict=True))
    )
    print(f"time ~ requests^{exponent:.3f}")
    print(f"peak memory of {BURSTGPT_ROWS:,} requests: {peak_memory_gib(BURSTGPT_ROWS):.2f} GiB")


if __name__ == "__main__":
    main()
