"""How long a replica's next iterations last: up to the next thing that must change the batch.

What is put together stands in `sim.step`; the replica that takes requests in and settles what has ended, in
`sim.replica`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Protocol, cast

import simpy

from batchsim.errors import PlanError
from batchsim.latency.base import follows_longest
from batchsim.policies.guards.checks import kind_of
from batchsim.policies.presets import Policy
from batchsim.policies.steps import IterationRule
from batchsim.sim.decoding import iterations_by
from batchsim.sim.engine import Engine
from batchsim.sim.kv_cache import KVCache
from batchsim.sim.mailbox import LateTimeout, Mailbox
from batchsim.sim.recording.iteration_recorder import IterationRecorder
from batchsim.sim.request import Request
from batchsim.sim.running import RunningSet
from batchsim.sim.speculation.decoding import make_decoding
from batchsim.sim.step import NextIteration
from batchsim.sim.waiting import WaitingLine


class GrowthObserver(Protocol):
    """One who is told what happens to the blocks of a replica while it decodes.

    Attributes
    ----------
    at_s
        When what it is told happened; None: now.
    """

    at_s: float | None

    def note(self) -> None:
        """The replica has decided, or been given, something."""

    def note_blocks(self) -> None:
        """Its decodes have taken blocks."""


class SpanRunner:
    """What a replica runs: single iterations with prompt chunks, and spans of equal decode iterations.

    A span ends where a sequence ends, blocks run out or a controller decides, and an arrival that might join
    cuts it at the next boundary.
    """

    # Without slots, so many attributes would all be looked up in a dictionary.
    __slots__ = (
        "_controllers", "_end", "_engine", "_env", "_first_s", "_follows_longest", "_growth_s",
        "_host_growth_s", "_host_s", "_is_async", "_is_first", "_is_stale", "_is_watching", "_kept_blocks",
        "_kv", "_leaves_blocks", "_num", "_num_grown", "_policy_name", "_replans", "_rule", "_running",
        "_shape", "_sizer", "_spare_blocks", "_start_s", "_step", "_swap_blocks", "_waiting", "inbox",
        "observer",
    )  # fmt: skip

    def __init__(
        self,
        env: simpy.Environment,
        replica_id: int,
        policy: Policy,
        engine: Engine,
        kv: KVCache,
        true_output_tokens: Sequence[int],
        recorder: IterationRecorder,
        *,
        lends: bool = False,
    ) -> None:
        self._env = env
        self._policy_name = policy.name
        self._sizer = policy.sizing
        self._controllers = policy.controllers
        self._rule = cast("IterationRule", policy.batching)
        self._replans = self._rule.replans
        self._engine = engine
        self._kv = kv
        self._follows_longest = follows_longest(engine.latency)
        self._is_async = engine.is_async
        self._waiting = WaitingLine(policy.queueing, kv.block_size)
        decoding = make_decoding(
            kv.block_size,
            engine.speculation,
            recorder.steps,
            replica_id,
            follows_longest=self._follows_longest,
            meter=self._waiting.meter,
        )
        self._running = RunningSet(
            kv,
            true_output_tokens,
            decoding,
            is_async=engine.is_async,
            frees_partial_first=self._rule.frees_partial_first,
            lends=lends,
            meter=self._waiting.meter,
        )
        self._spare_blocks = self._rule.spare_blocks
        self._leaves_blocks = self._spare_blocks > 0
        self._kept_blocks = kv.num_blocks - self._rule.usable_blocks(kv.num_blocks)  # that no admission takes
        self._step = NextIteration(replica_id, self._waiting, self._running, kv, recorder, self._spare_blocks)
        self.inbox = Mailbox(env)

        self._swap_blocks = 0  # for the iteration, before it was put together anew
        self._is_first = True  # the GPU idled before the next iteration
        self._is_watching = False  # whether an arrival ends the span under way
        self._is_stale = False  # the plan could not count on all that the next one can
        # The iteration or span under way: `num` iterations of which the j-th takes first + j * growth
        # seconds, and of these host + j * host growth waiting for the host.
        self._start_s = self._first_s = self._growth_s = self._host_s = self._host_growth_s = 0.0
        self._num = 0
        self._num_grown = 0  # iterations of them whose blocks are taken already, because somebody looked
        self.observer: GrowthObserver | None = None
        self._shape: tuple[int, int, int, int, float, int] = (0, 0, 0, 0, 0.0, 0)
        self._end = simpy.Event(env)

    def make_room(self, request: Request) -> bool:
        """Give seat and blocks, now, to one whose KV is to come; not if anybody waits for them.

        The host does so while the GPU runs. What the iteration under way will take for its decodes is left to
        them; a span is cut to where the blocks last.
        """
        running, kv, decoding = self._running, self._kv, self._running.decoding
        if self._waiting.num or self.inbox.items or running.swapped:
            return False
        if running.num >= self._sizer.batch_size(0, decoding.num):
            return False
        tokens = running.tokens_to_decode(request)  # or it would lack a block at once
        if reserved_tokens := self._rule.reserved_tokens(request):
            tokens = max(tokens, request.prompt_tokens + reserved_tokens)
        blocks = -(-tokens // kv.block_size)
        kept = self._kept_blocks + self._spare_blocks
        left = kv.available - kept - blocks
        is_ample = left >= 0 and not self._num_grown and decoding.lasts(left, self._num)
        if not is_ample:
            self.catch_up()
            if blocks > kv.available - kept:
                return False
        running.seat(request, blocks)
        running.wait_for_kv(request)
        if self._num > 1 and not is_ample:
            by_now = self._num_grown
            left = kv.available - self._spare_blocks
            self._cut_span(by_now + decoding.iterations_within(left, self._num - by_now))
        return True

    def _start_iteration(self) -> None:
        """One iteration with prompt chunks."""
        step = self._step
        self._shape = shape = step.shape
        seconds, self._host_s = self._engine.iteration_s(shape, is_first=self._is_first)
        self._num = 1
        self._first_s, self._growth_s, self._host_growth_s = seconds, 0.0, 0.0
        self._start_s = step.now_s
        if step.swap_blocks or self._swap_blocks:
            self._copy_swapped()
        else:
            self._end = LateTimeout(self._env, seconds)

    def _start_span(self) -> None:
        """Equal decode iterations, up to the next thing that must change the batch."""
        step, decoding = self._step, self._running.decoding
        seqs, context_tokens = decoding.num, decoding.context_tokens
        longest_tokens = decoding.longest_tokens() if self._follows_longest else 0
        self._shape = (0, seqs, context_tokens, 0, 0.0, longest_tokens)
        line = self._engine.decode_line(seqs, context_tokens, longest_tokens, is_first=self._is_first)
        self._first_s, self._growth_s, num_linear, self._host_s, self._host_growth_s = line
        self._start_s = step.now_s
        if step.swap_blocks or self._swap_blocks:
            self._num = self._most_iterations(1)
            self._copy_swapped()
            return
        self._num = num = self._most_iterations(num_linear)
        seconds = num * self._first_s + self._growth_s * (num * (num - 1) / 2)
        if num > 1:
            self._watch(seconds)
            if self._num < num:
                seconds = self._seconds(self._num)
        self._end = LateTimeout(self._env, seconds)

    def _copy_swapped(self) -> None:
        """Let the one iteration under way begin with the copies of preempted requests, to and fro."""
        env, copies = self._env, self._step.copies
        if not copies:
            self._first_s += (self._step.swap_blocks + self._swap_blocks) * self._engine.swap_block_s
            self._end = LateTimeout(env, self._first_s)
            return
        self._step.copies = []
        self._end = end = simpy.Event(env)
        simpy.AllOf(env, copies).callbacks.append(lambda _: self._compute(end))

    def _compute(self, end: simpy.Event) -> None:
        """The copies have ended that the iteration had to wait for."""
        if self._end is not end:
            return  # it is lost: the replica has failed
        self._end = LateTimeout(self._env, self._first_s)
        self._end.callbacks, end.callbacks = end.callbacks, []
        self._first_s += self._env.now - self._start_s

    def _watch(self, seconds: float) -> None:
        """Have a span cut by what may let a request join: an arrival, or one in front that gives up."""
        waiting, running, inbox = self._waiting, self._running, self.inbox
        if waiting.num:
            waiting.on_leave = self._cut_for_who_waits
            if waiting.queue.is_fifo and not self._replans:
                return  # the head of the queue does not fit, and nobody gets ahead of it
        # A meter heeds when a tenant begins to wait, even where no seat is free.
        needs_seat = not self._replans and waiting.meter is None
        if needs_seat and running.num >= self._sizer.batch_size(0, running.decoding.num):
            return
        if inbox.bring is None:
            self._is_watching = True
        elif inbox.next_s - self._start_s < seconds:
            self._num = self._iterations_to_arrival(inbox.next_s)

    def end_soon(self) -> None:
        """Let the next iteration be decided anew."""
        if self._num:
            self._cut_for_who_waits()

    def _is_full(self) -> bool:
        """Whether as many run as may."""
        running = self._running
        return running.num >= self._sizer.batch_size(0, running.decoding.num)

    def _cut_for_who_waits(self) -> None:
        self._cut_span(self._iterations_to(self._env.now, self._num))

    def _cut_span(self, num: int) -> None:
        """End the span after fewer iterations."""
        now_s = self._env.now
        if num < self._num:
            self._num = num
            earlier = LateTimeout(self._env, max(0.0, self._seconds(num) - (now_s - self._start_s)))
            # Whoever waits for the end of the span now waits for this; the old timeout fires in vain.
            earlier.callbacks, self._end.callbacks = self._end.callbacks, []
            self._end = earlier

    def catch_up(self) -> None:
        """Let the decodes have the blocks of all iterations up to the one under way, which none can undo.

        Else a span would take them at its end: who looks in between has to see what single iterations show.
        """
        if self._num:
            self._grow_to(self._iterations_to(self._env.now, self._num))

    def used_blocks(self) -> int:
        """KV blocks in use, those of the iteration under way included; nothing is taken by looking."""
        used = self._kv.used
        if self._num and self._shape[1]:
            more = self._iterations_to(self._env.now, self._num) - self._num_grown
            used += self._running.decoding.blocks_over(more) if more > 0 else 0
        return used

    def _grow_to(self, num: int) -> None:
        """Take the blocks of this many iterations of the span, as far as they are not taken."""
        decoding, kv, observer = self._running.decoding, self._kv, self.observer
        if not self._shape[1] or num <= self._num_grown:
            return
        if observer is None:
            kv.take(decoding.advance(num - self._num_grown))
        else:  # one by one: each takes its blocks when it begins
            for num_before in range(self._num_grown, num):
                if new_blocks := decoding.advance(1):
                    observer.at_s = self._start_s + self._seconds(num_before)
                    kv.take(new_blocks)
                    observer.note_blocks()
            observer.at_s = None
        self._num_grown = num

    def _most_iterations(self, num_linear: float) -> int:
        """How many iterations are equal: no sequence ends, no block lacks, no controller decides."""
        decoding, waiting, step = self._running.decoding, self._waiting, self._step
        if self._engine.is_exact or self._is_stale or (waiting.num and self._is_awaited()):
            return 1
        if waiting.num and step.may_fit_later:
            if self._running.below is not None:
                return 1  # what lies below may change at any time
            to_growth = 1 if step.growth_blocks else decoding.iterations_to_growth()
            if to_growth == 1:
                return 1
            num_linear = min(num_linear, to_growth)
        num = decoding.iterations_to_change()
        if num_linear < num:
            num = int(num_linear)
        for controller in self._controllers:
            num = min(num, max(1, int(min(num, controller.iterations_to_decision()))))
        num = decoding.iterations_within(self._kv.available, num)
        if num < 1:
            raise PlanError(
                f"policy {self._policy_name}: {kind_of(self._rule)}.plan left {decoding.num} decoding "
                "sequences without KV blocks; it has to preempt"
            )
        if self._leaves_blocks and num > 1:
            spare = self._kv.available - self._blocks_to_leave()
            num = max(1, decoding.iterations_within(spare, num)) if spare >= 0 else 1
        if self._replans and (waiting.num or step.is_undecided):
            # The rule names only requests it was shown, so that this is a `Step` for it.
            left = self._rule.iterations_to_decision(step)  # type: ignore[arg-type]
            num = max(1, int(min(num, left)))
        if not waiting.num:
            return num
        if waiting.meter is not None and (self._replans or not self._is_full()):
            num = int(min(num, waiting.meter.iterations_to_other_head()))
        changes_s = waiting.queue.head_changes_s(self._start_s)
        return num if changes_s == inf else min(num, self._iterations_to(changes_s, num))

    def _blocks_to_leave(self) -> int:
        """Blocks that a span must not touch: what the cache loses goes elsewhere at once, not at its end."""
        if self._running.below is None:
            return self._spare_blocks
        return max(self._spare_blocks, self._kv.line_blocks)

    def _is_awaited(self) -> bool:
        """Whether who is next, if anybody knows, repeats an answer under way: with its blocks, it may fit."""
        head = self._waiting.head
        return head is not None and self._running.is_answering(head)

    def _iterations_to_arrival(self, arrival_s: float) -> int:
        """Iterations until the host knows of an arrival, if fewer than those under way."""
        num = self._iterations_to(arrival_s, self._num)
        return min(self._num, num + 1) if self._is_async else num

    def _iterations_to(self, time_s: float, most: int) -> int:
        """Iterations it takes to get to a time, or `most`."""
        elapsed_s = time_s - self._start_s
        if elapsed_s >= self._seconds(most):
            return most
        # By its own rounding, the end of the last may seem to be before that time.
        return min(most, iterations_by(elapsed_s, self._first_s, self._growth_s))

    def _seconds(self, num: int) -> float:
        return num * self._first_s + self._growth_s * (num * (num - 1) / 2)
