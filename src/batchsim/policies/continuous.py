"""What goes into this iteration? The rules of engines that batch at every forward pass.

Each says which engine it follows and where it departs. None chunks, admits or preempts by itself: it asks the
`Step`, which holds it to tokens, sequences and KV blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from batchsim.errors import ConfigError
from batchsim.policies.base import Sizer, WaitingRequest, arrival_order
from batchsim.policies.building_blocks import PlainRule
from batchsim.policies.parts.engine_versions import NEWEST, EngineRules, rules_of
from batchsim.policies.steps import RunningRequest, Step


@dataclass(frozen=True, slots=True)
class PrefillFirst(PlainRule):
    """Whole prompts first, in iterations of their own, while the decoding sequences stall: vLLM V0.

    Requests are admitted as long as their prompts fit the token budget and leave the watermark free; else all
    decode. A sequence decodes only if a block is free as its turn comes, needed or not; where none is, the
    request admitted last gives way. Departs from vLLM: a prompt longer than the budget runs alone (vLLM
    raises the budget to the model's length).

    Attributes
    ----------
    max_num_batched_tokens
        Prompt tokens in an iteration.
    watermark
        Share of the KV blocks that an admission must leave free.
    preemption
        ``recompute``: drop the KV and prefill prompt and answer again; ``swap``: copy it to the host and
        back. Swapped requests come back before any waiting one is admitted.
    """

    max_num_batched_tokens: int = 8192
    watermark: float = 0.01
    preemption: Literal["recompute", "swap"] = "recompute"

    def __post_init__(self) -> None:
        _check_budget(self.max_num_batched_tokens)
        if not 0 <= self.watermark < 1:
            raise ConfigError(f"watermark is {self.watermark!r}; a share in [0, 1) is needed")
        _check_choice("preemption", self.preemption, ("recompute", "swap"))

    def plan(self, step: Step) -> None:
        """Admit, else decode."""
        if self._admit(step):
            step.hold_decodes()
            return
        while (victim := self._victim(step)) is not None:
            step.preempt(victim, swap=self.preemption == "swap")
        if not step.num_preempted:
            self._swap_in(step)

    @property
    def spare_blocks(self) -> int:
        """One for the last, as its turn comes."""
        return 1

    def usable_blocks(self, num_blocks: int) -> int:
        """All but the watermark."""
        return num_blocks - self._kept_blocks(num_blocks)

    def _admit(self, step: Step) -> bool:
        kept, budget, has_admitted = self._kept_blocks(step.num_blocks), self.max_num_batched_tokens, False
        for begun in step.prefilling:  # with tokens that came from elsewhere
            tokens = begun.remaining_tokens
            if has_admitted and tokens > budget:
                return True
            step.prefill(begun, tokens)
            has_admitted = True
            budget -= tokens
        if step.swapped:
            return has_admitted
        while step.num_running < step.max_running and (request := step.next_waiting()):
            tokens = step.uncached_tokens(request)
            whole = None if tokens else request.remaining_tokens  # which comes in parts
            if has_admitted and tokens > budget:
                break
            if not step.admit(request, tokens, blocks_for_tokens=whole, keep_free_blocks=kept):
                break
            has_admitted = has_admitted or tokens > 0
            budget -= tokens
        return has_admitted

    def _swap_in(self, step: Step) -> None:
        kept = self._kept_blocks(step.num_blocks)
        for request in sorted(step.swapped, key=arrival_order):
            if step.num_running >= step.max_running or not step.swap_in(request, keep_free_blocks=kept):
                break

    def _victim(self, step: Step) -> RunningRequest | None:
        """Who has to give way, if anybody: the last, unless a block is free as its turn comes."""
        left = step.free_blocks - step.growth_blocks
        if left > 0 or not (running := step.running):
            return None
        last = running[-1]
        return None if not left and last in step.growing else last  # what is left, it may take itself

    def _kept_blocks(self, num_blocks: int) -> int:
        return int(self.watermark * num_blocks)


@dataclass(frozen=True, slots=True)
class ChunkedPrefill(PlainRule):
    """One token budget for decodes and prompt chunks alike; running requests first: vLLM V1.

    Every decoding sequence gets its token, then incomplete prompts go on in order of admission, then requests
    are admitted while budget, sequences and blocks last (the head of the queue is never skipped), but not in
    an iteration that preempted. Out of blocks, the request admitted last gives way and is recomputed. vLLM
    walks through decodes and incomplete prompts in one order of admission; the outcome is the same, since a
    request is admitted only if the budget reaches it, and what runs before it never grows.

    Attributes
    ----------
    max_num_batched_tokens
        Tokens in an iteration, decodes included; at least the number of sequences that may run.
    long_prefill_threshold
        Largest chunk of one prompt; 0: as much as the budget leaves.
    allocate
        What must fit for an admission: its first ``chunk``, or the whole ``prompt``. The check reserves
        nothing: either way, blocks are taken chunk by chunk. Left out: as the version has it by default.
    preempt
        ``last``: the request admitted last gives way; ``priority``: the one with the largest ``priority``, of
        equals the one that arrived last, of these the one that was admitted first.
    chunk
        A sizer that sets the budget, at most `max_num_batched_tokens`, by what it measures: Algorithm 2 of
        arXiv 2503.05248 in its chunked mode.
    engine_version
        The version of vLLM that is followed, where they differ: see `policies.parts.engine_versions`.
    """

    max_num_batched_tokens: int = 2048
    long_prefill_threshold: int = 0
    allocate: Literal["chunk", "prompt"] | None = None
    preempt: Literal["last", "priority"] = "last"
    chunk: Sizer | None = None
    engine_version: str = NEWEST
    _rules: EngineRules = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_budget(self.max_num_batched_tokens)
        if type(self.long_prefill_threshold) is not int or self.long_prefill_threshold < 0:
            raise ConfigError(
                f"long_prefill_threshold is {self.long_prefill_threshold!r}; a whole number >= 0 is needed"
            )
        _check_choice("allocate", self.allocate, ("chunk", "prompt", None))
        _check_choice("preempt", self.preempt, ("last", "priority"))
        rules = rules_of(self.engine_version)
        if self.allocate is not None:
            rules = replace(rules, checks_whole_prompt=self.allocate == "prompt")
        object.__setattr__(self, "_rules", rules)

    @property
    def caches_prefixes(self) -> bool:
        """As vLLM V1 does."""
        return True

    @property
    def frees_partial_first(self) -> bool:
        """As the version does."""
        return self._rules.frees_partial_first

    def plan(self, step: Step) -> None:
        """Decode and go on, then admit."""
        budget = largest = self.max_num_batched_tokens
        if self.chunk is not None:
            # One token beyond the decodes at least, or prompts would starve.
            budget = min(budget, max(self.chunk.batch_size(0), step.decode_tokens + 1))
        if self.long_prefill_threshold and not self._is_spared(step):
            largest = self.long_prefill_threshold
        chunks, left, blocks = [], budget - step.decode_tokens, step.growth_blocks
        for request in step.prefilling:
            tokens = min(request.remaining_tokens, largest, left)
            if tokens <= 0:
                break
            chunks.append((request, tokens))
            blocks += -(-tokens // step.block_size)
            left -= tokens
        if blocks <= step.free_blocks:
            for request, tokens in chunks:
                step.prefill(request, tokens)
        elif chunks or self.preempt == "priority":
            self._go_on_in_turn(step, budget, largest)
        else:
            while step.grow():  # those before the last have theirs before it gives way
                step.preempt(step.last_running())
        if not step.num_preempted:
            self._admit(step, left, largest)

    def _go_on_in_turn(self, step: Step, budget: int, largest: int) -> None:
        """Decode and go on, one after the other; whoever lacks blocks has others give way.

        Who has to give way itself ends it: those behind sit the iteration out, with or without blocks.
        """
        chunks = {request.request_id: 0 for request in step.prefilling}
        for request in step.growing:
            id_ = request.request_id
            tokens = 1
            if id_ in chunks:
                left = budget - step.decode_tokens - sum(chunks.values())
                tokens = min(request.remaining_tokens, largest, left)
            if not request.is_running or tokens <= 0:
                continue  # gave way to one before it
            while not step.take(request, tokens):
                victim = self._victim(step)
                behind = _behind(step, request) if victim is request else ()
                step.preempt(victim)
                chunks.pop(victim.request_id, None)
                if victim is request:
                    for one in behind:
                        step.sit_out(one)
                    return
            if id_ in chunks:
                step.prefill(request, tokens)
                chunks[id_] = tokens

    def _admit(self, step: Step, budget: int, largest: int) -> None:
        seats = step.max_running - step.num_running
        while budget > 0 and seats > 0 and (request := step.next_waiting()):
            wanted = step.uncached_tokens(request, after_growth=True)
            tokens = min(wanted, largest, budget)
            whole = request.remaining_tokens if self._rules.checks_whole_prompt else 0
            if not step.admit(request, tokens, room_for_tokens=whole, keep_free_blocks=step.growth_blocks):
                break
            budget -= tokens
            seats -= 1

    def _is_spared(self, step: Step) -> bool:
        return self._rules.spares_single and step.num_running + step.num_waiting == 1

    def _victim(self, step: Step) -> RunningRequest:
        if self.preempt == "last":
            return step.last_running()
        return max(step.holding, key=lambda request: (request.priority, *arrival_order(request)))


@dataclass(frozen=True, slots=True)
class StallFree(PlainRule):
    """Decodes first, prompts chunked into what the budget leaves: Sarathi-Serve (OSDI'24).

    Unlike `ChunkedPrefill`, the blocks of the whole prompt are taken at admission, and admission goes on in
    an iteration that preempted. Out of blocks, the request admitted last gives way and is recomputed.

    Attributes
    ----------
    max_num_batched_tokens
        The chunk: tokens in an iteration, decodes included. The paper evaluates 512 and 2048.
    """

    max_num_batched_tokens: int = 512

    def __post_init__(self) -> None:
        _check_budget(self.max_num_batched_tokens)

    def plan(self, step: Step) -> None:
        """Decode, go on, admit."""
        while step.growth_blocks > step.free_blocks:
            step.preempt(step.last_running())
        budget = self.max_num_batched_tokens - step.decode_tokens
        for request in step.prefilling:
            tokens = min(request.remaining_tokens, budget)
            if tokens <= 0:
                return
            step.prefill(request, tokens)
            budget -= tokens
        growth = step.growth_blocks
        while budget > 0 and step.num_running < step.max_running and (head := step.next_waiting()):
            tokens = min(step.uncached_tokens(head), budget)
            whole = head.remaining_tokens
            if not step.admit(head, tokens, blocks_for_tokens=whole, keep_free_blocks=growth):
                break
            budget -= tokens


@dataclass(frozen=True, slots=True)
class ReserveWhole(PlainRule):
    """Whole prompts beside the decodes, with memory reserved for the longest answer: Orca (OSDI'22).

    Nothing is ever preempted as long as no answer outgrows its reservation; one that does takes blocks as it
    grows, and out of blocks the request admitted last is recomputed (S3 does so with a larger reservation).
    One iteration is in flight at a time: Orca's pipeline over several workers is not modelled.

    Attributes
    ----------
    reserve
        How long an answer may get: ``max``: `max_tokens`; ``predicted``: as predicted; ``pow2``: the next
        power of two. The last two are the Orca (Oracle) and Orca (Pow2) of the PagedAttention paper if the
        predictor is the oracle.
    """

    reserve: Literal["max", "pow2", "predicted"] = "max"
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        _check_choice("reserve", self.reserve, ("max", "pow2", "predicted"))
        if type(self.max_tokens) is not int or self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens!r}; a whole number >= 1 is needed")

    def plan(self, step: Step) -> None:
        """Admit beside the decodes."""
        while step.growth_blocks > step.free_blocks:
            step.preempt(step.last_running())
        for begun in step.prefilling:  # with tokens that came from elsewhere
            step.prefill(begun, begun.remaining_tokens)
        growth = step.growth_blocks
        while step.num_running < step.max_running and (request := step.next_waiting()):
            whole = max(request.prompt_tokens + self.reserved_tokens(request), request.remaining_tokens)
            tokens = step.uncached_tokens(request)
            if not step.admit(request, tokens, blocks_for_tokens=whole, keep_free_blocks=growth):
                break

    def reserved_tokens(self, request: WaitingRequest) -> int:
        """Tokens of the longest answer that is reckoned with."""
        predicted = request.predicted_output_tokens
        if self.reserve == "max":
            return self.max_tokens
        return predicted if self.reserve == "predicted" else 1 << (predicted - 1).bit_length()


def _behind(step: Step, request: RunningRequest) -> Sequence[RunningRequest]:
    """Those admitted after one that runs."""
    if request is step.last_running():
        return ()
    running = step.running
    return running[running.index(request) + 1 :]


def _check_budget(value: object) -> None:
    if type(value) is not int or value < 1:
        raise ConfigError(f"max_num_batched_tokens is {value!r}; a whole number >= 1 is needed")


def _check_choice(name: str, value: object, known: tuple[str | None, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; {' or '.join(map(repr, known))} is needed")
