"""Where replicas write down what happened, as columns; read once, after the run."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any

import numpy as np
import pandas as pd
import simpy
from numpy.typing import NDArray

from batchsim.records import (
    FINISHED,
    ITERATION_COLUMNS,
    ITERATION_REQUEST_COLUMNS,
    KV_COPY_COLUMNS,
    PREEMPTION_COLUMNS,
    PREEMPTION_MODES,
    TRANSFER_COLUMNS,
    Records,
    empty,
    table,
)
from batchsim.sim.recording.recorder import Recorder
from batchsim.sim.recording.step_log import StepLog
from batchsim.sim.request import Request
from batchsim.workload.request import Workload


class Rows:
    """Rows of numbers, written as ``rows.add(rows.pack(*values))`` and read back as columns.

    One is written for every event. Packing a row costs a fraction of appending its values to an array, and a
    whole number costs most where a float is stored, so each has the type of its column.
    """

    __slots__ = ("_dtype", "_packed", "add", "pack")

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self._dtype = np.dtype(list(columns.items()))
        self._packed = bytearray()
        self.add = self._packed.extend
        codes = (_STRUCT_CODES[self._dtype[name]] for name in columns)
        self.pack = Struct("=" + "".join(codes)).pack

    @property
    def num_bytes(self) -> int:
        """Of all that was written so far."""
        return len(self._packed)

    def columns(self, sort_by: str | None = None) -> dict[str, Any]:
        """What was written, by column; nothing can be added any more."""
        rows = np.frombuffer(self._packed, dtype=self._dtype)
        if sort_by is not None:
            order = np.argsort(rows[sort_by], kind="stable")
            for name in self._dtype.names or ():  # in place: a long run has hundreds of megabytes of them
                rows[name] = rows[name][order]
        return {name: rows[name] for name in self._dtype.names or ()}


_STRUCT_CODES = dict(zip(map(np.dtype, ("?", "i2", "i4", "i8", "f8")), "?hiqd", strict=True))

#: What a finished request writes.
_FINISHED_COLUMNS = {
    "row": np.int64,
    **{
        name: ITERATION_REQUEST_COLUMNS[name]
        for name in (
            "gpu_id",
            "bin",
            "scheduled_s",
            "first_token_s",
            "decode_start_s",
            "finish_s",
            "cached_tokens",
        )
    },
}


class IterationRecorder(Recorder):
    """Columns of a run in which engines batch at every iteration.

    Attributes
    ----------
    spans
        A row of `ITERATION_COLUMNS` for each span that has ended.
    transfers
        A row of `TRANSFER_COLUMNS` for each transfer that has ended; requests by row.
    steps
        Steps of speculative decoding.
    kv_copies
        A row of `KV_COPY_COLUMNS` for each copy that has ended; requests by row.
    tiers
        Names of the tiers that these lead to.
    """

    def __init__(self, env: simpy.Environment, num_requests: int) -> None:
        super().__init__(env, num_requests)
        self._finished = Rows(_FINISHED_COLUMNS)
        self.spans = Rows(ITERATION_COLUMNS)
        self.transfers = Rows(TRANSFER_COLUMNS)
        self.steps = StepLog()
        self.kv_copies = Rows(KV_COPY_COLUMNS)
        self.tiers: tuple[str, ...] = ()
        self._preemptions = array("d")
        self._recomputed: dict[int, int] = {}
        self._num_preemptions: dict[int, int] = {}

    def finish(self, request: Request, replica_id: int, now_s: float) -> None:
        """A request has its last token."""
        request_id, rows = request.request_id, self._finished
        rows.add(
            rows.pack(
                request_id,
                replica_id,
                request.bin,
                request.scheduled_s,
                request.first_token_s,
                request.decode_start_s,
                now_s,
                request.cached_tokens,
            )
        )
        if request.recomputed_tokens:
            self._recomputed[request_id] = request.recomputed_tokens
        request.end(FINISHED)
        self._count(1)

    def preempt(
        self,
        request: Request,
        replica_id: int,
        now_s: float,
        decode_start_s: float,
        lost_tokens: int,
        mode: str,
    ) -> None:
        """A request was preempted, or paused."""
        request_id, code = request.request_id, PREEMPTION_MODES.index(mode)
        if request.num_preemptions:
            self._num_preemptions[request_id] = request.num_preemptions
        self._preemptions.extend((request_id, replica_id, now_s, code, decode_start_s, lost_tokens))

    def iteration_records(
        self, workload: Workload, predicted: NDArray[np.int64], kv_blocks: Sequence[int], block_size: int
    ) -> Records:
        """Put the tables together."""
        spans = self.spans.columns("finish_s" if len(kv_blocks) > 1 else None)
        rows = np.frombuffer(self._preemptions).reshape(-1, len(PREEMPTION_COLUMNS))
        preemptions: dict[str, Any] = dict(zip(PREEMPTION_COLUMNS, rows.T, strict=True))
        preemptions["request_id"] = workload.request_id[preemptions["request_id"].astype(np.int64)]
        modes = pd.CategoricalDtype(list(PREEMPTION_MODES))
        preemptions["mode"] = pd.Categorical.from_codes(preemptions["mode"].astype(np.int8), dtype=modes)
        transfers = self.transfers.columns()
        transfers["request_id"] = workload.request_id[transfers["request_id"]]
        kv_copies = self.kv_copies.columns()
        is_up = kv_copies["request_id"] >= 0
        kv_copies["request_id"][is_up] = workload.request_id[kv_copies["request_id"][is_up]]
        base = self.records(workload, predicted, len(kv_blocks), int(np.mean(kv_blocks)) * block_size)
        iterations = table(ITERATION_COLUMNS, spans)
        if self.steps.steps:
            iterations = iterations.assign(decode_tokens=self.steps.tokens_of(iterations))
        return Records(
            requests=self._iteration_requests(base.requests),
            batches=base.batches,
            controllers=base.controllers,
            num_replicas=base.num_replicas,
            kv_capacity_tokens=base.kv_capacity_tokens,
            refusals=base.refusals,
            iterations=iterations,
            preemptions=table(PREEMPTION_COLUMNS, preemptions),
            transfers=_table_or_empty(TRANSFER_COLUMNS, transfers),
            decode_steps=self.steps.table(workload.request_id),
            kv_copies=_table_or_empty(KV_COPY_COLUMNS, kv_copies),
            kv_blocks=tuple(kv_blocks),
            tiers=self.tiers,
        )

    def _iteration_requests(self, requests: pd.DataFrame) -> pd.DataFrame:
        """Fill in what finished requests have written."""
        values = self._finished.columns()
        rows = values.pop("row")
        columns: dict[str, Any] = {str(name): requests[name] for name in requests.columns}
        missing = {"bin": -1, "gpu_id": -1, "cached_tokens": 0}
        for name, column in values.items():
            filled = np.full(len(requests), missing.get(name, np.nan))
            filled[rows] = column
            columns[name] = filled
        for name, counts in (
            ("recomputed_tokens", self._recomputed),
            ("num_preemptions", self._num_preemptions),
        ):
            filled = np.zeros(len(requests), dtype=np.int64)
            filled[list(counts)] = list(counts.values())
            columns[name] = filled
        return table(ITERATION_REQUEST_COLUMNS, columns)


def _table_or_empty(columns: Mapping[str, Any], values: Mapping[str, Any]) -> pd.DataFrame:
    """The table, made at no cost where nothing was written."""
    return table(columns, values) if len(values["request_id"]) else empty(columns)
