"""CSV tables of one form: every row as many fields as the header names, every name once, numbers in range.

And tables for people, in which no text is taken for a formula.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.errors import ConfigError, TraceError
from batchsim.files.reading import MAX_BYTES, MAX_COUNT, decoded, read_bytes, read_text, reason, unzipped

#: Times that a table may hold: beyond them they lose all meaning, then overflow.
LEAST_S, MOST_S = 1e-12, 1e9

#: How tables of others say, in small letters, that a value is not there.
_NOTHING = ("", "nan", "none", "null")
#: What a number looks like; Python and pandas also know ``1_000``, ``nan`` and ``True``.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


#: Of what we wrote ourselves: tables of figures may have a row per decision.
_MOST_BYTES = 2**30
_MOST_COLUMNS = 2_000
#: Until 3.1, what pandas reads by default is near a number, but not always that number.
_EXACT: dict[str, Any] = (
    {} if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1) else {"float_precision": "round_trip"}
)

#: What spreadsheets take for a formula, or look like it with our mark before it.
_FORMULA = re.compile(r"'*[=+@\t\r-](?![\d.]+$)")


@dataclass(frozen=True, slots=True, eq=False)
class CsvTable:
    """A table as it stands in its file: text, until a column is asked for as something else.

    Attributes
    ----------
    frame
        Its columns, stripped, blank where nothing stands; indexed by the line a row begins in, from 1.
    sha256
        Of the file's bytes.
    """

    path: Path
    frame: pd.DataFrame
    sha256: str

    def need(self, names: Sequence[str]) -> None:
        """Raise `TraceError` if a column is missing."""
        missing = [name for name in names if name not in self.frame.columns]
        if missing:
            found = ", ".join(self.frame.columns)
            raise TraceError(f"{self.path}: column {', '.join(missing)} missing; found {found:.400}")

    def where(self, rows: pd.Series[bool]) -> CsvTable:
        """Return the table of these rows."""
        return replace(self, frame=self.frame[rows])

    def counts(self, name: str, least: int = 1, most: int = MAX_COUNT) -> pd.Series[float]:
        """Return a column of whole numbers."""
        return self._numbers(
            name,
            lambda values: (values >= least) & (values <= most) & (values == np.floor(values)),
            f"a whole number >= {least} is needed, up to {most:g}",
        )

    def times(self, name: str, unit_s: float = 1.0) -> pd.Series[float]:
        """Return a column of times above 0, in their own unit, which is that many seconds."""
        least, most = LEAST_S / unit_s, MOST_S / unit_s
        return self._numbers(
            name,
            lambda values: (values >= least) & (values <= most),
            f"a finite number > 0 is needed, from {least:g} to {most:g}",
        )

    def spreads(self, name: str) -> pd.Series[float]:
        """Return a column of seconds that may be 0."""
        return self._numbers(
            name,
            lambda values: (values >= 0) & (values <= MOST_S),
            f"a finite number >= 0 is needed, up to {MOST_S:g}",
        )

    def numbers(self, name: str, least: float, most: float) -> pd.Series[float]:
        """Return a column of numbers within these bounds."""
        return self._numbers(
            name,
            lambda values: (values >= least) & (values <= most),
            f"a finite number is needed, from {least:g} to {most:g}",
        )

    def recorded(self, name: str, read: Callable[[CsvTable], pd.Series[Any]]) -> pd.Series[Any]:
        """Return a column as it is read where something stands in it, and NaN where nothing was recorded."""
        return read(self.where(~self.frame[name].str.lower().isin(_NOTHING))).reindex(self.frame.index)

    def words(self, name: str, known: Collection[str] | None = None) -> pd.Series[str]:
        """Return a column of words: any printable ones that are not blank, or these."""
        words = self.frame[name]
        if known is None:
            good, needed = (
                words.map(lambda word: word != "" and word.isprintable()),
                "one line of text is needed",
            )
        else:
            good, needed = words.isin(list(known)), f"known: {', '.join(known)}"
        self._hold(name, good.to_numpy(dtype=np.bool_), needed)
        return words

    def truths(self, name: str) -> pd.Series[bool]:
        """Return a column of ``true`` and ``false``, in any case, or 1 and 0."""
        words = self.frame[name].str.lower()
        good = words.isin(["true", "false", "1", "0"])
        self._hold(name, good.to_numpy(dtype=np.bool_), "True or False is needed")
        return words.isin(["true", "1"])

    def _numbers(
        self, name: str, fits: Callable[[NDArray[np.float64]], Any], needed: str
    ) -> pd.Series[float]:
        texts = self.frame[name].tolist()
        values = np.array(
            [float(text) if _NUMBER.fullmatch(text) else np.nan for text in texts], dtype=np.float64
        )
        self._hold(name, np.asarray(fits(values), dtype=np.bool_), needed)
        return pd.Series(values, index=self.frame.index, name=name)

    def _hold(self, name: str, good: NDArray[np.bool_], needed: str) -> None:
        if good.all():
            return
        row = int(np.argmin(good))
        text = self.frame[name].iloc[row]
        shown = f"{text!r:.60}" if text else "blank"
        raise TraceError(f"{self.path}, line {self.frame.index[row]}: {name} is {shown}; {needed}")


def read_csv(path: str | Path, *, max_bytes: int = MAX_BYTES) -> CsvTable:
    """Read a CSV file, plain or gzipped; blank lines count as lines, but not as rows.

    Raises
    ------
    TraceError
        If it is no such table: not text, too long, ragged, a column named twice, an open quote, empty.
    """
    path = Path(path)
    content = read_bytes(path, max_bytes=max_bytes, error=TraceError)
    sha256 = hashlib.sha256(content).hexdigest()
    if content.startswith(b"\x1f\x8b"):
        content = unzipped(content, path, max_bytes=max_bytes, error=TraceError)
    reader = csv.reader(
        io.StringIO(decoded(content, path, error=TraceError), newline=""), strict=True, skipinitialspace=True
    )
    lines: list[int] = []
    rows: list[list[str]] = []
    try:
        header = [name.strip() for name in next((row for row in reader if row), [])]
        _check_header(path, header)
        line = reader.line_num + 1
        for row in reader:
            if row:
                if len(row) != len(header):
                    raise TraceError(
                        f"{path}, line {line}: {len(row)} fields where the header has {len(header)}"
                    )
                lines.append(line)
                rows.append(row)
            line = reader.line_num + 1
    except csv.Error as error:
        raise TraceError(f"{path}, line {reader.line_num}: not a CSV table ({reason(error)})") from error
    frame = pd.DataFrame(rows, index=pd.Index(lines, dtype="int64"), columns=header, dtype=object)
    return CsvTable(path, frame.apply(lambda column: column.str.strip()) if lines else frame, sha256)


def csv_text(table: pd.DataFrame) -> str:
    """Return a table as CSV for people: an apostrophe goes before text that programs take for a formula."""
    return _mapped(table, _marked).to_csv(index=False, lineterminator="\n")


def read_csv_text(path: Path, **given: Any) -> pd.DataFrame:
    """Read back what `csv_text` gave: every number as it was, and text without the mark.

    Raises
    ------
    ConfigError, ValueError
        If it is no such table.
    """
    text = read_text(path, max_bytes=_MOST_BYTES)
    if text.partition("\n")[0].count(",") >= _MOST_COLUMNS:
        raise ValueError(f"more than {_MOST_COLUMNS:,} columns")
    table = pd.read_csv(io.StringIO(text), **_EXACT, **given)
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes what is too much for names of rows
        raise ValueError("rows have more fields than the header")
    return unmarked(table)


def unmarked(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose cells and names `csv_text` wrote without the mark."""
    return _mapped(table, _unmarked)


