"""Serving engines one iteration at a time, in lists and loops: slow, plain, apart from `batchsim.sim`.

An engine here is one replica with FIFO order. The end of the iteration that completes a prompt of p tokens
yields token 1, and p tokens are stored; each decode iteration stores one more and yields one more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol


@dataclass
class Request:
    """What an engine knows of a request: tokens `stored` in `blocks`, and the `target` of its prefill."""

    id: int
    prompt: int
    output: int
    generated: int = 0
    stored: int = 0
    target: int = 0
    blocks: int = 0

    @property
    def decodes(self) -> bool:
        return self.stored >= self.target


@dataclass(frozen=True)
class Coefficients:
    """Of the linear iteration model, and the host's seconds per iteration."""

    fixed_s: float = 1.0
    per_prefill_token_s: float = 0.0
    per_prefill_pair_s: float = 0.0
    per_decode_seq_s: float = 0.0
    per_context_token_s: float = 0.0
    launch_s: float = 0.0


@dataclass
class Plan:
    """One iteration; `swap_s` is the time of its copies to and from the host."""

    chunks: dict[int, int] = field(default_factory=dict)
    decodes: list[int] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)
    swap_s: float = 0.0


@dataclass(frozen=True)
class Row:
    """An iteration that was run; `blocks` are in use at its end, before finished requests leave."""

    start_s: float
    finish_s: float
    chunks: dict[int, int]
    decodes: list[int]
    blocks: int
    preempted: list[int]


@dataclass
class Log:
    """All that happened; times by request id, without refused requests."""

    rows: list[Row] = field(default_factory=list)
    first_token_s: dict[int, float] = field(default_factory=dict)
    finish_s: dict[int, float] = field(default_factory=dict)
    refused: list[int] = field(default_factory=list)

    def num_preemptions(self, id_: int) -> int:
        return sum(row.preempted.count(id_) for row in self.rows)


