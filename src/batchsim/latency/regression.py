"""Least squares for forms that are linear in their coefficients, and held-out errors of any fit."""

from __future__ import annotations

import math
from collections.abc import Callable
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
        ``batch``, ``prefill`` or ``decode``.
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

    def held_out(groups: Floats, values: Floats) -> Floats:
        errors: list[Floats] = []
        for value in values:
            asked = groups == value
            if asked.all():
                continue
            try:
                errors.append(predict(~asked, asked) / mean_s[asked] - 1)
            except ConfigError:  # what is left does not determine the model
                continue
        return np.concatenate(errors) if errors else np.array([np.nan])

    everything = np.ones(len(mean_s), dtype=np.bool_)
    fitted_s = predict(everything, everything)
    spread = np.sum((mean_s - mean_s.mean()) ** 2)
    return Quality(
        kind=kind,
        num_points=len(mean_s),
        r2=float(1 - np.sum((mean_s - fitted_s) ** 2) / spread) if spread > 0 else math.nan,
        max_error=float(np.abs(fitted_s / mean_s - 1).max()),
        heldout_batch_size_mape=float(np.abs(held_out(batch_size, np.unique(batch_size))).mean()),
        heldout_length_mape=float(np.abs(held_out(length, np.unique(length))).mean()),
        largest_batch_bias=float(held_out(batch_size, batch_size.max(keepdims=True)).mean()),
    )
