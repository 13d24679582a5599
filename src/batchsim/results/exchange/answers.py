"""A run as its clients saw it: when each request was sent, and when the pieces of its answer came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from batchsim.errors import ConfigError
from batchsim.files.tables import MOST_S
from batchsim.metrics.tokens import answer_times_s
from batchsim.records import FINISHED, arrays, has_status

Nanoseconds = NDArray[np.int64]

#: What the log of iterations and the table of requests may differ by, for rounding.
_CLOCK_NS = 1000

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
    """Make them of the tables of a run and the reasons of its refusals, by request id.

    Raises
    ------
    ConfigError
        If the tokens of a request are not where it finished.
    """
    requests = tables["requests"]
    columns = arrays(requests)
    is_finished = has_status(columns, FINISHED)
    first_s, finish_s = columns["first_token_s"], columns["finish_s"]
    has_first = bool(np.isfinite(first_s[is_finished]).any())
    if "iterations" in tables:
        times = answer_times_s(columns, arrays(tables["iterations"]), arrays(tables["preemptions"]))
        pieces = [_ns(times_s) for times_s in times]
        _check_pieces(pieces, columns, is_finished)
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


def _check_pieces(
    pieces: Sequence[Nanoseconds], requests: Mapping[str, Any], is_finished: NDArray[np.bool_]
) -> None:
    ends = zip(pieces, _ns(requests["arrival_s"]), _ns(requests["finish_s"]), strict=True)
    for row, (pieces_ns, sent_ns, finish_ns) in enumerate(ends):
        if is_finished[row] and not (
            len(pieces_ns) and pieces_ns[0] >= sent_ns and abs(pieces_ns[-1] - finish_ns) < _CLOCK_NS
        ):
            raise ConfigError(
                f"request {requests['request_id'][row]}: the table of iterations does not hold its tokens, "
                "from its arrival to its finish; the tables of one run are needed"
            )


def check_times(requests: pd.DataFrame, where: str | Path) -> None:
    """Raise `ConfigError` about the first request whose times are none, or not in their order."""
    sent_s, first_s, finish_s = (
        requests[name].to_numpy() for name in ("arrival_s", "first_token_s", "finish_s")
    )
    needed = has_status(arrays(requests), FINISHED)
    first_s = np.where(np.isnan(first_s), sent_s, first_s)
    with np.errstate(invalid="ignore"):
        is_good = (sent_s >= 0) & (sent_s <= MOST_S)
        is_good &= ~needed | ((first_s >= sent_s) & (finish_s >= first_s) & (finish_s <= MOST_S))
    if not is_good.all():
        row = int(np.argmin(is_good))
        raise ConfigError(
            f"{where}, row {row + 1}: request sent at {sent_s[row]:g} s, first token at {first_s[row]:g} s, "
            f"finished at {finish_s[row]:g} s; times in this order, from 0 to {MOST_S:g} s, are needed"
        )


def _ns(times_s: ArrayLike) -> Nanoseconds:
    """Whole nanoseconds; what is no time, whatever."""
    known_s = np.clip(np.nan_to_num(np.asarray(times_s, np.float64)), -MOST_S, MOST_S)
    rounded: Nanoseconds = np.rint(known_s * 1e9).astype(np.int64)
    return rounded


def is_simulated(manifest: Mapping[str, Any]) -> bool:
    """Whether a run is a simulation, also one that was exported and imported; else it was measured."""
    return bool(manifest.get("is_simulated", not str(manifest.get("kind")).startswith("measured")))


def seconds(times_ns: ArrayLike) -> Any:
    """Seconds as short as they can be written, as lists of Python's own numbers."""
    return (np.asarray(times_ns) / 1e9).tolist()
