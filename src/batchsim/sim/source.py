"""Where requests come from: a workload replayed, request by request."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import simpy
from numpy.typing import NDArray

from batchsim.sim.client import Client
from batchsim.sim.mailbox import Mailbox, ProcessGen, delay_until
from batchsim.sim.recorder import Recorder
from batchsim.sim.request import Request
from batchsim.workload.request import Workload


class RequestSource:
    """Deliver each request at its time, in arrival order, then close `arrivals`.

    Takes nothing; gives `Request` to `arrivals`. Requests of one instant are delivered together. With
    `patience_s`, each request gets a `Client` that delivers it and may give up.
    """

    def __init__(
        self,
        env: simpy.Environment,
        workload: Workload,
        predicted_output_tokens: NDArray[np.int64],
        arrivals: Mailbox,
        recorder: Recorder,
        patience_s: float | None = None,
    ) -> None:
        self._env = env
        self._workload = workload
        self._predicted = predicted_output_tokens
        self.arrivals = arrivals
        self._recorder = recorder
        self._patience_s = patience_s

    def run(self) -> ProcessGen:
        """Sleep to the next arrival, deliver all requests of that instant, repeat."""
        env, deliver = self._env, self.arrivals.deliver if self._patience_s is None else self._start_client
        latest_s = 0.0
        for request_id, (arrival_s, prompt_tokens, predicted) in enumerate(self._rows()):
            if arrival_s > latest_s:
                yield env.timeout(delay_until(env.now, arrival_s))
                latest_s = arrival_s
            deliver(Request(env, request_id, arrival_s, prompt_tokens, predicted))
        yield env.timeout(0)  # clients of the last instant deliver first
        self.arrivals.close()

    def _rows(self) -> Iterator[tuple[float, int, int]]:
        """Rows as Python numbers, made a block at a time: a million boxed at once would double the memory."""
        columns = (self._workload.arrival_s, self._workload.prompt_tokens, self._predicted)
        for start in range(0, len(self._workload), _BLOCK_ROWS):
            yield from zip(*(column[start : start + _BLOCK_ROWS].tolist() for column in columns), strict=True)

    def _start_client(self, request: Request) -> None:
        assert self._patience_s is not None
        client = Client(self._env, request, self.arrivals, self._patience_s, self._recorder)
        self._env.process(client.run())


_BLOCK_ROWS = 4096
