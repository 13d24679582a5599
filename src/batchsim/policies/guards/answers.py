"""The guards before answers from outside the package, one for each question.

All that such an answer says is checked against what it may say. Shipped answers need no guard, and have none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from batchsim.errors import ConfigError, PlanError
from batchsim.policies.base import (
    Admission,
    LaunchRule,
    QueueDiscipline,
    Routing,
    Sizer,
    WaitingRequest,
)
from batchsim.policies.guards.checks import Guard, are_numbers, is_bool, is_foreign, is_whole
from batchsim.policies.guards.cluster import AdmissionGuard, RoutingGuard
from batchsim.policies.reports import BatchReport, Decision, IterationReport
from batchsim.policies.steps import IterationRule, Step

#: What the records can count.
MOST_RUNNING = 2**31 - 1

#: A launch rule that sets its timer so often in a row, and launches nothing, never will.
MOST_WAKES = 10_000


def check_complete(answer: object, protocol: type, where: str) -> None:
    """Raise `ConfigError` where an answer lacks what is asked of it."""
    optional = getattr(_GUARDS.get(protocol), "OPTIONAL", ())
    has = set(dir(answer))
    for name in vars(protocol):
        if name[0] != "_" and name not in has and name not in optional:
            raise ConfigError(
                f"{where}: {type(answer).__name__} has no {name}, which a {protocol.__name__} needs"
            )


def guard(answer: Any, protocol: type, policy: str) -> Any:
    """The answer, with a guard before it if it comes from outside."""
    return _GUARDS[protocol](answer, policy) if is_foreign(type(answer)) else answer


class QueueGuard(Guard):
    """Holds a queue discipline to hand back what was pushed, each once, and to lose nobody."""

    def __init__(self, answer: QueueDiscipline, policy: str) -> None:
        super().__init__(answer, policy)
        self._bins: dict[int, int] = {}  # by the identity of those that wait: one sent again is another
        self._requests: dict[int, WaitingRequest] = {}  # which keeps the identities theirs
        self._waiting: Counter[int] = Counter()

    @property
    def num_bins(self) -> int:
        """At least 1."""
        return int(self._read("num_bins", lambda num: is_whole(num, 1), "a whole number >= 1"))

    @property
    def learns(self) -> bool:
        """A claim."""
        return bool(self._read("learns", is_bool, "True or False"))

    @property
    def is_fifo(self) -> bool:
        """A claim."""
        return bool(self._read("is_fifo", is_bool, "True or False"))

    @property
    def edges(self) -> Sequence[float]:
        """One fewer than bins."""
        num = self.num_bins - 1
        fits = f"a sequence of {num} numbers, the inner edges of its bins,"
        edges: Sequence[float] = self._read("edges", lambda edges: are_numbers(edges, num), fits)
        return edges

    def bin_of(self, output_tokens: int) -> int:
        """A bin that exists."""
        return self._bin("bin_of", self._ask("bin_of", output_tokens))

    def push(self, request: WaitingRequest) -> int:
        """The bin it is in from now on."""
        bin_ = self._bin("push", self._ask("push", request), request)
        self._enter(request, bin_)
        self._count("push", bin_, request)
        return bin_

    def push_back(self, request: WaitingRequest, bin_: int) -> None:
        """It waits again."""
        self._ask("push_back", request, bin_)
        self._enter(request, bin_)
        self._count("push_back", bin_, request)

    def discard(self, request: WaitingRequest, bin_: int) -> None:
        """It waits no more."""
        self._ask("discard", request, bin_)
        self._leave(request)
        self._count("discard", bin_, request)

    def waiting(self, bin_: int) -> int:
        """As many as were pushed and not handed back."""
        self._count("waiting", bin_)
        return self._waiting[bin_]

    def head(self, bin_: int, now_s: float) -> WaitingRequest:
        """One that waits there."""
        return self._one("head", self._ask("head", bin_, now_s), bin_)

    def pop(self, bin_: int, now_s: float) -> WaitingRequest:
        """The one that is the head."""
        head = self.head(bin_, now_s)
        popped = self._one("pop", self._ask("pop", bin_, now_s), bin_)
        if popped is not head:
            self._refuse("pop", popped, f"request {head.request_id}, the head of bin {bin_},")
        self._leave(popped)
        self._count("pop", bin_, popped)
        return popped

    def take(self, bin_: int, num: int, now_s: float) -> list[WaitingRequest]:
        """So many, each once."""
        taken = self._ask("take", bin_, num, now_s)
        if not isinstance(taken, list | tuple) or len(taken) != num:
            self._refuse("take", taken, f"a list of {num} requests that wait in bin {bin_}")
        for request in taken:
            self._leave(self._one("take", request, bin_))
        self._count("take", bin_)
        return list(taken)

    def oldest(self, bin_: int) -> WaitingRequest:
        """One that waits there."""
        return self._one("oldest", self._ask("oldest", bin_), bin_)

    def nth(self, bin_: int, position: int) -> WaitingRequest:
        """One that waits there."""
        return self._one("nth", self._ask("nth", bin_, position), bin_)

    def oldest_bin(self) -> int | None:
        """One that is not empty, if any is."""
        return self._occupied("oldest_bin", self._ask("oldest_bin"))

    def next_bin(self) -> int | None:
        """One that is not empty, if any is."""
        return self._occupied("next_bin", self._ask("next_bin"))

    def head_changes_s(self, now_s: float) -> float:
        """A time."""
        return self._seconds("head_changes_s", self._ask("head_changes_s", now_s))

    def _enter(self, request: WaitingRequest, bin_: int) -> None:
        self._bins[id(request)] = bin_
        self._requests[id(request)] = request
        self._waiting[bin_] += 1

    def _leave(self, request: WaitingRequest) -> None:
        self._waiting[self._bins.pop(id(request))] -= 1
        del self._requests[id(request)]

    def _bin(self, method: str, answered: Any, *about: Any) -> int:
        last = self.num_bins - 1
        return self._whole(method, answered, 0, last, f"a bin from 0 to {last}", *about)

    def _occupied(self, method: str, answered: Any) -> int | None:
        if answered is None and not self._requests:
            return None
        if answered is None or not self._waiting[self._bin(method, answered)]:
            occupied = sorted(bin_ for bin_, num in self._waiting.items() if num)
            self._refuse(method, answered, f"a bin in which requests wait (of {occupied}; None if of none)")
        return int(answered)

    def _one(self, method: str, answered: Any, bin_: int) -> WaitingRequest:
        request = self._requests.get(id(answered))
        if request is None or self._bins[id(answered)] != bin_:
            needed = f"a request that waits in bin {bin_}, pushed and not handed back yet,"
            self._refuse(method, answered, needed)
        return request

    def _count(self, method: str, bin_: int, *about: Any) -> None:
        """Neither more nor fewer."""
        said, num = self._ask("waiting", bin_), self._waiting[bin_]
        if not is_whole(said, 0) or said != num:
            after = "" if method == "waiting" else f" after {method}"
            self._refuse(
                "waiting",
                said,
                f"{num}, those of bin {bin_} that were pushed and not handed back{after},",
                *about,
            )


class SizerGuard(Guard):
    """Holds a sizer to sizes of at least 1 and at most what it promised."""

    @property
    def max_batch_size(self) -> int:
        """At least 1."""
        needed = f"a whole number from 1 to {MOST_RUNNING}"
        most = self._read("max_batch_size", lambda size: is_whole(size, 1) and size <= MOST_RUNNING, needed)
        return int(most)

    @property
    def adapts(self) -> bool:
        """A claim."""
        return bool(self._read("adapts", is_bool, "True or False"))

    def batch_size(self, bin_: int, num_decoding: int = 0) -> int:
        """Within its limits."""
        most = self.max_batch_size
        needed = f"a whole number from 1 to its max_batch_size, {most},"
        return self._whole("batch_size", self._ask("batch_size", bin_, num_decoding), 1, most, needed)

    def observe(self, report: BatchReport) -> Sequence[Decision]:
        """Decisions."""
        return self._decisions("observe", report)

    def observe_iterations(self, report: IterationReport) -> Sequence[Decision]:
        """Decisions."""
        return self._decisions("observe_iterations", report)

    def iterations_to_decision(self) -> float:
        """A number."""
        return self._iterations(self._ask("iterations_to_decision"))

    def _decisions(self, method: str, report: BatchReport | IterationReport) -> Sequence[Decision]:
        answered = self._ask(method, report)
        if not isinstance(answered, list | tuple) or not all(isinstance(one, Decision) for one in answered):
            self._refuse(method, answered, "a list or tuple of Decision, maybe empty,")
        return answered


class LaunchRuleGuard(Guard):
    """Holds a launch rule to bins in which requests wait, and to timers that lead somewhere."""

    def __init__(self, answer: LaunchRule, policy: str) -> None:
        super().__init__(answer, policy)
        self._now_s = 0.0
        self._num_wakes = 0  # in a row that launched nothing, when no more requests come

    @property
    def strands(self) -> bool:
        """A claim."""
        return bool(self._read("strands", is_bool, "True or False"))

    def next_bin(
        self, queue: QueueDiscipline, sizer: Sizer, now_s: float, *, is_last_call: bool
    ) -> int | None:
        """A bin that is not empty, or None."""
        self._now_s = now_s
        bin_ = self._ask("next_bin", queue, sizer, now_s, is_last_call=is_last_call)
        if bin_ is None:
            self._num_wakes += is_last_call
            return None
        self._num_wakes = 0
        occupied = [one for one in range(queue.num_bins) if queue.waiting(one)]
        if not is_whole(bin_, 0) or bin_ not in occupied:
            self._refuse("next_bin", bin_, f"None, or a bin in which requests wait (of {occupied}),")
        return int(bin_)

    def num_missing(self, queue: QueueDiscipline, sizer: Sizer) -> int:
        """At least 1."""
        answered = self._ask("num_missing", queue, sizer)
        return self._whole("num_missing", answered, 1, math.inf, "a whole number >= 1")

    def wake_s(self, queue: QueueDiscipline) -> float:
        """A time to come."""
        wake_s = self._seconds("wake_s", self._ask("wake_s", queue))
        if wake_s <= self._now_s:
            self._refuse("wake_s", wake_s, f"a time after {self._now_s} s, at which next_bin answered None,")
        if wake_s < math.inf and self._num_wakes > MOST_WAKES:
            raise PlanError(
                f"{self._name('wake_s')} set a timer {MOST_WAKES} times, and next_bin launched nothing, "
                "though no more requests come"
            )
        return wake_s


class IterationRuleGuard(Guard):
    """Puts the name of a rule before what a step refuses, and asks it always unless it says when."""

    OPTIONAL = ("replans", "iterations_to_decision", "frees_partial_first", "spare_blocks")

    @property
    def caches_prefixes(self) -> bool:
        """A claim."""
        return bool(self._read("caches_prefixes", is_bool, "True or False"))

    @property
    def frees_partial_first(self) -> bool:
        """A claim; False where it says nothing."""
        if not hasattr(self.guarded, "frees_partial_first"):
            return False
        return bool(self._read("frees_partial_first", is_bool, "True or False"))

    @property
    def spare_blocks(self) -> int:
        """A number; 0 where it says nothing."""
        if not hasattr(self.guarded, "spare_blocks"):
            return 0
        return int(self._read("spare_blocks", lambda num: is_whole(num, 0), "a whole number >= 0"))

    @property
    def replans(self) -> bool:
        """What it says; True where it has a plan of its own and says nothing."""
        if not self._says("replans"):
            return True
        return bool(self._read("replans", is_bool, "True or False"))

    def plan(self, step: Step) -> None:
        """The step holds it to what fits."""
        self._ask("plan", step)

    def usable_blocks(self, num_blocks: int) -> int:
        """At most all."""
        answered = self._ask("usable_blocks", num_blocks)
        return self._whole("usable_blocks", answered, 0, num_blocks, f"a whole number from 0 to {num_blocks}")

    def reserved_tokens(self, request: WaitingRequest) -> int:
        """At least none."""
        answered = self._ask("reserved_tokens", request)
        most = math.inf
        return self._whole("reserved_tokens", answered, 0, most, "a whole number >= 0", request)

    def iterations_to_decision(self, step: Step) -> float:
        """What it says; 1 where it has a plan of its own and says nothing."""
        if not self._says("iterations_to_decision"):
            return 1
        return self._iterations(self._ask("iterations_to_decision", step))

    def _says(self, name: str) -> bool:
        """Whether the class whose plan counts, or one derived from it, says this of it."""
        for kind in type(self.guarded).__mro__:
            if name in vars(kind):
                return True
            if "plan" in vars(kind) and is_foreign(kind):
                return False
        return False


_GUARDS: dict[type, Callable[[Any, str], Guard]] = {
    QueueDiscipline: QueueGuard,
    Sizer: SizerGuard,
    LaunchRule: LaunchRuleGuard,
    IterationRule: IterationRuleGuard,
    Routing: RoutingGuard,
    Admission: AdmissionGuard,
}
