"""A measured run simulated with the durations that were recorded in it.

With these durations the simulator has to take the decisions of the real run at the real run's times: what
differs then is scheduling logic, not the latency model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np
import pandas as pd

from batchsim.latency.base import (
    RECORDED_FIELDS,
    BatchShape,
    BatchTime,
    DecodeLine,
    Domain,
    IterationShape,
    LatencyInfo,
)
from batchsim.metrics.requests import e2e_s, ttft_s
from batchsim.study.result import SimulationResult
from batchsim.study.setup.hardware import AnyLatency
from batchsim.validation.replays.measured_replay import Recording

#: What makes two operations alike: an iteration its shape, a batch its bin and the lengths of its members.
_SHAPES = {
    "iterations": RECORDED_FIELDS,
    "batches": (
        "bin",
        "batch_size",
        "num_evicted",
        "max_prompt_tokens",
        "max_output_tokens",
        "sum_prompt_tokens",
        "sum_output_tokens",
    ),
}
_INFO = LatencyInfo("recorded durations", "measured")


class Mismatch(NamedTuple):
    """The first operation that the simulation did not run as the engine did; what differs, by column.

    Where one of the two ran no such operation, its side is empty.
    """

    number: int
    recorded: Mapping[str, float]
    simulated: Mapping[str, float]

    def __str__(self) -> str:
        sides = (
            ", ".join(f"{name} {value:g}" for name, value in side.items()) or "none"
            for side in (self.recorded, self.simulated)
        )
        return "operation {}: {} recorded, {} simulated".format(self.number, *sides)


@dataclass(frozen=True, slots=True, eq=False)
class RecordedReplay:
    """A measured run, simulated with its own durations.

    Attributes
    ----------
    result
        Of the simulation.
    num_operations, num_alike
        Recorded iterations or batches, and those of them that the simulation ran in the same place with the
        same shape.
    first_mismatch
        None if all are alike, and the simulation ran no further ones.
    largest_difference_s
        Between the two, of the TTFT or E2E time of any request; infinite if not the same requests finished.
    """

    result: SimulationResult
    num_operations: int
    num_alike: int
    first_mismatch: Mismatch | None
    largest_difference_s: float


def replay_recorded(recording: Recording) -> RecordedReplay:
    """Simulate a measured run with its recorded durations, handed out in order; policies decide anew."""
    result = recording.simulate(_recorded_latency(recording), exact=True)
    recorded, simulated = (
        table[list(_SHAPES[recording.world])].reset_index(drop=True)
        for table in (recording.operations, result.tables[recording.world])
    )
    num_common = min(len(recorded), len(simulated))
    alike = recorded[:num_common].eq(simulated[:num_common]).all(axis=1).to_numpy()
    is_same = bool(alike.all()) and len(recorded) == len(simulated)
    return RecordedReplay(
        result,
        len(recorded),
        int(alike.sum()),
        None if is_same else _mismatch(recorded, simulated, int(np.argmin([*alike, False]))),
        _largest_difference_s(recording.requests, result.requests),
    )


@dataclass(slots=True)
class RecordedIterationLatency:
    """Hand out recorded durations of iterations in order, one a call, whatever the shape.

    After the last one it goes on with their mean, so that a run that went astray ends.
    """

    durations_s: Sequence[float]
    info: LatencyInfo = _INFO
    is_bounded: bool = False
    _following_s: Iterator[float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._following_s = chain(self.durations_s, repeat(float(np.mean(self.durations_s))))

    def covers(self, shape: IterationShape) -> bool:
        """Any shape."""
        return True

    def iteration_s(self, shape: IterationShape) -> float:
        """Return the next duration."""
        return next(self._following_s)

    def decode_line(self, decode_seqs: int, context_tokens: int) -> DecodeLine:
        """Return the next duration, for one iteration."""
        return DecodeLine(next(self._following_s), 0.0, 1)


@dataclass(slots=True)
class RecordedBatchLatency:
    """Hand out recorded times of batches in order, one a call, whatever the shape; then their mean."""

    times: Sequence[BatchTime]
    info: LatencyInfo = _INFO
    domain: Domain = field(default_factory=Domain)
    _following: Iterator[BatchTime] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        mean = BatchTime(*np.mean(self.times, axis=0).tolist())
        self._following = chain(self.times, repeat(mean))

    def batch_time(self, shape: BatchShape) -> BatchTime:
        """Return the next time."""
        return next(self._following)


def _recorded_latency(recording: Recording) -> AnyLatency:
    if recording.world == "iterations":
        return RecordedIterationLatency(recording.durations_s)
    first_tokens_s = recording.operations["first_token_s"] - recording.operations["start_s"]
    return RecordedBatchLatency(list(map(BatchTime, first_tokens_s.tolist(), recording.durations_s)))


def _mismatch(recorded: pd.DataFrame, simulated: pd.DataFrame, number: int) -> Mismatch:
    one, other = (
        {str(name): float(value) for name, value in table.iloc[number].items()} if number < len(table) else {}
        for table in (recorded, simulated)
    )
    differing = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return Mismatch(
        number, *({name: side[name] for name in differing if name in side} for side in (one, other))
    )


def _largest_difference_s(measured: pd.DataFrame, simulated: pd.DataFrame) -> float:
    """Of times since arrival: the trace may have been rounded when it was written."""
    differences_s = [
        (metric(measured.set_index("request_id")) - metric(simulated.set_index("request_id"))).abs()
        for metric in (ttft_s, e2e_s)
    ]
    is_same_end = set(_finished_ids(measured)) == set(_finished_ids(simulated))
    return float(pd.concat(differences_s).max()) if is_same_end else float("inf")


def _finished_ids(requests: pd.DataFrame) -> pd.Series[int]:
    return requests.loc[requests["finish_s"].notna(), "request_id"]
