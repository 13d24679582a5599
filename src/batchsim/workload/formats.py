"""Read request traces of several origins into a `Workload`, and write our own.

Which format a file has is seen from its columns, never from its name; how tables are stored is for `tables`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.errors import ConfigError, TraceError
from batchsim.workload.request import REQUIRED_COLUMNS, Kind, Source, Workload
from batchsim.workload.tables import read_table, write_parquet, write_text

FAILED = "failed (0 output tokens)"
NO_PROMPT = "0 prompt tokens"

_MAX_WHOLE = 2.0**53  # the largest range in which float64 holds every whole number


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """Where a kind of trace keeps what we need.

    Attributes
    ----------
    arrival, prompt, output
        Column names, the case as in the file.
    units_per_s
        Arrival units in a second; ``None`` for wall-clock timestamps.
    kind
        What a file of this format is taken for unless it is labelled.
    extra
        Columns kept besides, with our names for them.
    """

    name: str
    arrival: str
    prompt: str
    output: str
    units_per_s: float | None = 1.0
    kind: Kind = "real"
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, str, str]:
        """The columns a file of this format must have."""
        return (self.arrival, self.prompt, self.output)


OWN_FORMAT = TraceFormat("batchsim", "arrival_s", "prompt_tokens", "output_tokens", kind="unknown")
FORMATS: Mapping[str, TraceFormat] = {
    known.name: known
    for known in (
        OWN_FORMAT,
        TraceFormat(
            "burstgpt",
            "Timestamp",
            "Request tokens",
            "Response tokens",
            extra={"Model": "model", "Log Type": "log_type", "Session ID": "session_id"},
        ),
        TraceFormat("azure", "TIMESTAMP", "ContextTokens", "GeneratedTokens", units_per_s=None),
        TraceFormat(
            "mooncake", "timestamp", "input_length", "output_length", 1e3, extra={"hash_ids": "hash_ids"}
        ),
        # its generator draws the arrivals, whatever the prompts are
        TraceFormat(
            "llmservingsim",
            "arrival_time_ns",
            "input_toks",
            "output_toks",
            1e9,
            kind="synthetic",
            extra={"hash_ids_16": "hash_ids_16"},
        ),
    )
}


def read_trace(path: str | Path, format: str | None = None) -> Workload:
    """Read a trace file: CSV, JSON lines (either may be gzipped) or Parquet.

    Parameters
    ----------
    path
        The file.
    format
        A key of `FORMATS` where the columns must be read as that format; found from the columns if left out.

    Notes
    -----
    Foreign formats are shifted so that the first request kept arrives at 0; rows with 0 response tokens
    (failures) and with 0 prompt tokens are dropped and counted in ``source.dropped``. Our own format is not
    shifted (a notice says so where the first arrival is not 0), and a zero in it is an error. A file is
    ``synthetic`` if a ``# synthetic`` line stands at its top or its name says so.

    Raises
    ------
    TraceError
        One sentence with file and row (the line in the file, for text) for anything that cannot be read.
    """
    path = Path(path)
    table, label, sha256 = read_table(path)
    known = _find_format(table, path.name, format)
    if "synthetic" in path.name.lower():
        label = "synthetic"
    source = Source(path.name, label or known.kind, sha256)
    return _own(table, source) if known is OWN_FORMAT else _foreign(table, known, source)


def write_trace(workload: Workload, path: str | Path) -> None:
    """Write our own format; ``.csv``, ``.csv.gz`` or ``.parquet`` by the name.

    Same workload, same bytes. Where the kind is known, a ``# synthetic: name`` or ``# real: name`` line
    (metadata in Parquet) keeps it.

    Raises
    ------
    ConfigError
        For another suffix, or lists (``hash_ids``) that CSV cannot hold.
    """
    path = Path(path)
    frame = workload.to_frame()
    if np.array_equal(workload.request_id, np.arange(len(workload))):
        frame = frame.drop(columns="request_id")
    kind, name = workload.source.kind, " ".join(workload.source.name.split())
    if path.suffix == ".parquet":
        write_parquet(path, frame, kind, name)
        return
    lists = [
        key
        for key, column in workload.extra.items()
        if len(column) and isinstance(column[0], list | np.ndarray)
    ]
    if lists:
        raise ConfigError(f"{path}: column {lists[0]} holds lists, which CSV cannot; write .parquet instead")
    label = "" if kind == "unknown" else f"# {kind}: {name}\n"
    write_text(path, label + frame.to_csv(index=False, lineterminator="\n"))


def _find_format(table: pd.DataFrame, where: str, asked: str | None) -> TraceFormat:
    if asked is not None and asked not in FORMATS:
        raise ConfigError(f"trace format {asked!r} is unknown; known are {', '.join(FORMATS)}")
    candidates = FORMATS.values() if asked is None else [FORMATS[asked]]
    for known in candidates:
        if set(known.columns) <= set(table.columns):
            if table.empty:
                raise TraceError(f"{where}: a header but no rows")
            return known
    closest = max(candidates, key=lambda known: len(set(known.columns) & set(table.columns)))
    missing = [name for name in closest.columns if name not in table.columns]
    raise TraceError(
        f"{where}: column {', '.join(missing)} missing, found {', '.join(map(str, table.columns))}; "
        f"{_understood()}"
    )


def _own(table: pd.DataFrame, source: Source) -> Workload:
    for name in (*REQUIRED_COLUMNS, "request_id"):
        if name in table:
            _numbers(table, name, source.name, least=0)
    workload = Workload.from_frame(table, source)
    first_s = float(workload.arrival_s[0])
    if first_s == 0:
        return workload
    notice = f"{source.name}: the first request arrives at {first_s:g} s, not at 0; times are kept"
    return workload.with_source(replace(workload.source, notices=(*workload.source.notices, notice)))


def _foreign(table: pd.DataFrame, known: TraceFormat, source: Source) -> Workload:
    if known.units_per_s is None:
        arrival_s = _wall_clock_s(table, known.arrival, source.name)
    else:
        # less the first row before scaling: large offsets would cost digits
        arrival = _numbers(table, known.arrival, source.name, least=0)
        arrival_s = (arrival - arrival.min()) / known.units_per_s
    prompt_tokens = _numbers(table, known.prompt, source.name, least=0)
    output_tokens = _numbers(table, known.output, source.name, least=0)
    has_failed = output_tokens == 0
    has_no_prompt = (prompt_tokens == 0) & ~has_failed
    keep = ~(has_failed | has_no_prompt)
    counts = {FAILED: int(has_failed.sum()), NO_PROMPT: int(has_no_prompt.sum())}
    source = Source(
        source.name, source.kind, source.sha256, {reason: num for reason, num in counts.items() if num}
    )
    if not keep.any():
        raise TraceError(f"{source.name}: no row has prompt and output tokens; at least one is needed")
    frame = pd.DataFrame(
        {
            "arrival_s": arrival_s - arrival_s[keep].min(),
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            **{ours: table[theirs] for theirs, ours in known.extra.items() if theirs in table},
        },
        index=table.index,
    )
    return Workload.from_frame(frame[keep], source)


def _numbers(table: pd.DataFrame, name: str, where: str, least: float) -> NDArray[np.float64]:
    column = table[name]
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    bad = ~((values >= least) & (values <= _MAX_WHOLE))
    if bad.any():
        _refuse(column, int(np.argmax(bad)), where, f"a number >= {least:g} is needed")
    return values


def _wall_clock_s(table: pd.DataFrame, name: str, where: str) -> NDArray[np.float64]:
    times = pd.to_datetime(table[name], format="ISO8601", utc=True, errors="coerce")
    bad = times.isna().to_numpy()
    if bad.any():
        _refuse(
            table[name],
            int(np.argmax(bad)),
            where,
            "a date and time such as 2023-11-16 18:15:46.6805900 is needed",
        )
    ticks = times.dt.as_unit("ns").astype("int64").to_numpy()
    return np.asarray((ticks - ticks.min()) / 1e9)


def _refuse(column: pd.Series, position: int, where: str, needed: str) -> None:
    value = column.iloc[position]
    shown = "missing" if value is None or value is pd.NA or value != value else repr(value)
    raise TraceError(f"{where}, row {column.index[position]}: {column.name} is {shown}; {needed}")


def _understood() -> str:
    return "understood are " + ", ".join(
        f"{known.name} ({', '.join(known.columns)})" for known in FORMATS.values()
    )
