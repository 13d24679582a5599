"""Where requests come from: a workload replayed request by request, or sent by clients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import simpy
from numpy.typing import NDArray

from batchsim.records import Records
from batchsim.sim.arrivals.client import Client, Clients
from batchsim.sim.mailbox import Mailbox, ProcessGen, delay_until
from batchsim.sim.recording.recorder import Recorder
from batchsim.sim.request import Request
from batchsim.workload.request import Workload


class RequestSource:
    """Deliver each request at its time, in arrival order, then close `arrivals`.

    Takes nothing; gives `Request` to `arrivals`. While nobody waits there, because all GPUs run, an arrival
    changes nothing and is no event: what has come by then is brought when somebody looks. Who waits for the
    next one alone sleeps until it is due; who waits for several is woken by this process. With `clients` or
    `patience_s`, processes of their own send the requests, and `arrivals` is closed when none can come any
    more. A request of more than `max_model_len` tokens, its answer included, is refused on the way: engines
    are told how long an answer may get.
    """

    def __init__(
        self,
        env: simpy.Environment,
        workload: Workload,
        predicted_output_tokens: NDArray[np.int64],
        arrivals: Mailbox,
        recorder: Recorder,
        patience_s: float | None = None,
        details: Mapping[str, Sequence[Any]] | None = None,
        clients: Clients | None = None,
        max_model_len: int | None = None,
    ) -> None:
        self._env = env
        self._max_model_len = max_model_len
        self._too_long = _too_long(workload, max_model_len)
        self._columns = (workload.arrival_s, workload.prompt_tokens, predicted_output_tokens)
        self._rows = self._read_rows()
        self._details = details or {}  # attributes of requests that only some workloads have
        self.arrivals = arrivals
        self._recorder = recorder
        self._patience_s = patience_s
        self._clients = Clients() if clients is None and patience_s is not None else clients
        if self._clients is not None:
            self._sent_s = np.full(len(workload), np.nan)  # for the first time
            self._num_retries = np.zeros(len(workload), dtype=np.int32)
            self._num_to_come = len(workload)  # requests that may yet be sent, or sent again
        else:
            self._next = next(self._rows, None)
            arrivals.bring = self._bring
            arrivals.next_s = self._next[1] if self._next else math.inf

    def run(self) -> ProcessGen:
        """Sleep to the next arrival, bring it if anybody waits, else sleep until somebody does, repeat."""
        if self._clients is not None:
            yield from self._start(self._clients)
            return
        while self._next is not None:
            yield self._env.timeout(delay_until(self._env.now, self._next[1]))
            if self.arrivals.is_watched:
                self._bring()
            else:
                yield self.arrivals.when_watched()

    def as_sent(self, records: Records) -> Records:
        """Put the times at which clients sent the requests into the records, in arrival order.

        A request that was sent several times arrived when it was sent first; ``num_retries``, a column that
        only clients who retry have, counts the others. ``left_s``, which is there where any were abandoned,
        says when they gave up.
        """
        if self._clients is None:
            return records
        requests = records.requests.assign(arrival_s=self._sent_s)
        if self._clients.max_retries:
            requests["num_retries"] = self._num_retries
        if self._recorder.left_s:
            requests["left_s"] = pd.Series(self._recorder.left_s).reindex(range(len(requests)))
        return replace(records, requests=requests.sort_values("arrival_s", kind="stable", ignore_index=True))

    def _bring(self) -> None:
        """Deliver what has arrived by now; close after the last."""
        row, now_s = self._next, self._env.now
        if row is None or row[1] > now_s:
            return
        env, rows, requests = self._env, self._rows, []
        while row is not None and row[1] <= now_s:
            requests.append(Request(env, *row))
            row = next(rows, None)
        self._next = row
        self.arrivals.next_s = math.inf if row is None else row[1]
        if self._details:
            for request in requests:
                self._describe(request)
        if self._too_long:
            requests = [request for request in requests if not self._refuses(request)]
        self.arrivals.deliver_all(requests)
        if row is None:
            self.arrivals.close()

    def _refuses(self, request: Request) -> bool:
        """Refuse a request that is longer than the model takes."""
        tokens = self._too_long.get(request.request_id)
        if tokens is None:
            return False
        self._recorder.refuse(
            request, f"asks for {tokens} tokens, prompt and answer; max_model_len is {self._max_model_len}"
        )
        return True

    def _describe(self, request: Request) -> None:
        for name, values in self._details.items():
            setattr(request, name, values[request.request_id])

    def _start(self, clients: Clients) -> ProcessGen:
        """Start the clients of a closed loop at once, others when their first request arrives."""
        num_rows = len(self._sent_s)
        if clients.concurrency:
            shared = iter(range(num_rows))
            for _ in range(clients.concurrency):
                self._start_client(clients, shared)
            return
        arrival_s, env = self._columns[0], self._env
        for rows in clients.sessions or ((row,) for row in range(num_rows)):
            first_s = self._sent_s[rows[0]] = arrival_s.item(rows[0])
            if first_s > env.now:
                yield env.timeout(delay_until(env.now, first_s))
            self._start_client(clients, rows)

    def _start_client(self, clients: Clients, rows: Iterable[int]) -> None:
        client = Client(self._env, rows, clients, self._patience_s, self._send, self._settle, self._recorder)
        self._env.process(client.run())

    def _send(self, row: int, attempt: int) -> Request:
        """Deliver a request of a client."""
        assert self._clients is not None
        if math.isnan(self._sent_s[row]):
            self._sent_s[row] = self._env.now
        self._num_retries[row] = attempt
        arrival_s = self._env.now if attempt else self._sent_s.item(row)
        _, prompt_tokens, predicted = self._columns
        request = Request(self._env, row, arrival_s, prompt_tokens.item(row), predicted.item(row))
        self._describe(request)
        if not self._refuses(request):
            self.arrivals.deliver(request)
        if attempt == self._clients.max_retries:
            self._settle()
        return request

    def _settle(self) -> None:
        """A request will not be sent again."""
        self._num_to_come -= 1
        if not self._num_to_come:
            self.arrivals.close()

    def _read_rows(self) -> Iterator[tuple[int, float, int, int]]:
        """Rows as Python numbers, made a block at a time: a million boxed at once would double the memory."""
        num_rows = len(self._columns[0])
        for start in range(0, num_rows, _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            ids = range(start, min(start + _BLOCK_ROWS, num_rows))
            yield from zip(ids, *(column[block].tolist() for column in self._columns), strict=True)


def _too_long(workload: Workload, max_model_len: int | None) -> dict[int, int]:
    """Tokens of the requests that exceed the limit, by row."""
    if max_model_len is None:
        return {}
    tokens = workload.prompt_tokens + workload.output_tokens
    rows = np.flatnonzero(tokens > max_model_len)
    return dict(zip(rows.tolist(), tokens[rows].tolist(), strict=True))


_BLOCK_ROWS = 4096
