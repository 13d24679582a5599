"""The next iteration of a replica while a rule puts it together."""

from __future__ import annotations

import math
from collections.abc import Callable

import simpy

from batchsim.errors import PlanError
from batchsim.latency.base import IterationShape
from batchsim.sim.kv_cache import KVCache
from batchsim.sim.recording.iteration_recorder import IterationRecorder
from batchsim.sim.request import Request
from batchsim.sim.running import RunningSet
from batchsim.sim.step_view import StepView
from batchsim.sim.waiting import WaitingLine

#: What no plan needs: a rule that asks so often would go on for ever.
MOST_ASKED = 100_000


class NextIteration(StepView):
    """The `policies.steps.Step` that the rule sees, where its methods are described; it holds to what fits.

    It lasts as long as the replica, and begins anew with `start`. What a rule decides is carried out at once:
    in the `RunningSet`, whose are seats and blocks, and in the `WaitingLine`. Its own are the prompts under
    way and their chunks. The requests that a rule names are those it was shown.

    Attributes
    ----------
    now_s, max_running
        The time of the iteration boundary, and what the sizer allows to run; set by the replica.
    completing
        Those whose prompt the iteration completes.
    growth_blocks, holds_decodes
        KV blocks that the decoding sequences are still to take in it, or whether they sit it out.
    num_preempted, swap_blocks
        Requests preempted for it, and KV blocks copied between GPU and host before it.
    copies
        Those of them that pass links which others use, too, and that nobody has waited for yet.
    may_fit_later
        Whether the head of the queue, which did not fit, may do so though no blocks come back: as its cached
        blocks are evicted, its next chunk lies nearer to the beginning, or copies are found that others use.
    on_begin
        Called with a request that is admitted for the first time, and the number of the replica.
    prefill_tokens, prefill_seqs, prefill_pairs
        Its chunks, as `IterationShape` counts them.
    """

    __slots__ = (
        "_is_caching",
        "_num_asked",
        "_number",
        "_recorder",
        "_replica_id",
        "_spare_blocks",
        "_turn",
        "block_size",
        "completing",
        "copies",
        "growth_blocks",
        "holds_decodes",
        "max_running",
        "may_fit_later",
        "now_s",
        "num_blocks",
        "num_preempted",
        "on_begin",
        "prefill_pairs",
        "prefill_seqs",
        "prefill_tokens",
        "swap_blocks",
    )

    def __init__(
        self,
        replica_id: int,
        waiting: WaitingLine,
        running: RunningSet,
        kv: KVCache,
        recorder: IterationRecorder,
        spare_blocks: int = 0,
    ) -> None:
        super().__init__(waiting, running, kv)
        self._replica_id = replica_id
        self._recorder = recorder
        self._spare_blocks = spare_blocks
        self._is_caching = kv.is_caching
        self._number = 0  # of the iteration
        self._num_asked = 0  # how often, for who is next, since anybody was admitted
        self._turn = 0  # whose it is as some are asked one by one, by admission; those before are in
        self.block_size = kv.block_size
        self.num_blocks = kv.num_blocks
        self.now_s = 0.0
        self.max_running = 0
        self.completing: list[Request] = []
        self.copies: list[simpy.Event] = []
        self.growth_blocks = self.num_preempted = self.swap_blocks = 0
        self.may_fit_later = self.holds_decodes = False
        self.on_begin: Callable[[Request, int], None] | None = None
        self.prefill_tokens = self.prefill_seqs = 0
        self.prefill_pairs = 0.0

    def start(self) -> None:
        """Begin a new iteration, empty but for the decodes."""
        self.num_preempted = self.swap_blocks = 0
        self.may_fit_later = self.holds_decodes = False
        self._num_asked = 0
        self._turn = 0
        self.growth_blocks = self._running.decoding.growth()
        if self.prefill_seqs:
            self._number += 1
            self.prefill_tokens = self.prefill_seqs = 0
            self.prefill_pairs = 0.0
            self.completing = []

    def take_back(self) -> None:
        """What was put together will not run: take its chunks off the prompts."""
        for request in (*self._prefilling.values(), *self.completing):
            if request.chunk_number == self._number:
                request.computed_tokens -= request.chunk_tokens

    def clear(self, now_s: float) -> None:
        """Begin with nobody."""
        self._prefilling.clear()
        self.copies = []
        self.now_s = now_s
        self.start()

    @property
    def is_undecided(self) -> bool:
        """Whether a rule has to be asked though nobody waits."""
        running = self._running
        if self._prefilling or running.swapped:
            return True
        decoding, available = running.decoding, self._kv.available - self._spare_blocks
        return decoding.num * decoding.blocks_each > available and decoding.growth() > available

    @property
    def shape(self) -> IterationShape:
        """The iteration as it stands."""
        tokens, seqs, pairs = self.prefill_tokens, self.prefill_seqs, self.prefill_pairs
        if self.holds_decodes:
            return IterationShape(tokens, 0, 0, seqs, pairs)
        decoding = self._running.decoding
        longest_tokens = decoding.longest_tokens()
        return IterationShape(tokens, decoding.num, decoding.context_tokens, seqs, pairs, longest_tokens)

    # The rest of the rule's `Step`

    def next_waiting(self) -> Request | None:
        """The head of the queue."""
        waiting = self._waiting
        self._num_asked += 1
        if self._num_asked > MOST_ASKED:
            raise PlanError(
                f"an iteration was asked {MOST_ASKED} times who is next, and nobody was admitted meanwhile; "
                "an admission may fail, and a plan has to end"
            )
        return waiting.find_head(self.now_s) if waiting.num else None

    def last_running(self) -> Request:
        """The one admitted last."""
        return self._running.show(next(reversed(self._running.requests.values())))

    def uncached_tokens(self, request: Request, *, after_growth: bool = False) -> int:
        """Tokens still to compute, prefix hits taken off."""
        if request.kv_source is not None:
            return 0
        wanted = request.prompt_tokens + request.generated_tokens - request.computed_tokens
        if self._is_caching and (request.prefix_ids or request.kept is not None):
            if after_growth and self.growth_blocks:
                self.grow()
            num_cached = self._running.find_cached(request, wanted)
            return 0 if request.num_below else wanted - num_cached
        return wanted

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
        kv, running, num_hits = self._kv, self._running, request.num_hits
        cached_tokens, tokens, source = 0, num_tokens, request.kv_source
        if keep_free_blocks < 0:
            raise PlanError(
                f"request {request.request_id} was admitted with keep_free_blocks = {keep_free_blocks}; a "
                "number >= 0 is needed"
            )
        if source is not None:
            tokens = running.tokens_to_decode(request)  # or it would lack a block at once
        elif num_hits or request.num_kept or request.num_below:
            wanted = request.prompt_tokens + request.generated_tokens - request.computed_tokens
            cached_tokens = running.cached_tokens(request, wanted)
            tokens += cached_tokens
            if request.num_below:
                source = running.below
                tokens = cached_tokens + 1  # its first chunk comes when they are there
        if blocks_for_tokens is not None and blocks_for_tokens > tokens:
            tokens = blocks_for_tokens
        blocks = -(-tokens // self.block_size)
        pinned = -(-room_for_tokens // self.block_size) if room_for_tokens > tokens else blocks
        if num_hits:
            pinned -= num_hits * kv.blocks_per_id
            pinned += kv.num_newly_pinned(request.prefix_ids[:num_hits])
        if pinned > kv.available - keep_free_blocks:
            may_change = cached_tokens > 0 or (running.below is not None and len(request.prefix_ids) > 0)
            is_chunk = blocks_for_tokens is None and not room_for_tokens
            has_copies = num_hits > 0 and kv.has_copies(request.prefix_ids[:num_hits])
            self.may_fit_later = (may_change and is_chunk) or has_copies
            return False
        if running.num >= self.max_running:
            raise PlanError(
                f"request {request.request_id} was admitted beside {running.num} running ones; "
                f"{self.max_running} may run"
            )
        self._num_asked = 0
        self._waiting.pop_head(request, self.now_s)
        if running.below is not None:
            running.below.use(request.prefix_ids)
        if source is not None:
            source.fetch(request)  # before blocks are taken: what those held may push out what it finds
        running.seat(request, blocks, cached_tokens)
        if request.is_waiting:
            request.is_waiting = False
            request.scheduled_s = self.now_s
            request.cached_tokens = cached_tokens
            if self.on_begin is not None:
                self.on_begin(request, self._replica_id)
        if source is None:
            self._add_chunk(request, num_tokens)
        else:
            running.wait_for_kv(request)
        return True

    def land(self, request: Request) -> None:
        """The KV of one is there that waited for it: it decodes on, or goes on with its prompt."""
        if not self._running.land(request, self.now_s):
            self._prefilling[request.request_id] = request

    def grow(self) -> int:
        """Take the blocks of the decodes, as many as can be had."""
        if self.holds_decodes:
            return 0
        decoding, kv = self._running.decoding, self._kv
        wanted = decoding.growth()
        blocks = wanted if wanted <= kv.available else kv.available
        kv.take(blocks)
        decoding.taken += blocks
        self.growth_blocks = wanted - blocks
        return wanted - blocks

    def take(self, request: Request, num_tokens: int) -> bool:
        """Take the blocks of one."""
        self._turn = request.admission
        has_taken = self._running.try_grow(request, num_tokens)
        self.growth_blocks = self._running.decoding.growth()
        return has_taken

    def prefill(self, request: Request, num_tokens: int) -> None:
        """Add a chunk."""
        if request.chunk_number == self._number:
            raise PlanError(f"request {request.request_id} was given two chunks for one iteration")
        if request.request_id not in self._prefilling:
            raise PlanError(
                f"request {request.request_id} was given a chunk, but no prompt of it is under way"
            )
        self._running.grow(request, request.computed_tokens + num_tokens)
        self._add_chunk(request, num_tokens)

    def preempt(self, request: Request, *, swap: bool = False) -> None:
        """Take a request's blocks away."""
        running, decode_start_s = self._running, math.nan
        running.check_preemption(request, swap=swap)
        if request in running.sitting_out:
            running.go_on(self.now_s)
        if request.request_id in running.retired:
            running.drop_retired(request, self.now_s)
            self._count_preemption(request, decode_start_s, 0, "recompute")
            return
        if request.finish_step >= 0:
            stored_tokens = running.stop_decoding(request)
            self.growth_blocks = running.decoding.growth()
            decode_start_s = request.decode_start_s
            has_decoded = decode_start_s < self.now_s and request.admission >= self._turn
            kept_tokens = running.known_tokens(request, stored_tokens, has_decoded=has_decoded)
        else:
            kept_tokens = request.computed_tokens  # with the chunk that is taken back, as in vLLM
            stored_tokens = self._take_out(request)
        if swap:
            lost_tokens = 0
            self._copy_swapped(running.swap_out(request, stored_tokens), is_out=True)
        else:
            lost_tokens = stored_tokens
            running.drop(request, stored_tokens, kept_tokens)
            self._waiting.push_back(request)
        self._count_preemption(request, decode_start_s, lost_tokens, "swap" if swap else "recompute")

    def swap_in(self, request: Request, *, keep_free_blocks: int = 0) -> bool:
        """Bring a request back if its blocks can be had."""
        running = self._running
        if running.swapped.get(request.request_id) is not request:
            raise PlanError(f"request {request.request_id} was swapped in, but it is not swapped out")
        if running.num >= self.max_running:
            raise PlanError(
                f"request {request.request_id} was swapped in beside {running.num} running ones; "
                f"{self.max_running} may run"
            )
        blocks = running.swap_in(request, self.growth_blocks + keep_free_blocks, self.now_s)
        if blocks:
            self._copy_swapped(blocks, is_out=False)
            self.growth_blocks = running.decoding.growth()
        return blocks > 0

    def _copy_swapped(self, blocks: int, *, is_out: bool) -> None:
        self.swap_blocks += blocks
        if self._running.below is not None:
            self.copies.append(self._running.below.carry_swapped(blocks * self.block_size, is_out=is_out))

    def sit_out(self, request: Request) -> None:
        """Let one decode not now."""
        if request.finish_step < 0:
            return
        self._running.sit_out(request)
        self.growth_blocks = self._running.decoding.growth()
        self._recorder.preempt(request, self._replica_id, self.now_s, request.decode_start_s, 0, "pause")

    def hold_decodes(self) -> None:
        """Let the decodes sit out."""
        if self._running.decoding.taken:
            raise PlanError("the decodes were to sit an iteration out that they have taken blocks for")
        self.holds_decodes = True

    def _count_preemption(self, request: Request, decode_start_s: float, lost_tokens: int, mode: str) -> None:
        self.num_preempted += 1
        request.num_preemptions += 1
        self._recorder.preempt(request, self._replica_id, self.now_s, decode_start_s, lost_tokens, mode)

    def _add_chunk(self, request: Request, num_tokens: int) -> None:
        """Count in a chunk whose blocks are there."""
        start = request.computed_tokens
        remaining = request.prompt_tokens + request.generated_tokens - start
        if not 0 < num_tokens <= remaining or num_tokens % 1:
            raise PlanError(
                f"request {request.request_id} was given a chunk of {num_tokens} tokens; "
                f"1 to {remaining} are possible"
            )
        request.computed_tokens = stop = start + num_tokens
        request.chunk_number, request.chunk_tokens = self._number, num_tokens
        self.prefill_tokens += num_tokens
        self.prefill_seqs += 1
        self.prefill_pairs += num_tokens * (start + num_tokens / 2)
        if start < request.most_computed_tokens:
            request.recomputed_tokens += min(stop, request.most_computed_tokens) - start
        if self._is_caching and request.prefix_ids:
            self._running.share(request, stop)
        if num_tokens < remaining:
            self._prefilling[request.request_id] = request
        else:
            if self._prefilling:
                self._prefilling.pop(request.request_id, None)
            self.completing.append(request)

    def _take_out(self, request: Request) -> int:
        """Forget a prompt under way, its chunk in this iteration included; return its stored tokens."""
        num_tokens = 0
        if request.chunk_number == self._number:
            num_tokens = request.chunk_tokens
            request.chunk_number = -1
            self.prefill_tokens -= num_tokens
            self.prefill_seqs -= 1
            self.prefill_pairs -= num_tokens * (request.computed_tokens - num_tokens / 2)
        if request in self.completing:
            self.completing.remove(request)
        else:
            del self._prefilling[request.request_id]
        return request.computed_tokens - num_tokens