def check_numbers(column: pd.Series[Any], dtype: Any, where: str | Path, first_row: int) -> None:
    """Raise `ConfigError` about the first value of a column that a type of numbers or truths cannot hold.

    Among whole numbers and truths there is no blank, either; ``first_row`` is where the first value stands.
    """
    kind = np.dtype(dtype).kind
    numbers = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(dtype=np.float64)
    if kind == "b":
        good, needed = np.isin(numbers, (0, 1)), "true or false is"
    elif kind == "i":
        bounds = np.iinfo(dtype)
        good = (numbers >= bounds.min) & (numbers <= bounds.max) & (numbers == np.floor(numbers))
        needed = f"a whole number up to {bounds.max:,} is"
    else:
        good, needed = np.isfinite(numbers) | column.isna().to_numpy(dtype=np.bool_), "a number is"
    if not good.all():
        row = int(np.argmin(good))
        value = column.iloc[row]
        shown = "blank" if pd.api.types.is_scalar(value) and pd.isna(value) else f"{value!r:.60}"
        raise ConfigError(f"{where}: {column.name} is {shown} in row {first_row + row}; {needed} needed")


def _mapped(table: pd.DataFrame, act: Callable[[Any], Any]) -> pd.DataFrame:
    # a column without any value would lose its type
    texts = [name for name in table if not pd.api.types.is_numeric_dtype(table[name]) and table[name].count()]
    mapped = table.assign(**{str(name): table[name].map(act) for name in texts})
    return mapped.rename(columns=act).copy()  # in one piece: pandas warns of tables put together


def _marked(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _unmarked(value: Any) -> Any:
    is_marked = isinstance(value, str) and value[:1] == "'" and _FORMULA.match(value)
    return value[1:] if is_marked else value


def _check_header(path: Path, header: list[str]) -> None:
    if not header:
        raise TraceError(f"{path}: not a CSV table (it is empty); a header and a row are needed")
    for name in header:
        if not name.isprintable():
            raise TraceError(
                f"{path}: column {name!r:.60} is no name of a column; one line of text is needed"
            )
    name, number = Counter(header).most_common(1)[0]
    if number > 1:
        raise TraceError(f"{path}: column {name!r:.60} stands twice in the header; once is needed")
