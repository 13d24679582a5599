"""How often 95 % intervals hold: ``python -m tests.trust.interval_table`` prints `docs/trust.md`'s table."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from batchsim.metrics.statistics import Interval, batch_means_interval, paired_difference
from tests.trust.queues import poisson, single_server

LOADS = (0.5, 0.8, 0.9)
NUM_REQUESTS = (2000, 10_000, 50_000)
NUM_SEEDS = 1000
SPEED = 0.9  # of a request in the other run of a pair, as a share of its time


class Coverage(NamedTuple):
    """Of so many runs, how many had an interval, and how many of these held the truth."""

    num_runs: int
    num_intervals: int
    num_held: int

    @classmethod
    def of(cls, intervals: list[Interval], truth: float) -> Coverage:
        """Count."""
        told = [interval for interval in intervals if not math.isnan(interval.half_width)]
        held = sum(interval.low <= truth <= interval.high for interval in told)
        return cls(len(intervals), len(told), held)

    def __str__(self) -> str:
        """Share that held, and the share of runs with an interval where it is not all."""
        if not self.num_intervals:
            return "none told"
        told = self.num_intervals / self.num_runs
        return f"{self.num_held / self.num_intervals:.1%}" + (f" of {told:.1%}" if told < 1 else "")


def coverages(rho: float, num: int, num_seeds: int = NUM_SEEDS) -> tuple[Coverage, Coverage]:
    """Coverage of the mean end-to-end time of M/M/1, and of its difference to one that is faster by a tenth.

    The two serve the same arrivals with the same requests.
    """
    single, paired = [], []
    for seed in range(num_seeds):
        random = np.random.default_rng(seed)
        arrival_s, service_s = poisson(rho, num, random), random.exponential(1.0, num)
        runs = (single_server(arrival_s, service_s), single_server(arrival_s, SPEED * service_s))
        slow_s, fast_s = (times.finish_s - times.arrival_s for times in runs)
        single.append(batch_means_interval(slow_s))
        paired.append(paired_difference(fast_s, slow_s))
    slow, fast = 1 / (1 - rho), SPEED / (1 - SPEED * rho)
    return Coverage.of(single, slow), Coverage.of(paired, fast - slow)


def main() -> None:
    """Print a row for each load and length."""
    print("| load | requests | one run | paired difference |")
    print("|---:|---:|---:|---:|")
    for rho in LOADS:
        for num in NUM_REQUESTS:
            single, paired = coverages(rho, num)
            print(f"| {rho:g} | {num:,} | {single} | {paired} |", flush=True)


if __name__ == "__main__":
    main()
