"""Who goes? Where a store of KV is full, and something else is to come.

A store tells its answer of all that comes and of all that is found. What lies in it are ids of prefixes, each
of so many tokens; of one workload all are of one size.
"""

from __future__ import annotations

import reprlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, Protocol

from batchsim.errors import ConfigError, nearest
from batchsim.policies.building_blocks import Answer
from batchsim.policies.guards.checks import Guard, is_foreign
from batchsim.policies.parts.importing import import_attribute
from batchsim.policies.parts.parameters import check_names, construct


class Eviction(Protocol):
    """Who goes? Knows all that a store holds."""

    def add(self, id_: int, num_tokens: int) -> None:
        """One has come that was not there."""

    def use(self, id_: int) -> None:
        """One that is there was found, or came once more."""

    def pop(self) -> int:
        """Name the one to go, and forget it; the store is not empty."""


@dataclass(slots=True)
class Lru(Answer):
    """The one that was used least recently."""

    _ids: OrderedDict[int, None] = field(default_factory=OrderedDict, init=False, repr=False, compare=False)

    def add(self, id_: int, num_tokens: int) -> None:
        """Behind all others."""
        self._ids[id_] = None

    def use(self, id_: int) -> None:
        """Behind all others."""
        self._ids.move_to_end(id_)

    def pop(self) -> int:
        """The first."""
        return self._ids.popitem(last=False)[0]


@dataclass(slots=True)
class _ByRank(Answer):
    """What all share that rank by uses: the smallest goes, of equals the one used least recently."""

    _ranks: dict[int, tuple[float, int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _uses: dict[int, tuple[int, int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _heap: list[tuple[float, int, int]] = field(default_factory=list, init=False, repr=False, compare=False)
    _num_seen: int = field(default=0, init=False, repr=False, compare=False)
    _last_rank: float = field(default=0.0, init=False, repr=False, compare=False)

    def add(self, id_: int, num_tokens: int) -> None:
        """Used once."""
        self._rank(id_, 1, num_tokens)

    def use(self, id_: int) -> None:
        """Used once more."""
        num_uses, num_tokens = self._uses[id_]
        self._rank(id_, num_uses + 1, num_tokens)

    def pop(self) -> int:
        """The one with the smallest rank."""
        while True:
            rank, seen, id_ = heappop(self._heap)
            if self._ranks.get(id_) == (rank, seen):
                del self._ranks[id_], self._uses[id_]
                self._last_rank = rank
                return id_

    def _value(self, num_uses: int, num_tokens: int) -> float:
        raise NotImplementedError

    def _rank(self, id_: int, num_uses: int, num_tokens: int) -> None:
        self._num_seen += 1
        rank = self._value(num_uses, num_tokens), self._num_seen
        self._ranks[id_], self._uses[id_] = rank, (num_uses, num_tokens)
        heappush(self._heap, (*rank, id_))
        if len(self._heap) > 4 * len(self._ranks) + 64:  # mostly ranks of before
            self._heap = [(*rank, id_) for id_, rank in self._ranks.items()]
            heapify(self._heap)


@dataclass(slots=True)
class Lfu(_ByRank):
    """The one that was used least often since it came; of equals, least recently."""

    def _value(self, num_uses: int, num_tokens: int) -> float:
        return num_uses


@dataclass(slots=True)
class Gdsf(_ByRank):
    """GreedyDual-Size with frequency (Cherkasova, 1998): rank L + uses / tokens, the smallest goes.

    L is the rank of the last that went, so that what was used often long ago goes in the end. Cost is one for
    each, which makes most hits; where all are of one size, as ids of prefixes are, it is LFU with ageing.
    """

    def _value(self, num_uses: int, num_tokens: int) -> float:
        return self._last_rank + num_uses / num_tokens


KINDS: Mapping[str, type[Any]] = {kind.__name__: kind for kind in (Lru, Lfu, Gdsf)}


class EvictionGuard(Guard):
    """Holds an answer from outside to name what is there."""

    def __init__(self, answer: Eviction, where: str) -> None:
        super().__init__(answer, where)
        self._ids: set[int] = set()

    def add(self, id_: int, num_tokens: int) -> None:
        """It is there from now on."""
        self._ask("add", id_, num_tokens)
        self._ids.add(id_)

    def use(self, id_: int) -> None:
        """It is there."""
        self._ask("use", id_)

    def pop(self) -> int:
        """One that is there."""
        answered = self._ask("pop")
        if not isinstance(answered, int) or answered not in self._ids:
            self._refuse("pop", answered, f"one of the {len(self._ids)} ids that are there")
        self._ids.remove(answered)
        return answered


def make_eviction(given: Mapping[str, Any], where: str) -> Eviction:
    """Make the answer whose ``kind`` a table names, ``module:class`` for one of others; the rest is its own.

    Raises
    ------
    ConfigError
        For an unknown kind or parameter, with the nearest names, or a value the answer refuses.
    """
    parameters = dict(given)
    name = parameters.pop("kind", Lru.__name__)
    kind = _kind(name, where)
    check_names(kind, parameters, where)
    answer: Eviction = construct(kind, kind, parameters, where)
    for method in ("add", "use", "pop"):
        if not hasattr(answer, method):
            raise ConfigError(f"{where}: {kind.__name__} has no {method}, which an Eviction needs")
    return EvictionGuard(answer, where) if is_foreign(kind) else answer


def _kind(name: object, where: str) -> type[Any]:
    if isinstance(name, str) and name in KINDS:
        return KINDS[name]
    if not isinstance(name, str) or ":" not in name:
        raise ConfigError(f"{where}.kind is {reprlib.repr(name)}; {nearest(str(name), KINDS)}")
    kind = import_attribute(name, f"{where}.kind {name!r}")
    if not isinstance(kind, type):
        raise ConfigError(f"{where}.kind {name!r} is a {type(kind).__name__}; a class is needed")
    return kind
