"""How far a warm-up biases means: ``python -m tests.trust.warmup_table`` prints `docs/trust.md`'s table."""

from __future__ import annotations

import numpy as np

from batchsim.config import SloConfig
from batchsim.metrics.summary import summarise
from tests.metrics.worlds import poisson_queue

LOADS = (0.5, 0.8, 0.9)
NUM_REQUESTS, NUM_SEEDS = 4000, 400
RULES = ("auto", "mser5", 0.1, 0)


def biases(rho: float) -> list[float]:
    """Of the mean E2E time of M/M/1, relative, under each rule; then the standard error of the first."""
    means_s = np.array(
        [
            [summarise(run, SloConfig(), rule)["e2e_mean_s"] for rule in RULES]
            for run in (poisson_queue(rho, NUM_REQUESTS, np.random.default_rng(s)) for s in range(NUM_SEEDS))
        ]
    )
    truth_s = 1 / (1 - rho)
    error_s = means_s[:, 0].std(ddof=1) / NUM_SEEDS**0.5
    return [*(means_s.mean(axis=0) / truth_s - 1).tolist(), float(error_s / truth_s)]


def main() -> None:
    """Print a row for each load."""
    print("| load | auto | mser5 | a fixed tenth | none | standard error |")
    print("|---:|---:|---:|---:|---:|---:|")
    for rho in LOADS:
        *of_rules, error = biases(rho)
        print(f"| {rho:g} |", " | ".join(f"{bias:+.1%}" for bias in of_rules), f"| {error:.1%} |", flush=True)


if __name__ == "__main__":
    main()
