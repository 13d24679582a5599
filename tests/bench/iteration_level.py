"""Speed of the iteration-level world, beside its own exact iterations in the same process.

    python tests/bench/iteration_level.py [--requests 200000]

Prints CPU seconds, requests and output tokens per second of the simulation alone and with preparation and
summary, the ratio of spans to one event per iteration, and the exponent of time in the number of requests.
Nothing is asserted: machines differ.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from batchsim import Workload, simulate
from batchsim.config import load_config
from batchsim.latency.base import IterationLatency
from batchsim.latency.linear import LinearIterationLatency
from batchsim.latency.tables.iteration_grid import TableIterationLatency
from batchsim.policies.presets import names_of
from batchsim.records import Records
from batchsim.sim.simulation import run_replicas
from batchsim.study.setup.cluster import disaggregation, engines, prepare_policies, replicas

#: About Llama-3.1-8B on an A100: 6 ms a pass, 50 us a prompt token.
LINEAR = LinearIterationLatency(0.006, 5e-5, 0.0, 2e-5, 2e-8)
PREFILLS, SEQS, CONTEXTS = (0, 64, 512, 2048), (0, 1, 16, 64, 256), (0, 256, 1024, 4096)
TABLE = TableIterationLatency(
    PREFILLS,
    SEQS,
    CONTEXTS,
    tuple(
        0.006 + 5e-5 * prefill + 2e-5 * seqs + 2e-8 * seqs * context
        for prefill in PREFILLS
        for seqs in SEQS
        for context in CONTEXTS
    ),
)
SATURATED_PER_S = 24.0  # requests a replica of `LINEAR` serves when all are there at once
KV_BLOCKS = 16384


def make_workload(num_requests: int, rate_per_s: float, seed: int = 0) -> Workload:
    """Poisson arrivals, lognormal lengths: 630 prompt and 127 output tokens in the mean."""
    rng = np.random.default_rng(seed)
    return Workload(
        np.arange(num_requests),
        np.cumsum(rng.exponential(1 / rate_per_s, num_requests)),
        np.clip(rng.lognormal(6.072, 0.9, num_requests).round(), 8, 3000).astype(np.int64),
        np.clip(rng.lognormal(4.524, 0.8, num_requests).round(), 2, 1000).astype(np.int64),
    )


def configuration(preset: str, num_replicas: int = 1, *, is_exact: bool = False) -> dict[str, Any]:
    """Equal replicas, no warm-up cut, no training part."""
    return {
        "policy": {"preset": preset},
        "cluster": {"num_gpus": num_replicas},
        "engine": {"num_kv_blocks": KV_BLOCKS, "exact_iterations": is_exact},
        "latency": {"outside": "extrapolate"},
        "metrics": {"warmup": 0.0},
        "workload": {"training_fraction": 0.0},
    }


def simulation_alone(
    config: dict[str, Any], workload: Workload, latency: IterationLatency
) -> Callable[[], Records]:
    """Return what runs the simulation, with all that it needs prepared."""
    loaded = load_config(config)
    cluster = replicas(loaded, latency)
    given, capacities = [one.policy for one in cluster], [KV_BLOCKS * 16] * len(cluster)
    policies = prepare_policies(loaded, given, capacities, workload.take(slice(0, 1000)))
    apart = disaggregation(loaded, cluster)
    return lambda: run_replicas(
        workload, workload.output_tokens, policies, engines(loaded, cluster), disaggregation=apart
    )


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of one call, and what it returned."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def show(title: str, seconds: float, workload: Workload, more: str = "") -> None:
    """One line."""
    requests_per_s = len(workload) / seconds
    tokens_per_s = workload.output_tokens.sum() / seconds
    speed = f"{requests_per_s:9,.0f} requests/s {tokens_per_s / 1e6:6.2f} Mtok/s"
    print(f"{title:38} {seconds:7.2f} s {speed}  {more}")


def main() -> None:
    """Run all and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000)
    num_requests = parser.parse_args().requests

    print(f"{num_requests:,} requests, 630 prompt and 127 output tokens; CPU time of the simulation alone")
    for load in (0.4, 0.75):
        for num_replicas in (1, 4):
            workload = make_workload(num_requests, load * SATURATED_PER_S * num_replicas)
            run = simulation_alone(configuration("vllm_v1", num_replicas), workload, LINEAR)
            seconds, records = cpu_seconds(run)
            spans = len(records.iterations)
            iterations = int(records.iterations["num_iterations"].sum())
            more = (
                f"{spans / num_requests:.2f} spans and {iterations / num_requests:.1f} iterations a request"
            )
            show(f"vllm_v1, linear, load {load:.0%}, {num_replicas} replicas", seconds, workload, more)

    workload = make_workload(num_requests, 0.75 * SATURATED_PER_S)
    seconds, _ = cpu_seconds(lambda: simulate(configuration("vllm_v1"), workload, latency=LINEAR))
    show("the same with preparation and summary", seconds, workload)
    few = workload.take(slice(0, num_requests // 10))
    spans_s, spans = cpu_seconds(simulation_alone(configuration("vllm_v1"), few, LINEAR))
    exact_s, exact = cpu_seconds(simulation_alone(configuration("vllm_v1", is_exact=True), few, LINEAR))
    worst_s = np.abs(spans.requests["finish_s"] - exact.requests["finish_s"]).max()
    show(
        "exact iterations",
        exact_s,
        few,
        f"spans {exact_s / spans_s:.1f}x; finish times differ by {worst_s:.2g} s",
    )
    seconds, _ = cpu_seconds(simulation_alone(configuration("vllm_v1"), workload, TABLE))
    show("vllm_v1, table, load 75%", seconds, workload)
    for preset in names_of(is_iteration_level=True):
        seconds, _ = cpu_seconds(simulation_alone(configuration(preset), few, LINEAR))
        show(f"{preset}, linear, load 75%", seconds, few)

    many = make_workload(num_requests // 4, 0.5 * SATURATED_PER_S * 16)
    together_s, _ = cpu_seconds(simulation_alone(configuration("vllm_v1", 16), many, LINEAR))
    apart = configuration("vllm_v1", 16)
    apart["cluster"]["num_prefill_replicas"] = 8
    apart_s, _ = cpu_seconds(simulation_alone(apart, many, LINEAR))
    show("16 replicas, load 50%", together_s, many)
    show("8 for prompts and 8 that decode", apart_s, many, f"{together_s / apart_s:.2f} of the speed")

    sizes = [size for size in (10_000, 100_000, 1_000_000) if size <= num_requests]
    if len(sizes) > 1:
        parts = [workload.take(slice(0, size)) for size in sizes]
        times = [cpu_seconds(simulation_alone(configuration("vllm_v1"), part, LINEAR))[0] for part in parts]
        exponent = np.polyfit(np.log(sizes), np.log(times), 1)[0]
        print(f"time ~ requests^{exponent:.3f}")


if __name__ == "__main__":
    main()
