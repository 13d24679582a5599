"""Own answers derived from shipped ones: with and without `@dataclass`, with and without slots."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from batchsim.config import PolicyConfig
from batchsim.errors import PlanError
from batchsim.policies import RankedQueue
from batchsim.policies.batching import Greedy
from batchsim.policies.continuous import ChunkedPrefill, StallFree
from batchsim.policies.presets import Policy, Preset, build
from batchsim.policies.queueing import Fifo, ShortestFirst
from batchsim.policies.routing import LeastLoaded
from batchsim.policies.sizing import FixedSize
from tests.policies.worlds import Waiting, waiting

DECORATORS: dict[str, Callable[[type], type]] = {
    "plain": lambda kind: kind,
    "dataclass": dataclass,
    "slots": dataclass(slots=True),
}
FROZEN = {
    "plain": lambda kind: kind,
    "dataclass": dataclass(frozen=True),
    "slots": dataclass(frozen=True, slots=True),
}


def built(preset: Preset, monkeypatch: pytest.MonkeyPatch, **given: Any) -> Policy:
    monkeypatch.setitem(globals(), "OWN", preset)
    return build(PolicyConfig(preset=f"{__name__}:OWN", **given))


@pytest.mark.parametrize("decorate", DECORATORS.values(), ids=DECORATORS)
def test_super_means_the_shipped_answer(
    decorate: Callable[[type], type], monkeypatch: pytest.MonkeyPatch
) -> None:
    @decorate
    class Negated(ShortestFirst):
        def rank(self, request: Any) -> float:
            return -super().rank(request)

        @property
        def is_fifo(self) -> bool:
            return super().is_fifo

    queue = built(Preset(Negated(5.0), FixedSize(2), Greedy()), monkeypatch).queueing
    for request in waiting(5, 9, 7):
        queue.push(request)

    assert [queue.pop(0, 0.0).request_id for _ in range(3)] == [1, 2, 0]
    assert not queue.is_fifo
    assert queue.promote_after_s == 5.0


@pytest.mark.parametrize("decorate", FROZEN.values(), ids=FROZEN)
def test_super_means_the_shipped_rule_though_that_is_frozen(
    decorate: Callable[[type], type], monkeypatch: pytest.MonkeyPatch
) -> None:
    @decorate
    class Keeping(StallFree):
        def usable_blocks(self, num_blocks: int) -> int:
            return super().usable_blocks(num_blocks) - 1

    rule = built(Preset(Fifo(), FixedSize(2), Keeping(64), LeastLoaded()), monkeypatch).batching

    assert rule.usable_blocks(10) == 9
    assert rule.max_num_batched_tokens == 64


def test_what_an_own_constructor_sets_is_in_every_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Patient(StallFree):
        def __init__(self) -> None:
            super().__init__(32)
            self.seen: list[int] = []

    class Line(Fifo):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[int] = []

    preset = Preset(Line(), FixedSize(2), Patient(), LeastLoaded())

    first, second = (built(preset, monkeypatch) for _ in range(2))
    first.batching.seen.append(1)
    first.queueing.push(Waiting(0))
    first.queueing.seen.append(1)

    assert first.batching.max_num_batched_tokens == 32
    assert (first.batching.seen, second.batching.seen) == ([1], [])
    assert (first.queueing.seen, second.queueing.seen) == ([1], [])
    assert (first.queueing.waiting(0), second.queueing.waiting(0)) == (1, 0)


def test_replicas_share_no_state_of_an_answer_that_is_no_dataclass(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sizer(FixedSize):
        """Inherits from one."""

    chunk = Sizer(64)
    preset = Preset(Fifo(), FixedSize(2), ChunkedPrefill(chunk=chunk), LeastLoaded())

    first, second = (
        built(preset, monkeypatch, batching={"max_num_batched_tokens": 128}).batching for _ in range(2)
    )

    assert first.chunk.guarded is not second.chunk.guarded
    assert first.chunk.guarded is not chunk


@pytest.mark.parametrize(("rank", "told"), [(None, "None"), (float("nan"), "NaN")])
def test_a_rank_that_is_none_is_told_as_it_is_given(rank: float | None, told: str) -> None:
    class Forgetful(RankedQueue):
        def rank(self, request: Any) -> float | None:
            return rank

    with pytest.raises(PlanError, match=rf"Forgetful\.rank answered {told} for request 7"):
        Forgetful().push(Waiting(7, 0.0, 5))


def test_a_ranked_queue_says_only_its_rank() -> None:
    @dataclass(slots=True)
    class ByClass(RankedQueue):
        classes: dict[int, str] = field(default_factory=dict)

        def rank(self, request: Any) -> tuple[str, int]:
            return self.classes.get(request.session_id, "z"), -request.prompt_tokens

    queue = ByClass({1: "a", 2: "b"})
    requests = [Waiting(0, 0.0, 5), Waiting(1, 1.0, 5, session_id=2), Waiting(2, 2.0, 9, session_id=2)]
    requests += [Waiting(3, 3.0, 1, session_id=1), Waiting(4, 4.0, 5)]
    for request in requests:
        queue.push(request)
    queue.discard(requests[3], 0)

    assert [one.request_id for one in queue.take(0, 4, 9.0)] == [2, 1, 0, 4]
    assert queue.oldest_bin() is None
