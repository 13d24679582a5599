"""What answers are built on, shipped ones and those of others.

`RankedQueue` and `PlainRule` are for own policies; `Answer` is what every shipped answer is.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from batchsim.errors import PlanError
from batchsim.policies.base import Setting, WaitingRequest
from batchsim.policies.parts.lines import RankedLine
from batchsim.policies.steps import Step


class Answer:
    """An answer that others can derive from and copy, with slots or without.

    ``@dataclass(slots=True)`` makes a second class out of the first, and leaves its methods with a `super()`
    that means the first. And a frozen one copies its own fields only, without what a subclass keeps besides.
    """

    __slots__ = ()

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        for member in vars(cls).values():
            for function in _functions(member):
                for cell in function.__closure__ or ():
                    if _is_replaced(cell.cell_contents, cls):
                        cell.cell_contents = cls

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        state = object.__getstate__(self)
        by_name, by_slot = state if isinstance(state, tuple) else (state, None)
        twin = object.__new__(type(self))
        for name, value in {**(by_name or {}), **(by_slot or {})}.items():
            object.__setattr__(twin, name, deepcopy(value, memo))
        return twin


def _functions(member: Any) -> Iterator[Callable[..., Any]]:
    """The functions behind a member of a class."""
    wrapped = (member, *(getattr(member, name, None) for name in ("fget", "fset", "func", "__func__")))
    return (inspect.unwrap(one) for one in wrapped if inspect.isfunction(one))


def _is_replaced(held: object, kind: type) -> bool:
    """Whether the second class was made from this first: the qualified name is given to it only later."""
    return (
        isinstance(held, type)
        and held is not kind
        and held.__bases__ == kind.__bases__
        and (held.__module__, held.__name__) == (kind.__module__, kind.__name__)
    )


@dataclass(slots=True)
class OneBin(Answer):
    """What all disciplines with a single line share."""

    @property
    def num_bins(self) -> int:
        """One."""
        return 1

    @property
    def learns(self) -> bool:
        """Nothing."""
        return False

    @property
    def edges(self) -> Sequence[float]:
        """None."""
        return ()

    def prepare(self, setting: Setting) -> None:
        """Nothing to fit."""

    def bin_of(self, output_tokens: int) -> int:
        """All lengths share bin 0."""
        return 0

    def head_changes_s(self, now_s: float) -> float:
        """Never by itself."""
        return math.inf


@dataclass(slots=True)
class RankedQueue(OneBin):
    """One line, ordered by `rank`: all that a subclass has to say.

    A request is ranked when it comes in, and again when it comes back after a preemption.
    """

    _ranked: RankedLine = field(default_factory=RankedLine, init=False, repr=False, compare=False)

    def rank(self, request: WaitingRequest) -> Any:
        """Smallest goes first, of equals the one that arrived first; numbers, texts or tuples of them."""
        raise NotImplementedError

    def push(self, request: WaitingRequest) -> int:
        """Take a request in."""
        rank = self.rank(request)
        if rank is None or rank != rank:  # NaN has no place in an order
            told = "None" if rank is None else "NaN"
            raise PlanError(f"{type(self).__name__}.rank answered {told} for request {request.request_id}")
        self._ranked.push(rank, request)
        return 0

    def push_back(self, request: WaitingRequest, bin_: int) -> None:
        """Take a request that was popped in again; its rank decides its place."""
        self.push(request)

    def waiting(self, bin_: int) -> int:
        """How many wait."""
        return len(self._ranked)

    def head(self, bin_: int, now_s: float) -> WaitingRequest:
        """The one with the smallest rank."""
        return self._ranked.smallest()

    def pop(self, bin_: int, now_s: float) -> WaitingRequest:
        """Hand over the one `head` names."""
        request = self.head(bin_, now_s)
        self._ranked.remove(request)
        return request

    def oldest(self, bin_: int) -> WaitingRequest:
        """The one that arrived first."""
        return self._ranked.oldest()

    def nth(self, bin_: int, position: int) -> WaitingRequest:
        """The request at a position in order of arrival; O(n log n), and no rule asks it of a single line."""
        return self._ranked.nth(position)

    def take(self, bin_: int, num: int, now_s: float) -> list[WaitingRequest]:
        """Hand over those with the smallest ranks, one after the other."""
        return [self.pop(bin_, now_s) for _ in range(num)]

    def oldest_bin(self) -> int | None:
        """The only one, if anyone waits."""
        return 0 if self._ranked else None

    next_bin = oldest_bin

    @property
    def is_fifo(self) -> bool:
        """No."""
        return False

    def discard(self, request: WaitingRequest, bin_: int) -> None:
        """Forget a request that gave up."""
        self._ranked.remove(request)


@dataclass(frozen=True, slots=True)
class PlainRule(Answer):
    """What holds for a rule that keeps no block free, reserves none, and caches no prefixes unasked.

    Nobody who runs has to give way to one who waits. A rule that lets them, or whose plan may change with
    time, says so by `replans` and `iterations_to_decision`.
    """

    @property
    def caches_prefixes(self) -> bool:
        """Only if asked to."""
        return False

    @property
    def frees_partial_first(self) -> bool:
        """They wait in line as all others."""
        return False

    @property
    def spare_blocks(self) -> int:
        """None."""
        return 0

    def usable_blocks(self, num_blocks: int) -> int:
        """All."""
        return num_blocks

    def reserved_tokens(self, request: WaitingRequest) -> int:
        """None."""
        return 0

    @property
    def replans(self) -> bool:
        """Only when there is room."""
        return False

    def iterations_to_decision(self, step: Step) -> float:
        """Never by itself."""
        return math.inf
