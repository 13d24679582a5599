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

    Takes nothing; gives `Request` to `arrivals`. While nobody waits there, because all GPUs run, an arrival
    changes nothing and is no event: what has come by then is brought when somebody looks. With `patience_s`,
    each request gets a `Client` that delivers it at its time and may give up.
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
        self._columns = (workload.arrival_s, workload.prompt_tokens, predicted_output_tokens)
        self._rows = self._read_rows()
        self._next = next(self._rows, None)
        self.arrivals = arrivals
        self._recorder = recorder
        self._patience_s = patience_s
        if patience_s is None:
            arrivals.bring = self._bring

    def run(self) -> ProcessGen:
        """Sleep to the next arrival, bring it if anybody waits, else sleep until somebody does, repeat."""
        if self._patience_s is not None:
            yield from self._start_clients(self._patience_s)
        while self._next is not None:
            yield self._env.timeout(delay_until(self._env.now, self._next[1]))
            if self.arrivals.is_watched:
                self._bring()
            else:
                yield self.arrivals.when_watched()

    def _bring(self) -> None:
        """Deliver what has arrived by now; close after the last."""
        env, row, rows = self._env, self._next, self._rows
        if row is None or row[1] > env.now:
            return
        now_s = env.now
        requests = []
        while row is not None and row[1] <= now_s:
            requests.append(Request(env, *row))
            row = next(rows, None)
        self._next = row
        self.arrivals.deliver_all(requests)
        if row is None:
            self.arrivals.close()

    def _start_clients(self, patience_s: float) -> ProcessGen:
        env = self._env
        while self._next is not None:
            if self._next[1] > env.now:
                yield env.timeout(delay_until(env.now, self._next[1]))
            client = Client(env, Request(env, *self._next), self.arrivals, patience_s, self._recorder)
            env.process(client.run())
            self._next = next(self._rows, None)
        yield env.timeout(0)  # the clients of the last instant deliver first
        self.arrivals.close()

    def _read_rows(self) -> Iterator[tuple[int, float, int, int]]:
        """Rows as Python numbers, made a block at a time: a million boxed at once would double the memory."""
        num_rows = len(self._columns[0])
        for start in range(0, num_rows, _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            ids = range(start, min(start + _BLOCK_ROWS, num_rows))
            yield from zip(ids, *(column[block].tolist() for column in self._columns), strict=True)


_BLOCK_ROWS = 4096
