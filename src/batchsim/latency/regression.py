"""Least squares for forms that are linear in their coefficients, and held-out errors of any fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from batchsim.errors import ConfigError

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
#: Seconds at the points asked for, from a fit to the points shown; raises ConfigError where these do not do.
Predictor = Callable[[Mask, Mask], Floats]


@dataclass(frozen=True, slots=True)
class Quality:
    """How well one kind of points is met. Errors are relative to the measured mean.

    Attributes
    ----------
    kind
        ``batch``, ``prefill``, ``decode`` or ``mixed``.
    r2, max_error
        Of the fit to all points.
    heldout_batch_size_mape, heldout_length_mape
        Mean absolute error at points of a batch size (a length) that the fit was not shown, over all batch
        sizes (lengths) without which it can still be made; NaN if there is none.
    largest_batch_bias
        Mean signed error at the largest batch size when that is held out; NaN if it cannot be.
    """

    kind: str
    num_points: int
    r2: float
    max_error: float
    heldout_batch_size_mape: float
    heldout_length_mape: float
    largest_batch_bias: float


@dataclass(frozen=True, slots=True, eq=False)
class Regime:
    """A form that is linear in its coefficients, and the points of one kind."""

    kind: str
    names: tuple[str, ...]
    design: Floats  # (num_points, num_coefficients)
    mean_s: Floats
    batch_size: Floats
    length: Floats

    def solve(self, shown: Mask | None = None) -> tuple[list[float], list[str]]:
        """Least squares; where that makes a coefficient negative, the same with all held at 0 or above."""
        rows = slice(None) if shown is None else shown
        scale = np.abs(self.design[rows]).max(axis=0)
        scaled = self.design[rows] / np.where(scale > 0, scale, 1)
        if np.linalg.matrix_rank(scaled) < len(self.names):
            raise ConfigError(self._why_not(rows))
        scaled_values = np.linalg.lstsq(scaled, self.mean_s[rows])[0]
        scaled_values[np.abs(scaled_values) < 1e-12 * np.abs(scaled_values).max()] = 0
        warnings = [
            f"{self.kind}: {name} comes out negative and was held at 0"
            for name, value in zip(self.names, scaled_values, strict=True)
            if value < 0
        ]
        if warnings:
            scaled_values = nnls(scaled, self.mean_s[rows])[0]
        return (scaled_values / scale).tolist(), warnings

    def quality(self) -> Quality:
        """Errors of the fit to these points."""
        return quality_of(
            self.kind,
            lambda shown, asked: self.design[asked] @ self.solve(shown)[0],
            self.mean_s,
            self.batch_size,
            self.length,
        )

    def _why_not(self, rows: slice | Mask) -> str:
        wanted = f"to tell {', '.join(self.names)} apart"
        if len(self.mean_s[rows]) < len(self.names):
            return f"{self.kind}: {len(self.mean_s[rows])} points are too few {wanted}"
        for what, values in (("batch size", self.batch_size[rows]), ("length", self.length[rows])):
            if np.ptp(values) == 0:
                return f"{self.kind}: all points have {what} {values[0]:g}; another one is needed {wanted}"
        return f"{self.kind}: more batch sizes, 1 among them, and more lengths are needed {wanted}"


def quality_of(kind: str, predict: Predictor, mean_s: Floats, batch_size: Floats, length: Floats) -> Quality:
    """Fit once to all points, and once without each batch size and each length in turn."""
    (quality,) = qualities_of(np.full(len(mean_s), kind), predict, mean_s, batch_size, length)
    return quality


def qualities_of(
    kinds: NDArray[np.str_], predict: Predictor, mean_s: Floats, batch_size: Floats, length: Floats
) -> tuple[Quality, ...]:
    """Do as `quality_of` for a fit to points of several kinds together, and tell their errors apart.

    ``kinds`` has shape ``(num_points,)``. A batch size or length is left out of all kinds at once.
    """

    def held_out(groups: Floats) -> Floats:
        errors = np.full(len(mean_s), np.nan)
        for value in np.unique(groups):
            asked = groups == value
            if asked.all():
                continue
            with suppress(ConfigError):  # what is left does not determine the model
                errors[asked] = predict(~asked, asked) / mean_s[asked] - 1
        return errors

    everything = np.ones(len(mean_s), dtype=np.bool_)
    fitted_s = predict(everything, everything)
    size_errors, length_errors = held_out(batch_size), held_out(length)
    qualities = []
    for kind in dict.fromkeys(kinds.tolist()):
        mine = kinds == kind
        measured_s, residual_s = mean_s[mine], mean_s[mine] - fitted_s[mine]
        spread = np.sum((measured_s - measured_s.mean()) ** 2)
        largest = mine & (batch_size == batch_size[mine].max())
        qualities.append(
            Quality(
                kind=kind,
                num_points=int(mine.sum()),
                r2=float(1 - np.sum(residual_s**2) / spread) if spread > 0 else math.nan,
                max_error=float(np.abs(residual_s / measured_s).max()),
                heldout_batch_size_mape=_mean_of_known(np.abs(size_errors[mine])),
                heldout_length_mape=_mean_of_known(np.abs(length_errors[mine])),
                largest_batch_bias=_mean_of_known(size_errors[largest]),
            )
        )
    return tuple(qualities)


def _mean_of_known(errors: Floats) -> float:
    known = errors[~np.isnan(errors)]
    return float(known.mean()) if known.size else math.nan
