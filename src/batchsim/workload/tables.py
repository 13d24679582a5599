"""Files to tables and back: compression, encoding, comment lines, CSV, JSON lines and Parquet.

What the columns mean is for `formats`. Tables are indexed by the row a person would look at: the line number
in text files, counted from 1. No file, however small it is packed, is unpacked beyond `Limits`.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc

from batchsim.errors import ConfigError, TraceError
from batchsim.files import read_bytes, reason, write_whole
from batchsim.workload.columns import listed, shown
from batchsim.workload.request import Kind

# Text that repeats on every row: one Python object per distinct value instead of one per row, and ids that
# look like numbers stay text.
_CATEGORIES = ("Model", "Log Type", "Session ID", "model", "log_type", "tenant", "slo_class")

_CHUNK_BYTES = 1 << 20
_MOST_COLUMNS = 1_000
_MOST_COMMENT_LINES = 10_000
_MOST_LINE_BYTES = 16 << 20
_BLOCK_ROWS = 8_192
_MOST_OF_A_REASON = 200  # characters


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a file may be, unpacked; a person who wants more says so."""

    max_bytes: int = 256 << 20
    max_rows: int = 5_000_000

    def check_bytes(self, num_bytes: int, where: str, remark: str = "") -> None:
        """Raise `TraceError` beyond the limit."""
        if num_bytes > self.max_bytes:
            raise TraceError(
                f"{where}: more than {self.max_bytes:,} bytes{remark}; --max-trace-bytes "
                "(workload.max_trace_bytes) raises the limit"
            )

    def check_rows(self, num_rows: int, where: str) -> None:
        """Raise `TraceError` beyond the limit."""
        if num_rows > self.max_rows:
            raise TraceError(
                f"{where}: more than {self.max_rows:,} rows; --max-trace-rows (workload.max_trace_rows) "
                "raises the limit"
            )


class LabelledTable(NamedTuple):
    """A table, the kind its file claims for itself (``None``: no claim), and the hash of the file's bytes.

    ``is_csv``: text in it that looks like a formula may have a mark before it.
    """

    table: pd.DataFrame
    label: Kind | None
    sha256: str
    is_csv: bool


def read_table(path: Path, limits: Limits | None = None) -> LabelledTable:
    """Read any table file; `TraceError` with one sentence if it cannot be read as one."""
    limits = limits or Limits()
    data = _read_bytes(path, limits)
    parse = _parse_parquet if data.startswith(b"PAR1") else _parse_text
    try:
        table, label, is_csv = parse(data, path.name, limits)
    except (RecursionError, OverflowError, MemoryError, UnicodeError, pa.ArrowException) as error:
        raise TraceError(f"{path.name}: cannot be read as a table ({_first_line(error)})") from error
    return LabelledTable(table, label, hashlib.sha256(data).hexdigest(), is_csv)


def write_parquet(path: Path, frame: pd.DataFrame, kind: Kind, name: str) -> None:
    """Write a table with its provenance as metadata."""
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(frame, preserve_index=False)
    provenance = json.dumps({"kind": kind, "name": name}).encode()
    content = io.BytesIO()
    pq.write_table(
        arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"batchsim": provenance}), content
    )
    write_whole(path, content.getvalue())


def write_text(path: Path, text: str, suffix: str = ".csv") -> None:
    """Write a text plain (``.csv``) or gzipped without a date (``.csv.gz``): same text, same bytes."""
    if path.suffix == suffix:
        write_whole(path, text)
    elif path.suffixes[-2:] == [suffix, ".gz"]:
        write_whole(path, gzip.compress(text.encode(), compresslevel=6, mtime=0))
    else:
        raise ConfigError(f"{path}: cannot be written as {path.suffix or 'a file without suffix'}; "
                          f"use {suffix}, {suffix}.gz or .parquet")  # fmt: skip


