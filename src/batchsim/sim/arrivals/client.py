"""Clients: who sends requests with a will of their own, waits for answers, and gives up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import simpy
from numpy.typing import NDArray

from batchsim.config import ClientsConfig
from batchsim.records import ABANDONED
from batchsim.sim.mailbox import ProcessGen
from batchsim.sim.recording.recorder import Recorder
from batchsim.sim.request import Request
from batchsim.workload.request import Workload
from batchsim.workload.sessions import DELAY_COLUMN, check_sessions, gaps_to_next_turn_s, session_rows


@dataclass(frozen=True, slots=True, eq=False)
class Clients:
    """Who sends which rows of the workload, and how; by default a client for each, who sends it once.

    Attributes
    ----------
    concurrency
        So many clients share the rows: whoever is free sends the next. 0: each client has rows of its own.
    sessions
        The rows of each client, in order of their first arrival; None: one row each.
    think_s
        Seconds from the end of each request to its client's next, shape ``(num_requests,)``; None: no time.
        Drawn before the run, so that two policies meet the same clients.
    max_retries, retry_after_s
        How often an abandoned request is sent again, and how long after the first time; each further wait is
        twice as long.
    """

    concurrency: int = 0
    sessions: Sequence[Sequence[int]] | None = None
    think_s: NDArray[np.float64] | None = None
    max_retries: int = 0
    retry_after_s: float = 1.0


def make_clients(config: ClientsConfig, workload: Workload, rng: np.random.Generator) -> Clients | None:
    """Turn a configuration into clients of this workload; None where requests simply arrive at their time."""
    if config.kind == "open_loop" and not config.max_retries:
        return None
    if config.kind == "sessions":
        check_sessions(workload)
    return Clients(
        concurrency=config.concurrency or 0,
        sessions=session_rows(workload) if config.kind == "sessions" else None,
        think_s=_think_s(config, workload, rng),
        max_retries=config.max_retries,
        retry_after_s=config.retry_after_s,
    )


class Client:
    """Send requests, each when the one before has ended and its answer was thought about.

    Gives `Request` to the arrivals by `send`, which is told the row and the attempt, then waits for it. A
    request that still waits after `patience_s` seconds is abandoned, and may be sent again. Once it runs it
    stays to the end: a static batch cannot drop a member, and an engine's work is not thrown away.
    """

    def __init__(
        self,
        env: simpy.Environment,
        rows: Iterable[int],
        clients: Clients,
        patience_s: float | None,
        send: Callable[[int, int], Request],
        settle: Callable[[], None],
        recorder: Recorder,
    ) -> None:
        self._env = env
        self._rows = rows
        self._clients = clients
        self._patience_s = math.inf if patience_s is None else patience_s
        self._send = send
        self._settle = settle  # says that a request which could have been sent again will not be
        self._recorder = recorder

    def run(self) -> ProcessGen:
        """Send, wait, think, repeat."""
        think_s = self._clients.think_s
        for row in self._rows:
            yield from self._see_through(row)
            if think_s is not None and (pause_s := think_s.item(row)):
                yield self._env.timeout(pause_s)

    def _see_through(self, row: int) -> ProcessGen:
        clients, patience_s = self._clients, self._patience_s
        for num_left in range(clients.max_retries, -1, -1):
            attempt = clients.max_retries - num_left
            if attempt:
                yield self._env.timeout(clients.retry_after_s * 2 ** (attempt - 1))
            request = self._send(row, attempt)
            if patience_s < math.inf:
                yield request | self._env.timeout(patience_s)
            else:
                yield request
            if request.triggered or not request.is_waiting:
                if num_left:
                    self._settle()
                yield request
                return
            request.leave_queue()
            if num_left:
                request.end(ABANDONED)
            else:
                self._recorder.end(request, ABANDONED)


def _think_s(
    config: ClientsConfig, workload: Workload, rng: np.random.Generator
) -> NDArray[np.float64] | None:
    has_delays = config.kind == "sessions" and DELAY_COLUMN in workload.extra
    if config.think_time == "trace" or (has_delays and not config.think_time_s):
        return gaps_to_next_turn_s(workload)
    if not config.think_time_s:
        return None
    if config.think_time == "fixed":
        return np.full(len(workload), config.think_time_s)
    return rng.exponential(config.think_time_s, len(workload))
