"""A replica: a scheduler, its GPU and its KV cache, iteration by iteration.

When things happen stands here, and how long in `sim.spans`; what is chosen in `policies`; who waits in
`sim.waiting`, who runs and holds what in `sim.running`, and what goes into an iteration in `sim.step`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Protocol, cast

import simpy

from batchsim.errors import PlanError
from batchsim.latency.base import IterationShape
from batchsim.policies.guards.checks import kind_of
from batchsim.policies.presets import Policy
from batchsim.policies.reports import IterationReport
from batchsim.sim.cluster.outlook import Outlook
from batchsim.sim.engine import Engine
from batchsim.sim.kv_cache import KVCache
from batchsim.sim.mailbox import LateTimeout, ProcessGen
from batchsim.sim.recording.iteration_recorder import IterationRecorder
from batchsim.sim.request import KVStore, Request

_ADMISSION = attrgetter("admission")  # the order in which those that end together give their blocks back


class Finisher(Protocol):
    """Who takes the requests that a replica is done with."""

    def finish(self, request: Request, replica_id: int, now_s: float) -> None:
        """All tokens that this replica was to make of it are there."""


class Outlet(Finisher, Protocol):
    """Who takes the requests whose prompts a replica has computed, and is told when that begins."""

    def begin(self, request: Request, replica_id: int) -> None:
        """The first chunk of its prompt is about to be computed."""


class Replica(Outlook):
    """Run iterations for the requests it is given, for as long as the engine says.

    Takes `Request` from `inbox`. At each iteration boundary it takes in what has arrived, lets the rule put
    the next iteration together, and waits for that to end; equal decode iterations are one span, with one
    event. Arrivals of the instant at which an iteration ends are seen by the next. Only here the true output
    lengths are known; as an engine knows ``max_tokens``, they decide whether a request can fit at all. A
    request whose KV lies elsewhere (`Request.kv_source`) comes twice: first to be given room, then with it.

    Parameters
    ----------
    true_output_tokens
        Tokens to make of each request, by id.
    outlet
        Who is given those that are finished; their blocks stay taken until `release`. Left out: they have
        ended.

    Attributes
    ----------
    on_idle
        Called when it has nothing to do.
    """

    __slots__ = (
        "_idle_s", "_idle_since_s", "_is_bounded", "_known_until_s", "_num_preempted", "_outlet", "_recorder",
        "_replica_id", "_true_output_tokens", "_usable_tokens", "on_idle",
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
        outlet: Outlet | None = None,
    ) -> None:
        lends = outlet is not None
        super().__init__(env, replica_id, policy, engine, kv, true_output_tokens, recorder, lends=lends)
        self.num_requests = 0
        self.on_boundary = None
        self._outlet: Finisher = recorder
        if outlet is not None:
            self._outlet, self._step.on_begin = outlet, outlet.begin
        self._replica_id = replica_id
        self._true_output_tokens = true_output_tokens
        self._recorder = recorder
        self._usable_tokens = (kv.num_blocks - self._kept_blocks) * kv.block_size
        self._is_bounded = engine.latency.is_bounded
        self._known_until_s = 0.0  # what happened later, the host does not know yet
        self._num_preempted = 0  # for the iteration, before it was put together anew
        self.inbox.alert = self._notice
        self._idle_s = self._idle_since_s = 0.0
        self.on_idle: Callable[[], None] | None = None

    @property
    def idle_s(self) -> float:
        """Seconds so far in which it ran nothing."""
        return self._idle_s if self._num else self._idle_s + self._env.now - self._idle_since_s

    @property
    def is_running(self) -> bool:
        """Whether an iteration is under way."""
        return self._num > 0

    @property
    def kv_share(self) -> float:
        """Share of the KV blocks that are in use, those of the iteration under way included."""
        return self.used_blocks() / self._kv.num_blocks

    def put_below(self, store: KVStore) -> None:
        """Let a store have what the KV cache loses, and bring back what of it is wanted."""
        self._running.below, self._kv.on_lose = store, store.take
        self._leaves_blocks = True

    def accepts(self, request: Request) -> bool:
        """Whether the request can ever fit."""
        return self._most_tokens(request) <= self._usable_tokens

    def release(self, request: Request) -> None:
        """Take back the blocks of one that was finished here."""
        self._running.release(request)
        if self.observer is not None:
            self.observer.note()
        if self._waiting.num or self._running.swapped:
            self.inbox.nudge()

    def describe_waiting(self) -> str:
        """Who waits for what, for the message of a stalled run."""
        running = self._running
        return (
            f"{self._waiting.num} requests wait for {kind_of(self._rule)} of policy {self._policy_name} to "
            "admit them beside "
            f"{running.num} running and {len(running.swapped)} swapped ones, with "
            f"{self._kv.available} of {self._kv.num_blocks} KV blocks free"
        )

    def run(self) -> ProcessGen:
        """Take in, plan, run an iteration or a span; wait for arrivals when there is nothing to do."""
        env, step, inbox, decoding = self._env, self._step, self.inbox, self._running.decoding
        num_empty = 0  # iterations in a row that preempted, and nothing else
        on_boundary, observer = self.on_boundary, self.observer
        while True:
            if on_boundary is not None:
                on_boundary()
            if inbox.items or inbox.next_s <= step.now_s:
                self._take_in()
            self._plan()
            if observer is not None:
                observer.note()
            if step.prefill_seqs:
                self._start_iteration()
            elif decoding.num:
                self._start_span()
            else:
                if step.num_preempted:
                    num_empty += 1
                    self._check_progress(num_empty)
                    self._num_preempted += step.num_preempted
                    self._swap_blocks += step.swap_blocks
                    # Nothing was put together while the GPU ran: the host plans anew with all that is known.
                    self._known_until_s, self._is_first = step.now_s, True
                    continue
                now_s = step.now_s
                if self._known_until_s >= now_s:
                    self._idle_since_s = now_s
                    if self.on_idle is not None:
                        self.on_idle()
                    yield inbox.when()
                    on_boundary, observer = self.on_boundary, self.observer  # whoever came now, may look
                    now_s = env.now
                    self._idle_s += now_s - self._idle_since_s
                # The GPU idles, so the host can plan with all that is known now.
                self._known_until_s = step.now_s = now_s
                self._is_first = True
                continue
            yield self._end
            if observer is not None:
                self._grow_to(self._num)
            num_empty = 0
            if self._num:
                self._settle(env.now)

    def crash(self, *, keeps_tokens: bool) -> tuple[list[Request], list[Request]]:
        """Lose what is in memory; what is under way ends now.

        Iterations of a span that have ended count, the one that has not is lost.

        Returns
        -------
        tuple of list of Request
            Those that had been admitted, some of which may have waited again, and those that had not. None
            of them belongs to this replica any more; their tokens they have if they keep them.
        """
        env, now_s = self._env, self._env.now
        if self._num:
            num_done = self._num_done()
            if self._num_grown > num_done:  # somebody looked at the one that is lost
                self._running.decoding.take_back(self._num_grown - num_done)
                self._num_grown = num_done
            if num_done:
                self._num = num_done
                self._settle(self._start_s + self._seconds(num_done))
            else:
                self._step.take_back()
                self._num = self._num_preempted = self._swap_blocks = 0
            # Whoever waits for the end of the span goes on now, and finds nothing to settle.
            at_once = LateTimeout(env, 0.0)
            at_once.callbacks, self._end.callbacks = self._end.callbacks, []
            self._end, self._idle_since_s = at_once, now_s
        mode, nan = "failure" if keeps_tokens else "restart", math.nan
        held = self._running.clear()
        known = {request for request, _, _ in held}  # one whose KV is on its way may lie in the inbox too
        waiting = self._waiting.clear(now_s)
        waiting += [one for one in self.inbox.take_all() if not one.triggered and one not in known]
        ran, waited = list[Request](), list[Request]()
        for request, lost_tokens, decode_start_s in (*held, *[(one, 0, nan) for one in waiting]):
            (waited if request.is_waiting else ran).append(request)
            if not request.is_waiting:
                request.most_computed_tokens = max(lost_tokens, request.most_computed_tokens)
                self._recorder.preempt(request, self._replica_id, now_s, decode_start_s, lost_tokens, mode)
            request.move(keeps_tokens=keeps_tokens)
        self._step.clear(now_s)
        self._known_until_s, self._is_first = now_s, True
        self._is_watching = self._is_stale = False
        return ran, waited

    def _num_done(self) -> int:
        """Iterations of those under way that have ended before now."""
        return self._iterations_to(self._env.now, self._num) - 1 if self._num else 0

    def _check_progress(self, num_empty: int) -> None:
        """A rule may preempt all there are, one after the other, until it has to go on."""
        if num_empty > self._waiting.num + len(self._running.swapped):
            raise PlanError(
                f"policy {self._policy_name}: {kind_of(self._rule)}.plan preempted in {num_empty} iterations "
                f"at {self._step.now_s:.3f} s, and let nobody run in any of them"
            )

    def _take_in(self) -> None:
        """Queue what has arrived, as far as the host knows; refuse what can never fit."""
        inbox, known_until_s = self.inbox, self._known_until_s
        arrived = cast("list[Request]", inbox.take_all())
        arriving = self._running.arriving
        if self._is_async and arrived and (arrived[-1].known_s > known_until_s or arriving):
            inbox.items = [request for request in arrived if request.known_s > known_until_s]
            arrived = [request for request in arrived if request.known_s <= known_until_s]
        is_checked = inbox.bring is None  # by `_notice`
        for request in arrived:
            if arriving and request.request_id in arriving:
                self._step.land(request)
            elif is_checked or self.accepts(request):
                if not request.triggered:  # did not give up on the way
                    self._waiting.push(request)
            else:
                self.refuse(request)

    def _notice(self) -> None:
        """A request was delivered: refuse it at once if it can never fit, end a span that it might join."""
        request, arriving = self.inbox.items[-1], self._running.arriving
        if arriving and request.request_id in arriving:
            self._cut_span(self._iterations_to_arrival(self._env.now))
        elif not self.accepts(request):
            self.inbox.items.pop()
            self.refuse(request)
        elif self._is_watching:
            self._is_watching = False
            self._cut_span(self._iterations_to_arrival(self._env.now))

    def refuse(self, request: Request) -> None:
        """End a request that can never fit."""
        tokens = self._most_tokens(request)
        self._recorder.refuse(
            request, f"may hold {tokens} KV tokens; a request can have {self._usable_tokens}"
        )

    def _most_tokens(self, request: Request) -> int:
        """KV tokens a request may come to hold; the last token of an answer is never stored."""
        answer_tokens = self._true_output_tokens[request.request_id] - 1
        reserved_tokens = self._rule.reserved_tokens(request)
        return request.prompt_tokens + (answer_tokens if answer_tokens > reserved_tokens else reserved_tokens)

    def _plan(self) -> None:
        """Let the rule put the next iteration together, where there is something to decide."""
        step, running = self._step, self._running
        if running.sitting_out:
            running.go_on(step.now_s)
        if self._waiting.num or step.is_undecided:
            step.start()
            step.max_running = self._sizer.batch_size(0, running.decoding.num)
            self._rule.plan(step)  # type: ignore[arg-type]  # it names only requests it was shown: `Request`
            self._is_stale = bool(step.num_preempted or step.swap_blocks)
        elif self._is_stale or step.prefill_seqs:
            step.start()
            self._is_stale = False
        if self._is_async:
            self._is_stale = self._is_stale or bool(running.retired or self.inbox.items)
            if running.retired and self._kv.line_blocks:
                step.grow()  # before blocks come back that would be taken instead
            running.free_retired()

    def _settle(self, now_s: float) -> None:
        """The iteration or span has ended: tokens out, ended requests out, blocks back."""
        waiting, running, step = self._waiting, self._running, self._step
        kv, recorder, num = self._kv, self._recorder, self._num
        decoding, shape = running.decoding, self._shape
        self._is_watching = False
        waiting.on_leave = None
        step.now_s = now_s
        num_running = running.num
        if self._num_grown:
            self._grow_to(num)
        elif shape[1] and (new_blocks := decoding.advance(num)):
            kv.take(new_blocks)
        used_blocks = kv.num_blocks - kv.available
        finished = decoding.take_finished() if decoding.next_end <= decoding.step else []
        if step.completing and (at_once := running.complete_prompts(step.completing, now_s)):
            finished = sorted(finished + at_once, key=_ADMISSION)
        finish = self._outlet.finish
        for request in finished:
            running.retire(request, is_known=not self._is_async)
            finish(request, self._replica_id, now_s)
        host_s = num * self._host_s
        if self._host_growth_s:
            host_s += self._host_growth_s * (num * (num - 1) / 2)
        is_extrapolated = self._is_bounded and self._engine.is_outside(IterationShape._make(shape), num)
        prefill_tokens, decode_seqs, context_tokens, prefill_seqs, prefill_pairs, longest_tokens = shape
        rows = recorder.spans
        rows.add(
            rows.pack(
                self._replica_id,
                self._start_s,
                now_s,
                num,
                self._first_s,
                host_s,
                prefill_tokens,
                decode_seqs,
                context_tokens,
                prefill_seqs,
                prefill_pairs,
                longest_tokens,
                num_running,
                waiting.num,
                used_blocks,
                step.num_preempted + self._num_preempted,
                is_extrapolated,
            )
        )
        self._num_preempted = self._swap_blocks = 0
        if self._controllers:
            self._report(finished)
        self._is_first = False
        self._num = self._num_grown = 0
        self._known_until_s = now_s
        if self._is_async:  # the beginning of the last iteration: of a single one without rounding
            last_s = self._first_s + (num - 1) * self._growth_s
            self._known_until_s = self._start_s if num == 1 else now_s - last_s

    def _report(self, finished: Sequence[Request]) -> None:
        """Tell the controllers what they can measure."""
        decode_seqs = self._shape[1]
        report = IterationReport(
            self._num,
            self._step.now_s - self._start_s,
            decode_seqs and decode_seqs + len(self._step.completing),
            decode_seqs or self._running.decoding.num,
            [one.prompt_tokens + self._true_output_tokens[one.request_id] for one in finished],
        )
        for controller in self._controllers:
            self._recorder.decisions(controller.observe_iterations(report), self._replica_id)