def _read_bytes(path: Path, limits: Limits) -> bytes:
    if path.is_file():
        limits.check_bytes(path.stat().st_size, str(path))
    return read_bytes(path, max_bytes=limits.max_bytes, error=TraceError)


def _parse_parquet(data: bytes, where: str, limits: Limits) -> tuple[pd.DataFrame, Kind | None, bool]:
    import pyarrow.parquet as pq  # which few traces need

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        _check_parquet(file, where, limits)
        schema = file.schema_arrow
        # a text that is stored once and repeated a million times takes no more room in memory either
        texts = [one.name for one in schema if pa.types.is_string(one.type) or pa.types.is_binary(one.type)]
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts)
        batches, num_bytes = [], 0
        for batch in file.iter_batches(batch_size=8 * _BLOCK_ROWS):
            batches.append(batch)
            num_bytes += batch.nbytes
            limits.check_bytes(num_bytes, where, " when unpacked")
        table = _to_pandas(pa.Table.from_batches(batches, file.schema_arrow))
    except (pa.ArrowException, OSError) as error:
        raise TraceError(f"{where}: broken Parquet file ({_first_line(error)})") from error
    table.index = pd.RangeIndex(1, len(table) + 1)
    return table, _parquet_label((schema.metadata or {}).get(b"batchsim", b"{}")), False


def _check_parquet(file: Any, where: str, limits: Limits) -> None:
    """Hold a file to the limits by what it says of itself, before anything is unpacked."""
    metadata = file.metadata
    _check_names(file.schema_arrow.names, where)
    limits.check_rows(metadata.num_rows, where)
    # Not of each column, nor by its number of values: asked for these of a damaged file, Arrow may abort the
    # process. Values in lists are counted as they are read.
    width = metadata.num_columns * _widest_value(file.schema_arrow)
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    stored_bytes = sum(group.total_byte_size for group in groups)
    limits.check_bytes(max(stored_bytes, metadata.num_rows * width), where, " when unpacked")


def _widest_value(schema: pa.Schema) -> int:
    """Bytes of the widest value of fixed width, in a column or in its lists."""
    kinds = [getattr(one.type, "value_type", one.type) for one in schema]
    return max([8, *(int(kind.byte_width) for kind in kinds if pa.types.is_fixed_size_binary(kind))])


def _parquet_label(metadata: bytes) -> Kind | None:
    try:
        kind = json.loads(metadata).get("kind")
    except (ValueError, AttributeError, RecursionError):
        return None  # somebody else's
    return kind if kind in ("real", "synthetic") else None


def _parse_text(data: bytes, where: str, limits: Limits) -> tuple[pd.DataFrame, Kind | None, bool]:
    """Return the table, indexed by line number, what the comment lines at the top claim, and if it is CSV."""
    if data.startswith(b"\x1f\x8b"):
        data = _gunzip(data, where, limits)
    data = data.removeprefix(codecs.BOM_UTF8).rstrip()
    if b"\n" not in data:
        data = data.replace(b"\r", b"\n")
    num_line_ends = data.count(b"\n")
    limits.check_rows(num_line_ends, where)
    _check_text(data, where)
    start, first_row, label = _find_first_row(data, where)
    if start == len(data):
        raise TraceError(f"{where}: empty file; a header and at least one row are needed")
    if data.startswith(b"[", start):
        raise TraceError(f"{where}: a JSON array; one object a line is needed, as `jq -c '.[]'` writes them")
    if data.startswith(b"{", start):
        return _parse_json_lines(memoryview(data)[start:], where, first_row, limits), label, False
    return _parse_csv(data, start, where, first_row, num_line_ends - first_row + 1), label, True


def _gunzip(data: bytes, where: str, limits: Limits) -> bytes:
    pieces, num_bytes = [], 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while piece := file.read(_CHUNK_BYTES):
                pieces.append(piece)
                num_bytes += len(piece)
                limits.check_bytes(num_bytes, where, " when unpacked")
                if b"\0" in piece:
                    break  # no text, as `_check_text` will say
    except (EOFError, OSError, zlib.error) as error:
        raise TraceError(f"{where}: broken gzip file ({_first_line(error)})") from error
    return b"".join(pieces)


