"""Random small worlds: any policy, with ties, tiny memories, impatience and wrong predictions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from batchsim.config import load_config
from batchsim.policies import presets
from batchsim.policies.base import Setting
from batchsim.policies.presets import PRESETS, names_of
from batchsim.policies.queueing import MultiBin
from batchsim.records import Records
from batchsim.sim.gpu import KVMemory
from batchsim.sim.simulation import Cluster, run_simulation
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate
from batchsim.workload.predictor import make_predictor
from batchsim.workload.request import Workload
from tests.sim.worlds import LinearLatency, workload


@dataclass(frozen=True)
class World:
    requests: Workload
    latency: LinearLatency
    policy: dict[str, Any]
    config: dict[str, Any]

    def run(self) -> Records:
        """Only the simulation: its summary would take most of the time."""
        config = load_config({**self.config, "policy": self.policy})
        memory = KVMemory(config.cluster.kv_capacity_tokens or 0, config.cluster.kv_layout)
        policy = presets.build(config.policy)
        policies = [policy]
        if policy.routing is not None:
            policies += [presets.build(config.policy) for _ in range(config.cluster.num_gpus - 1)]
        for one in policies:
            setting = Setting(
                memory.capacity_tokens,
                num_bins=one.queueing.num_bins,
                rng=np.random.default_rng(config.seed),
            )
            for answer in (one.queueing, one.sizing, *([one.routing] if one.routing else [])):
                answer.prepare(setting)
        predicted = make_predictor(config.predictor).predict(
            self.requests, self.requests.take(slice(0)), np.empty(0), np.random.default_rng(config.seed)
        )
        cluster = Cluster(config.cluster.num_gpus, memory, self.latency)
        return run_simulation(self.requests, predicted, policies, cluster, config.patience_s)

    def run_and_summarise(self) -> SimulationResult:
        return simulate({**self.config, "policy": self.policy}, self.requests, latency=self.latency)


#: Arrivals on a coarse grid come at the same instant as others, and when batches end.
ON_GRID = st.integers(0, 12).map(lambda step: step / 4)
ANY_TIME = ON_GRID | st.floats(0, 3)


def workloads(
    arrivals_s: st.SearchStrategy[float] = ANY_TIME,
) -> st.SearchStrategy[Workload]:
    """Up to 30 requests of up to 60 tokens."""
    row = st.tuples(arrivals_s, st.integers(1, 30), st.integers(1, 30))
    return st.lists(row, min_size=1, max_size=30).map(_in_order)


def _in_order(rows: list[tuple[float, int, int]]) -> Workload:
    arrivals_s, prompts, outputs = zip(*sorted(rows, key=lambda row: row[0]), strict=True)
    return workload(arrivals_s, outputs, prompts)


SEVERAL_BINS = st.lists(st.integers(2, 30), min_size=1, max_size=3, unique=True).map(
    lambda edges: {"kind": "MultiBin", "num_bins": len(edges) + 1, "boundaries": sorted(edges)}
)
QUEUES = st.one_of(
    st.just({"kind": "Fifo"}),
    SEVERAL_BINS,
    st.sampled_from([0.5, 2.0]).map(lambda limit: {"kind": "ShortestFirst", "promote_after_s": limit}),
    st.sampled_from([0.0, 0.1]).map(lambda per_token: {"kind": "EarliestDeadline", "per_token_s": per_token}),
)
SIZERS = st.one_of(
    st.integers(1, 6).map(lambda size: {"kind": "FixedSize", "size": size}),
    st.builds(
        lambda rule, most, per_bin: {
            "kind": "MemoryAware",
            "rule": rule,
            "max_batch_size": most,
            "min_requests": 2,
            "per_bin": per_bin,
        },
        st.sampled_from(["clt", "clt_linear", "as_printed"]),
        st.integers(1, 8),
        st.booleans(),
    ),
    st.builds(
        lambda metric, target_s, most, per_bin: {
            "kind": "SloFeedback",
            "metric": metric,
            "target_s": target_s,
            "max_batch_size": most,
            "alpha": 2,
            "delta": 1,
            "per_bin": per_bin,
        },
        st.sampled_from(["per_token", "e2e"]),
        st.sampled_from([0.01, 0.05, 1.0]),
        st.integers(1, 8),
        st.booleans(),
    ),
)
GREEDY = st.sampled_from(["oldest", "longest"]).map(lambda order: {"kind": "Greedy", "order": order})
TIMERS = st.sampled_from([0.0, 0.25, 1.0]).map(lambda limit: {"kind": "Timer", "max_wait_s": limit})
FULL = st.sampled_from(["flush", "strand"]).map(lambda rest: {"kind": "FullBatch", "leftovers": rest})
ROUTINGS = st.sampled_from(["RoundRobin", "LeastLoaded", "PowerOfTwo"]).map(lambda kind: {"kind": kind})
PREDICTORS = st.sampled_from(
    [{"kind": "oracle"}, {"kind": "lognormal", "sigma": 1.0}, {"kind": "constant", "tokens": 8}]
)


IMPATIENT = st.sampled_from([0.1, 0.25, 2.0])
MAYBE_IMPATIENT = st.none() | IMPATIENT


@st.composite
def known_presets(draw: st.DrawFn) -> dict[str, Any]:
    """Any preset; bins are given, for there is no training part to fit them on."""
    name = draw(st.sampled_from(names_of(is_iteration_level=False)))
    policy: dict[str, Any] = {"preset": name, "batch_size": draw(st.integers(1, 6))}
    if isinstance(PRESETS[name].queueing, MultiBin):
        policy["queueing"] = draw(SEVERAL_BINS)
    return policy


def policies(
    queues: st.SearchStrategy[Any] = QUEUES, rules: st.SearchStrategy[Any] = GREEDY | TIMERS | FULL
) -> st.SearchStrategy[dict[str, Any]]:
    """Any combination of answers."""
    answers = {"queueing": queues, "sizing": SIZERS, "batching": rules}
    return st.fixed_dictionaries(
        {"preset": st.just("static_fifo"), **answers}, optional={"routing": ROUTINGS}
    )


@st.composite
def worlds(
    draw: st.DrawFn,
    policy: st.SearchStrategy[dict[str, Any]] | None = None,
    capacities: st.SearchStrategy[int] | None = None,
    patience: st.SearchStrategy[float | None] = MAYBE_IMPATIENT,
    requests: st.SearchStrategy[Workload] | None = None,
) -> World:
    capacity = draw(st.integers(20, 200) if capacities is None else capacities)
    config = {
        "workload": {"training_fraction": 0.0},
        "cluster": {
            "num_gpus": draw(st.integers(1, 3)),
            "kv_capacity_tokens": capacity,
            "kv_layout": draw(st.sampled_from(["padded", "paged"])),
        },
        "predictor": draw(PREDICTORS),
        "patience_s": draw(patience),
        "seed": draw(st.integers(0, 3)),
    }
    latency = LinearLatency(
        draw(st.sampled_from([0.25, 0.1])),
        draw(st.sampled_from([0.0, 0.25])),
        draw(st.sampled_from([0.0, 0.01])),
    )
    return World(
        draw(workloads() if requests is None else requests),
        latency,
        draw(known_presets() | policies() if policy is None else policy),
        config,
    )


def is_busy_throughout(result: Records, gpu_id: int, start_s: float, end_s: float) -> bool:
    """Whether a GPU runs batches from one instant to another, back to back."""
    batches = result.batches[result.batches["gpu_id"] == gpu_id].sort_values("start_s")
    until_s = start_s
    for begin_s, finish_s in zip(batches["start_s"], batches["finish_s"], strict=True):
        if begin_s <= until_s < finish_s:
            until_s = finish_s
    return bool(until_s >= end_s)


def output_tokens_swapped(requests: Workload, order: list[int]) -> Workload:
    """The same requests with the true lengths of others."""
    frame = requests.to_frame()
    frame["output_tokens"] = requests.output_tokens[np.array(order)]
    return Workload.from_frame(frame)
