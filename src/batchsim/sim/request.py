"""A request as the processes pass it on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import simpy


class Counter(Protocol):
    """One who wants to know how many of its requests have not ended."""

    num_requests: int


class Leavable(Protocol):
    """What a request waits in, and may leave."""

    def discard(self, request: Any, bin_: int) -> None:
        """Forget a request that gave up."""


class Request(simpy.Event):
    """An event that fires when the request ends, with one of `records.STATUSES`: ``yield request`` waits.

    It carries what a scheduler may know. How many tokens it will really produce only the GPU finds out.
    """

    bin = -1
    num_evictions = 0
    is_waiting = True  # not part of a running batch
    queue: Leavable | None = None  # what it was put into, if it was
    counted_by: Counter | None = None  # the queue it was routed to
    priority = 0
    session_id = -1
    prefix_ids: Sequence[int] = ()

    # What a `Replica` keeps about it; class attributes, so that a new request costs nothing for them.
    is_running = False  # holds KV blocks on a GPU
    num_preemptions = 0
    generated_tokens = 0  # up to date but while it decodes
    computed_tokens = (
        0  # of its prompt and, after a preemption, its answer so far; up to date until it decodes
    )
    most_computed_tokens = 0  # before a preemption
    recomputed_tokens = 0
    cached_tokens = 0  # when first admitted
    num_hits = 0  # ids of its prefix that the cache held when last looked up
    shared_ids: Sequence[int] = ()  # of its prefix, whose KV blocks belong to the cache
    blocks = 0  # KV blocks it holds, shared ones included; while it grows, `Decoding` knows
    is_growing = False
    offset = 0
    finish_step = -1
    scheduled_s = math.nan
    first_token_s = math.nan
    decode_start_s = math.nan

    def __init__(
        self,
        env: simpy.Environment,
        request_id: int,
        arrival_s: float,
        prompt_tokens: int,
        predicted_output_tokens: int,
    ) -> None:
        self.env = env  # this and callbacks are all that `simpy.Event` sets
        self.callbacks = []
        self.request_id = request_id
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.predicted_output_tokens = predicted_output_tokens

    @property
    def remaining_tokens(self) -> int:
        """Tokens to compute before it yields its next token."""
        return self.prompt_tokens + self.generated_tokens - self.computed_tokens

    def end(self, status: str) -> None:
        """Fire. Where nobody waits, the event is done at once and costs the kernel nothing."""
        if self.counted_by is not None:
            self.counted_by.num_requests -= 1
        if self.callbacks:
            self.succeed(status)
        else:
            self._ok = True
            self._value = status
            self.callbacks = None  # type: ignore[assignment]  # SimPy's own mark of a processed event

    def leave_queue(self) -> None:
        """Get out of the line it waits in, if it has reached one."""
        if self.queue is not None:
            self.queue.discard(self, self.bin)
