"""Who runs on a replica, and what they hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from batchsim.errors import PlanError
from batchsim.policies.base import ServiceMeter
from batchsim.sim.decoding import Decoding
from batchsim.sim.holdings import Holdings
from batchsim.sim.kv_cache import KVCache
from batchsim.sim.request import Request

#: What no plan needs: a rule that preempts one request so often would go on for ever.
MOST_PREEMPTIONS = 100_000


class RunningSet(Holdings):
    """The running requests of a replica with their seats and KV blocks, and those that are swapped out.

    Whom to admit or to preempt is settled in `sim.step.NextIteration`, which knows whose prompts are not
    complete. The true output lengths, which no rule may know, decide here how long a request decodes.

    Attributes
    ----------
    requests
        All that run, by id, in order of admission, and the retired in their places.
    sitting_out
        Those that decode again after this iteration, with the tokens that they have left.
    swapped
        Those whose KV lies in host memory, by id, in order of preemption; they have neither blocks nor seat.
    arriving
        Those with seats and blocks, by id, whose KV is on its way: nothing can be asked of them.
    on_first_token
        Called with each request as its first token is there.
    """

    __slots__ = (
        "_meter",
        "_num_admitted",
        "arriving",
        "on_first_token",
        "requests",
        "sitting_out",
        "swapped",
    )

    def __init__(
        self,
        kv: KVCache,
        true_output_tokens: Sequence[int],
        decoding: Decoding,
        *,
        is_async: bool = False,
        frees_partial_first: bool = False,
        lends: bool = False,
        meter: ServiceMeter | None = None,
    ) -> None:
        super().__init__(
            kv,
            true_output_tokens,
            decoding,
            is_async=is_async,
            frees_partial_first=frees_partial_first,
            lends=lends,
        )
        self._meter = meter
        self._num_admitted = 0
        self.requests: dict[int, Request] = {}
        self.sitting_out: dict[Request, int] = {}
        self.swapped: dict[int, Request] = {}
        self.arriving: dict[int, Request] = {}
        self.on_first_token: Callable[[Request], None] | None = None

    def show(self, request: Request) -> Request:
        """Return a running request with how far it is now; while it decodes, only `decoding` knows."""
        if request.finish_step >= 0:
            request.computed_tokens = stored_tokens = request.offset + self.decoding.step
            request.generated_tokens = stored_tokens - request.prompt_tokens + 1
        return request

    def seat(self, request: Request, blocks: int, cached_tokens: int = 0) -> None:
        """Let a request run with so many blocks, those included that the cache has for it."""
        if cached_tokens:
            # where the last block of an id is computed again, it is in its place
            num_shared = request.num_hits * self._kv.blocks_per_id + request.num_kept
            self._lease(request, cached_tokens)
            self._kv.take(blocks - num_shared)
        else:
            self._kv.take(blocks)
        request.blocks = blocks
        request.is_running = True
        request.admission = self._num_admitted = self._num_admitted + 1
        self.num += 1
        self.requests[request.request_id] = request
        if request.answer_ids:
            self._answering[request.session_id] = request

    def wait_for_kv(self, request: Request) -> None:
        """Let one that was seated wait until its KV is there."""
        self.arriving[request.request_id] = self.requests.pop(request.request_id)

    def land(self, request: Request, now_s: float) -> bool:
        """The KV of one is there; return whether it decodes on, not goes on with its prompt."""
        self.requests[request.request_id] = self.arriving.pop(request.request_id)
        request.admission = self._num_admitted = self._num_admitted + 1
        if request.num_below:
            self.share(request, (request.num_hits + request.num_below) * self._kv.tokens_per_id)
            request.num_below = 0
            return False
        request.decode_start_s = now_s
        num_left = self._true_output_tokens[request.request_id] - request.generated_tokens
        self.decoding.join(request, request.computed_tokens, num_left)
        return True

    def grow(self, request: Request, tokens: int) -> None:
        """Take the blocks that a request lacks to store so many tokens."""
        blocks = -(-tokens // self._block_size)
        if blocks > request.blocks:
            self._kv.take(blocks - request.blocks)
            request.blocks = blocks

    def grows(self, request: Request) -> bool:
        """Whether one that holds blocks wants more: for its prompt, or to decode into."""
        if request.finish_step < 0:
            return request.request_id not in self.retired
        return self.decoding.blocks_needed(request) > 0

    def try_grow(self, request: Request, num_tokens: int) -> bool:
        """Take the blocks that a request lacks to store so many tokens more, if they can be had."""
        decoding, kv = self.decoding, self._kv
        if request.finish_step < 0:
            tokens = request.computed_tokens + num_tokens
            if -(-tokens // self._block_size) - request.blocks > kv.available:
                return False
            self.grow(request, tokens)
        elif (blocks := decoding.blocks_needed(request)) and not decoding.has_taken(request):
            if blocks > kv.available:
                return False
            kv.take(blocks)
            decoding.take(request)
        return True

    def complete_prompts(self, completing: Sequence[Request], now_s: float) -> list[Request]:
        """Requests whose prompt is complete yield a token and decode on; return those that this finishes."""
        finished, join = [], self.decoding.join
        for request in completing:
            request.generated_tokens = generated_tokens = request.generated_tokens + 1
            if self._meter is not None:
                self._meter.first_token(request)
            if generated_tokens == 1:
                request.first_token_s = now_s
                if self.on_first_token is not None:
                    self.on_first_token(request)
            request.decode_start_s = now_s
            num_left = self._true_output_tokens[request.request_id] - generated_tokens
            if num_left:
                join(request, request.computed_tokens, num_left)
            else:
                finished.append(request)
        return finished

    def retire(self, request: Request, *, is_known: bool) -> None:
        """A request has finished; its blocks and seat are free once the host knows."""
        if is_known:
            del self.requests[request.request_id]
            self._free(request)
        else:
            self.retired[request.request_id] = request

    def free_retired(self) -> None:
        """The host learns who has finished."""
        if self.retired:
            for request in self.retired.values():
                del self.requests[request.request_id]
                self._free(request)
            self.retired = {}

    def stop_decoding(self, request: Request) -> int:
        """Let a request decode no more; return the tokens that it has stored."""
        stored_tokens = self.decoding.leave(request)
        request.generated_tokens = stored_tokens - request.prompt_tokens + 1
        return stored_tokens

    def sit_out(self, request: Request) -> None:
        """Let one that decodes wait for the next iteration, with its blocks."""
        if self.decoding.has_taken(request):
            raise PlanError(
                f"request {request.request_id} was to sit an iteration out that it has taken a block for"
            )
        self.sitting_out[request] = request.finish_step - self.decoding.step
        request.computed_tokens = self.stop_decoding(request)

    def go_on(self, now_s: float) -> None:
        """Let those that sat out decode again."""
        for request, num_left in self.sitting_out.items():
            request.decode_start_s = now_s
            self.decoding.join(request, request.computed_tokens, num_left)
        self.sitting_out = {}

    def clear(self) -> list[tuple[Request, int, float]]:
        """Forget all, and what the cache holds; return those that had not finished, in order of admission.

        With the tokens that they had stored, and when their decode run began, NaN where they did not decode.
        """
        left = []
        for request in (*self.requests.values(), *self.arriving.values(), *self.swapped.values()):
            if request.request_id in self.retired:
                continue
            if request.finish_step >= 0:
                left.append((request, self.stop_decoding(request), request.decode_start_s))
            else:
                is_coming = request.kv_source is not None or request.num_below > 0
                left.append((request, 0 if is_coming else request.computed_tokens, math.nan))
                request.num_below = 0
        for held in (
            self.requests, self.arriving, self.swapped, self.retired, self.sitting_out, self._answering,
            self._lent, self._returned,
        ):  # fmt: skip
            held.clear()
        self.decoding.clear()
        self._kv.clear()
        if self.below is not None:
            self.below.call_off()
        self.num = 0
        return left

    def tokens_to_decode(self, request: Request) -> int:
        """Tokens that one which is about to decode stores in the next iteration: at most its whole answer."""
        num_left = self._true_output_tokens[request.request_id] - request.generated_tokens
        return request.computed_tokens + min(self.decoding.tokens_each, num_left)

    def check_preemption(self, request: Request, *, swap: bool) -> None:
        """Raise `PlanError` if a request cannot give way, or has done so without end."""
        if self.requests.get(request.request_id) is not request:
            raise PlanError(f"request {request.request_id} was preempted, but it does not run")
        if swap and request.finish_step < 0:
            raise PlanError(
                f"request {request.request_id} was to be swapped out before its prompt is complete; such a "
                "one can only be dropped"
            )
        if request.num_preemptions >= MOST_PREEMPTIONS:
            raise PlanError(
                f"request {request.request_id} was preempted {MOST_PREEMPTIONS} times; it gets nowhere"
            )

    def drop_retired(self, request: Request, now_s: float) -> None:
        """Take seat and blocks away from a request whose end the host does not know of."""
        del self.requests[request.request_id], self.retired[request.request_id]
        has_decoded = request.decode_start_s < now_s
        self._free(request, self.known_tokens(request, self._final_tokens(request), has_decoded=has_decoded))

    def drop(self, request: Request, stored_tokens: int, kept_tokens: int) -> None:
        """Take seat and blocks away from a request that will be computed again; some it may find again."""
        del self.requests[request.request_id]
        self._free(request, kept_tokens, is_kept=True)
        request.computed_tokens = 0
        request.num_hits = 0
        request.most_computed_tokens = max(stored_tokens, request.most_computed_tokens)

    def swap_out(self, request: Request, stored_tokens: int) -> int:
        """Take seat and blocks away from a request that will go on; return how many blocks are copied."""
        del self.requests[request.request_id]
        blocks = request.blocks
        self._free(request, stored_tokens)
        request.computed_tokens = stored_tokens
        self.swapped[request.request_id] = request
        return blocks

    def swap_in(self, request: Request, keep_free_blocks: int, now_s: float) -> int:
        """Let a swapped request decode on; return how many blocks are copied, 0 if they cannot be had."""
        stored_tokens = request.computed_tokens
        blocks = -(-stored_tokens // self._block_size)
        to_decode = -(-self.tokens_to_decode(request) // self._block_size)
        if to_decode > self._kv.available - keep_free_blocks:
            return 0
        del self.swapped[request.request_id]
        self.seat(request, blocks)
        request.decode_start_s = now_s
        num_left = self._true_output_tokens[request.request_id] - request.generated_tokens
        self.decoding.join(request, stored_tokens, num_left)
        return blocks
