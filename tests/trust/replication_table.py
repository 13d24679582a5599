"""How often intervals over replications hold: ``python -m tests.trust.replication_table`` prints a table.

It stands in `docs/trust.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchsim.config import RunConfig, load_config
from batchsim.metrics.statistics import Interval, t_interval
from batchsim.streams import stream
from batchsim.study.replications import Stopping, replicate, replication_seed
from batchsim.study.run import simulate
from batchsim.workload.load import prepare
from tests.sim.worlds import PLENTY, LinearLatency
from tests.trust.interval_table import Coverage
from tests.trust.queues import single_server

NUM_REPETITIONS, NUM_REPLICATIONS = 200, 10
#: Runs, and requests of each, from which a mean is taken that no formula gives.
NUM_LONG, LONG = 8, 20_000
TOKENS_PER_S = 10_000
#: Of M/M/1.
LATENCY = LinearLatency(per_token_s=1 / TOKENS_PER_S)
WARMUP = 0.1


@dataclass(frozen=True)
class World:
    """A configuration that draws its requests, and how many of them a run has."""

    name: str
    config: Mapping[str, Any]
    num_requests: int

    def truth_s(self, num_runs: int = NUM_LONG, num_requests: int = LONG) -> float:
        """The mean E2E time, of long runs."""
        long = self.of(num_requests)
        seeds = [replication_seed(10**6, k) for k in range(num_runs)]
        return float(np.mean([simulate({**long, "seed": seed}).summary["e2e_mean_s"] for seed in seeds]))

    def of(self, num_requests: int) -> dict[str, Any]:
        """The configuration with so many requests."""
        return {**self.config, "workload": {**self.config["workload"], "num_requests": num_requests}}

    def interval(self, seed: int, num_replications: int) -> Interval:
        """What one user sees."""
        summary = replicate({**self.of(self.num_requests), "seed": seed}, num=num_replications).summary
        keys = ("e2e_mean_s", "e2e_mean_ci95_low_s", "e2e_mean_ci95_high_s")
        return Interval(*(summary[key] for key in keys))


@dataclass(frozen=True)
class SingleQueue(World):
    """M/M/1: batches of one that last as long as their answer.

    Its times come from Lindley's recursion, which has no loop; the simulator has the same, request by
    request, as a test says.
    """

    rho: float

    def truth_s(self, num_runs: int = 0, num_requests: int = 0) -> float:
        """The exact mean: services take 1 s."""
        return 1 / (1 - self.rho)

    def interval(self, seed: int, num_replications: int) -> Interval:
        """As the simulator's, to rounding."""
        return t_interval(self.means_s(seed, Stopping(num_replications)))

    def means_s(self, seed: int, stopping: Stopping) -> list[float]:
        """Of each replication, until there are enough."""
        config = load_config(self.of(self.num_requests))
        means_s = [self._mean_s(config, seed)]
        while not stopping.is_done([means_s]):
            means_s.append(self._mean_s(config, replication_seed(seed, len(means_s))))
        return means_s

    def _mean_s(self, config: RunConfig, seed: int) -> float:
        _, requests = prepare(config.workload, 1, stream(seed, "workload"))
        times = single_server(requests.arrival_s, requests.output_tokens / TOKENS_PER_S)
        num_warmup = int(WARMUP * self.num_requests)
        return float((times.finish_s - times.arrival_s)[num_warmup:].mean())


def poisson(rate_per_s: float, prompt: int, output: Mapping[str, Any]) -> dict[str, Any]:
    """Requests of a Poisson process."""
    lengths = {"prompt": {"kind": "fixed", "tokens": prompt}, "output": output}
    return {"generator": {"kind": "poisson", "rate_per_s": rate_per_s, **lengths}}


def single_queue(rho: float, num_requests: int) -> SingleQueue:
    """M/M/1 at this load; `LATENCY` goes with it."""
    config = {
        "policy": {"preset": "static_fifo", "batch_size": 1},
        "cluster": {"kv_capacity_tokens": PLENTY},
        "metrics": {"warmup": WARMUP},
        "workload": poisson(rho, 1, {"kind": "exponential", "mean": TOKENS_PER_S}),
    }
    return SingleQueue(f"M/M/1 at {rho:g}", config, num_requests, rho)


QUEUES = (single_queue(0.5, 1000), single_queue(0.8, 8000), single_queue(0.9, 16_000))
#: Queues that are replicated until an interval reaches no further than this share of its mean.
PRECISE = ((QUEUES[0], 0.05), (QUEUES[0], 0.02), (QUEUES[1], 0.05), (QUEUES[2], 0.05))
WORLDS = (
    *QUEUES,
    World(
        "multi_bin",
        {
            "policy": {"preset": "multi_bin", "num_bins": 4},
            "workload": poisson(1.5, 200, {"kind": "uniform", "low": 1, "high": 400}),
        },
        500,
    ),
    World(
        "vllm_v1",
        {
            "policy": {"preset": "vllm_v1"},
            "workload": poisson(2.0, 500, {"kind": "exponential", "mean": 150}),
        },
        500,
    ),
)


def coverage(
    world: World, truth_s: float, num_repetitions: int, num_replications: int
) -> tuple[Coverage, float]:
    """How many of the intervals hold the true mean, and the bias of their centres as a share of it."""
    intervals = [world.interval(repetition, num_replications) for repetition in range(num_repetitions)]
    centres = t_interval([interval.mean for interval in intervals])
    return Coverage.of(intervals, truth_s), centres.mean / truth_s - 1


def precise(world: SingleQueue, precision: float, num_repetitions: int) -> tuple[Coverage, float]:
    """How many of the intervals that were waited for hold the true mean, and the replications they took."""
    stopping = Stopping(precision=precision, most=10_000)
    runs = [world.means_s(repetition, stopping) for repetition in range(num_repetitions)]
    return Coverage.of(list(map(t_interval, runs)), world.truth_s()), float(np.mean(list(map(len, runs))))


def main(names: list[str]) -> None:
    """Print a row for each world, or those named."""
    print("| run | requests | replications | intervals that hold | bias of their centres |")
    print("|---|---:|---:|---:|---:|")
    for world in WORLDS:
        if not names or world.name in names:
            covered, bias = coverage(world, world.truth_s(), NUM_REPETITIONS, NUM_REPLICATIONS)
            print(
                f"| {world.name} | {world.num_requests:,} | {NUM_REPLICATIONS} | {covered} | {bias:+.1%} |",
                flush=True,
            )
    if names:
        return
    print("\n| run | requests | precision | replications, on average | intervals that hold |")
    print("|---|---:|---:|---:|---:|")
    for world, precision in PRECISE:
        covered, num = precise(world, precision, NUM_REPETITIONS)
        print(
            f"| {world.name} | {world.num_requests:,} | {precision:.0%} | {num:.0f} | {covered} |", flush=True
        )


if __name__ == "__main__":
    main(sys.argv[1:])
