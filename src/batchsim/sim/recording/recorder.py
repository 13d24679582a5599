"""Where processes write down what happened, as columns; read once, after the run."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import pandas as pd
import simpy

from batchsim.policies.reports import Decision
from batchsim.records import (
    ABANDONED,
    BATCH_COLUMNS,
    CONTROLLER_COLUMNS,
    FINISHED,
    REFUSED,
    REQUEST_COLUMNS,
    STATUSES,
    Records,
    table,
)
from batchsim.sim.request import Request
from batchsim.workload.request import Workload

#: What a batch writes: `BATCH_COLUMNS` but for its number. All fit a double exactly, so a batch is one
#: append.
_BATCH_VALUES = tuple(name for name in BATCH_COLUMNS if name != "batch_id")


class Recorder:
    """Columns of one run, and the event `all_ended` that fires when the last request has ended.

    Attributes
    ----------
    left_s
        When each request that was abandoned gave up, by row.
    """

    def __init__(self, env: simpy.Environment, num_requests: int) -> None:
        self._env = env
        self.num_requests = num_requests
        self.num_ended = 0
        self.all_ended = env.event()
        self.refusals: dict[int, str] = {}
        self.left_s: dict[int, float] = {}
        self._status = bytearray(num_requests)
        self._evictions: dict[int, int] = {}
        self._members = array("q")
        self._batch_rows = array("d")
        self._decisions: list[tuple[float, int, Decision]] = []

    def end(self, request: Request, status: str) -> None:
        """A request ends without having run to completion: write it down and let it fire."""
        self._status[request.request_id] = STATUSES.index(status)
        if status == ABANDONED:
            self.left_s[request.request_id] = self._env.now
        request.end(status)
        self._count(1)

    def refuse(self, request: Request, reason: str) -> None:
        """A request is refused, for a reason a person can read."""
        self.refusals[request.request_id] = reason
        self.end(request, REFUSED)

    def evict(self, request: Request) -> None:
        """A request was thrown out of a batch."""
        self._evictions[request.request_id] = request.num_evictions

    def batch(self, members: Sequence[Request], values: Sequence[float]) -> None:
        """A batch ends and its members with it; `values` are `BATCH_COLUMNS` without ``batch_id``."""
        self._members.extend([request.request_id for request in members])
        for request in members:
            request.end(FINISHED)
        self._batch_rows.extend(values)
        self._count(len(members))

    def decisions(self, decisions: Sequence[Decision], gpu_id: int) -> None:
        """The controller of a queue has decided, if it has."""
        if decisions:
            now_s = self._env.now
            self._decisions.extend((now_s, gpu_id, decision) for decision in decisions)

    def _count(self, num: int) -> None:
        self.num_ended += num
        if self.num_ended == self.num_requests:
            self.all_ended.succeed()

    def records(
        self, workload: Workload, predicted: np.ndarray, num_replicas: int, kv_capacity_tokens: int
    ) -> Records:
        """Put the tables together."""
        rows = np.frombuffer(self._batch_rows).reshape(-1, len(_BATCH_VALUES))
        batches = {
            name: rows[:, index].astype(BATCH_COLUMNS[name]) for index, name in enumerate(_BATCH_VALUES)
        }
        batches["batch_id"] = np.arange(len(rows))
        return Records(
            requests=self._request_table(workload, predicted, batches),
            batches=table(BATCH_COLUMNS, batches),
            controllers=self._controller_table(),
            num_replicas=num_replicas,
            kv_capacity_tokens=kv_capacity_tokens,
            refusals={int(workload.request_id[index]): reason for index, reason in self.refusals.items()},
        )

    def _request_table(
        self, workload: Workload, predicted: np.ndarray, batches: dict[str, np.ndarray]
    ) -> pd.DataFrame:
        """Spread the batches over their members: no process ever writes a request's times one by one."""
        members = np.frombuffer(self._members, dtype=np.int64)
        batch_of_member = np.repeat(batches["batch_id"], batches["batch_size"])

        def spread(name: str, missing: float) -> np.ndarray:
            column = np.full(self.num_requests, missing, dtype=batches[name].dtype)
            column[members] = batches[name][batch_of_member]
            return column

        evictions = np.zeros(self.num_requests, dtype=np.int32)
        evictions[list(self._evictions)] = list(self._evictions.values())
        status = np.frombuffer(self._status, dtype=np.int8)
        columns = {
            "request_id": workload.request_id,
            "arrival_s": workload.arrival_s,
            "prompt_tokens": workload.prompt_tokens,
            "output_tokens": workload.output_tokens,
            "predicted_output_tokens": predicted,
            "bin": spread("bin", -1),
            "gpu_id": spread("gpu_id", -1),
            "batch_id": spread("batch_id", -1),
            "batch_size": spread("batch_size", 0),
            "scheduled_s": spread("start_s", np.nan),
            "first_token_s": spread("first_token_s", np.nan),
            "finish_s": spread("finish_s", np.nan),
            "num_evictions": evictions,
            "status": pd.Categorical.from_codes(status, dtype=pd.CategoricalDtype(list(STATUSES))),
        }
        return table(REQUEST_COLUMNS, columns)

    def _controller_table(self) -> pd.DataFrame:
        rows = [(time_s, gpu_id, *decision) for time_s, gpu_id, decision in self._decisions]
        names = ("time_s", "gpu_id", "controller", "bin", "batch_size", "low", "high", "measured")
        columns = zip(*rows, strict=True) if rows else ((),) * len(names)
        return table(CONTROLLER_COLUMNS, dict(zip(names, columns, strict=True)))


assert STATUSES.index(FINISHED) == 0, "a request that ran leaves its status byte at zero"
