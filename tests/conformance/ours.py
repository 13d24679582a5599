"""batchsim's engine on a case, iteration by iteration, as a log that can be held against vLLM's."""

from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np

from batchsim.config import PolicyConfig
from batchsim.latency.linear import LinearIterationLatency
from batchsim.policies import presets
from batchsim.sim import simulation, spans
from batchsim.sim.engine import Engine
from batchsim.sim.replica import Replica
from batchsim.sim.request import Request
from batchsim.sim.running import RunningSet
from batchsim.sim.step import NextIteration
from batchsim.workload.request import Workload
from tests.conformance.environment import is_v0
from tests.conformance.workloads import Case, prompt_ids, prompt_tokens


def run(case: Case, version: str, *, is_exact: bool = True) -> dict[str, Any]:
    """Serve the requests of a case by the rules of a version of vLLM, one event an iteration or a span."""
    settings, law = case["engine"], case["latency"]
    latency = LinearIterationLatency(
        fixed_s=law["fixed_s"],
        per_prefill_token_s=law["per_token_s"],
        per_prefill_pair_s=0.0,
        per_decode_seq_s=law["per_token_s"],
        per_context_token_s=0.0,
    )
    engine = Engine(
        latency,
        settings["num_blocks"],
        settings["block_size"],
        is_async=settings["async_scheduling"],
        prefix_caching=settings["enable_prefix_caching"],
        is_exact=is_exact,
    )
    workload = make_workload(case)
    policy = presets.build(policy_config(settings, version))
    rows: list[list[Any]] = []
    logged = partial(LoggedReplica, rows=rows)
    with (
        patch.object(simulation, "Replica", logged),
        patch.object(spans, "RunningSet", LoggedRunningSet),
        patch.object(spans, "NextIteration", LoggedStep),
    ):
        records = simulation.run_replicas(workload, workload.output_tokens, [policy], [engine])
    assert not records.refusals, records.refusals
    requests = records.requests.set_index("request_id")
    return {
        "rows": rows,
        "first_token_s": requests["first_token_s"].tolist(),
        "finish_s": requests["finish_s"].tolist(),
    }


def policy_config(settings: dict[str, Any], version: str) -> PolicyConfig:
    """Return what a user would ask for to follow these settings of vLLM."""
    budget = settings["max_num_batched_tokens"]
    if is_v0(version):
        return PolicyConfig(
            preset="vllm_v0",
            batch_size=settings["max_num_seqs"],
            batching={"max_num_batched_tokens": budget},
        )
    is_priority = settings["policy"] == "priority"
    return PolicyConfig(
        preset="vllm_v1",
        batch_size=settings["max_num_seqs"],
        queueing={"kind": "HighestPriority"} if is_priority else {},
        batching={
            "max_num_batched_tokens": budget,
            "long_prefill_threshold": settings["long_prefill_token_threshold"],
            "allocate": "prompt" if settings["scheduler_reserve_full_isl"] else "chunk",
            "preempt": "priority" if is_priority else "last",
            "engine_version": version,
        },
    )


def make_workload(case: Case) -> Workload:
    """Return the requests as a trace; equal ids are equal blocks behind equal blocks."""
    requests, block_size = case["requests"], case["engine"]["block_size"]
    extra: dict[str, Any] = {"priority": np.array([one.get("priority", 0) for one in requests])}
    if case["engine"]["enable_prefix_caching"]:
        numbers: dict[tuple[int, tuple[int, ...]], int] = {}
        hashes = np.empty(len(requests), dtype=object)
        for number, request in enumerate(requests):
            hashes[number] = list(_hashes(prompt_ids(request, number), block_size, numbers))
        extra[f"hash_ids_{block_size}"] = hashes
    if any("session" in one for one in requests):
        extra["session_id"] = np.array([one.get("session", -1) for one in requests])
    return Workload(
        np.arange(len(requests)),
        np.array([one["arrival_s"] for one in requests]),
        np.array([prompt_tokens(one) for one in requests]),
        np.array([one["output_tokens"] for one in requests]),
        extra,
    )


def _hashes(
    ids: list[int], block_size: int, numbers: dict[tuple[int, tuple[int, ...]], int]
) -> Iterator[int]:
    parent = -1
    for end in range(block_size, len(ids) + 1, block_size):
        parent = numbers.setdefault((parent, tuple(ids[end - block_size : end])), len(numbers))
        yield parent


class LoggedRunningSet(RunningSet):
    """Counts the blocks that came back after an iteration was put together, and before it ran."""

    num_freed = 0

    def free_retired(self) -> None:
        available = self._kv.available
        super().free_retired()
        self.num_freed = self._kv.available - available


class LoggedStep(NextIteration):
    """Remembers who was preempted."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.preempted: list[int] = []

    def preempt(self, request: Request, *, swap: bool = False) -> None:
        self.preempted.append(request.request_id)
        super().preempt(request, swap=swap)


class LoggedReplica(Replica):
    """Writes down each iteration as it ends."""

    _running: LoggedRunningSet
    _step: LoggedStep

    def __init__(self, *args: Any, rows: list[list[Any]]) -> None:
        super().__init__(*args)
        self._rows = rows

    def _settle(self, now_s: float) -> None:
        step, running = self._step, self._running
        self._rows.append(
            [self._start_s, sorted(self._tokens()), sorted(step.preempted), self._free_blocks()]
        )
        step.preempted, running.num_freed = [], 0
        super()._settle(now_s)

    def _free_blocks(self) -> int:
        """Count what the iteration has left; decodes may take theirs only as it ends."""
        free = self._kv.available - self._running.num_freed
        if self._shape[1]:
            free -= self._running.decoding.growth()
        return free

    def _tokens(self) -> Iterator[tuple[int, int]]:
        step = self._step
        for request in self._running.requests.values():
            if request.finish_step >= 0:
                if self._shape[1]:  # or decodes stall, in V0
                    yield request.request_id, 1
            elif step.prefill_seqs and request.chunk_number == step._number:
                yield request.request_id, request.chunk_tokens
