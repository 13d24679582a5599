"""Peak memory of a long run: 1.4 million requests on engines that batch at every iteration.

It prints what a process of its own took at most, packages included::

    python tests/bench/memory.py [--num-requests N] [--policy NAME]
"""

import argparse
import multiprocessing
import resource
from typing import Any


def peak_gib(num_requests: int, policy: str) -> tuple[int, float]:
    """Run, and return the number of spans or batches recorded and the peak of this process."""
    from batchsim.study.run import simulate

    config: dict[str, Any] = {
        "workload": {
            "generator": {"kind": "burstgpt_like"},
            "num_requests": num_requests,
            "training_fraction": 0.0,
        },
        "policy": {"preset": policy},
        "cluster": {"num_gpus": 4},
    }
    result = simulate(config)
    num_rows = len(result.iterations) + len(result.batches)
    return num_rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure in a fresh process, so that nothing else counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-requests", type=int, default=1_400_000)
    parser.add_argument("--policy", default="vllm_v1")
    given = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        num_rows, peak = pool.apply(peak_gib, (given.num_requests, given.policy))
    print(f"{given.num_requests:,} requests, {given.policy}: {num_rows:,} rows recorded, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
