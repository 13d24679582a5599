"""A small sizing question whose answer is known from long runs, and how often `recommend` finds it.

``python -m tests.study.recommend.problem 100`` asks with a hundred seeds.
"""

import sys
from collections import Counter
from typing import Any

from batchsim.study.recommend import Recommendation, recommend

BASE: dict[str, Any] = {
    "policy": {"preset": "vllm_v1"},
    "cluster": {"model": "llama-3.1-8b"},
    "workload": {
        "generator": {
            "kind": "poisson",
            "rate_per_s": 20.0,
            "prompt": {"kind": "lognormal", "mean": 600, "sigma": 1.0},
            "output": {"kind": "lognormal", "mean": 120, "sigma": 1.0},
        },
        "num_requests": 300,
    },
    "slo": {"ttft_ms": 300, "tpot_ms": 40},
}
GPUS = ["h100", "l40s"]
VARY = {"num_gpus": [1, 2, 3, 4], "max_num_batched_tokens": [512, 2048]}


def ask(seed: int, share: float = 0.9) -> Recommendation:
    """Answer the question once."""
    return recommend({**BASE, "seed": seed}, vary=VARY, gpus=GPUS, share=share)


if __name__ == "__main__":
    found: Counter[str] = Counter()
    num_runs = 0
    for seed in range(1, int(sys.argv[1]) + 1):
        answer = ask(seed)
        num_runs += answer.num_simulations
        found["none" if answer.best is None else answer.best.name] += 1
        print(f"seed {seed}: {dict(found)}, {num_runs / seed:.0f} replications a search", flush=True)
