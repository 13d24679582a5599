"""vLLM's part without vLLM: a stand-in scheduler of its interface, and an engine of stand-ins."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from batchsim.errors import ConfigError, PlanError
from batchsim.latency.fitting.vllm_log import read_vllm_log
from batchsim.records import ITERATION_COLUMNS
from batchsim.workload.request import Workload
from batchsim_calibration.measuring.grid import Extent, Point, chunks_of, extent_of
from batchsim_calibration.serving.timing import Timing
from batchsim_calibration.vllm_engine.engine import Limits
from batchsim_calibration.vllm_engine.passes import (
    LOG_VARIABLE,
    GaveWay,
    LogsPasses,
    Pass,
    PassLog,
    logging_scheduler,
)
from batchsim_calibration.vllm_engine.points import VllmPoints, limits_for
from batchsim_calibration.vllm_engine.replay import Turn, check_fits, recorded, serve, warm_up


class Scheduler:
    """First come, first served, with a token budget and a prefix cache, after the interface of vLLM's."""

    def __init__(self, budget: int = 64, block_size: int = 8, is_caching: bool = False) -> None:
        self.requests: dict[str, SimpleNamespace] = {}
        self.kv_cache_manager = SimpleNamespace(
            block_pool=SimpleNamespace(get_num_free_blocks=lambda: 100 - len(self.requests))
        )
        self._budget, self._block_size, self._is_caching = budget, block_size, is_caching
        self._cached: set[tuple[int, ...]] = set()

    def add(self, request: SimpleNamespace) -> None:
        self.requests[request.request_id] = request
        size = self._block_size
        while self._is_caching and tuple(request.ids[: request.num_computed_tokens + size]) in self._cached:
            if request.num_computed_tokens + size >= len(request.ids):
                return
            request.num_computed_tokens += size

    def get_request_counts(self) -> tuple[int, int]:
        return len(self.requests), 0

    def get_num_unfinished_requests(self) -> int:
        return len(self.requests)

    def _preempt_request(self, request: SimpleNamespace, timestamp: float) -> None:
        request.num_computed_tokens = 0

    def schedule(self) -> SimpleNamespace:
        left, scheduled = self._budget, {}
        for name, request in self.requests.items():
            num = min(left, request.num_tokens - request.num_computed_tokens)
            if num:
                scheduled[name] = num
                request.num_computed_tokens += num
                left -= num
        return SimpleNamespace(num_scheduled_tokens=scheduled)

    def update_from_output(self, output: SimpleNamespace, model_output: object) -> None:
        for name in output.num_scheduled_tokens:
            request = self.requests[name]
            for end in range(self._block_size, request.num_computed_tokens + 1, self._block_size):
                self._cached.add(tuple(request.ids[:end]))
            if request.num_computed_tokens == request.num_tokens:
                request.num_tokens += 1
                request.num_left -= 1
                if not request.num_left:
                    del self.requests[name]


Logging: Any = logging_scheduler(Scheduler)


class StandIn:
    """An engine whose passes take no time."""

    vocab_size, block_size = 50, 8
    device = torch.device("cpu")

    def __init__(self, **given: Any) -> None:
        self.scheduler = Logging(**given)
        self.limits = Limits(16, 64)

    @property
    def log(self) -> PassLog:
        log: PassLog = self.scheduler.log
        return log

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.requests)

    def request(self, request_id: str, token_ids: Sequence[int], num_output_tokens: int) -> SimpleNamespace:
        ids = list(token_ids)
        return SimpleNamespace(
            request_id=request_id,
            ids=ids,
            num_tokens=len(ids),
            num_computed_tokens=0,
            num_left=num_output_tokens,
        )

    def add(self, request: SimpleNamespace) -> None:
        self.scheduler.add(request)

    def step(self) -> None:
        self.scheduler.update_from_output(self.scheduler.schedule(), None)

    def drain(self) -> None:
        self.scheduler.requests.clear()
        self.log.take()

    def limit(self, limits: Limits) -> None:
        self.limits = limits


