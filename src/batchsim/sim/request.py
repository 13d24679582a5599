"""A request as the processes pass it on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import simpy


class Counter(Protocol):
    """One who wants to know how many of its requests have not ended."""

    num_requests: int


class KVSource(Protocol):
    """Where KV that was computed before lies."""

    def fetch(self, request: Any) -> None:
        """Bring it to the replica that has made room for it, then deliver the request there once more."""


class KVStore(KVSource, Protocol):
    """What lies below the KV cache of a replica: it takes what that loses, and has it for who wants it."""

    def num_held(self, ids: Sequence[int]) -> int:
        """How many of these ids, from the first on, it has."""

    def use(self, ids: Sequence[int]) -> None:
        """A request with this prefix is admitted, wherever it finds that."""

    def take(self, ids: Sequence[int]) -> None:
        """The cache has lost these."""

    def call_off(self) -> None:
        """Nobody waits any more for what was to be brought."""

    def carry_swapped(self, num_tokens: int, *, is_out: bool) -> simpy.Event:
        """Copy the KV of a preempted request to the host, or back; the event fires when it is there."""


class Leavable(Protocol):
    """What a request waits in, and may leave."""

    def discard(self, request: Any, bin_: int) -> None:
        """Forget a request that gave up."""


class Request(simpy.Event):
    """An event that fires when the request ends, with one of `records.STATUSES`: ``yield request`` waits.

    It carries what a scheduler may know. How many tokens it will really produce only the GPU finds out.

    Attributes
    ----------
    is_waiting
        Whether it is not part of a running batch.
    queue, bin
        What it was put into, if it was, and where there.
    counted_by
        The queue it was routed to.
    num_evictions
        Times it was thrown out of a batch.
    is_running
        Whether it holds KV blocks on a replica; what follows is what a replica keeps about it.
    admission
        How many were admitted there before it, one more.
    blocks
        KV blocks it holds, shared ones included; while it grows, `Decoding` knows.
    generated_tokens, computed_tokens
        Of its answer, and of its prompt and, after a preemption, its answer so far; up to date until it
        decodes.
    most_computed_tokens, recomputed_tokens, num_preemptions
        Before a preemption; a second time; how often.
    num_hits, cached_tokens, shared
        Ids of its prefix that the cache held when last looked up, tokens of them when it was first admitted,
        and what the cache knows the KV blocks by that belong to it.
    num_below
        Ids behind those hits that lie below the cache, and are to be brought.
    answer_ids
        Ids that will follow those of its prefix, as its answer fills blocks, where the workload tells.
    kept, num_kept
        What it left in the KV cache when it was preempted, and blocks of that which were there when last
        looked up.
    chunk_tokens, chunk_number
        Its last prompt chunk, and the number of the iteration that it was for.
    tenant, slo_class
        Whose it is, and what limits hold for it, by name; empty where the workload does not tell.
    kv_source
        Where the KV of its computed tokens lies, if not on the replica; that makes room and fetches it.
    known_s
        When it came to where it is now: a host that plans ahead hears of it later.
    finish_step, offset, is_growing
        See `Decoding`; `finish_step` is -1 while it does not decode.
    """

    # Slots are read and written in a third of the time of a dictionary, and every request has them all.
    __slots__ = (
        "admission",
        "answer_ids",
        "arrival_s",
        "bin",
        "blocks",
        "cached_tokens",
        "chunk_number",
        "chunk_tokens",
        "computed_tokens",
        "counted_by",
        "decode_start_s",
        "finish_step",
        "first_token_s",
        "generated_tokens",
        "is_growing",
        "is_running",
        "is_waiting",
        "kept",
        "known_s",
        "most_computed_tokens",
        "num_evictions",
        "num_hits",
        "num_kept",
        "num_preemptions",
        "offset",
        "predicted_output_tokens",
        "prefix_ids",
        "priority",
        "prompt_tokens",
        "queue",
        "recomputed_tokens",
        "request_id",
        "scheduled_s",
        "session_id",
        "shared",
    )
    # Of the class, as few requests have them.
    kv_source: KVSource | None = None
    num_below = 0
    tenant = slo_class = ""
    # Set before they are read: when it is admitted, given a chunk, has a token, decodes.
    scheduled_s: float
    admission: int
    cached_tokens: int
    blocks: int
    chunk_tokens: int
    first_token_s: float
    decode_start_s: float
    offset: int
    is_growing: bool

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
        self.arrival_s = self.known_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.predicted_output_tokens = predicted_output_tokens
        self.priority = 0
        self.session_id = -1
        self.prefix_ids: Sequence[int] = ()
        self.answer_ids: Sequence[int] = ()
        self.is_waiting = True
        self.queue: Leavable | None = None
        self.counted_by: Counter | None = None
        self.bin = self.chunk_number = self.finish_step = -1
        self.is_running = False
        self.num_evictions = self.num_preemptions = self.num_hits = self.num_kept = 0
        self.generated_tokens = self.computed_tokens = self.most_computed_tokens = 0
        self.recomputed_tokens = 0
        self.shared: Sequence[Any] = ()
        self.kept: object = None

    @property
    def remaining_tokens(self) -> int:
        """Tokens to compute before it yields its next token."""
        return self.prompt_tokens + self.generated_tokens - self.computed_tokens

    def end(self, status: str) -> None:
        """Fire. Where nobody waits, the event is done at once and costs the kernel nothing."""
        if self.callbacks:
            self.succeed(status)
        else:
            self._ok = True
            self._value = status
            self.callbacks = None  # type: ignore[assignment]  # SimPy's own mark of a processed event
        if self.counted_by is not None:
            self.counted_by.num_requests -= 1

    def uncount(self) -> None:
        """It is no more a request of the queue that it was routed to."""
        if self.counted_by is not None:
            self.counted_by.num_requests -= 1
            self.counted_by = None

    def move(self, *, keeps_tokens: bool) -> None:
        """Forget the replica it was on, and what that had of it; go on after the tokens it has, or anew."""
        self.queue = self.kv_source = self.kept = None
        self.bin = self.chunk_number = -1
        self.is_running = self.is_growing = False
        self.shared = ()
        self.blocks = self.computed_tokens = self.num_hits = self.num_kept = 0
        if not keeps_tokens:
            self.generated_tokens = 0
            self.is_waiting = True

    def leave_queue(self) -> None:
        """Get out of the line it waits in, if it has reached one."""
        if self.queue is not None:
            self.queue.discard(self, self.bin)
