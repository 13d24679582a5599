"""Columns and distributions as short JSON: six digits, what is equal once, quantiles as small steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

#: Digits that a number keeps on the page.
DIGITS = 6

#: Quantiles stand as whole numbers of steps of their logarithm above the least that is told from zero: 0.5 %.
LEAST_S, STEP = 1e-6, 0.005


def short(value: Any) -> Any:
    """A value as JSON, a number with so many digits; None for what is no number."""
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, float | np.floating):
        rounded = float(f"{value:.{DIGITS}g}")
        return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
    return int(value) if isinstance(value, np.integer) else value


def column(values: pd.Series[Any]) -> dict[str, Any]:
    """Code a column.

    Returns
    -------
    dict
        ``all``, the one value of every row; or ``of``, the different ones, and ``is``, which of them stands
        in each row; or ``v``, the values.
    """
    given = [short(value) for value in values.tolist()]
    # True and 1 are equal, and are not to be taken for each other.
    different = {(type(value), value): value for value in given}
    if len(different) == 1:
        return {"all": given[0]}
    if len(different) <= len(given) / 4 or any(isinstance(value, str) for value in given):
        places = {key: place for place, key in enumerate(different)}
        return {"of": list(different.values()), "is": [places[type(value), value] for value in given]}
    return {"v": given}


def thinned(probabilities: NDArray[np.float64], most: int) -> list[int]:
    """Choose so many of the quantiles: evenly, as they stand, the first and the last among them."""
    places = np.linspace(0, len(probabilities) - 1, min(most, len(probabilities)))
    return [int(place) for place in np.unique(np.rint(places))]


def steps(quantiles: Sequence[float] | NDArray[np.floating[Any]]) -> list[int]:
    """Code ascending quantiles, seconds: how many steps above the one before; zero stands for none."""
    values = np.asarray(quantiles, dtype=np.float64)
    above = np.log(np.maximum(values, LEAST_S) / LEAST_S) / STEP
    return [int(step) for step in np.diff(np.rint(above).astype(np.int64), prepend=0)]


def deltas(values: Sequence[float] | NDArray[Any], unit: float) -> list[int]:
    """Code a course as differences, in whole units."""
    whole = np.rint(np.asarray(values, dtype=np.float64) / unit).astype(np.int64)
    return [int(step) for step in np.diff(whole, prepend=0)]
