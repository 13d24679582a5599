"""What others see of a replica: a router, the door of a cluster, a central queue."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from batchsim.policies.base import WaitingRequest
from batchsim.sim.kv_cache import KVCache
from batchsim.sim.request import Request
from batchsim.sim.spans import SpanRunner


class Counts(NamedTuple):
    """How many are at a replica, running and waiting, and what those want who wait.

    Attributes
    ----------
    prompt_tokens
        Still to compute: of those that wait, whatever is cached, and of prompts under way.
    wanted_blocks
        By the prompts of those that wait.
    """

    num_requests: int = 0
    num_running: int = 0
    num_waiting: int = 0
    prompt_tokens: int = 0
    wanted_blocks: int = 0


class Outlook(SpanRunner):
    """The outside of a replica. To look changes nothing that happens.

    Attributes
    ----------
    num_requests
        Requests routed here that have not ended.
    on_boundary
        Called at each iteration boundary, before what has arrived is taken in.
    """

    __slots__ = ("num_requests", "on_boundary")

    num_requests: int
    on_boundary: Callable[[], None] | None

    def accepts(self, request: Request) -> bool:
        """Whether the request can ever fit."""
        raise NotImplementedError

    def kv_blocks(self) -> int:
        """KV blocks in use, or wanted by the prompts that wait."""
        blocks = self.used_blocks() + self._waiting.blocks
        if self.inbox.items:
            size = self._kv.block_size
            blocks += sum(-(-request.prompt_tokens // size) for request in self._coming())
        return int(blocks)

    def counts(self) -> Counts:
        """How many run and wait here, and what those want who wait."""
        waiting, running = self._waiting, self._running
        coming = [one.prompt_tokens for one in self._coming()] if self.inbox.items else ()
        return Counts(
            self.num_requests,
            running.num,
            waiting.num + len(coming),
            waiting.tokens + sum(coming) + self._step.prompt_tokens_left,
            waiting.blocks + sum(-(-tokens // self._kv.block_size) for tokens in coming),
        )

    def _coming(self) -> list[Request]:
        """Those that came since the iteration under way began, and wait for its end."""
        arriving = self._running.arriving
        return [
            one
            for one in self.inbox.items
            if not one.triggered and one.request_id not in arriving and self.accepts(one)
        ]

    def has_room(self, request: Request) -> bool:
        """Whether it could join the next iteration, as far as seats, tokens and blocks tell."""
        self.catch_up()
        counts, running, kv, rule = self.counts(), self._running, self._kv, self._rule
        if running.swapped:
            return False
        if not counts.num_running and not counts.num_waiting:
            return True
        if counts.num_running + counts.num_waiting >= self._sizer.batch_size(0, running.decoding.num):
            return False
        budget = getattr(rule, "max_num_batched_tokens", math.inf)
        if counts.prompt_tokens and counts.prompt_tokens + request.prompt_tokens > budget:
            return False
        tokens = request.prompt_tokens + rule.reserved_tokens(request)
        in_use = self.cached_ids(request)
        pinned = len(in_use) * kv.blocks_per_id - kv.num_newly_pinned(in_use)
        free = kv.available - self._kept_blocks - counts.wanted_blocks
        return -(-tokens // kv.block_size) - pinned <= free

    def cached_ids(self, request: WaitingRequest) -> Sequence[int]:
        """The longest prefix of a request that the cache holds now."""
        kv, ids = self._kv, request.prefix_ids
        return ids[: kv.match(ids, len(ids))] if ids and kv.tokens_per_id else ()

    @property
    def kv(self) -> KVCache:
        """Its cache."""
        return self._kv

    def tell_first_tokens(self, listener: Callable[[Request], None]) -> None:
        """Call with each request from now on as its first token is there."""
        self._running.on_first_token = listener
