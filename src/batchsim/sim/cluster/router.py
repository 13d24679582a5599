"""The router: which replica gets a request, where each replica has a queue of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import simpy

from batchsim.policies.base import Routing
from batchsim.policies.routing import CLOSED
from batchsim.sim.cluster.gate import Gate
from batchsim.sim.cluster.views import LiveView, PastView, view_of
from batchsim.sim.mailbox import Mailbox, ProcessGen
from batchsim.sim.replica import Replica
from batchsim.sim.request import Request

if TYPE_CHECKING:
    from batchsim.sim.cluster.slots import Slots


class Queue(Protocol):
    """What a router spreads requests over: the schedulers of one world or the replicas of the other.

    What is delivered to its inbox and can never be served is refused at once.

    Attributes
    ----------
    num_requests
        Requests routed here that have not ended.
    """

    inbox: Mailbox
    num_requests: int

    def accepts(self, request: Request) -> bool:
        """Whether it will serve the request, not refuse it."""

    def kv_blocks(self) -> int:
        """KV blocks in use, or wanted by prompts that wait."""

    def describe_waiting(self) -> str:
        """Who waits for what, for the message of a stalled run."""


class Spread:
    """Which of several queues gets a request, as a routing policy answers; and how it sees them.

    Parameters
    ----------
    is_open
        Of each queue, whether it may be chosen now; None: all may always. Policies see `CLOSED` as the load
        of one that may not, and no view of it.
    """

    def __init__(
        self,
        env: simpy.Environment,
        routing: Routing,
        queues: Sequence[Queue],
        is_open: Sequence[bool] | None = None,
    ) -> None:
        self._env = env
        self._routing = routing
        self._queues = queues
        self._is_open = is_open
        self._age_s = routing.view_age_s
        self._counts_all = routing.load == "requests" and not self._age_s and is_open is None
        self._views: dict[Queue, LiveView | PastView] = {}

    def choose(self, request: Request, among: Sequence[Queue] | None = None) -> int:
        """Index of the queue, of all or among some."""
        if self._counts_all and among is None:  # what most runs ask, with nothing in between
            return self._routing.choose(request, [queue.num_requests for queue in self._queues])
        load, queues = self._routing.load, self._queues if among is None else among
        loads: Sequence[Any]
        if load == "requests" and not self._age_s:
            loads = [queue.num_requests for queue in queues]
        elif load is None:
            loads = [0] * len(queues)
        elif load == "kv_blocks" and not self._age_s:
            loads = [queue.kv_blocks() for queue in queues]
        else:
            loads = views = [self.view(queue) for queue in queues]
            if load != "views":
                loads = [view.num_requests if load == "requests" else view.kv_blocks for view in views]
        if among is not None or self._is_open is None or all(self._is_open):
            return self._routing.choose(request, loads)
        return self._choose_open(request, loads, self._is_open)

    def _choose_open(self, request: Request, loads: Sequence[Any], is_open: Sequence[bool]) -> int:
        """Ask until an open one is named; the least loaded, where the policy insists on another."""
        if self._routing.load == "views":
            numbers = [number for number, is_one in enumerate(is_open) if is_one]
            return numbers[self._routing.choose(request, [loads[number] for number in numbers])]
        seen = [load if is_one else CLOSED for load, is_one in zip(loads, is_open, strict=True)]
        for _ in range(2 * len(seen)):
            chosen = self._routing.choose(request, seen)
            if is_open[chosen]:
                return chosen
        return seen.index(min(seen))

    def hand_over(self, request: Request, queue: Queue) -> None:
        """Give a request to a queue, and count it there; one that is refused has ended, uncounted."""
        if not self._age_s:  # without a call for every request
            request.counted_by = queue
            queue.num_requests += 1
        queue.inbox.deliver(request)
        if self._age_s and not request.triggered:
            self.count(request, queue)  # and have noted that it is there

    def count(self, request: Request, queue: Queue) -> None:
        """Count a request as a queue's, until it ends or is handed on."""
        request.counted_by = counter = self.view(queue).counter if self._age_s else queue
        counter.num_requests += 1

    def view(self, queue: Queue) -> LiveView | PastView:
        """How the routing sees a queue."""
        view = self._views.get(queue)
        if view is None:
            view = self._views[queue] = view_of(self._env, queue, self._age_s)
        return view


class Router:
    """Hand each request to one of several queues, at once and for good.

    Takes `Request` from `arrivals`; gives it to the `inbox` of the queue that the routing policy chooses.
    Refuses what no replica can decode, where these `decoders` are others, and whom the `gate` lets not in.
    Where replicas come and go, the `slots` say which are there, and hold requests while none is.
    """

    def __init__(
        self,
        env: simpy.Environment,
        routing: Routing,
        queues: Sequence[Queue],
        decoders: Sequence[Replica] = (),
        gate: Gate | None = None,
        slots: Slots | None = None,
    ) -> None:
        self._spread = Spread(env, routing, queues, None if slots is None else slots.is_on)
        self._slots = slots
        if slots is not None:
            slots.place = self._place
        self._queues = queues
        self._decoders = decoders
        self._gate = gate
        self.arrivals = Mailbox(env)

    def run(self) -> ProcessGen:
        """Wait for requests, spread them, until no more come."""
        decoders = self._decoders
        while not self.arrivals.is_closed:
            yield self.arrivals.when()
            for request in self.arrivals.take_all():
                if decoders and not _any_accepts(decoders, request):
                    decoders[0].refuse(request)
                elif self._slots is None:
                    self._hand_over(request)
                else:
                    self._slots.num_arrived += 1
                    self._place(request)
        for queue in self._queues:
            queue.inbox.close()

    def _place(self, request: Request) -> None:
        """Hand over a request, new or from a replica that failed, if any replica is there."""
        assert self._slots is not None
        if self._slots.admits(request):
            self._hand_over(request)

    def _hand_over(self, request: Request) -> None:
        spread, gate = self._spread, self._gate
        number = spread.choose(request)
        queue = self._queues[number]
        if gate is None or not queue.accepts(request) or gate.lets_in(request, number, spread.view(queue)):
            spread.hand_over(request, queue)


def _any_accepts(decoders: Sequence[Replica], request: Request) -> bool:
    return decoders[0].accepts(request) or any(one.accepts(request) for one in decoders[1:])
