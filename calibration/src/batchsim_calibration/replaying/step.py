"""The next iteration of an engine while a rule puts it together, kept token by token.

It is the `Step` of `batchsim.policies.steps`, where its methods are described, written without regard to the
simulator's: the two are compared in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from batchsim.errors import PlanError
from batchsim.policies.base import QueueDiscipline, WaitingRequest
from batchsim_calibration.replaying.inbox import Request


class Preemption(NamedTuple):
    """Who gave way: the start of the decode run that ended so (NaN if none), and the tokens dropped."""

    request: Request
    decode_start_s: float
    lost_tokens: int


class NextIteration:
    """Who runs with which KV blocks, and what the next iteration does for them.

    Attributes
    ----------
    chunks
        Requests that the iteration has prompt tokens of, in the order in which the rule named them.
    preemptions
        Of this iteration, in order.
    max_running
        What the sizer allows; set before the rule is asked.
    now_s
        When the iteration begins.
    """

    swapped: Sequence[Request] = ()

    def __init__(
        self, queue: QueueDiscipline, num_blocks: int, block_size: int, spare_blocks: int = 0
    ) -> None:
        self._queue = queue
        self._spare_blocks = spare_blocks
        self.now_s = 0.0
        self._running: list[Request] = []
        self._head: tuple[WaitingRequest, int] | None = None
        self._holds_decodes = False
        self._sitting_out: list[Request] = []
        self.num_blocks = self.free_blocks = num_blocks
        self.block_size = block_size
        self.max_running = 0
        self.chunks: list[Request] = []
        self.preemptions: list[Preemption] = []

    # For the engine's loop

    def begin(self, now_s: float) -> None:
        """Start with the decodes alone."""
        self.now_s = now_s
        self._holds_decodes = False
        self._sitting_out = []
        self.chunks = []
        self.preemptions = []

    @property
    def is_undecided(self) -> bool:
        """Whether there is something to ask a rule."""
        lacks_blocks = self.growth_blocks > self.free_blocks - self._spare_blocks
        return lacks_blocks or bool(self.num_waiting or self.prefilling)

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return sum(self._queue.waiting(bin_) for bin_ in range(self._queue.num_bins))

    @property
    def decoding(self) -> Sequence[Request]:
        """Requests that decode in this iteration."""
        if self._holds_decodes:
            return []
        return [request for request in self._complete if request not in self._sitting_out]

    @property
    def shape(self) -> tuple[int, int, int, int, float]:
        """Prompt tokens, decodes, their KV tokens, chunks, and prompt tokens times what each attends to."""
        return (
            sum(request.chunk_tokens for request in self.chunks),
            len(self.decoding),
            sum(request.stored_tokens for request in self.decoding),
            len(self.chunks),
            sum(
                request.chunk_tokens * (request.stored_tokens + request.chunk_tokens / 2)
                for request in self.chunks
            ),
        )

    def store(self) -> None:
        """The iteration runs: chunks and decodes are stored, and decodes take the blocks they need."""
        for request in self.decoding:
            self._grow(request, request.stored_tokens + 1)
            request.stored_tokens += 1
        for request in self.chunks:
            start = request.stored_tokens
            request.stored_tokens += request.chunk_tokens
            request.chunk_tokens = 0
            again = min(request.stored_tokens, request.most_stored_tokens) - start
            request.recomputed_tokens += max(again, 0)

    def leave(self, request: Request) -> None:
        """A running request stops and gives its blocks back."""
        self._running.remove(request)
        self.free_blocks += request.blocks
        request.blocks = 0
        request.is_running = request.decodes = False

    # For the rule

    @property
    def growth_blocks(self) -> int:
        """Blocks the decodes take."""
        return sum(self._lacking(request, request.stored_tokens + 1) for request in self._complete)

    @property
    def num_decoding(self) -> int:
        """Requests whose prompt is complete."""
        return len(self._complete)

    @property
    def decode_tokens(self) -> int:
        """One each."""
        return len(self._complete)

    @property
    def num_running(self) -> int:
        """Requests that hold blocks."""
        return len(self._running)

    @property
    def num_preempted(self) -> int:
        """Preemptions so far."""
        return len(self.preemptions)

    @property
    def prefilling(self) -> Sequence[Request]:
        """Incomplete prompts."""
        return [one for one in self._running if not one.decodes and one.remaining_tokens]

    @property
    def running(self) -> Sequence[Request]:
        """All that run."""
        return tuple(self._running)

    @property
    def growing(self) -> Sequence[Request]:
        """All that want blocks."""
        return [one for one in self._running if not one.decodes or self._lacking(one, one.stored_tokens + 1)]

    @property
    def holding(self) -> Sequence[Request]:
        """All that run: of each, the last token is known at once."""
        return self.running

    def last_running(self) -> Request:
        """The one admitted last."""
        return self._running[-1]

    def next_waiting(self) -> Request | None:
        """The head of the queue."""
        bin_ = self._queue.next_bin() if self.num_waiting else None
        if bin_ is None:
            return None
        head = self._queue.head(bin_, self.now_s)
        self._head = head, bin_
        return head  # type: ignore[return-value]  # a queue hands back the requests it was given

    def uncached_tokens(self, request: Request, *, after_growth: bool = False) -> int:
        """All that remain: no prefix is kept."""
        return request.remaining_tokens

    def admit(
        self,
        request: Request,
        num_tokens: int,
        *,
        blocks_for_tokens: int | None = None,
        room_for_tokens: int = 0,
        keep_free_blocks: int = 0,
    ) -> bool:
        """Admit the head of the queue if its blocks can be had."""
        tokens = max(num_tokens, blocks_for_tokens or 0)
        if self._lacking(request, max(tokens, room_for_tokens)) > self.free_blocks - keep_free_blocks:
            return False
        if self._head is None or request is not self._head[0]:
            raise PlanError(f"request {request.request_id} was admitted, but it is not the next in the queue")
        if self.num_running >= self.max_running:
            raise PlanError(
                f"request {request.request_id} was admitted beside {self.num_running} running ones; "
                f"{self.max_running} may run"
            )
        self._queue.pop(self._head[1], self.now_s)
        self._head = None
        self._running.append(request)
        request.is_running = True
        self._grow(request, tokens)
        if math.isnan(request.scheduled_s):
            request.scheduled_s = self.now_s
        self.prefill(request, num_tokens)
        return True

    def grow(self) -> int:
        """Let the decodes take their blocks, as many as can be had."""
        for request in self._complete:
            self.take(request, 1)
        return self.growth_blocks

    def take(self, request: Request, num_tokens: int) -> bool:
        """Let one take its blocks, if they can be had."""
        tokens = request.stored_tokens + num_tokens
        if self._lacking(request, tokens) > self.free_blocks:
            return False
        self._grow(request, tokens)
        return True

    def prefill(self, request: Request, num_tokens: int) -> None:
        """Add a chunk."""
        if request in self.chunks or not 0 < num_tokens <= request.remaining_tokens:
            raise PlanError(
                f"request {request.request_id} was given a chunk of {num_tokens} tokens; one chunk an "
                f"iteration of 1 to {request.remaining_tokens} tokens is possible"
            )
        self._grow(request, request.stored_tokens + num_tokens)
        request.chunk_tokens = num_tokens
        self.chunks.append(request)

    def preempt(self, request: Request, *, swap: bool = False) -> None:
        """Drop a request's KV and let it wait at the head."""
        if swap:
            raise PlanError(
                f"request {request.request_id} was to be swapped out; a replay can only recompute"
            )
        decode_start_s = request.decode_start_s if request.decodes else math.nan
        self.preemptions.append(Preemption(request, decode_start_s, request.stored_tokens))
        self.leave(request)
        if request in self.chunks:
            self.chunks.remove(request)
        request.most_stored_tokens = max(request.stored_tokens, request.most_stored_tokens)
        request.stored_tokens = request.chunk_tokens = 0
        request.num_preemptions += 1
        self._queue.push_back(request, request.bin)

    def swap_in(self, request: Request, *, keep_free_blocks: int = 0) -> bool:
        """Nobody is ever swapped out."""
        raise PlanError(f"request {request.request_id} was to be swapped in; a replay can only recompute")

    def sit_out(self, request: Request) -> None:
        """Let one decode not now."""
        self._sitting_out.append(request)

    def hold_decodes(self) -> None:
        """Let the decodes sit out."""
        self._holds_decodes = True

    # Helpers

    @property
    def _complete(self) -> Sequence[Request]:
        return [request for request in self._running if request.decodes]

    def _lacking(self, request: Request, num_tokens: int) -> int:
        return max(math.ceil(num_tokens / self.block_size) - request.blocks, 0)

    def _grow(self, request: Request, num_tokens: int) -> None:
        num = self._lacking(request, num_tokens)
        if num > self.free_blocks:
            raise PlanError(
                f"request {request.request_id} was to hold {num_tokens} tokens, which takes {num} more KV "
                f"blocks where {self.free_blocks} are free"
            )
        self.free_blocks -= num
        request.blocks += num