class TurnClock:
    """A second for each look at it."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        self.time_s += 1
        return self.time_s

    def sleep_until(self, time_s: float) -> None:
        self.time_s = time_s


def workload(*rows: tuple[float, int, int]) -> Workload:
    arrival_s, prompts, outputs = zip(*rows, strict=True)
    return Workload(
        request_id=np.arange(len(rows)),
        arrival_s=np.array(arrival_s),
        prompt_tokens=np.array(prompts),
        output_tokens=np.array(outputs),
    )


def iterations(turns: Any, work: Workload) -> list[dict[str, Any]]:
    return [dict(zip(ITERATION_COLUMNS, row, strict=True)) for row in recorded(turns, work, 100).iterations]


def test_a_scheduler_that_logs_tells_what_each_pass_did() -> None:
    engine = StandIn()
    engine.add(engine.request("0", range(70), 2))

    for _ in range(3):
        engine.step()

    shares = [[tuple(share) for share in one.shares] for one in engine.log.take()]
    assert shares == [[("0", 64, 0, 70)], [("0", 6, 64, 70)], [("0", 1, 70, 71)]]
    assert issubclass(Logging, LogsPasses)


def test_a_preempted_request_is_logged_with_what_it_lost() -> None:
    class Preempting(Scheduler):
        def schedule(self) -> SimpleNamespace:
            for request in self.requests.values():
                self._preempt_request(request, 0.0)
            return super().schedule()

    scheduler: Any = logging_scheduler(Preempting)()
    scheduler.add(SimpleNamespace(request_id="7", ids=[], num_tokens=20, num_computed_tokens=12, num_left=1))

    scheduler.update_from_output(scheduler.schedule(), None)

    assert scheduler.log.take()[0].preempted == [GaveWay("7", 12)]


def test_a_server_writes_its_passes_to_a_file_that_the_core_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOG_VARIABLE, str(tmp_path / "passes.jsonl"))
    engine = StandIn()
    engine.add(engine.request("0", range(20), 3))

    for _ in range(3):
        engine.step()

    log = read_vllm_log(tmp_path / "passes.jsonl")
    assert log.untold == ()
    assert log.passes["prefill_tokens"].tolist() == [20, 0, 0]
    assert log.passes["context_tokens"].tolist() == [0, 20, 21]
    assert json.loads((tmp_path / "passes.jsonl").read_text().splitlines()[2])["num_left"] == 0


POINTS = [
    Point("prefill", 2, 16),
    Point("decode", 3, context_tokens=24),
    Point("decode", 1, context_tokens=2),
    Point("mixed", 2, 16, context_tokens=24),
    Point("chunk", 1, 16, context_tokens=32),
]


@pytest.mark.parametrize("point", POINTS)
def test_every_kind_of_point_can_be_brought_about(point: Point) -> None:
    engine = StandIn(is_caching=True)

    timing = VllmPoints(engine, 64).time(point)

    assert timing.wall_s > 0
    assert math.isnan(timing.cuda_s)
    assert not engine.has_work


def test_a_pass_that_vllm_schedules_otherwise_does_not_count() -> None:
    points = VllmPoints(StandIn(budget=8), 64)

    with pytest.raises(PlanError, match="schedules it otherwise"):
        points.time(Point("prefill", 2, 16))


def test_points_are_measured_under_limits_of_their_own() -> None:
    engine, limits = StandIn(is_caching=True), Limits(4, 99, 20, prefix_caching=True)

    VllmPoints(engine, 64, limits=limits).time(POINTS[0])

    assert engine.limits == limits


def test_waking_up_is_what_a_prompt_takes_longer_after_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    points = VllmPoints(StandIn(), 64)
    timed: list[Point] = []
    has_rested = False

    def rest(seconds: float) -> None:
        nonlocal has_rested
        has_rested = True

    def take(point: Point) -> Timing:
        nonlocal has_rested
        timed.append(point)
        has_rested, wall_s = False, 0.012 if has_rested else 0.009
        return Timing(wall_s, wall_s, math.nan)

    monkeypatch.setattr("batchsim_calibration.vllm_engine.points.time.sleep", rest)
    monkeypatch.setattr(points, "time", take)
    grid = [Point("decode", 1, 0, 0, 8), *(Point("prefill", 1, length) for length in (8, 16, 32))]

    assert points.wake_s(grid) == pytest.approx(0.003)
    assert set(timed) == {Point("prefill", 1, 16)}


def test_limits_for_points_hold_the_largest_of_each_kind() -> None:
    limits, extent = limits_for(POINTS, block_size=8)

    assert (limits.max_num_seqs, limits.prefix_caching) == (3, True)
    assert limits.max_num_batched_tokens >= 2 * 16 + 2
    assert extent.tokens > 32 + 16
    assert limits.num_kv_blocks is not None
    assert limits.num_kv_blocks * 8 >= extent.batch_size * extent.tokens


def test_chunks_begin_where_a_block_does_and_end_inside_the_extent() -> None:
    chunks = chunks_of("quick", "cpu", Extent(16, 1024), block_size=128)

    assert chunks
    assert {point.context_tokens % 128 for point in chunks} == {0}
    assert max(point.prompt_tokens + point.context_tokens for point in chunks) <= 1024
    assert not chunks_of("smoke", "cpu", extent_of("smoke", "cpu"), block_size=4096)


def test_a_warm_up_meets_every_number_of_tokens_in_prompts_that_are_not_too_long() -> None:
    class Watched(StandIn):
        def __init__(self) -> None:
            super().__init__()
            self.passes: list[Pass] = []

        def step(self) -> None:
            super().step()
            self.passes += self.log.take()

    engine = Watched()

    warm_up(engine, max_num_batched_tokens=40, max_prompt_tokens=16)

    shares = [[share.num_tokens for share in one.shares] for one in engine.passes]
    assert [sum(one) for one in shares] == list(range(1, 41))
    assert max(map(max, shares)) == 16
    assert not engine.has_work


def test_a_served_trace_is_recorded_turn_by_turn() -> None:
    work = workload((0.0, 70, 2), (0.5, 10, 2), (20.0, 5, 1))

    turns = serve(StandIn(), work, clock=TurnClock())

    rows = iterations(turns, work)
    names = ("start_s", "finish_s", "prefill_tokens", "decode_seqs", "context_tokens", "prefill_seqs")
    assert [tuple(row[name] for name in names) for row in rows] == [
        (0.0, 1.0, 64, 0, 0, 1),
        (1.0, 2.0, 16, 0, 0, 2),
        (2.0, 3.0, 0, 2, 80, 0),
        (20.0, 21.0, 5, 0, 0, 1),
    ]
    assert rows[1]["prefill_pairs"] == 6 * (64 + 3) + 10 * 5
    requests = recorded(turns, work, 100).requests
    assert [(one.first_token_s, one.finish_s) for one in requests] == [(2, 3), (2, 3), (21, 21)]
    assert [one.scheduled_s for one in requests] == [0, 1, 20]


def test_an_empty_pass_lengthens_the_one_before() -> None:
    work = workload((0.0, 10, 1))
    turns = serve(StandIn(), work, clock=TurnClock())
    empty = Pass(0, 0, [], [], 0, 0, 100)

    rows = iterations([*turns, Turn(1.0, 1.5, empty)], work)

    assert [(row["start_s"], row["finish_s"], row["first_iteration_s"]) for row in rows] == [(0.0, 1.5, 1.5)]


def test_what_a_preempted_request_computes_again_is_counted() -> None:
    work = workload((0.0, 10, 3))
    engine = StandIn()
    engine.add(engine.request("0", range(10), 3))
    turns = []
    for number in range(4):
        if number == 2:
            engine.scheduler.requests["0"].num_computed_tokens = 0
        engine.step()
        (one,) = engine.log.take()
        if number == 2:
            one.preempted = [GaveWay("0", 11)]
        turns.append(Turn(float(number), number + 1.0, one))
        if not engine.has_work:
            break

    log = recorded(turns, work, 100)

    (request,) = log.requests
    assert (request.num_preemptions, request.recomputed_tokens) == (1, 11)
    assert log.preemptions == [(0, 0, 2.0, "recompute", 1.0, 11)]
    assert [row["prefill_tokens"] for row in iterations(turns, work)] == [10, 0, 12]


def test_a_request_that_would_wait_for_ever_is_refused() -> None:
    with pytest.raises(ConfigError, match="4 KV blocks hold 32"):
        check_fits(workload((0.0, 30, 4)), Limits(1, 8, 4), 8, 100)