def _check_text(data: bytes, where: str) -> None:
    """Refuse what is no text, or no table of sensible lines, before a parser chokes on it."""
    is_ascii = data.isascii()  # which is quickly seen
    for what, mark in (("a zero byte", b"\0"), ("a byte-order mark within the text", codecs.BOM_UTF8)):
        position = -1 if is_ascii and mark == codecs.BOM_UTF8 else data.find(mark)
        if position >= 0:
            row = data.count(b"\n", 0, position) + 1
            raise TraceError(f"{where}, row {row}: {what}; plain text is needed")
    if not is_ascii:
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            row = data.count(b"\n", 0, error.start) + 1
            raise TraceError(f"{where}, row {row}: not UTF-8 text (byte {data[error.start]:#04x})") from error
    position = 0
    while len(data) - position > _MOST_LINE_BYTES:
        end = data.rfind(b"\n", position, position + _MOST_LINE_BYTES)
        if end < 0:
            row = data.count(b"\n", 0, position) + 1
            raise TraceError(f"{where}, row {row}: longer than {_MOST_LINE_BYTES:,} bytes")
        position = end + 1


def _find_first_row(data: bytes, where: str) -> tuple[int, int, Kind | None]:
    """Return where the table begins after blank and comment lines, its row, and what the comments claim."""
    start, row = 0, 1
    claims: set[Kind] = set()
    labels: tuple[Kind, ...] = ("synthetic", "real")
    while start < len(data):
        end = data.find(b"\n", start) % (len(data) + 1)  # the end where there is none
        line = data[start:end].strip()
        if line and not line.startswith(b"#"):
            break
        text = line.decode().lstrip("# ").lower()
        if row > _MOST_COMMENT_LINES:
            raise TraceError(f"{where}: more than {_MOST_COMMENT_LINES:,} lines before the table")
        claims.update(kind for kind in labels if text.startswith(kind))
        start, row = min(end + 1, len(data)), row + 1
    return start, row, next((kind for kind in labels if kind in claims), None)


def _parse_csv(data: bytes, start: int, where: str, first_row: int, num_rows: int) -> pd.DataFrame:
    header, _, _ = data[start : start + _MOST_LINE_BYTES].partition(b"\n")
    try:
        fields = next(csv.reader([header.decode().strip()], strict=True))
    except csv.Error as error:
        raise TraceError(f"{where}, row {first_row}: no CSV header ({error})") from error
    names = [" ".join(name.split()) or f"column {number}" for number, name in enumerate(fields, 1)]
    _check_names(names, where)
    rows = memoryview(data)[start + len(header) + 1 :]
    if not rows:
        return pd.DataFrame(columns=names)
    types = {name: pa.dictionary(pa.int32(), pa.string()) for name in _CATEGORIES if name in names}
    table = _read_rows(rows, names, types, where, first_row + 1)
    # Arrow sees dates and hexadecimal numbers everywhere: left to those who know what a column holds
    has_hex = any(x in data and b"0" + x in data for x in (b"x", b"X"))  # a letter is found sooner
    doubtful = [
        one.name
        for one in table.schema
        if pa.types.is_temporal(one.type) or (has_hex and pa.types.is_integer(one.type))
    ]
    if doubtful:
        types |= dict.fromkeys(doubtful, pa.string())
        table = _read_rows(rows, names, types, where, first_row + 1)
    if len(table) != num_rows or data.count(b'"', data.rfind(b"\n")) % 2:
        raise _unclosed(rows, where, first_row + 1)
    frame = _to_pandas(table)
    frame.index = pd.RangeIndex(first_row + 1, first_row + 1 + len(frame))
    return frame


