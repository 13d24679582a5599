"""The calibration table: its schema and its reader. `grid` interpolates in it, `fitting` fits it.

A calibration is a CSV file, and beside it a JSON file of the same stem that says where it comes from: its
``kind`` is ``measured``, ``derived`` or ``synthetic``; the rest (``gpu``, ``model``, ``dtype``, ``driver``,
``date``, ``command`` ...) is copied as it is. Without that file the rows count as synthetic. Two forms are
read.

Raw trials, one row each; further columns are allowed and ignored:

==================  ========================================================================================
``kind``            ``batch`` (a whole padded batch), ``prefill``, ``decode`` (one step), ``mixed`` (a pass
                    with ``prompt_tokens`` of prefill beside ``batch_size`` decodes) or ``chunk`` (a pass of
                    ``prompt_tokens`` that follow ``context_tokens`` of the same prompt)
``batch_size``      sequences, at least 1
``prompt_tokens``   per sequence; needed for batch, prefill, mixed and chunk, else ignored
``output_tokens``   per sequence; needed for batch, else ignored
``context_tokens``  KV tokens each sequence holds before; needed for decode, mixed and chunk, else ignored
``trial``           number of the repetition
``wall_s``          seconds by the wall clock, around a synchronised device
``cuda_s, cpu_s``   seconds by device events and of process CPU time; optional
``status``          ``ok``, ``oom`` or ``disturbed``; only ok rows are used, the others are counted
==================  ========================================================================================

Aggregated, one row per point: ``batch_size, max_seq_len, mean_latency_sec, std_latency_sec, num_trials``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

from batchsim.errors import TraceError
from batchsim.files import read_json
from batchsim.files.tables import CsvTable, read_csv
from batchsim.latency.base import Provenance
from batchsim.latency.choices import Clock

PROVENANCES: tuple[Provenance, ...] = get_args(Provenance)
STATUSES = ("ok", "oom", "disturbed")
#: The token counts that a row of each kind must have.
TOKENS_OF_KIND: Mapping[str, tuple[str, ...]] = {
    "batch": ("prompt_tokens", "output_tokens"),
    "prefill": ("prompt_tokens",),
    "decode": ("context_tokens",),
    "mixed": ("prompt_tokens", "context_tokens"),
    "chunk": ("prompt_tokens", "context_tokens"),
}
TOKENS = ("prompt_tokens", "output_tokens", "context_tokens")
RAW_COLUMNS = ("kind", "batch_size", *TOKENS, "trial", "wall_s", "status")
AGGREGATED_COLUMNS = ("batch_size", "max_seq_len", "mean_latency_sec", "std_latency_sec", "num_trials")

#: Points of a table, each of which is held out of fits in turn, and what one may be of: sums of products of
#: these counts stay exact.
MAX_POINTS = 10_000
MAX_BATCH_SIZE = 10**6
MAX_TOKENS = 10**8

_POINT = ["kind", "batch_size", *TOKENS, "max_seq_len"]


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Latencies at points, each the mean of its trials.

    Attributes
    ----------
    points
        One row per point: ``kind, batch_size``, token counts (NaN where the kind has none), ``max_seq_len``
        (of the aggregated form only), ``mean_s``, ``std_s`` (of single trials; NaN for one), ``num_trials``.
    provenance
        ``measured`` only if the file beside the table says so.
    details
        The rest of that file.
    is_raw
        Whether the table held trials, not means.
    sha256
        Hash of the table's bytes.
    dropped
        Trials left out, by status.
    notices
        Sentences a user should see.
    clock
        By which raw trials were timed.
    clocks
        By which all of them were.
    """

    name: str
    points: pd.DataFrame
    provenance: Provenance
    details: Mapping[str, object]
    is_raw: bool
    sha256: str
    dropped: Mapping[str, int]
    notices: tuple[str, ...]
    clock: Clock = "wall_s"
    clocks: tuple[Clock, ...] = ("wall_s",)

    def of_kind(self, kind: str) -> pd.DataFrame:
        """Return the points of one kind, numbered from 0."""
        return self.points[self.points["kind"] == kind].reset_index(drop=True)

    def noise_of(self, kind: str) -> float:
        """Mean, over the points of a kind, of the standard error of their mean, relative to it.

        Held-out errors hold that much noise however right a form is. NaN if no point has several trials.
        """
        points = self.of_kind(kind)
        return float((points["std_s"] / np.sqrt(points["num_trials"]) / points["mean_s"]).mean())


