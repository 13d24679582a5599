"""Clusters where every GPU has a queue of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from batchsim.policies.base import Setting, WaitingRequest
from batchsim.policies.batching import Greedy
from batchsim.policies.presets import Preset
from batchsim.policies.queueing import Fifo
from batchsim.policies.sizing import FixedSize
from tests.theory.worlds import (
    AS_LONG_AS_THE_LONGEST,
    assert_agrees,
    checked_run,
    poisson_arrivals,
    replicate,
    requests_of,
    waits_s,
)


@dataclass
class AtRandom:
    """Any replica, whatever it has to do: every queue is then an M/M/1."""

    load = None

    def prepare(self, setting: Setting) -> None:
        self._rng = setting.rng

    def choose(self, request: WaitingRequest, loads: Sequence[int]) -> int:
        return int(self._rng.integers(len(loads)))


AT_RANDOM = Preset(Fifo(), FixedSize(1), Greedy(), AtRandom())


def routed(kind: str) -> dict[str, object]:
    return {"preset": "static_fifo", "batch_size": 1, "routing": {"kind": kind}}


def mean_wait_s(policy: dict[str, object], rng: np.random.Generator, num_requests: int) -> float:
    requests = requests_of(poisson_arrivals(rng, 1.6, num_requests), rng.exponential(2, num_requests))
    return float(
        waits_s(checked_run(requests, AS_LONG_AS_THE_LONGEST, policy, num_gpus=4), warmup=0.2).mean()
    )


def test_round_robin_gives_each_gpu_an_erlang_arrival_process() -> None:
    # Every fourth arrival of a Poisson stream: E_4/M/1 at each GPU.
    replications = replicate(lambda rng: mean_wait_s(routed("RoundRobin"), rng, 3000), 16, seed=1)

    assert_agrees(replications, 4.53477, resolution=0.07)


def test_the_more_routing_looks_at_loads_the_shorter_the_wait() -> None:
    policies = [
        routed("LeastLoaded"),
        routed("PowerOfTwo"),
        routed("RoundRobin"),
        {"preset": f"{__name__}:AT_RANDOM"},
    ]

    def measure(rng: np.random.Generator) -> list[float]:
        seed = int(rng.integers(2**32))
        return [mean_wait_s(policy, np.random.default_rng(seed), 2500) for policy in policies]

    replications = replicate(measure, 4, seed=3)

    steps = np.diff(replications, axis=1)
    assert np.all(steps.mean(axis=0) > 3 * steps.std(axis=0, ddof=1) / np.sqrt(len(steps)))
