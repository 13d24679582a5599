"""The KV cache of a replica: blocks that are taken and given back, and prompt prefixes kept in them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import simpy
from simpy.resources.container import ContainerGet

from batchsim.errors import ConfigError, PlanError


class KVCache(simpy.Container):
    """A Container of KV blocks: `take` and `give` without an event, as an allocation never waits.

    Its level is what can be taken now: free blocks, and cached ones that nobody uses. Plain `get` and `put`
    work as in any Container.

    A prefix is a sequence of ids, one per `tokens_per_id` tokens of a prompt; equal ids mean equal prompts up
    to there. The cache owns the blocks of each id that it holds and counts who uses them. Without users an id
    stays cached until `take` needs its blocks: the one longest unused goes first, and of a request's prefix
    the end before the beginning, as in vLLM V1. Departs from vLLM, which has free and cached blocks in one
    line and so may overwrite a cached block while free ones are left, caches the full blocks of answers too,
    and keeps both copies of a block that two requests computed at the same time.

    Parameters
    ----------
    tokens_per_id
        A multiple of `block_size`; 0: no prefixes.

    Attributes
    ----------
    available
        Blocks that can be taken now; the Container's level.
    """

    available: int

    def __init__(
        self, env: simpy.Environment, num_blocks: int, block_size: int, tokens_per_id: int = 0
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
        self._num_users: dict[int, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # longest unused first

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

    @property
    def free(self) -> int:
        """Blocks that can be taken without evicting anything."""
        return self.available - len(self._unused) * self.blocks_per_id

    def take(self, num_blocks: int) -> None:
        """Take blocks now; `PlanError` if there are fewer."""
        level = self.available - num_blocks
        if level < 0:
            raise PlanError(f"{num_blocks} KV blocks were taken where {self.available} are available")
        self.available = level
        if self._unused:
            self._evict()

    def give(self, num_blocks: int) -> None:
        """Give blocks back; `PlanError` if nobody holds so many."""
        level = self.available + num_blocks
        if level > self.num_blocks:
            raise PlanError(f"{num_blocks} KV blocks were given back where {self.used} are in use")
        self.available = level
        if self.get_queue:
            self._trigger_get(None)

    def match(self, ids: Sequence[int], limit: int) -> int:
        """How many ids from the first on are cached, at most `limit`."""
        users, unused = self._num_users, self._unused
        for num, id_ in enumerate(ids[:limit]):
            if id_ not in users and id_ not in unused:
                return num
        return min(limit, len(ids))

    def num_newly_pinned(self, ids: Sequence[int]) -> int:
        """Blocks that stop being available if these cached ids are leased."""
        unused = self._unused
        return self.blocks_per_id * sum(id_ in unused for id_ in ids)

    def lease(self, ids: Sequence[int]) -> None:
        """Use these cached ids until they are released."""
        for id_ in ids:
            if id_ in self._unused:
                del self._unused[id_]
                self._num_users[id_] = 1
                self.available -= self.blocks_per_id
            else:
                self._num_users[id_] += 1

    def store(self, ids: Sequence[int]) -> list[int]:
        """Let the cache own the blocks of ids that the caller has computed, and the caller use them.

        Returns those that are new. What the cache held before, because somebody else computed it meanwhile,
        stays in blocks of the caller's own.
        """
        users, unused = self._num_users, self._unused
        new = [id_ for id_ in ids if id_ not in users and id_ not in unused]
        for id_ in new:
            users[id_] = 1
        return new

    def release(self, ids: Sequence[int]) -> None:
        """Stop using these ids, in the order of the prompt."""
        users = self._num_users
        for id_ in reversed(ids):
            users[id_] -= 1
            if not users[id_]:
                del users[id_]
                self._unused[id_] = None
                self.available += self.blocks_per_id
        if self.get_queue:
            self._trigger_get(None)

    def forget(self, ids: Sequence[int]) -> None:
        """Stop caching those of the ids that nobody uses: they were never computed after all."""
        for id_ in ids:
            self._unused.pop(id_, None)

    def _evict(self) -> None:
        while len(self._unused) * self.blocks_per_id > self.available:
            self._unused.popitem(last=False)

    def _do_get(self, event: ContainerGet) -> bool | None:
        done = super()._do_get(event)
        self._evict()
        return done