def _unclosed(rows: memoryview, where: str, first_row: int) -> TraceError:
    """Name the row whose quotation mark swallows the rows after it."""
    lines = enumerate(io.BytesIO(rows), first_row)
    row = next((number for number, line in lines if line.count(b'"') % 2), first_row)
    return TraceError(
        f"{where}, row {row}: a value does not end on its line; every row needs a line of its own"
    )


def _read_rows(
    rows: memoryview, names: Sequence[str], types: dict[str, Any], where: str, first_row: int
) -> pa.Table:
    """Parse CSV rows, none of which may have more or fewer fields than the header."""
    invalid: list[pc.InvalidRow] = []

    def note(row: pc.InvalidRow) -> str:
        invalid.append(row)
        return "error"

    def read(*, use_threads: bool) -> pa.Table:
        return pc.read_csv(
            pa.py_buffer(rows),
            pc.ReadOptions(column_names=names, use_threads=use_threads),
            # blank lines are kept, so that row numbers are line numbers
            pc.ParseOptions(ignore_empty_lines=False, invalid_row_handler=note),
            pc.ConvertOptions(column_types=types, strings_can_be_null=True),
        )

    try:
        return read(use_threads=True)
    except pa.ArrowException as error:
        if not invalid:
            raise TraceError(f"{where}: not a CSV table ({_first_line(error)})") from error
    invalid.clear()
    try:
        read(use_threads=False)  # rows are counted by a single thread only
    except pa.ArrowException as error:
        one = invalid[0]
        row = first_row - 1 + one.number
        fields = "1 field" if one.actual_columns == 1 else f"{one.actual_columns} fields"
        raise TraceError(
            f"{where}, row {row}: {fields} where the header has {one.expected_columns}"
        ) from error
    raise AssertionError("what was refused once is refused again")


def _parse_json_lines(data: memoryview, where: str, first_row: int, limits: Limits) -> pd.DataFrame:
    blocks: list[pd.DataFrame] = []
    rows: list[dict[str, Any]] = []
    names: dict[str, None] = {}  # a set that keeps its order
    num_rows = 0
    for number, line in enumerate(io.BytesIO(data), first_row):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TraceError(f"{where}, row {number}: not valid JSON ({_first_line(error)})") from error
        if not isinstance(row, dict):
            raise TraceError(f"{where}, row {number}: a JSON object is needed, found {shown(row)}")
        names |= dict.fromkeys(row)
        rows.append(row)
        if len(rows) == _BLOCK_ROWS:
            num_rows += len(rows)
            _check_names(list(names), where)
            limits.check_bytes(num_rows * len(names), where, " when unpacked")
            blocks.append(_frame(rows))
            rows = []
            if not names:
                break  # nothing but empty objects
    _check_names(list(names), where)
    blocks.append(_frame(rows))
    frame = blocks[0] if len(blocks) == 1 else pd.concat(blocks)
    frame.index = pd.RangeIndex(first_row, first_row + len(frame))
    return frame


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    try:
        return pd.DataFrame(rows, index=range(len(rows)))
    except OverflowError:  # older pandas tries to make a float of a whole number that is none
        return pd.DataFrame(rows, index=range(len(rows)), dtype=object)


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    for one in table.schema:
        if pa.types.is_null(one.type):
            frame[one.name] = float("nan")
        elif pa.types.is_dictionary(one.type):
            # Python's own strings: pandas takes its time to make them of Arrow's, row by row
            values = pd.Index(frame[one.name].cat.categories.to_list(), dtype=object)
            frame[one.name] = frame[one.name].cat.rename_categories(values)
    return frame


def _check_names(names: Sequence[str], where: str) -> None:
    if len(names) > _MOST_COLUMNS:
        raise TraceError(f"{where}: {len(names):,} columns; at most {_MOST_COLUMNS:,} are read")
    for number, name in enumerate(names):
        if name in names[:number]:
            raise TraceError(
                f"{where}: two columns are called {listed([name])}; each needs a name of its own"
            )


def _first_line(error: BaseException) -> str:
    return reason(error)[:_MOST_OF_A_REASON]
