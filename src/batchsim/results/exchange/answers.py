"""A run as its clients saw it: when each request was sent, and when the pieces of its answer came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from batchsim.metrics.tokens import answer_times_s
from batchsim.records import FINISHED, arrays, has_status

Nanoseconds = NDArray[np.int64]

_REASONS = {
    "abandoned": "given up before its first token",
    "stranded": "not scheduled before the end of the run",
    "failed": "lost with its replica",
}


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Requests in order of arrival, in whole nanoseconds since the start of the trace.

    Attributes
    ----------
    requests
        The table of the run.
    sent_ns
        When each request arrived, ``(num_requests,)``.
    pieces_ns
        When the pieces of each answer came: its tokens, or those of a step with drafts together. None of a
        request that did not finish.
    reasons
        Why there is none, as text; empty where there is an answer.
    has_first, has_gaps
        Whether it is told when first tokens came, and when those between the first and the last did.
    """

    requests: pd.DataFrame
    sent_ns: Nanoseconds
    pieces_ns: Sequence[Nanoseconds]
    reasons: Sequence[str]
    has_first: bool
    has_gaps: bool

    @property
    def notices(self) -> tuple[str, ...]:
        """What clients of this run would have seen, and the run does not tell: a sentence each."""
        if self.has_gaps:
            return ()
        if self.has_first:
            return (
                "the run does not tell when each token came, as batches that run to completion and imported "
                "results do not; what follows the first is one piece",
            )
        return ("the run does not tell when first tokens came; each answer is one piece",)


def answers_of(tables: Mapping[str, pd.DataFrame], refusals: Mapping[str, str]) -> Answers:
    """Make them of the tables of a run and the reasons of its refusals, by request id."""
    requests = tables["requests"]
    columns = arrays(requests)
    is_finished = has_status(columns, FINISHED)
    first_s, finish_s = columns["first_token_s"], columns["finish_s"]
    has_first = bool(np.isfinite(first_s[is_finished]).any())
    if "iterations" in tables:
        times = answer_times_s(columns, arrays(tables["iterations"]), arrays(tables["preemptions"]))
        pieces = [_ns(times_s) for times_s in times]
    else:
        ends = zip(is_finished.tolist(), _ns(first_s), _ns(finish_s), np.isfinite(first_s), strict=True)
        pieces = [
            np.unique([first, finish] if is_told else [finish]) if finished else np.empty(0, np.int64)
            for finished, first, finish, is_told in ends
        ]
    reasons = [
        "" if status == FINISHED else refusals.get(str(id_)) or _REASONS.get(status, status)
        for id_, status in zip(columns["request_id"].tolist(), requests["status"].tolist(), strict=True)
    ]
    return Answers(
        requests, _ns(columns["arrival_s"]), pieces, reasons, has_first, has_gaps="iterations" in tables
    )


def _ns(times_s: ArrayLike) -> Nanoseconds:
    """Whole nanoseconds; what is no time, whatever."""
    rounded: Nanoseconds = np.rint(np.nan_to_num(np.asarray(times_s, np.float64)) * 1e9).astype(np.int64)
    return rounded


def seconds(times_ns: ArrayLike) -> Any:
    """Seconds as short as they can be written, as lists of Python's own numbers."""
    return (np.asarray(times_ns) / 1e9).tolist()
