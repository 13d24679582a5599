"""Grids of which some points were not measured: filling their gaps, and telling how well that does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from batchsim.errors import TraceError
from batchsim.latency.base import Floats


def from_neighbours(axes: Sequence[NDArray[np.int64]], values: Floats) -> Floats:
    """Tell each point of a grid from the others: the mean over the axes of what lies before and behind it.

    Along each axis on which known (not NaN) points lie on both sides, linearly between the nearest two; NaN
    where there is no such axis.
    """
    total, number = np.zeros_like(values), np.zeros(values.shape)
    for which, axis in enumerate(axes):
        lines = np.moveaxis(values, which, -1)
        length = len(axis)
        steps = np.broadcast_to(np.arange(length), lines.shape)
        known = ~np.isnan(lines)
        before = np.full(lines.shape, -1)
        before[..., 1:] = np.maximum.accumulate(np.where(known, steps, -1), axis=-1)[..., :-1]
        behind = np.full(lines.shape, length)
        nearest = np.minimum.accumulate(np.where(known, steps, length)[..., ::-1], axis=-1)[..., ::-1]
        behind[..., :-1] = nearest[..., 1:]
        between = (before >= 0) & (behind < length)
        low, high = np.where(between, before, 0), np.where(between, behind, 1)
        share = (axis[steps] - axis[low]) / (axis[high] - axis[low])
        low_values = np.take_along_axis(lines, low, axis=-1)
        high_values = np.take_along_axis(lines, high, axis=-1)
        estimate = np.where(between, low_values + share * (high_values - low_values), 0.0)
        total += np.moveaxis(estimate, -1, which)
        number += np.moveaxis(between, -1, which)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def fill_gaps(axes: Sequence[NDArray[np.int64]], values: Floats) -> Floats:
    """Return the grid with every NaN told from its neighbours, step by step.

    Raises
    ------
    TraceError
        If a gap has no neighbours on both sides along any axis.
    """
    filled = values
    while (missing := np.isnan(filled)).any():
        estimate = from_neighbours(axes, filled)
        filled = np.where(missing, estimate, filled)
        if np.isnan(filled).sum() == missing.sum():
            place = tuple(int(axis[step]) for axis, step in zip(axes, np.argwhere(missing)[0], strict=True))
            raise TraceError(f"the profile has no points around {place}, which it would take to tell it")
    return filled


def interpolation_errors(axes: Sequence[NDArray[np.int64]], values: Floats) -> dict[str, float | int]:
    """Leave out each inner point in turn and tell it from the others: relative errors, signed and not."""
    errors = from_neighbours(axes, values) / values - 1
    errors = errors[~np.isnan(errors)]
    if not errors.size:
        return {"num_points": 0}
    return {
        "num_points": int(errors.size),
        "mean_error": float(errors.mean()),
        "mape": float(np.abs(errors).mean()),
        "p95_error": float(np.quantile(np.abs(errors), 0.95)),
    }
