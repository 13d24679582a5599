"""The router: which replica gets a request, where each replica has a queue of its own."""

from __future__ import annotations

from collections.abc import Sequence

import simpy

from batchsim.policies.base import Routing
from batchsim.sim.mailbox import Mailbox, ProcessGen
from batchsim.sim.scheduler import Scheduler


class Router:
    """Hand each request to one of several schedulers, at once and for good.

    Takes `Request` from `arrivals`; gives it to the `inbox` of the scheduler that the routing policy chooses.
    """

    def __init__(self, env: simpy.Environment, routing: Routing, schedulers: Sequence[Scheduler]) -> None:
        self._routing = routing
        self._schedulers = schedulers
        self.arrivals = Mailbox(env)

    def run(self) -> ProcessGen:
        """Wait for requests, spread them, until no more come."""
        while not self.arrivals.is_closed:
            yield self.arrivals.when()
            for request in self.arrivals.take_all():
                loads = [scheduler.num_waiting + scheduler.num_running for scheduler in self._schedulers]
                self._schedulers[self._routing.choose(request, loads)].inbox.deliver(request)
        for scheduler in self._schedulers:
            scheduler.inbox.close()
