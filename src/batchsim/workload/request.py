"""What is asked of the cluster: a `Workload` is a table of requests in arrival order, held as columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.errors import TraceError
from batchsim.workload.columns import arrivals_s, listed, whole_numbers

Kind = Literal["real", "synthetic", "published format, origin not known", "unknown"]

PUBLISHED_FORMAT: Kind = "published format, origin not known"

REQUIRED_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a workload comes from, as every result repeats it.

    Attributes
    ----------
    name
        File name or generator, as a person would call it.
    kind
        ``synthetic`` for anything a generator made; ``real`` only where the file is known or labelled so,
        never because its columns look like it.
    sha256
        Hash of the file's bytes, or ``None`` for a workload made in memory.
    dropped
        Rows the reader left out, by reason, e.g. ``{"failed (0 output tokens)": 17}``.
    notices
        Sentences a user should see, e.g. that rows were sorted.
    """

    name: str = "in memory"
    kind: Kind = "unknown"
    sha256: str | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Requests sorted by arrival, then id. All arrays have shape ``(num_requests,)``.

    Attributes
    ----------
    request_id
        int64, unique; the row number in the source unless the source has ids.
    arrival_s
        float64, seconds, non-decreasing; zero is the start of the trace.
    prompt_tokens, output_tokens
        int64, at least 1 each. ``output_tokens`` is the truth: only the simulated GPU and the oracle see it.
    extra
        Further columns a source has (``model``, ``log_type``, ``session_id``, ...), object or numeric.
    """

    request_id: NDArray[np.int64]
    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    extra: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    source: Source = Source()

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, source: Source | None = None) -> Workload:
        """Check a table and make it a workload.

        Parameters
        ----------
        frame
            Columns ``arrival_s, prompt_tokens, output_tokens``; optional ``request_id``; others are kept as
            extra.
        source
            Provenance; a bare in-memory source if left out.

        Raises
        ------
        TraceError
            For a missing column, an empty table, or a value that is not a finite number >= 0 (arrival) or a
            whole number >= 1 (tokens). The row named is the index label of the frame. Unsorted arrivals are
            sorted and a notice is added to the source; equal ones come in the order of their ids.
        """
        source = source or Source()
        missing = [name for name in REQUIRED_COLUMNS if name not in frame.columns]
        if missing:
            raise TraceError(
                f"{source.name}: column {', '.join(missing)} missing; found {listed(frame.columns)}"
            )
        if frame.empty:
            raise TraceError(f"{source.name}: no requests in it; at least one row is needed")
        arrival_s = arrivals_s(frame, "arrival_s", source.name)
        tokens = {name: whole_numbers(frame, name, source.name) for name in REQUIRED_COLUMNS[1:]}
        if "request_id" in frame.columns:
            ids = whole_numbers(frame, "request_id", source.name, least=0, most=math.inf)
            if len(np.unique(ids)) != len(ids):
                raise TraceError(f"{source.name}: request_id must be unique")
        else:
            ids = np.arange(len(frame), dtype=np.int64)
        known = {*REQUIRED_COLUMNS, "request_id"}
        extra = {str(name): _values(frame[name]) for name in frame.columns if name not in known}

        gaps_s = np.diff(arrival_s)
        num_backwards = int(np.count_nonzero(gaps_s < 0))
        workload = cls(ids, arrival_s, tokens["prompt_tokens"], tokens["output_tokens"], extra, source)
        if num_backwards:
            notice = f"{source.name}: {num_backwards} rows go back in time; sorted by arrival"
            workload = workload.with_source(replace(source, notices=(*source.notices, notice)))
        if num_backwards or ((gaps_s == 0) & (np.diff(ids) < 0)).any():
            workload = workload.take(np.lexsort((ids, arrival_s)))
        return workload

    def __len__(self) -> int:
        return len(self.arrival_s)

    def take(self, which: slice | NDArray[Any]) -> Workload:
        """Return the requests that a slice, a boolean mask or an index array names, provenance kept."""
        return replace(
            self,
            request_id=self.request_id[which],
            arrival_s=self.arrival_s[which],
            prompt_tokens=self.prompt_tokens[which],
            output_tokens=self.output_tokens[which],
            extra={name: column[which] for name, column in self.extra.items()},
        )

    def with_arrivals(self, arrival_s: NDArray[np.float64]) -> Workload:
        """Return the same requests at other times (non-decreasing, same length)."""
        return replace(self, arrival_s=np.asarray(arrival_s, dtype=np.float64))

    def with_source(self, source: Source) -> Workload:
        """Return the same requests under another provenance."""
        return replace(self, source=source)

    def to_frame(self) -> pd.DataFrame:
        """Return the columns as a table, one row per request, extra columns last."""
        return pd.DataFrame(
            {
                "request_id": self.request_id,
                "arrival_s": self.arrival_s,
                "prompt_tokens": self.prompt_tokens,
                "output_tokens": self.output_tokens,
                **self.extra,
            }
        )

    @property
    def mean_rate_per_s(self) -> float:
        """Mean request rate, ``(n - 1) / (last - first arrival)``; NaN where all arrive at once."""
        span_s = float(self.arrival_s[-1] - self.arrival_s[0])
        return (len(self) - 1) / span_s if span_s > 0 else float("nan")


def _values(column: pd.Series[Any]) -> NDArray[Any]:
    """Return a column as it is, but text as one object per distinct one: a million rows share a few names."""
    if not isinstance(column.dtype, pd.StringDtype):
        return column.to_numpy()
    codes, texts = pd.factorize(column)
    return np.append(np.asarray(texts, dtype=object), np.nan)[codes]  # -1, of what is missing, is the last
