"""How often the verdict is wrong: ``python -m tests.trust.verdict_table`` prints `docs/trust.md`'s table."""

from __future__ import annotations

from collections import Counter

import numpy as np

from batchsim.metrics.verdict import judge
from tests.trust.queues import QUEUES, Queue

LOADS = (0.5, 0.8, 0.9, 0.95, 1.02, 1.1, 1.2)
NUM_REQUESTS = (2000, 50_000)
NUM_SEEDS = 100


def verdicts(queue: Queue, rho: float, num: int, num_seeds: int = NUM_SEEDS) -> Counter[str]:
    """Count the verdicts over seeds."""
    return Counter(judge(*queue(rho, num, np.random.default_rng(seed))).name for seed in range(num_seeds))


def main() -> None:
    """Print a row per queue and length: of 100 runs, how many are called saturated + transient."""
    print("| queue | requests |", " | ".join(f"{rho:g}" for rho in LOADS), "|")
    print("|---|---:|" + "---:|" * len(LOADS))
    for name, queue in QUEUES.items():
        for num in NUM_REQUESTS:
            counts = [verdicts(queue, rho, num) for rho in LOADS]
            cells = [f"{count['saturated']} + {count['transient']}" for count in counts]
            print(f"| {name} | {num:,} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
