"""One queue for all replicas: a request is bound to one only when that can begin it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import simpy

from batchsim.policies.base import QueueDiscipline, ReplicaView, Routing, WaitingRequest
from batchsim.sim.cluster.gate import Gate
from batchsim.sim.cluster.router import Router
from batchsim.sim.cluster.slots import Slots
from batchsim.sim.mailbox import delay_until
from batchsim.sim.replica import Replica
from batchsim.sim.request import Request
from batchsim.sim.waiting import WaitingLine

#: A queue says when its head changes, but not whether at that time or only after it.
_AFTER_S = 1e-6


class Dispatcher(Router):
    """Let requests wait in one queue, and give the next to a replica as soon as one has room for it.

    Asks all when a request comes or leaves and when the queue's head changes with time, and a replica at its
    iteration boundaries; over a span, its room becomes only less. Who is preempted stays where it ran.

    Parameters
    ----------
    queue
        What they wait in.
    """

    def __init__(
        self,
        env: simpy.Environment,
        routing: Routing,
        replicas: Sequence[Replica],
        queue: QueueDiscipline,
        decoders: Sequence[Replica] = (),
        gate: Gate | None = None,
        slots: Slots | None = None,
    ) -> None:
        super().__init__(env, routing, replicas, decoders, gate, slots)
        if slots is not None:
            slots.on_open = self._dispatch
        self._env = env
        self._replicas = replicas
        self._waiting = WaitingLine(queue, 1)
        self._waiting.on_leave = self._dispatch
        self._view = _Together(self._waiting, [self._spread.view(one) for one in replicas])
        self._alarm_s = math.inf
        for number, replica in enumerate(replicas):
            replica.on_boundary = partial(self._offer, number)

    def describe_waiting(self) -> str:
        """Who waits for what, for the message of a stalled run."""
        return f"{self._waiting.num} requests wait for a replica that has room"

    def _hand_over(self, request: Request) -> None:
        able = [one for one in self._replicas if one.accepts(request)]
        if not able:
            self._replicas[0].refuse(request)
        elif self._gate is None or self._gate.lets_in(request, 0, self._view):
            self._waiting.push(request)
            self._dispatch()

    def _offer(self, number: int) -> None:
        """A replica is between two iterations."""
        waiting = self._waiting
        if waiting.num and (self._slots is None or self._slots.is_on[number]):
            request, replica = waiting.find_head(self._env.now), self._replicas[number]
            if replica.accepts(request) and replica.has_room(request):
                self._dispatch()

    def _dispatch(self) -> None:
        """Give away the head of the queue, and the next, as long as somebody has room."""
        waiting, now_s = self._waiting, self._env.now
        while waiting.num:
            request = waiting.find_head(now_s)
            able = [one for one in self._open() if one.accepts(request) and one.has_room(request)]
            if not able:
                self._wake_at(waiting.queue.head_changes_s(now_s))
                return
            waiting.pop_head(request, now_s)
            chosen = able[self._spread.choose(request, able)]
            request.queue = _Given(chosen)
            request.known_s = now_s
            self._spread.hand_over(request, chosen)

    def _open(self) -> Sequence[Replica]:
        """Those that may be given requests now."""
        if self._slots is None:
            return self._replicas
        return [one for one, is_on in zip(self._replicas, self._slots.is_on, strict=True) if is_on]

    def _wake_at(self, time_s: float) -> None:
        if time_s < math.inf and time_s != self._alarm_s:
            self._alarm_s = time_s
            alarm = simpy.Timeout(self._env, delay_until(self._env.now, time_s + _AFTER_S))
            alarm.callbacks.append(lambda _: self._dispatch())


class _Given:
    """What a request waits in until the replica it was given to takes it in."""

    __slots__ = ("_replica",)

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def discard(self, request: Request, bin_: int) -> None:
        """It gave up, so that there may be room for another."""
        self._replica.end_soon()


class _Together:
    """The queue and all replicas, as one view."""

    def __init__(self, waiting: WaitingLine, views: Sequence[ReplicaView]) -> None:
        self._waiting = waiting
        self._views = views

    @property
    def num_requests(self) -> int:
        """Of all."""
        return self._waiting.num + sum(view.num_requests for view in self._views)

    @property
    def num_running(self) -> int:
        """Of all."""
        return sum(view.num_running for view in self._views)

    @property
    def num_waiting(self) -> int:
        """In the queue, and those that were just given away."""
        return self._waiting.num + sum(view.num_waiting for view in self._views)

    @property
    def waiting_prompt_tokens(self) -> int:
        """Of all."""
        return self._waiting.tokens + sum(view.waiting_prompt_tokens for view in self._views)

    @property
    def kv_blocks(self) -> int:
        """In use, or wanted by those that were given away."""
        return sum(view.kv_blocks for view in self._views)

    @property
    def block_size(self) -> int:
        """Of the first."""
        return self._views[0].block_size

    def cached_tokens(self, request: WaitingRequest) -> int:
        """Not known before it is given away."""
        return 0
