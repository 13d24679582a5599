"""The KV cache of a replica: blocks that are taken and given back, and prompt prefixes kept in them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import simpy
from simpy.resources.container import ContainerGet

from batchsim.errors import ConfigError, PlanError


class _Copy:
    """Another copy of what an id stands for."""

    __slots__ = ("of",)

    def __init__(self, of: int) -> None:
        self.of = of


class CacheObserver(Protocol):
    """One who is told what can be found in a cache, and what not any more, copy by copy."""

    def cached(self, ids: Sequence[int]) -> None:
        """These can be found, or have one copy more."""

    def lost(self, id_: int) -> None:
        """A copy of this is gone."""


class KVCache(simpy.Container):
    """A Container of KV blocks: `take` and `give` without an event, as an allocation never waits.

    Its level is what can be taken now: free blocks, and cached ones that nobody uses. Plain `get` and `put`
    work as in any Container.

    A prefix is a sequence of ids, one per `tokens_per_id` tokens of a prompt; equal ids mean equal prompts up
    to there. The cache owns the blocks of each id that it holds and counts who uses them. Where requests have
    computed the same, there are several copies, each with blocks of its own, and the oldest is found. Blocks
    without users stand in one line, whatever they hold, and are taken from its front, as in vLLM V1: those
    never used, then in the order in which they were given back, of each request the last first. Until then an
    id stays cached, and so do the blocks that a preempted request left (`give_kept`), which only it can use.
    Later versions put those that are not full in front.
    Departs from vLLM, which loses and copies the blocks of an id that has several one by one.

    Parameters
    ----------
    tokens_per_id
        A multiple of `block_size`; 0: no prefixes.
    is_caching
        Whether what blocks hold can be found again; left out: if there are prefixes.

    Attributes
    ----------
    available
        Blocks that can be taken now; the Container's level.
    line_blocks
        Those of them that stand behind the first that can be found again, and that one.
    on_lose
        Called with the ids that are not cached any more, as their blocks were taken.
    """

    available: int

    def __init__(
        self,
        env: simpy.Environment,
        num_blocks: int,
        block_size: int,
        tokens_per_id: int = 0,
        *,
        is_caching: bool | None = None,
    ) -> None:
        if tokens_per_id % block_size:
            raise ConfigError(
                f"engine.block_size is {block_size}, but a prefix id of the workload covers {tokens_per_id} "
                f"tokens; a divisor of {tokens_per_id} is needed, or engine.prefix_caching = false"
            )
        super().__init__(env, capacity=num_blocks, init=num_blocks)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.tokens_per_id = tokens_per_id
        self.blocks_per_id = tokens_per_id // block_size
        self.is_caching = tokens_per_id > 0 if is_caching is None else is_caching
        self._num_users: dict[int | _Copy, int] = {}
        self._copies: dict[int, list[int | _Copy]] = {}  # the oldest first, of ids that have had several
        # The line, by what blocks hold and how many: ids, and objects for what a request left. It begins with
        # the first that can be found again: blocks in front of that are all alike.
        self._line: OrderedDict[object, int] = OrderedDict()
        self.line_blocks = 0
        self._last_given: object = None  # the last of the line, if nobody can use it again
        self.observer: CacheObserver | None = None
        self.on_lose: Callable[[Sequence[int]], None] | None = None

    @property
    def _level(self) -> int:  # the Container's own name for what is there
        return self.available

    @_level.setter
    def _level(self, level: int) -> None:
        self.available = level

    @property
    def used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - self.available

    def clear(self) -> None:
        """Forget all: nobody holds a block any more, and nothing is cached."""
        self.available = self.num_blocks
        self.line_blocks = 0
        self._last_given = None
        for held in (self._num_users, self._copies, self._line):
            held.clear()

    def take(self, num_blocks: int) -> None:
        """Take blocks now; `PlanError` if there are fewer."""
        level = self.available - num_blocks
        if level < 0:
            raise PlanError(f"{num_blocks} KV blocks were taken where {self.available} are available")
        self.available = level
        if self.line_blocks > level:
            self._evict()

    def give(self, num_blocks: int, num_first: int = 0) -> None:
        """Give blocks back, `num_first` of them to be taken next; `PlanError` if nobody holds so many."""
        level = self.available + num_blocks
        if level > self.num_blocks:
            raise PlanError(f"{num_blocks} KV blocks were given back where {self.used} are in use")
        self.available = level
        if self._line and num_blocks > num_first:  # else they stand in front
            if self._last_given is None:
                self._last_given = object()
                self._line[self._last_given] = 0
            self._line[self._last_given] += num_blocks - num_first
            self.line_blocks += num_blocks - num_first
        if self.get_queue:
            self._trigger_get(None)

    def give_kept(self, num_blocks: int) -> object:
        """Give full blocks back, the last to be taken first; return what `num_kept` knows them by."""
        key = self._last_given = object()
        self._line[key] = 0
        self.give(num_blocks)
        self._last_given = None
        return key

    def num_kept(self, key: object) -> int:
        """How many of the blocks that were given so still hold what they held, from the first on."""
        return self._line.get(key, 0)

    def take_kept(self, key: object, num_blocks: int) -> None:
        """Take so many of those."""
        self._line[key] -= num_blocks
        if not self._line[key]:
            del self._line[key]
        self.line_blocks -= num_blocks
        self.available -= num_blocks

    def match(self, ids: Sequence[int], limit: int) -> int:
        """How many ids from the first on are cached, at most `limit`."""
        users, line, copies = self._num_users, self._line, self._copies
        for num, id_ in enumerate(ids[:limit]):
            if id_ not in users and id_ not in line and id_ not in copies:
                return num
        return min(limit, len(ids))

    def usable_tokens(self, num_ids: int, prompt_tokens: int) -> int:
        """Of so many ids found, the tokens that need not be computed: a prompt's last block has to be."""
        return min(num_ids * self.tokens_per_id, (prompt_tokens - 1) // self.block_size * self.block_size)

    def has_copies(self, ids: Sequence[int]) -> bool:
        """Whether any of these is there more than once, so that another is found when the oldest has gone."""
        copies = self._copies
        return bool(copies) and any(id_ in copies for id_ in ids)

    def num_newly_pinned(self, ids: Sequence[int]) -> int:
        """Blocks that stop being available if these cached ids are leased."""
        line = self._line
        return self.blocks_per_id * sum(key in line for key in self._oldest(ids))

    def lease(self, ids: Sequence[int]) -> list[int | _Copy]:
        """Use these cached ids until what is returned is released."""
        keys = self._oldest(ids)
        for key in keys:
            if key in self._line:
                blocks = self._line.pop(key)
                self._num_users[key] = 1
                self.line_blocks -= blocks
                self.available -= blocks
            else:
                self._num_users[key] += 1
        return list(keys)

    def store(self, ids: Sequence[int]) -> list[int | _Copy]:
        """Let the cache own the blocks of ids that the caller has computed, and the caller use them.

        Returns what is to be released. What the cache holds already, because somebody else computed it
        meanwhile, it has another copy of.
        """
        users, line, copies = self._num_users, self._line, self._copies
        if self.observer is not None:
            self.observer.cached(ids)
        keys: list[int | _Copy] = []
        for id_ in ids:
            key: int | _Copy = id_
            if id_ in users or id_ in line or id_ in copies:
                key = _Copy(id_)
                copies.setdefault(id_, [id_]).append(key)
            users[key] = 1
            keys.append(key)
        return keys

    def release(self, keys: Sequence[int | _Copy]) -> None:
        """Stop using these, in the order of the prompt."""
        users, blocks = self._num_users, self.blocks_per_id
        for key in reversed(keys):
            users[key] -= 1
            if not users[key]:
                del users[key]
                self._line[key] = blocks
                self.line_blocks += blocks
                self.available += blocks
                self._last_given = None
        if self.get_queue:
            self._trigger_get(None)

    def _oldest(self, ids: Sequence[int]) -> Sequence[int | _Copy]:
        """What is found of these ids."""
        copies = self._copies
        return [copies[id_][0] if id_ in copies else id_ for id_ in ids] if copies else ids

    def _lose(self, key: object) -> None:
        """What was cached is no more."""
        id_ = key.of if isinstance(key, _Copy) else key
        if id_ in self._copies:
            copies = self._copies[id_]
            copies.remove(key)  # type: ignore[arg-type]
            if not copies or copies == [id_]:
                del self._copies[id_]

    def _evict(self) -> None:
        """Forget what stands in front of the line, as far as blocks from there were taken."""
        line = self._line
        lost: list[int] = []
        while (taken := self.line_blocks - self.available) > 0:
            key = next(iter(line))
            blocks = line[key]
            if blocks > taken and type(key) is object:
                line[key] = blocks - taken
                self.line_blocks -= taken
                break
            del line[key]
            self.line_blocks -= blocks
            if self._copies:
                self._lose(key)
            if self.observer is not None and type(key) is not object:
                self.observer.lost(key.of if isinstance(key, _Copy) else key)  # type: ignore[arg-type]
            if key is self._last_given:
                self._last_given = None
            if self.on_lose is not None and type(key) is not object:
                id_ = key.of if isinstance(key, _Copy) else cast("int", key)
                if not self.match((id_,), 1):
                    lost.append(id_)
        if lost and self.on_lose is not None:
            self.on_lose(lost)

    def _do_get(self, event: ContainerGet) -> bool | None:
        done = super()._do_get(event)
        self._evict()
        return done
