"""Columns of a table as checked arrays: what does not fit is refused with its row, in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.errors import TraceError

#: Longer prompts or answers are taken for a mistake.
MOST_TOKENS = 10**9
#: Up to here (300 years) float64 tells microseconds apart.
LAST_ARRIVAL_S = 1e10

_MAX_WHOLE = 2.0**53  # the largest range in which float64 holds every whole number
_FIRST_YEAR, _LAST_YEAR = 1970, 2200  # well within the nanoseconds of an int64
_MOST_SHOWN = 40
_MOST_LISTED = 12


def numbers(
    table: pd.DataFrame, name: str, where: str, least: float = 0, most: float = math.inf
) -> NDArray[np.float64]:
    """Return a column of finite numbers in ``[least, most]``; text that reads as one counts."""
    column = table[name]
    values = _floats(column, where)
    bad = ~((values >= least) & (values <= min(most, _MAX_WHOLE)))
    if bad.any():
        upper = f" and <= {most:g}" if most < math.inf else ""
        refuse(column, int(np.argmax(bad)), where, f"a number >= {least:g}{upper} is needed")
    return values


def whole_numbers(
    table: pd.DataFrame, name: str, where: str, least: int = 1, most: float = MOST_TOKENS
) -> NDArray[np.int64]:
    """Return a column of whole numbers in ``[least, most]``."""
    values = numbers(table, name, where, least, most)
    bad = values != np.floor(values)
    if bad.any():
        refuse(table[name], int(np.argmax(bad)), where, "a whole number is needed")
    return values.astype(np.int64)


def arrivals_s(table: pd.DataFrame, name: str, where: str) -> NDArray[np.float64]:
    """Return a column of arrival times that are seconds as they stand, or durations of any unit."""
    if table[name].dtype.kind == "m":
        table = pd.DataFrame({name: table[name].dt.total_seconds()}, index=table.index)
    return numbers(table, name, where, most=LAST_ARRIVAL_S)


def since_first_s(table: pd.DataFrame, name: str, where: str, units_per_s: float) -> NDArray[np.float64]:
    """Return times since the earliest one in seconds; it is taken off first, as large offsets cost digits."""
    column = table[name]
    if column.dtype.kind == "m":
        since_s = arrivals_s(table, name, where)
        return np.asarray(since_s - since_s.min())
    if column.dtype.kind in "iu" and column.min() >= 0:
        since = (column - column.min()).to_numpy(dtype=np.float64)
    else:
        since = numbers(table, name, where)
        since = since - since.min()
    bad = since > LAST_ARRIVAL_S * units_per_s
    if bad.any():
        needed = f"a time at most {LAST_ARRIVAL_S:g} s after the first is needed"
        refuse(column, int(np.argmax(bad)), where, needed)
    return np.asarray(since / units_per_s)


def wall_clock_s(table: pd.DataFrame, name: str, where: str) -> NDArray[np.float64]:
    """Return dates and times as seconds since the earliest one."""
    column = table[name]
    is_text = not pd.api.types.is_datetime64_any_dtype(column)
    if is_text:
        # pandas takes a number for nanoseconds, and "now" for the time of reading
        looks_like_one = column.astype(str).str.match(r"\s*\d{4}-\d\d?-\d\d?[T ]").to_numpy(dtype=bool)
        column = column.where(looks_like_one)
    times = pd.to_datetime(column, format="ISO8601" if is_text else None, utc=True, errors="coerce")
    bad = ~times.dt.year.between(_FIRST_YEAR, _LAST_YEAR).to_numpy()
    if bad.any():
        needed = (
            "a date and time such as 2023-11-16 18:15:46.6805900 "
            f"between {_FIRST_YEAR} and {_LAST_YEAR} is needed"
        )
        refuse(table[name], int(np.argmax(bad)), where, needed)
    ticks = times.dt.as_unit("ns").astype("int64").to_numpy()
    return np.asarray((ticks - ticks.min()) / 1e9)


def refuse(column: pd.Series, position: int, where: str, needed: str) -> None:
    """Raise `TraceError` about one value."""
    raise TraceError(
        f"{where}, row {column.index[position]}: {column.name} is {shown(column.iloc[position])}; {needed}"
    )


def shown(value: Any) -> str:
    """Return a value as an error message repeats it: on one line, and short."""
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value):
        return "missing"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str | bytes | list):
        value = value[:_MOST_SHOWN]
    text = repr(value)
    return text if len(text) <= 2 * _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def listed(names: Iterable[Any]) -> str:
    """Return names as an error message repeats them: short, and not too many."""
    names = [str(name)[:_MOST_SHOWN] for name in names]
    text = ", ".join(names[:_MOST_LISTED])
    return text if len(names) <= _MOST_LISTED else f"{text} and {len(names) - _MOST_LISTED:,} more"


def _floats(column: pd.Series, where: str) -> NDArray[np.float64]:
    kind = column.dtype.kind
    if kind in "iuf":
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    if kind in "bmMc":
        what = {"b": "true or false", "m": "durations", "M": "dates"}.get(kind, "complex numbers")
        raise TraceError(f"{where}: column {column.name} holds {what}; numbers are needed")
    column = column.astype(object)
    return np.array([_float(value) for value in column.to_list()], dtype=np.float64)


def _float(value: Any) -> float:
    """Return a number, or NaN for what is none: bytes, lists and booleans among them."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | str | Decimal | np.number):
        return math.nan
    if isinstance(value, str) and ("_" in value or not value.isascii()):
        return math.nan  # Python takes 1_000 and digits of any script for numbers, which nobody else does
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
