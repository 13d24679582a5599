"""The router: which replica gets a request, where each replica has a queue of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import simpy

from batchsim.policies.base import Routing
from batchsim.sim.mailbox import Mailbox, ProcessGen
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


class Router:
    """Hand each request to one of several queues, at once and for good.

    Takes `Request` from `arrivals`; gives it to the `inbox` of the queue that the routing policy chooses.
    """

    def __init__(self, env: simpy.Environment, routing: Routing, queues: Sequence[Queue]) -> None:
        self._routing = routing
        self._queues = queues
        self.arrivals = Mailbox(env)

    def run(self) -> ProcessGen:
        """Wait for requests, spread them, until no more come."""
        queues, none = self._queues, [0] * len(self._queues)
        while not self.arrivals.is_closed:
            yield self.arrivals.when()
            for request in self.arrivals.take_all():
                if self._routing.load == "requests":
                    loads = [queue.num_requests for queue in queues]
                else:
                    loads = [queue.kv_blocks() for queue in queues] if self._routing.load else none
                self._hand_over(request, queues[self._routing.choose(request, loads)])
        for queue in queues:
            queue.inbox.close()

    def _hand_over(self, request: Request, queue: Queue) -> None:
        # One that will be refused is no load, however long the queue takes to look at it.
        if queue.accepts(request):
            queue.num_requests += 1
            request.counted_by = queue
        queue.inbox.deliver(request)
