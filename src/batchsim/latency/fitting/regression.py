"""Least squares for forms that are linear in their coefficients, their intervals, and errors of any fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from batchsim.errors import ConfigError
from batchsim.files import reason
from batchsim.latency.base import Floats
from batchsim.streams import stream

Mask = NDArray[np.bool_]
Rows = Mask | NDArray[np.int64]
#: Seconds at the points asked for, from a fit to the points shown; raises ConfigError where these do not do.
Predictor = Callable[[Mask, Mask], Floats]
#: By coefficient, the ends of its 95 % interval.
Intervals = dict[str, tuple[float, float]]

#: Refits from which an interval is taken.
NUM_REFITS = 200


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
    is_unseen
        Whether the fit was not shown these points at all.
    """

    kind: str
    num_points: int
    r2: float
    max_error: float
    heldout_batch_size_mape: float
    heldout_length_mape: float
    largest_batch_bias: float
    is_unseen: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Regime:
    """A form that is linear in its coefficients, and the points of one kind.

    Attributes
    ----------
    design
        Shape ``(num_points, num_coefficients)``.
    is_relative
        Whether to minimise relative errors, so that short times count as much as long ones.
    weight
        How often each point counts; once if left out.
    """

    kind: str
    names: tuple[str, ...]
    design: Floats
    mean_s: Floats
    batch_size: Floats
    length: Floats
    is_relative: bool = False
    weight: Floats | None = None

    def solve(self, shown: Rows | None = None) -> tuple[list[float], list[str]]:
        """Least squares; where that makes a coefficient negative, the same with all held at 0 or above."""
        rows = slice(None) if shown is None else shown
        design, target = self.design[rows], self.mean_s[rows]
        if self.is_relative:
            design, target = design / target[:, None], np.ones(len(target))
        if self.weight is not None:
            root = np.sqrt(self.weight[rows])
            design, target = design * root[:, None], target * root
        scale = np.abs(design).max(axis=0, initial=0)
        scaled = design / np.where(scale > 0, scale, 1)
        try:
            if np.linalg.matrix_rank(scaled) < len(self.names):
                raise ConfigError(self._why_not(rows))
            scaled_values = np.linalg.lstsq(scaled, target)[0]
            scaled_values[np.abs(scaled_values) < 1e-12 * np.abs(scaled_values).max()] = 0
            warnings = [
                f"{self.kind}: {name} comes out negative and was held at 0"
                for name, value in zip(self.names, scaled_values, strict=True)
                if value < 0
            ]
            if warnings:
                scaled_values = nnls(scaled, target)[0]
        except (np.linalg.LinAlgError, RuntimeError) as error:  # nnls: too many steps
            raise ConfigError(
                f"{self.kind}: no fit is found ({reason(error)}); other points are needed"
            ) from error
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

    def refits(self) -> Floats:
        """Coefficients of fits to points drawn anew with replacement: ``(num_refits, num_coefficients)``.

        Draws that cannot tell the coefficients apart are left out.
        """
        num_points, rng = len(self.mean_s), stream(0, f"refits of {self.kind}")
        fits = []
        for drawn in rng.integers(num_points, size=(NUM_REFITS, num_points)):
            with suppress(ConfigError):
                fits.append(self.solve(drawn)[0])
        return np.array(fits, dtype=np.float64).reshape(-1, len(self.names))

    def _why_not(self, rows: slice | Rows) -> str:
        wanted = f"to tell {', '.join(self.names)} apart"
        if len(self.mean_s[rows]) < len(self.names):
            return f"{self.kind}: {len(self.mean_s[rows])} points are too few {wanted}"
        for what, values in (("batch size", self.batch_size[rows]), ("length", self.length[rows])):
            if np.ptp(values) == 0:
                return f"{self.kind}: all points have {what} {values[0]:g}; another one is needed {wanted}"
        return f"{self.kind}: more batch sizes, 1 among them, and more lengths are needed {wanted}"


def intervals_of(names: tuple[str, ...], refits: Floats) -> Intervals:
    """Return the middle 95 % of the refits of each coefficient; none if half of the refits failed.

    That is how far coefficients move with the choice of points and the noise in them, if the form is right: a
    machine that changes its speed between runs, or a form that does not hold, moves them further.
    """
    if len(refits) <= NUM_REFITS / 2:
        return {}
    low, high = np.percentile(refits, (2.5, 97.5), axis=0).tolist()
    return dict(zip(names, zip(low, high, strict=True), strict=True))


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
