"""A request with a will of its own."""

from __future__ import annotations

import simpy

from batchsim.records import ABANDONED
from batchsim.sim.mailbox import Mailbox, ProcessGen
from batchsim.sim.recorder import Recorder
from batchsim.sim.request import Request


class Client:
    """Send one request and abandon it if it still waits after `patience_s` seconds.

    Gives `Request` to `arrivals`, then waits for it. Once its batch runs the request stays to the end: a
    static batch cannot drop a member.
    """

    def __init__(
        self,
        env: simpy.Environment,
        request: Request,
        arrivals: Mailbox,
        patience_s: float,
        recorder: Recorder,
    ) -> None:
        self._env = env
        self.request = request
        self.arrivals = arrivals
        self._patience_s = patience_s
        self._recorder = recorder

    def run(self) -> ProcessGen:
        """Deliver, wait, maybe give up."""
        request = self.request
        self.arrivals.deliver(request)
        yield request | self._env.timeout(self._patience_s)
        if request.is_waiting and not request.triggered:
            request.leave_queue()
            self._recorder.end(request, ABANDONED)