@dataclass
class State:
    """A replica: its memory, and who waits, runs, or is swapped out; `running` is in order of admission."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    waiting: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    swapped: list[Request] = field(default_factory=list)

    @property
    def used(self) -> int:
        return sum(request.blocks for request in self.running)

    @property
    def free(self) -> int:
        return self.num_blocks - self.used

    @property
    def has_seat(self) -> bool:
        return len(self.running) < self.max_num_seqs

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def grow(self, request: Request, tokens: int) -> bool:
        """Give it the blocks for so many stored tokens, if they are there."""
        missing = max(0, self.blocks_for(tokens) - request.blocks)
        if missing > self.free:
            return False
        request.blocks += missing
        return True

    def admit(self, blocks: int) -> Request:
        request = self.waiting.pop(0)
        request.target = prefill_tokens(request)
        request.blocks = blocks
        self.running.append(request)
        return request

    def preempt(self, victim: Request, plan: Plan) -> None:
        """Drop what it has computed; it is the next to be admitted, and not part of this iteration."""
        self.running.remove(victim)
        self.waiting.insert(0, victim)
        victim.blocks = victim.stored = 0
        plan.preempted.append(victim.id)
        plan.chunks.pop(victim.id, None)
        if victim.id in plan.decodes:
            plan.decodes.remove(victim.id)


def prefill_tokens(request: Request) -> int:
    """What its next prefill must cover."""
    return request.prompt + request.generated


class Rule(Protocol):
    """What goes into the next iteration; it changes the state as far as memory and queues go."""

    def plan(self, state: State) -> Plan: ...

    def most_blocks(self, state: State, request: Request) -> int:
        """Blocks that must fit an empty cache for the request to run at all."""


def decode_all(state: State, plan: Plan) -> None:
    """Let all decode; out of blocks, the request admitted last gives way."""
    for request in [request for request in state.running if request.decodes]:
        while request in state.running and not state.grow(request, request.stored + 1):
            state.preempt(state.running[-1], plan)
        if request in state.running:
            plan.decodes.append(request.id)


def final_blocks(state: State, request: Request) -> int:
    return state.blocks_for(request.prompt + request.output - 1)


@dataclass(frozen=True)
class VllmV0:
    """Prompts alone first; else all decodes, each if a block is free, at the cost of the latest arrival.

    With `swap_s_per_block`, half of which is due each way, preempted requests go to the host. They come back
    in order of arrival when nothing was preempted and they can decode at once, which may take another block.
    """

    budget: int
    watermark: float = 0.01
    swap_s_per_block: float | None = None

    def most_blocks(self, state: State, request: Request) -> int:
        return final_blocks(state, request) + self._kept_free(state)

    def _kept_free(self, state: State) -> int:
        return int(self.watermark * state.num_blocks)

    def plan(self, state: State) -> Plan:
        plan = Plan()
        if not state.swapped:
            self._admit(state, plan)
        if not plan.chunks:
            self._decode(state, plan)
        return plan

    def _admit(self, state: State, plan: Plan) -> None:
        while state.waiting and state.has_seat:
            tokens = prefill_tokens(state.waiting[0])
            if plan.chunks and sum(plan.chunks.values()) + tokens > self.budget:
                return
            blocks = state.blocks_for(tokens)
            if state.free - blocks < self._kept_free(state):
                return
            plan.chunks[state.admit(blocks).id] = tokens

    def _decode(self, state: State, plan: Plan) -> None:
        for request in list(state.running):
            # each asks for a free block in its turn, whether or not it will take it
            while request in state.running and not (state.free and state.grow(request, request.stored + 1)):
                self._preempt(state, state.running[-1], plan)
            if request in state.running:
                plan.decodes.append(request.id)
        while not plan.preempted and state.swapped and state.has_seat:
            request = state.swapped[0]
            if state.free - state.blocks_for(request.stored + 1) < self._kept_free(state):
                return
            state.running.append(state.swapped.pop(0))
            plan.swap_s += self._one_way_s(request)
            state.grow(request, request.stored + 1)
            plan.decodes.append(request.id)

    def _preempt(self, state: State, victim: Request, plan: Plan) -> None:
        if self.swap_s_per_block is None:
            state.preempt(victim, plan)
            return
        state.running.remove(victim)
        state.swapped.insert(0, victim)
        plan.preempted.append(victim.id)
        plan.swap_s += self._one_way_s(victim)

    def _one_way_s(self, request: Request) -> float:
        assert self.swap_s_per_block is not None
        return request.blocks * self.swap_s_per_block / 2


@dataclass(frozen=True)
class VllmV1:
    """One token budget: decodes first, then incomplete prompts, then, if nothing was preempted, new ones.

    With `in_order`, decodes and incomplete prompts are served in order of admission, as in vLLM's code.
    """

    budget: int
    long_prefill_threshold: int = 0
    checks_whole_prompt: bool = True
    spares_single: bool = True
    in_order: bool = False

    def most_blocks(self, state: State, request: Request) -> int:
        return final_blocks(state, request)

    def plan(self, state: State) -> Plan:
        if self.spares_single and len(state.running) + len(state.waiting) == 1:
            return replace(self, long_prefill_threshold=0, spares_single=False).plan(state)
        plan = Plan()
        if self.in_order:
            self._serve(state, plan, list(state.running))
        else:
            self._serve(state, plan, [request for request in state.running if request.decodes])
            self._serve(state, plan, [request for request in state.running if not request.decodes])
        if not plan.preempted:
            self._admit(state, plan)
        return plan

    def _chunk(self, remaining: int, plan: Plan) -> int:
        left = self.budget - len(plan.decodes) - sum(plan.chunks.values())
        return min(remaining, left, self.long_prefill_threshold or remaining)

    def _serve(self, state: State, plan: Plan, requests: list[Request]) -> None:
        for request in requests:
            if request not in state.running:
                continue  # preempted for one before it
            tokens = self._chunk(1 if request.decodes else request.target - request.stored, plan)
            if tokens <= 0:
                continue
            while request in state.running and not state.grow(request, request.stored + tokens):
                state.preempt(state.running[-1], plan)
            if request not in state.running:
                continue
            if request.decodes:
                plan.decodes.append(request.id)
            else:
                plan.chunks[request.id] = tokens

    def _admit(self, state: State, plan: Plan) -> None:
        while state.waiting and state.has_seat:
            whole = prefill_tokens(state.waiting[0])
            tokens = self._chunk(whole, plan)
            if tokens <= 0:
                return
            if state.blocks_for(whole if self.checks_whole_prompt else tokens) > state.free:
                return
            plan.chunks[state.admit(state.blocks_for(tokens)).id] = tokens


@dataclass(frozen=True)
class Sarathi:
    """All decodes, then chunks in what they leave of the budget; an admitted prompt has all its blocks."""

    budget: int

    def most_blocks(self, state: State, request: Request) -> int:
        return final_blocks(state, request)

    def plan(self, state: State) -> Plan:
        plan = Plan()
        decode_all(state, plan)
        left = self.budget - len(plan.decodes)
        for request in state.running:
            tokens = min(request.target - request.stored, left)
            if not request.decodes and tokens > 0:
                plan.chunks[request.id] = tokens
                left -= tokens
        while state.waiting and state.has_seat and left > 0:
            tokens = prefill_tokens(state.waiting[0])
            blocks = state.blocks_for(tokens)
            if blocks > state.free:
                break
            plan.chunks[state.admit(blocks).id] = min(tokens, left)
            left -= min(tokens, left)
        return plan


@dataclass(frozen=True)
class Orca:
    """Whole prompts and decodes together; blocks for the longest answer are held from the beginning.

    An answer that outgrows them takes more, if need be from the request admitted last.
    """

    reserve: str = "max"
    max_tokens: int = 2048

    def most_blocks(self, state: State, request: Request) -> int:
        return max(self._reserved_blocks(state, request), final_blocks(state, request))

    def _reserved_blocks(self, state: State, request: Request) -> int:
        answer = {
            "max": self.max_tokens,
            "pow2": next(2**power for power in range(64) if 2**power >= request.output),
            "predicted": request.output,
        }[self.reserve]
        return state.blocks_for(request.prompt + answer)

    def plan(self, state: State) -> Plan:
        plan = Plan()
        decode_all(state, plan)
        while state.waiting and state.has_seat:
            request = state.waiting[0]
            tokens = prefill_tokens(request)
            blocks = max(self._reserved_blocks(state, request), state.blocks_for(tokens))
            if blocks > state.free:
                break
            plan.chunks[state.admit(blocks).id] = tokens
        return plan


def simulate(
    rule: Rule,
    trace: Sequence[tuple[float, int, int]],
    *,
    num_blocks: int,
    block_size: int,
    max_num_seqs: int,
    latency: Coefficients,
) -> Log:
    """Run arrivals, prompt and output tokens, in order of time, to the end; ids number them.

    An arrival at the very moment of a boundary is seen there.
    """
    state = State(num_blocks, block_size, max_num_seqs)
    coming = [
        (arrival_s, Request(id_, prompt, output)) for id_, (arrival_s, prompt, output) in enumerate(trace)
    ]
    log = Log()
    now_s = 0.0
    while coming or state.waiting or state.running or state.swapped:
        if not (state.waiting or state.running or state.swapped):
            now_s = max(now_s, coming[0][0])
        while coming and coming[0][0] <= now_s:
            _, request = coming.pop(0)
            if rule.most_blocks(state, request) > num_blocks:
                log.refused.append(request.id)
            else:
                state.waiting.append(request)
        if not (state.waiting or state.running or state.swapped):
            continue
        plan = rule.plan(state)
        if not (plan.chunks or plan.decodes):
            assert plan.preempted, "an iteration without work"
            before, plan = plan, rule.plan(state)
            plan.preempted[:0] = before.preempted
            plan.swap_s += before.swap_s
        assert state.free >= 0, "more blocks than there are"
        start_s = now_s
        now_s += duration_s(plan, state, latency)
        log.rows.append(Row(start_s, now_s, plan.chunks, plan.decodes, state.used, plan.preempted))
        _settle(plan, state, log, now_s)
    return log


def duration_s(plan: Plan, state: State, latency: Coefficients) -> float:
    requests = {request.id: request for request in state.running}
    chunks = [(requests[id_].stored, tokens) for id_, tokens in plan.chunks.items()]
    return (
        latency.launch_s
        + plan.swap_s
        + latency.fixed_s
        + latency.per_prefill_token_s * sum(tokens for _, tokens in chunks)
        + latency.per_prefill_pair_s * sum(tokens * (stored + tokens / 2) for stored, tokens in chunks)
        + latency.per_decode_seq_s * len(plan.decodes)
        + latency.per_context_token_s * sum(requests[id_].stored for id_ in plan.decodes)
    )


def _settle(plan: Plan, state: State, log: Log, now_s: float) -> None:
    for request in list(state.running):
        tokens = plan.chunks.get(request.id, 0) + plan.decodes.count(request.id)
        request.stored += tokens
        if not tokens or not request.decodes:
            continue
        request.generated += 1
        log.first_token_s.setdefault(request.id, now_s)
        if request.generated == request.output:
            log.finish_s[request.id] = now_s
            state.running.remove(request)
