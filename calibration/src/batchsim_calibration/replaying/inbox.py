"""What a replay is fed: requests that arrive at their times, and the clock that says when."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from batchsim.policies.reports import Decision
from batchsim.records import FINISHED
from batchsim.workload.request import Workload

#: An operating system wakes a sleeper late by up to about so much; the rest is waited for awake.
_AWAKE_S = 0.0005


class Clock(Protocol):
    """Seconds since the replay began."""

    def now(self) -> float:
        """The time."""

    def sleep_until(self, time_s: float) -> None:
        """Return at this time or as soon after it as can be; at once if it has passed."""


#: Columns of a workload, besides times and lengths, that policies look at.
HEEDED = ("priority", "tenant", "slo_class")


class WallClock:
    """Real time, zero when it is made."""

    def __init__(self) -> None:
        self._zero_ns = time.perf_counter_ns()

    def now(self) -> float:
        """Real seconds since then."""
        return (time.perf_counter_ns() - self._zero_ns) / 1e9

    def sleep_until(self, time_s: float) -> None:
        """Sleep, but for the last moment."""
        while (left_s := time_s - self.now()) > 0:
            if left_s > _AWAKE_S:
                time.sleep(left_s - _AWAKE_S)


@dataclass(slots=True, eq=False)
class Request:
    """A request with what policies may see of it, what an engine keeps about it, and what became of it.

    How long its answer is to be stands elsewhere: only the loop that runs it may know.
    """

    request_id: int
    arrival_s: float
    prompt_tokens: int
    predicted_output_tokens: int
    priority: int = 0
    tenant: str = ""
    slo_class: str = ""
    session_id: int = -1
    prefix_ids: Sequence[int] = ()

    bin: int = -1
    slot: int | None = None  # of the engine
    answer: list[int] = field(default_factory=list)  # token ids so far
    stored_tokens: int = 0  # of prompt and answer, whose KV the engine holds
    most_stored_tokens: int = 0  # before a preemption
    chunk_tokens: int = 0  # to be stored by the next iteration
    blocks: int = 0
    is_running: bool = False
    decodes: bool = False  # its prompt is complete

    status: str = FINISHED
    refusal: str = ""
    scheduled_s: float = math.nan
    first_token_s: float = math.nan
    decode_start_s: float = math.nan
    finish_s: float = math.nan
    batch_id: int = -1
    batch_size: int = 0
    num_evictions: int = 0
    num_preemptions: int = 0
    recomputed_tokens: int = 0

    @property
    def remaining_tokens(self) -> int:
        """Tokens to compute before it yields its next token, those of the next iteration aside."""
        return self.prompt_tokens + len(self.answer) - self.stored_tokens - self.chunk_tokens

    @property
    def generated_tokens(self) -> int:
        """Tokens of its answer so far."""
        return len(self.answer)


class Inbox:
    """Requests of a trace, handed over once their time has come."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests
        self._num_taken = 0

    def take(self, now_s: float) -> Sequence[Request]:
        """Those that have arrived since the last time, in order."""
        first = self._num_taken
        while self.next_s <= now_s:
            self._num_taken += 1
        return self._requests[first : self._num_taken]

    @property
    def next_s(self) -> float:
        """When the next one arrives; infinity after the last."""
        return math.inf if self.is_closed else self._requests[self._num_taken].arrival_s

    @property
    def is_closed(self) -> bool:
        """Whether all have been handed over."""
        return self._num_taken == len(self._requests)


@dataclass(slots=True, eq=False)
class Log:
    """What happened in a replay: the requests, and rows of the tables of `batchsim.records`.

    Attributes
    ----------
    predicted_output_tokens
        What policies were told at first; they may have learnt better of some requests.
    batches, iterations, preemptions
        Values in the order of `BATCH_COLUMNS`, `ITERATION_COLUMNS` and `PREEMPTION_COLUMNS`.
    decisions
        Time, GPU and decision.
    """

    requests: Sequence[Request]
    predicted_output_tokens: NDArray[Any]
    batches: list[tuple[Any, ...]] = field(default_factory=list)
    iterations: list[tuple[Any, ...]] = field(default_factory=list)
    preemptions: list[tuple[Any, ...]] = field(default_factory=list)
    decisions: list[tuple[float, int, Decision]] = field(default_factory=list)

    def decide(self, time_s: float, gpu_id: int, decisions: Sequence[Decision]) -> None:
        """A controller has decided."""
        self.decisions += [(time_s, gpu_id, decision) for decision in decisions]


def requests_of(workload: Workload, predicted_output_tokens: NDArray[Any]) -> list[Request]:
    """Make the requests of a workload, numbered in order of arrival."""
    columns = (workload.arrival_s, workload.prompt_tokens, predicted_output_tokens)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    requests = [Request(number, *row) for number, row in enumerate(rows)]
    for name in HEEDED:
        if name in workload.extra:
            for request, value in zip(requests, workload.extra[name].tolist(), strict=True):
                setattr(request, name, value)
    return requests
