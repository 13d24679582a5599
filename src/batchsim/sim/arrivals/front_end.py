"""What stands before the engines: the server that takes a request over HTTP and makes tokens of its text."""

from __future__ import annotations

from typing import NamedTuple

import simpy

from batchsim.sim.mailbox import Mailbox, ProcessGen
from batchsim.sim.request import Request


class FrontEndTimes(NamedTuple):
    """Seconds of a request at the server before an engine knows of it, and for each token of its prompt."""

    request_s: float
    prompt_token_s: float


class FrontEnd:
    """Hand each request on when the server is done with it; requests do not wait for each other.

    Takes `Request` from `arrivals`; gives it to `inbox`, that of the router or of the only replica, unless it
    was abandoned meanwhile.
    """

    def __init__(self, env: simpy.Environment, times: FrontEndTimes, inbox: Mailbox) -> None:
        self._env = env
        self._times = times
        self._inbox = inbox
        self._num_inside = 0
        self.arrivals = Mailbox(env)

    def run(self) -> ProcessGen:
        """Let requests in, until no more come and the last is out."""
        while not self.arrivals.is_closed or self.arrivals.items:
            yield self.arrivals.when()
            for request in self.arrivals.take_all():
                self._num_inside += 1
                self._env.process(self._serve(request))
        self._close_when_empty()

    def _serve(self, request: Request) -> ProcessGen:
        yield self._env.timeout(self._times.request_s + self._times.prompt_token_s * request.prompt_tokens)
        self._num_inside -= 1
        if not request.triggered:
            request.known_s = self._env.now
            self._inbox.deliver(request)
        self._close_when_empty()

    def _close_when_empty(self) -> None:
        if self.arrivals.is_closed and not self.arrivals.items and not self._num_inside:
            self._inbox.close()