def read_calibration(path: str | Path, clock: Clock = "wall_s") -> Calibration:
    """Read a calibration table and its provenance.

    Parameters
    ----------
    path
        The CSV file, raw or aggregated.
    clock
        Which time of raw trials to use.

    Raises
    ------
    TraceError
        If the file is absent, empty or lacks a column, or a row holds a latency that is not a finite number
        > 0 or a count that is not a whole number >= 1.
    """
    table = read_csv(path)
    path, names = table.path, table.frame.columns
    is_raw = "mean_latency_sec" not in names
    table.need([*RAW_COLUMNS, *({clock} - {"wall_s"})] if is_raw else AGGREGATED_COLUMNS)
    if table.frame.empty:
        raise TraceError(f"{path}: no rows in it; at least one point is needed")

    dropped: dict[str, int] = {}
    clocks: tuple[Clock, ...] = ("wall_s",)
    if is_raw:
        status = table.words("status", STATUSES)
        dropped = {one: int((status == one).sum()) for one in STATUSES[1:] if (status == one).any()}
        table = table.where(status == "ok")
        if table.frame.empty:
            raise TraceError(f"{path}: no row has status ok; at least one is needed")
        rows = _raw_rows(table, clock)
        clocks = tuple(one for one in get_args(Clock) if one in names and (table.frame[one] != "").all())
    else:
        rows = _aggregated_rows(table)
    num_points = len(rows.drop_duplicates(_POINT))
    if num_points > MAX_POINTS:
        raise TraceError(f"{path}: holds {num_points:,} points; at most {MAX_POINTS:,} are needed")
    points = _points(rows)
    provenance, details, notices = _provenance(path)
    notices += _looks_generated(points, path.name) if not is_raw else ()
    return Calibration(
        path.name, points, provenance, details, is_raw, table.sha256, dropped, notices, clock, clocks
    )


def _raw_rows(table: CsvTable, clock: Clock) -> pd.DataFrame:
    kind = table.words("kind", tuple(TOKENS_OF_KIND))
    rows = pd.DataFrame({"kind": kind, "batch_size": table.counts("batch_size", most=MAX_BATCH_SIZE)})
    for name in TOKENS:
        needed = kind.map(lambda one, name=name: name in TOKENS_OF_KIND[one]).astype(bool)
        rows[name] = table.where(needed).counts(name, most=MAX_TOKENS).reindex(kind.index)
    rows["max_seq_len"] = np.nan
    rows["mean_s"] = table.times(clock)
    return rows.assign(std_s=0.0, num_trials=1.0)


def _aggregated_rows(table: CsvTable) -> pd.DataFrame:
    rows = pd.DataFrame({"kind": "batch", "batch_size": table.counts("batch_size", most=MAX_BATCH_SIZE)})
    rows[[*TOKENS]] = np.nan
    rows["max_seq_len"] = table.counts("max_seq_len", most=MAX_TOKENS)
    rows["mean_s"] = table.times("mean_latency_sec")
    rows["std_s"] = table.spreads("std_latency_sec")
    rows["num_trials"] = table.counts("num_trials", most=MAX_TOKENS)
    return rows


def _points(rows: pd.DataFrame) -> pd.DataFrame:
    """Pool the rows of each point: trials, or means that carry the spread of theirs."""
    pooled = []
    for point, group in rows.groupby(_POINT, dropna=False):
        num, mean_s, std_s = (group[name].to_numpy() for name in ("num_trials", "mean_s", "std_s"))
        centre_s = np.average(mean_s, weights=num)
        squares = np.sum((num - 1) * std_s**2 + num * (mean_s - centre_s) ** 2)
        spread_s = np.sqrt(squares / (num.sum() - 1)) if num.sum() > 1 else np.nan
        pooled.append((*point, centre_s, spread_s, num.sum()))
    points = pd.DataFrame(pooled, columns=[*_POINT, "mean_s", "std_s", "num_trials"])
    return points.astype({"batch_size": "int64", "num_trials": "int64"})


def _provenance(path: Path) -> tuple[Provenance, dict[str, object], tuple[str, ...]]:
    beside = path.with_suffix(".json")
    if not beside.exists():
        notice = f"{path.name}: no {beside.name} beside it says where it comes from; it counts as synthetic"
        return "synthetic", {}, (notice,)
    details = read_json(beside, error=TraceError)
    kind = details.pop("kind", None) if isinstance(details, dict) else None
    for known in PROVENANCES:
        if kind == known:
            return known, details, ()
    raise TraceError(f"{beside}: kind is {kind!r:.60}; known: {', '.join(PROVENANCES)}")


def _looks_generated(points: pd.DataFrame, name: str) -> tuple[str, ...]:
    """Real spreads differ from point to point; a spread that is one share of every mean was made up."""
    share = points["std_s"] / points["mean_s"]
    if len(share) < 5 or not share.min() > 0 or share.max() / share.min() > 1.02:
        return ()
    return (f"{name}: the spread is {share.mean():.1%} of the mean at every point; measured spreads differ",)
