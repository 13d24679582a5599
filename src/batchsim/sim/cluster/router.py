"""The router: which replica gets a request, where each replica has a queue of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import simpy

from batchsim.policies.base import Routing
from batchsim.sim.mailbox import Mailbox, ProcessGen
from batchsim.sim.replica import Replica
from batchsim.sim.request import Request


class Queue(Protocol):
    """What a router spreads requests over: the schedulers of one world or the replicas of the other.

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
    """Which of several queues gets a request, as a routing policy answers."""

    def __init__(self, routing: Routing, queues: Sequence[Queue]) -> None:
        self._routing = routing
        self._queues = queues

    def choose(self, request: Request) -> int:
        """Index of the queue."""
        load, queues = self._routing.load, self._queues
        if load == "requests":
            loads = [queue.num_requests for queue in queues]
        else:
            loads = [queue.kv_blocks() for queue in queues] if load else [0] * len(queues)
        return self._routing.choose(request, loads)


class Router:
    """Hand each request to one of several queues, at once and for good.

    Takes `Request` from `arrivals`; gives it to the `inbox` of the queue that the routing policy chooses.
    Refuses what no replica can decode, where these `decoders` are others.
    """

    def __init__(
        self,
        env: simpy.Environment,
        routing: Routing,
        queues: Sequence[Queue],
        decoders: Sequence[Replica] = (),
    ) -> None:
        self._spread = Spread(routing, queues)
        self._queues = queues
        self._decoders = decoders
        self.arrivals = Mailbox(env)

    def run(self) -> ProcessGen:
        """Wait for requests, spread them, until no more come."""
        queues, decoders = self._queues, self._decoders
        while not self.arrivals.is_closed:
            yield self.arrivals.when()
            for request in self.arrivals.take_all():
                if decoders and not any(one.accepts(request) for one in decoders):
                    decoders[0].refuse(request)
                else:
                    self._hand_over(request, queues[self._spread.choose(request)])
        for queue in queues:
            queue.inbox.close()

    def _hand_over(self, request: Request, queue: Queue) -> None:
        # One that will be refused is no load, however long the queue takes to look at it.
        if queue.accepts(request):
            queue.num_requests += 1
            request.counted_by = queue
        queue.inbox.deliver(request)
