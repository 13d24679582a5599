"""What the running requests of a replica hold in its KV cache: found, shared, lent, given back."""

from __future__ import annotations

from collections.abc import Sequence

from batchsim.policies.base import WaitingRequest
from batchsim.sim.decoding import Decoding
from batchsim.sim.kv_cache import KVCache
from batchsim.sim.request import KVStore, Request


class Holdings:
    """Seats and KV blocks of the requests that run, with what the cache knows them by.

    Where it `lends`, those that finish leave their blocks behind until `release` says that their KV has been
    taken elsewhere.

    Attributes
    ----------
    num
        Seats taken: all that run, and the retired.
    decoding
        Those that run and whose prompt is complete.
    retired
        Those that have finished, but the host does not know yet: they keep their blocks and seats, and may be
        preempted at no loss.
    below
        Where the KV lies that the cache has lost, if anywhere.
    """

    __slots__ = (
        "_answering",
        "_block_size",
        "_frees_partial_first",
        "_is_async",
        "_is_caching",
        "_kv",
        "_lends",
        "_lent",
        "_returned",
        "_true_output_tokens",
        "below",
        "decoding",
        "num",
        "retired",
    )

    def __init__(
        self,
        kv: KVCache,
        true_output_tokens: Sequence[int],
        decoding: Decoding,
        *,
        is_async: bool,
        frees_partial_first: bool,
        lends: bool,
    ) -> None:
        self._kv = kv
        self._lends = lends
        self._lent: dict[Request, tuple[int, int]] = {}
        self._returned: set[Request] = set()
        self._block_size = kv.block_size
        self._is_caching = kv.is_caching
        self._is_async = is_async
        self._frees_partial_first = frees_partial_first and kv.is_caching
        self._true_output_tokens = true_output_tokens
        self._answering: dict[int, Request] = {}  # by session, whose answer its next turn repeats
        self.num = 0
        self.decoding = decoding
        self.retired: dict[int, Request] = {}
        self.below: KVStore | None = None

    def find_cached(self, request: Request, wanted_tokens: int) -> int:
        """Look up what the cache has for a request that waits; return how many tokens that are."""
        kv, ids = self._kv, request.prefix_ids
        if ids:
            if request.session_id in self._answering:
                self._share_so_far(self._answering[request.session_id])
            most_tokens = (wanted_tokens - 1) // self._block_size * self._block_size  # the last is needed
            most_ids = -(-most_tokens // kv.tokens_per_id)
            request.num_hits = kv.match(ids, most_ids)
            if self.below is not None:
                request.num_below = self.below.num_held(ids[request.num_hits : most_ids])
        if request.kept is not None:
            num_kept = kv.num_kept(request.kept) if request.num_hits == len(ids) else 0
            if num_kept:
                most_blocks = (wanted_tokens - 1) // self._block_size
                num_kept = max(0, min(num_kept, most_blocks - request.num_hits * kv.blocks_per_id))
            request.num_kept = num_kept
        return self.cached_tokens(request, wanted_tokens)

    def cached_tokens(self, request: Request, wanted_tokens: int) -> int:
        """Tokens that need not be computed of so many, by what was there when last looked up."""
        num_ids = request.num_hits + request.num_below
        tokens = num_ids * self._kv.tokens_per_id + request.num_kept * self._block_size
        most_tokens = (wanted_tokens - 1) // self._block_size * self._block_size
        return tokens if tokens < most_tokens else most_tokens

    def is_answering(self, turn: WaitingRequest) -> bool:
        """Whether the turn before runs, whose answer the next one repeats."""
        return turn.session_id in self._answering

    def share(self, request: Request, tokens: int) -> None:
        """Let the cache have the blocks that so many tokens fill."""
        ids = request.prefix_ids[len(request.shared) : tokens // self._kv.tokens_per_id]
        if ids:
            request.shared = [*request.shared, *self._kv.store(ids)]

    def _share_so_far(self, request: Request) -> None:
        """Let the cache have what the host takes as answered by the end of the iteration."""
        if request.finish_step >= 0:
            known_tokens = self.known_tokens(request, request.offset + self.decoding.step, has_decoded=True)
            self._share_answer(request, known_tokens + 1)
        elif request.request_id in self.retired:
            known_tokens = self.known_tokens(request, self._final_tokens(request), has_decoded=True)
            self._share_answer(request, known_tokens)

    def _share_answer(self, request: Request, tokens: int) -> None:
        """Let the cache have the blocks of its answer that so many tokens fill."""
        num = tokens // self._kv.tokens_per_id - len(request.prefix_ids)
        if num > 0:
            request.prefix_ids = [*request.prefix_ids, *request.answer_ids[:num]]
            request.answer_ids = request.answer_ids[num:]
            self.share(request, tokens)

    def _lease(self, request: Request, cached_tokens: int) -> None:
        """Take what the cache had for a request when it was last looked up."""
        request.shared = self._kv.lease(request.prefix_ids[: request.num_hits])
        if request.num_kept:
            self._kv.take_kept(request.kept, request.num_kept)
        request.computed_tokens = cached_tokens
        request.kept, request.num_kept = None, 0

    def _free(self, request: Request, known_tokens: int = -1, *, is_kept: bool = False) -> None:
        """Give back seat and blocks; full ones may be kept, as long as nobody needs them."""
        kv, blocks = self._kv, request.blocks
        self.num -= 1
        request.is_running = False
        if request.answer_ids and self._is_caching:
            if known_tokens < 0:
                known_tokens = self._final_tokens(request)
            self._share_answer(request, known_tokens)
        if self._answering and self._answering.get(request.session_id) is request:
            del self._answering[request.session_id]
        if request.shared:
            blocks -= len(request.shared) * kv.blocks_per_id
        num_partial = num_kept = 0
        if self._frees_partial_first and (kv.line_blocks or self._lends):  # else all that is free is alike
            if known_tokens < 0:
                known_tokens = self._final_tokens(request)
            num_partial = request.blocks - known_tokens // self._block_size
        if is_kept and self._is_caching:
            num_kept = known_tokens // self._block_size - len(request.prefix_ids) * kv.blocks_per_id
        if num_kept > 0:
            kv.give(blocks - num_kept, num_partial)
            request.kept = kv.give_kept(num_kept)
        elif self._lends and not is_kept:
            if request not in self._returned:
                self._lent[request] = blocks, num_partial
                return
            self._returned.remove(request)
            kv.give(blocks, num_partial)
        else:
            kv.give(blocks, num_partial)
        if request.shared:
            kv.release(request.shared)
            request.shared = ()

    def release(self, request: Request) -> None:
        """Nobody needs the blocks any more that one which ended here has left."""
        if request not in self._lent:
            self._returned.add(request)  # the host does not know yet that it has ended
            return
        self._kv.give(*self._lent.pop(request))
        self._kv.release(request.shared)
        request.shared = ()

    def _final_tokens(self, request: Request) -> int:
        """What one that has finished stores; the last token of an answer is never stored."""
        return request.prompt_tokens + self._true_output_tokens[request.request_id] - 1

    def known_tokens(self, request: Request, stored_tokens: int, *, has_decoded: bool) -> int:
        """Those of them that the host can tell: not the last, if it was decoded while the host planned."""
        if self._is_async and has_decoded:
            return stored_tokens - self.decoding.last_tokens(request)
        return stored_tokens
