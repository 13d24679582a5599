"""What runs on a replica, and its next iteration while a rule puts it together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from batchsim.errors import PlanError
from batchsim.latency.base import IterationShape
from batchsim.policies.base import QueueDiscipline, WaitingRequest
from batchsim.sim.decoding import Decoding
from batchsim.sim.iteration_recorder import IterationRecorder
from batchsim.sim.kv_cache import KVCache
from batchsim.sim.request import Request


class RunningSet:
    """The running requests of a replica, their KV blocks, and the chunks of the next iteration.

    It is the `policies.base.Step` that the rule sees, where its methods are described, and holds the rule to
    what fits. The requests that a rule names are those it was shown.

    Attributes
    ----------
    decoding
        Those whose prompt is complete.
    completing
        Those whose prompt the next iteration completes.
    retired
        Those that have finished, but the host does not know yet: they keep their blocks and seats.
    swap_blocks
        KV blocks copied between GPU and host before the next iteration.
    may_fit_later
        Whether the head of the queue, whose next chunk did not fit, may do so though no blocks come back: as
        its cached blocks are evicted, the chunk lies nearer to the beginning.
    num_waiting, waiting_blocks
        Requests in the queue, and KV blocks that the prompts of waiting requests will take.
    prefill_tokens, prefill_seqs, prefill_pairs
        The chunks of the next iteration, as `IterationShape` counts them.
    now_s
        The time of the iteration boundary, set by the replica.
    """

    __slots__ = (
        "_has_one_bin",
        "_head",
        "_head_bin",
        "_holds_decodes",
        "_is_caching",
        "_kv",
        "_number",
        "_prefilling",
        "_queue",
        "_recorder",
        "_replica_id",
        "_running",
        "_stored",
        "_swapped",
        "_true_output_tokens",
        "block_size",
        "completing",
        "decoding",
        "growth_blocks",
        "max_running",
        "may_fit_later",
        "now_s",
        "num_blocks",
        "num_preempted",
        "num_running",
        "num_waiting",
        "on_leave",
        "prefill_pairs",
        "prefill_seqs",
        "prefill_tokens",
        "retired",
        "swap_blocks",
        "waiting_blocks",
    )

    def __init__(
        self,
        replica_id: int,
        queue: QueueDiscipline,
        kv: KVCache,
        true_output_tokens: Sequence[int],
        recorder: IterationRecorder,
        *,
        follows_longest: bool = False,
    ) -> None:
        self._replica_id = replica_id
        self._queue = queue
        self._kv = kv
        self._true_output_tokens = true_output_tokens
        self._recorder = recorder
        self.on_leave: Callable[[], None] | None = None  # called when one gives up waiting
        self._is_caching = kv.is_caching
        self._has_one_bin = queue.num_bins == 1
        self.decoding = Decoding(kv.block_size, follows_longest=follows_longest)
        self.retired: list[Request] = []
        self.completing: list[Request] = []
        self.num_waiting = 0
        self.waiting_blocks = 0
        self.now_s = 0.0
        self.num_blocks = kv.num_blocks
        self.block_size = kv.block_size
        self.num_running = 0
        self.num_preempted = 0
        self.max_running = 0
        self.swap_blocks = 0
        self.may_fit_later = False
        self.growth_blocks = 0
        self.prefill_tokens = self.prefill_seqs = 0
        self.prefill_pairs = 0.0
        self._number = 0  # of the next iteration
        self._stored: dict[int, list[int]] = {}  # by request, ids that the chunks will fill
        self._holds_decodes = False
        self._head: WaitingRequest | None = None
        self._head_bin = 0
        self._running: dict[int, Request] = {}
        self._prefilling: dict[int, Request] = {}
        self._swapped: dict[int, Request] = {}

    def start_step(self) -> None:
        """Begin a new iteration, empty but for the decodes."""
        self.num_preempted = self.swap_blocks = 0
        self.may_fit_later = False
        self.growth_blocks = self.decoding.growth()
        if self.prefill_seqs:
            self._number += 1
            self.prefill_tokens = self.prefill_seqs = 0
            self.prefill_pairs = 0.0
            self._holds_decodes = False
            self.completing = []
            if self._stored:
                self._stored = {}

    @property
    def is_undecided(self) -> bool:
        """Whether a rule has to be asked though nobody waits."""
        if self._prefilling or self._swapped:
            return True
        available = self._kv.available
        return self.decoding.num > available and self.decoding.growth() > available

    @property
    def shape(self) -> IterationShape:
        """The iteration as it stands."""
        decoding = self.decoding
        if self._holds_decodes:
            return IterationShape(self.prefill_tokens, 0, 0, self.prefill_seqs, self.prefill_pairs)
        return IterationShape(
            self.prefill_tokens,
            decoding.num,
            decoding.context_tokens,
            self.prefill_seqs,
            self.prefill_pairs,
            decoding.longest_tokens(),
        )

    def enqueue(self, request: Request) -> None:
        """Let a request wait."""
        request.bin = self._queue.push(request)
        request.queue = self
        self._count_waiting(request, 1)

    def discard(self, request: Request, bin_: int) -> None:
        """Forget a waiting request that gave up."""
        self._queue.discard(request, bin_)
        self._count_waiting(request, -1)
        if self.on_leave is not None:
            self.on_leave()

    def complete_prompts(self) -> list[Request]:
        """Requests whose prompt is complete yield a token and decode on; return those that this finishes."""
        finished, now_s, join = [], self.now_s, self.decoding.join
        for request in self.completing:
            request.generated_tokens = generated_tokens = request.generated_tokens + 1
            if generated_tokens == 1:
                request.first_token_s = now_s
            request.decode_start_s = now_s
            num_left = self._true_output_tokens[request.request_id] - generated_tokens
            if num_left:
                join(request, request.computed_tokens, num_left)
            else:
                finished.append(request)
        return finished

    def retire(self, request: Request, *, is_known: bool) -> None:
        """A request has finished; its blocks and seat are free once the host knows."""
        del self._running[request.request_id]
        if is_known:
            self._free(request)
        else:
            self.retired.append(request)

    def free_retired(self) -> None:
        """The host learns who has finished."""
        if self.retired:
            for request in self.retired:
                self._free(request)
            self.retired = []

    # The rule's `Step`

    @property
    def free_blocks(self) -> int:
        """Blocks that can be taken."""
        return self._kv.available

    @property
    def num_decoding(self) -> int:
        """Requests that decode."""
        return self.decoding.num

    @property
    def prefilling(self) -> Sequence[Request]:
        """Incomplete prompts."""
        return tuple(self._prefilling.values()) if self._prefilling else ()

    @property
    def running(self) -> Sequence[Request]:
        """All that run."""
        return tuple(self._running.values())

    @property
    def swapped(self) -> Sequence[Request]:
        """All that are swapped out."""
        return tuple(self._swapped.values()) if self._swapped else ()

    def next_waiting(self) -> Request | None:
        """The head of the queue."""
        if not self.num_waiting:
            return None
        bin_ = 0 if self._has_one_bin else self._queue.next_bin()
        assert bin_ is not None, "somebody waits"
        self._head_bin, self._head = bin_, self._queue.head(bin_, self.now_s)
        return self._head  # type: ignore[return-value]  # a queue hands back the requests it was given

    def last_running(self) -> Request:
        """The one admitted last."""
        return next(reversed(self._running.values()))

    def uncached_tokens(self, request: Request) -> int:
        """Tokens still to compute, prefix hits taken off."""
        wanted = request.prompt_tokens + request.generated_tokens - request.computed_tokens
        kv, ids = self._kv, request.prefix_ids
        if not self._is_caching or not (ids or request.kept is not None):
            return wanted
        if ids:
            request.num_hits = kv.match(ids, (wanted - 1) // kv.tokens_per_id)
        if request.kept is not None:
            request.num_kept = kv.num_kept(request.kept) if request.num_hits == len(ids) else 0
        return wanted - request.num_hits * kv.tokens_per_id - request.num_kept * self.block_size

    def admit(
        self,
        request: Request,
        num_tokens: int,
        *,
        blocks_for_tokens: int | None = None,
        keep_free_blocks: int = 0,
    ) -> bool:
        """Admit the head of the queue if its blocks can be had."""
        kv, num_hits, num_kept = self._kv, request.num_hits, request.num_kept
        cached_tokens = 0
        if num_hits or num_kept:
            cached_tokens = num_hits * kv.tokens_per_id + num_kept * self.block_size
        tokens = cached_tokens + num_tokens
        if blocks_for_tokens is not None and blocks_for_tokens > tokens:
            tokens = blocks_for_tokens
        new_blocks = pinned = blocks = -(-tokens // self.block_size)
        if cached_tokens:
            hits = request.prefix_ids[:num_hits]
            new_blocks -= cached_tokens // self.block_size
            pinned = new_blocks + num_kept + kv.num_newly_pinned(hits)
        if pinned > kv.available - keep_free_blocks:
            self.may_fit_later = cached_tokens > 0 and blocks_for_tokens is None
            return False
        if request is not self._head or self.num_running >= self.max_running:
            raise self._out_of_turn(request)
        self._queue.pop(self._head_bin, self.now_s)
        self._head = None
        self._count_waiting(request, -1)
        if cached_tokens:
            kv.lease(hits)
            if num_kept:
                kv.take_kept(request.kept)
            request.shared_ids = list(hits)
            request.computed_tokens = cached_tokens
            request.kept, request.num_kept = None, 0
        self._seat(request, blocks, new_blocks)
        if request.is_waiting:
            request.is_waiting = False
            request.scheduled_s = self.now_s
            request.cached_tokens = cached_tokens
        self._add_chunk(request, num_tokens)
        return True

    def lacking_blocks(self, request: Request, num_tokens: int) -> int:
        """Blocks that lack for a chunk."""
        blocks = -(-(request.computed_tokens + num_tokens) // self.block_size)
        return max(blocks - request.blocks, 0) + self.growth_blocks - self._kv.available

    def prefill(self, request: Request, num_tokens: int) -> None:
        """Add a chunk."""
        if request.chunk_number == self._number:
            raise PlanError(f"request {request.request_id} was given two chunks for one iteration")
        blocks = -(-(request.computed_tokens + num_tokens) // self.block_size)
        if blocks > request.blocks:
            self._kv.take(blocks - request.blocks)
            request.blocks = blocks
        self._add_chunk(request, num_tokens)

    def preempt(self, request: Request, *, swap: bool = False) -> None:
        """Take a request's blocks away."""
        request_id, decode_start_s = request.request_id, math.nan
        del self._running[request_id]
        if request.finish_step >= 0:
            stored_tokens = self.decoding.leave(request)
            self.growth_blocks = self.decoding.growth()
            request.generated_tokens = stored_tokens - request.prompt_tokens + 1
            decode_start_s = request.decode_start_s
        else:
            stored_tokens = self._leave_prefill(request)
        blocks = request.blocks
        self._free(request, 0 if swap else stored_tokens)
        self._kv.forget(self._stored.pop(request_id, ()))
        self.num_preempted += 1
        request.num_preemptions += 1
        if swap:
            request.computed_tokens = stored_tokens
            self._swapped[request_id] = request
            self.swap_blocks += blocks
        else:
            request.computed_tokens = 0
            request.num_hits = 0
            request.most_computed_tokens = max(stored_tokens, request.most_computed_tokens)
            self._queue.push_back(request, request.bin)
            self._count_waiting(request, 1)
        lost_tokens = 0 if swap else stored_tokens
        self._recorder.preempt(
            request, self._replica_id, self.now_s, decode_start_s, lost_tokens, is_swap=swap
        )

    def swap_in(self, request: Request) -> bool:
        """Bring a request back if its blocks can be had."""
        stored_tokens = request.computed_tokens
        blocks = -(-stored_tokens // self.block_size)
        grows = stored_tokens % self.block_size == 0
        if blocks + grows > self._kv.available - self.growth_blocks:
            return False
        del self._swapped[request.request_id]
        self._seat(request, blocks, blocks)
        self.swap_blocks += blocks
        request.decode_start_s = self.now_s
        num_left = self._true_output_tokens[request.request_id] - request.generated_tokens
        self.decoding.join(request, stored_tokens, num_left)
        self.growth_blocks = self.decoding.growth()
        return True

    def hold_decodes(self) -> None:
        """Let the decodes sit out."""
        self._holds_decodes = True

    # Helpers

    def _out_of_turn(self, request: Request) -> PlanError:
        if request is not self._head:
            return PlanError(
                f"request {request.request_id} was admitted, but it is not the next in the queue"
            )
        return PlanError(
            f"request {request.request_id} was admitted beside {self.num_running} running ones; "
            f"{self.max_running} may run"
        )

    def _count_waiting(self, request: Request, by: int) -> None:
        self.num_waiting += by
        self.waiting_blocks += by * -(-request.prompt_tokens // self.block_size)

    def _seat(self, request: Request, blocks: int, new_blocks: int) -> None:
        """Let a request run with so many blocks, some of which the prefix cache may have had."""
        self._kv.take(new_blocks)
        request.blocks = blocks
        request.is_running = True
        self.num_running += 1
        self._running[request.request_id] = request

    def _add_chunk(self, request: Request, num_tokens: int) -> None:
        """Count in a chunk whose blocks are there."""
        start = request.computed_tokens
        remaining = request.prompt_tokens + request.generated_tokens - start
        if not 0 < num_tokens <= remaining:
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
            self._share(request, start, stop)
        if num_tokens < remaining:
            self._prefilling[request.request_id] = request
        else:
            if self._prefilling:
                self._prefilling.pop(request.request_id, None)
            self.completing.append(request)

    def _share(self, request: Request, start: int, stop: int) -> None:
        """Let the prefix cache have the blocks that a chunk fills."""
        size = self._kv.tokens_per_id
        ids = request.prefix_ids[start // size : stop // size]
        if ids:
            self._stored[request.request_id] = new_ids = self._kv.store(ids)
            request.shared_ids = [*request.shared_ids, *new_ids]

    def _leave_prefill(self, request: Request) -> int:
        """Forget a request whose prompt is not complete, its chunk in this iteration included."""
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

    def _free(self, request: Request, stored_tokens: int = 0) -> None:
        """Give back seat and blocks; what they store is kept, as long as nobody needs them."""
        kv, blocks = self._kv, request.blocks
        self.num_running -= 1
        request.is_running = False
        if request.shared_ids:
            blocks -= len(request.shared_ids) * kv.blocks_per_id
        num_kept = 0
        if stored_tokens and self._is_caching:
            num_kept = stored_tokens // self.block_size - len(request.prefix_ids) * kv.blocks_per_id
        if num_kept > 0:
            kv.give(blocks - num_kept)
            request.kept = kv.give_kept(num_kept)
        else:
            kv.give(blocks)
        if request.shared_ids:
            kv.release(request.shared_ids)
            request.shared_ids = ()
