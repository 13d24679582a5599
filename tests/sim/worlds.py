"""Small worlds: latency laws whose times a person can check, and workloads of a few numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from batchsim.latency.base import BatchShape, BatchTime, Domain, LatencyInfo
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate
from batchsim.workload.request import Workload

#: KV tokens that no batch of these tests outgrows.
PLENTY = 10**12


@dataclass(frozen=True)
class LinearLatency:
    """``fixed_s + per_request_s * size + per_token_s * longest answer``; first token after ``fixed_s``."""

    fixed_s: float = 0.0
    per_request_s: float = 0.0
    per_token_s: float = 0.0
    info: LatencyInfo = field(default_factory=LatencyInfo)
    domain: Domain = field(default_factory=Domain)

    def batch_time(self, shape: BatchShape) -> BatchTime:
        total_s = (
            self.fixed_s + self.per_request_s * shape.batch_size + self.per_token_s * shape.output_tokens
        )
        return BatchTime(self.fixed_s, total_s)


def workload(arrival_s: ArrayLike, output_tokens: ArrayLike, prompt_tokens: ArrayLike = 1) -> Workload:
    """Requests in arrival order; a single number of tokens is meant for all."""
    times_s = np.asarray(arrival_s, dtype=np.float64)
    num = len(times_s)
    return Workload(
        np.arange(num),
        times_s,
        np.broadcast_to(np.asarray(prompt_tokens, dtype=np.int64), num),
        np.broadcast_to(np.asarray(output_tokens, dtype=np.int64), num),
    )


def run(
    requests: Workload,
    model: Any,
    policy: Mapping[str, Any],
    *,
    num_gpus: int = 1,
    kv_capacity_tokens: int = PLENTY,
    **config: Any,
) -> SimulationResult:
    """Simulate with oracle predictions and without a training part, unless told otherwise."""
    cluster = {"num_gpus": num_gpus, "kv_capacity_tokens": kv_capacity_tokens, **config.pop("cluster", {})}
    given = {"workload": {"training_fraction": 0.0}, **config, "policy": policy, "cluster": cluster}
    return simulate(given, requests, latency=model)
