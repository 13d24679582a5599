"""Files to tables and back: compression, encoding, comment lines, CSV, JSON lines and Parquet.

What the columns mean is for `formats`. Tables are indexed by the row a person would look at: the line number
in text files, counted from 1.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import re
import warnings
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from batchsim.errors import ConfigError, TraceError
from batchsim.files import write_whole
from batchsim.workload.request import Kind

_ROW_IN_PARSER_MESSAGE = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")

# text that repeats on every row: one Python object per distinct value instead of one per row
_CATEGORIES = dict.fromkeys(("Model", "Log Type", "Session ID", "model", "log_type"), "category")


class LabelledTable(NamedTuple):
    """A table, the kind its file claims for itself (``None``: no claim), and the hash of the file's bytes."""

    table: pd.DataFrame
    label: Kind | None
    sha256: str


def read_table(path: Path) -> LabelledTable:
    """Read any table file; `TraceError` with one sentence if it cannot be read as one."""
    data = _read_bytes(path)
    parse = _parse_parquet if data.startswith(b"PAR1") else _parse_text
    return LabelledTable(*parse(data, path.name), hashlib.sha256(data).hexdigest())


def write_parquet(path: Path, frame: pd.DataFrame, kind: Kind, name: str) -> None:
    """Write a table with its provenance as metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(frame, preserve_index=False)
    provenance = json.dumps({"kind": kind, "name": name}).encode()
    content = io.BytesIO()
    pq.write_table(
        arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"batchsim": provenance}), content
    )
    write_whole(path, content.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write a CSV plain (``.csv``) or gzipped without a date (``.csv.gz``): same text, same bytes."""
    if path.suffixes[-1:] == [".csv"]:
        write_whole(path, text)
    elif path.suffixes[-2:] == [".csv", ".gz"]:
        write_whole(path, gzip.compress(text.encode(), compresslevel=6, mtime=0))
    else:
        raise ConfigError(f"{path}: cannot be written as {path.suffix or 'a file without suffix'}; "
                          "use .csv, .csv.gz or .parquet")  # fmt: skip


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise TraceError(f"{path}: is a folder; a trace file is needed")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise TraceError(f"{path}: no such file") from error
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror})") from error


def _parse_parquet(data: bytes, where: str) -> tuple[pd.DataFrame, Kind | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        arrow = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise TraceError(f"{where}: broken Parquet file ({_first_line(error)})") from error
    table = arrow.to_pandas(ignore_metadata=True)
    table.index = pd.RangeIndex(1, len(table) + 1)
    label = json.loads((arrow.schema.metadata or {}).get(b"batchsim", b"{}")).get("kind")
    return table, label if label in ("real", "synthetic") else None


def _parse_text(data: bytes, where: str) -> tuple[pd.DataFrame, Kind | None]:
    """Return the table, indexed by line number, and the kind that the comment lines at the top claim."""
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise TraceError(f"{where}: broken gzip file ({_first_line(error)})") from error
    data = data.removeprefix(codecs.BOM_UTF8).rstrip()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise TraceError(f"{where}, row {row}: not UTF-8 text (byte {data[error.start]:#04x})") from error
    comments: list[str] = []
    while data.startswith(b"#"):
        line, _, data = data.partition(b"\n")
        comments.append(line.decode().lstrip("# ").lower())
    if not data:
        raise TraceError(f"{where}: empty file; a header and at least one row are needed")
    first_row = len(comments) + 1
    parse = _parse_json_lines if data.startswith(b"{") else _parse_csv
    labels: tuple[Kind, ...] = ("synthetic", "real")
    label = next((kind for kind in labels if any(line.startswith(kind) for line in comments)), None)
    return parse(data, where, first_row), label


def _parse_csv(data: bytes, where: str, first_row: int) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # all rows longer than the header
            # blank lines are kept, so that row numbers are line numbers
            table = pd.read_csv(
                io.BytesIO(data), dtype=_CATEGORIES, index_col=False, low_memory=False, skip_blank_lines=False
            )
    except pd.errors.ParserWarning as error:
        raise TraceError(f"{where}, row {first_row + 1}: more fields than the header has") from error
    except pd.errors.ParserError as error:
        found = _ROW_IN_PARSER_MESSAGE.search(str(error))
        if found is None:
            raise TraceError(f"{where}: not a CSV table ({_first_line(error)})") from error
        expected, row, num_fields = map(int, found.groups())
        raise TraceError(
            f"{where}, row {row + first_row - 1}: {num_fields} fields where the header has {expected}"
        ) from error
    table.columns = table.columns.str.strip()
    for name in table.columns.intersection(list(_CATEGORIES)):
        table[name] = table[name].cat.rename_categories(str)  # ids that look like numbers stay text
    table.index = pd.RangeIndex(first_row + 1, first_row + 1 + len(table))
    return table


def _parse_json_lines(data: bytes, where: str, first_row: int) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(data.splitlines(), first_row):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TraceError(f"{where}, row {number}: not valid JSON ({_first_line(error)})") from error
        if not isinstance(row, dict):
            raise TraceError(f"{where}, row {number}: a JSON object is needed, found {line[:40].decode()!r}")
        rows.append(row)
    return pd.DataFrame(rows, index=pd.RangeIndex(first_row, first_row + len(rows)))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
