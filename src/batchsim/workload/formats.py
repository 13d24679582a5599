"""Read request traces of several origins into a `Workload`, and write our own.

Which format a file has is seen from its columns, never from its name; how tables are stored is for `tables`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchsim.errors import ConfigError, TraceError
from batchsim.files.tables import csv_text, unmarked
from batchsim.records import ITERATION_REQUEST_COLUMNS
from batchsim.workload.columns import MOST_TOKENS, arrivals_s, listed, numbers, whole_numbers
from batchsim.workload.prefixes import id_column
from batchsim.workload.published import (
    FAILED,
    FORMATS,
    NO_PROMPT,
    OWN_FORMAT,
    Reading,
    TraceFormat,
    convert,
    delays_s,
    ids_of,
)
from batchsim.workload.request import REQUIRED_COLUMNS, Source, Workload
from batchsim.workload.sessions import DELAY_COLUMN, session_ids
from batchsim.workload.tables import read_table, write_parquet, write_text
from batchsim.workload.tenants import labels_of

__all__ = ["FAILED", "FORMATS", "KNOWN_FILES", "NO_PROMPT", "Reading", "read_trace", "write_trace"]


#: Files known by the SHA-256 of their bytes: those that are what their columns look like.
KNOWN_FILES: Mapping[str, str] = {
    "4bb3783693d0a435686fbfc885615d2349bd067239079fa4b749f2e679e12122": "BurstGPT_1.csv",
}

# Columns that a run adds to its requests, and those it takes over.
_RESULTS = {*ITERATION_REQUEST_COLUMNS, "num_retries"} - {*REQUIRED_COLUMNS, "request_id"}


def read_trace(path: str | Path, format: str | None = None, reading: Reading | None = None) -> Workload:
    """Read a trace file: CSV, JSON lines (either may be gzipped) or Parquet.

    Parameters
    ----------
    path
        The file.
    format
        A key of `FORMATS` where the columns must be read as that format; found from the columns if left out.
    reading
        Units and limits other than the usual ones.

    Notes
    -----
    Foreign formats are shifted so that the first request kept arrives at 0; rows with 0 response tokens
    (failures) and with 0 prompt tokens are dropped and counted in ``source.dropped``. Our own format is not
    shifted (a notice says so where the first arrival is not 0), and a zero in it is an error. A file is
    ``synthetic`` if a ``# synthetic`` line stands at its top or its name says so, and ``real`` if such a line
    or its hash says so. What was inferred, and which columns were left out, are notices.

    Raises
    ------
    TraceError
        One sentence with file and row (the line in the file, for text) for anything that cannot be read, and
        where the unit of the arrivals cannot be told.
    ConfigError
        For a format, unit or block size that does not go with the columns.
    """
    path, reading = Path(path), reading or Reading()
    table, label, sha256, is_csv = read_table(path, reading.limits)
    known = _find_format(table, path.name, format)
    if known is OWN_FORMAT and is_csv:
        table = unmarked(table)
    if "synthetic" in path.name.lower():
        label = "synthetic"
    elif sha256 in KNOWN_FILES:
        label = "real"
    source = Source(path.name, label or known.kind, sha256)
    if reading.time_unit is not None and known.has_named_unit:
        raise ConfigError(
            f"--time-unit (workload.time_unit) is {reading.time_unit}, but {known.arrival} of {path.name} "
            "says its unit itself"
        )
    read = _own if known is OWN_FORMAT else convert
    return read(table, known, source, reading)


def write_trace(workload: Workload, path: str | Path) -> None:
    """Write our own format; ``.csv``, ``.csv.gz`` or ``.parquet`` by the name.

    Same workload, same bytes. In CSV an apostrophe goes before text that programs take for a formula, which
    `read_trace` takes off again. Where the kind is known, a ``# synthetic: name`` or ``# real: name`` line
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
    label = f"# {kind}: {name}\n" if kind in ("real", "synthetic") else ""
    write_text(path, label + csv_text(frame))


def _find_format(table: pd.DataFrame, where: str, asked: str | None) -> TraceFormat:
    if asked is not None and asked not in FORMATS:
        raise ConfigError(f"trace format {asked!r} is unknown; known are {', '.join(FORMATS)}")
    candidates = FORMATS.values() if asked is None else [FORMATS[asked]]
    for known in candidates:
        if set(known.columns) <= set(table.columns):
            if table.empty:
                raise TraceError(f"{where}: a header but no rows")
            return known
    found = set(table.columns)
    closest = max(candidates, key=lambda known: (len(found & {*known.columns}), -len(known.columns)))
    missing = [name for name in closest.columns if name not in found]
    raise TraceError(
        f"{where}: column {', '.join(missing)} missing, found {listed(table.columns) or 'none'}; "
        f"{_understood()}"
    )


def _own(table: pd.DataFrame, known: TraceFormat, source: Source, reading: Reading) -> Workload:
    where, notices = source.name, []
    if {"status", "finish_s"} <= set(table.columns):
        table = table.drop(columns=[name for name in table if name in _RESULTS])
        notices.append(f"{where}: the requests of a run; what became of them is left out")
    columns: dict[str, Any] = {known.arrival: arrivals_s(table, known.arrival, where)}
    columns |= {name: whole_numbers(table, name, where) for name in (known.prompt, known.output)}
    if "session_id" in table:
        columns["session_id"] = session_ids(table["session_id"], where)
    if "priority" in table:
        numbers(table, "priority", where, least=-MOST_TOKENS)
    columns |= labels_of(table, where)
    if DELAY_COLUMN in table:
        columns[DELAY_COLUMN] = delays_s(table, DELAY_COLUMN, where, 1.0)
    ids, remarks = ids_of(table, columns[known.prompt], known, where, reading)
    if remarks:
        notices.append(f"{where}: {', '.join(remarks)}; --hash-block-tokens says otherwise")
    if (first_s := float(columns[known.arrival].min())) != 0:
        notices.append(f"{where}: the first request arrives at {first_s:g} s, not at 0; times are kept")
    table = table.drop(columns=id_column(table.columns) or []).assign(**columns, **ids)
    return Workload.from_frame(table, replace(source, notices=tuple(notices)))


def _understood() -> str:
    return "understood are " + ", ".join(
        f"{known.name} ({', '.join(known.columns)})" for known in FORMATS.values()
    )
