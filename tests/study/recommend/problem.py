"""A small problem with a known answer: M/G/c-like queues of short answers, on GPUs that cost by kind and number."""

from typing import Any

SMALL: dict[str, Any] = {
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
    "slo": {"ttft_ms": 150, "tpot_ms": 20},
}
