"""Fit latency models to a calibration, and report how well they predict points they were not shown.

A high R2 hides errors of tens of per cent at single points: judge a fit by its held-out errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from batchsim.errors import ConfigError
from batchsim.latency.analytic import (
    DECODE_COEFFICIENTS,
    LENGTHS,
    PHASE_COEFFICIENTS,
    PREFILL_COEFFICIENTS,
    AffineBatchLatency,
    PhaseBatchLatency,
)
from batchsim.latency.base import BatchLatency, Domain, LatencyInfo
from batchsim.latency.grid import TableLength, lengths_of, table_latency
from batchsim.latency.regression import Floats, Mask, Quality, Regime, quality_of
from batchsim.latency.table import Calibration

Family = Literal["affine", "phase", "table", "auto"]

#: Relative error from which on a fit is warned of.
NOTABLE_ERROR = 0.1


@dataclass(frozen=True, slots=True)
class FitReport:
    """A fitted model and what is known about its errors.

    Attributes
    ----------
    model
        Ready for `save_latency`; its details repeat the figures below.
    coefficients
        By name, units included; empty for a table.
    qualities
        One per kind of points used. The properties give the worst of them.
    warnings
        Sentences a user should see.
    """

    family: str
    model: BatchLatency
    coefficients: Mapping[str, float]
    qualities: tuple[Quality, ...]
    warnings: tuple[str, ...]

    @property
    def num_points(self) -> int:
        """Points used, of all kinds."""
        return sum(quality.num_points for quality in self.qualities)

    @property
    def r2(self) -> float:
        """Smallest coefficient of determination."""
        return min(quality.r2 for quality in self.qualities)

    @property
    def max_error(self) -> float:
        """Largest relative error of the fit at a point."""
        return max(quality.max_error for quality in self.qualities)

    @property
    def heldout_batch_size_mape(self) -> float:
        """Largest, over the kinds of points; NaN if unknown."""
        return float(np.fmax.reduce([quality.heldout_batch_size_mape for quality in self.qualities]))

    @property
    def heldout_length_mape(self) -> float:
        """Largest, over the kinds of points; NaN if unknown."""
        return float(np.fmax.reduce([quality.heldout_length_mape for quality in self.qualities]))

    @property
    def heldout_mape(self) -> float:
        """The larger of the two; NaN if neither is known."""
        return float(np.fmax(self.heldout_batch_size_mape, self.heldout_length_mape))


def fit(
    calibration: Calibration, family: Family = "auto", length: TableLength = "prompt+output"
) -> FitReport:
    """Fit a model.

    Parameters
    ----------
    calibration
        Whole-batch points for ``affine`` and ``table``; prefill and decode points for ``phase``.
    family
        ``auto`` takes the family with the smallest held-out error among those the points allow.
    length
        What the length of a whole batch counts; a ``max_seq_len`` column is taken to hold just that.
        ``phase`` has no use for it, and only a table can be over ``prompt,output``.

    Raises
    ------
    ConfigError
        If the points cannot tell the coefficients apart, or do not fill a grid.
    """
    sizes = calibration.points["batch_size"].unique()
    if len(sizes) < 2 and family in ("auto", "table"):
        raise ConfigError(
            f"{calibration.name}: batch size {', '.join(map(str, sizes))} alone; at least two are needed "
            "to tell how the time grows with it"
        )
    fits: dict[str, Callable[[], FitReport]] = {
        "affine": lambda: _fit_affine(calibration, length),
        "phase": lambda: _fit_phase(calibration),
        "table": lambda: _fit_table(calibration, length),
    }
    if family != "auto" and family not in fits:
        raise ConfigError(f"latency family is {family!r}; known: {', '.join(get_args(Family))}")
    reports, reasons = [], []
    for name in fits if family == "auto" else [family]:
        try:
            reports.append(fits[name]())
        except ConfigError as error:
            reasons.append(f"{name}: {error}")
    if not reports:
        raise ConfigError(f"{calibration.name} allows no fit; {'; '.join(reasons)}")
    return min(reports, key=lambda report: (math.isnan(report.heldout_mape), report.heldout_mape))


def _fit_affine(calibration: Calibration, length: TableLength) -> FitReport:
    if length == "prompt,output":
        raise ConfigError(f"the affine form has one length, not {length}; known: {', '.join(LENGTHS)}")
    points = _points_of(calibration, "batch")
    batch_size, tokens = _column(points["batch_size"]), _column(lengths_of(points, length)[0])
    regime = Regime(
        "batch",
        ("alpha_s", "beta_s_per_token", "beta_s_per_token * gamma"),
        np.column_stack([np.ones(len(points)), tokens, tokens * (batch_size - 1) / batch_size]),
        _column(points["mean_s"]),
        batch_size,
        tokens,
    )
    (alpha_s, beta_s, beta_gamma_s), warnings = regime.solve()
    if beta_s == 0:
        raise ConfigError(
            "in the best affine form a lone request takes the same time at any length, "
            "so that gamma has no meaning; try phase or table"
        )
    quality = regime.quality()
    bias = quality.largest_batch_bias
    if abs(bias) > NOTABLE_ERROR:
        warnings.append(
            f"the affine form saturates in the batch size: batches of {batch_size.max():.0f}, held out, are "
            f"predicted {abs(bias):.0%} too {'short' if bias < 0 else 'long'}; try phase or table"
        )
    info = _info(calibration, (quality,), warnings)
    coefficients = {"alpha_s": alpha_s, "beta_s_per_token": beta_s, "gamma": beta_gamma_s / beta_s}
    domain = (
        Domain(batch_size=_range(batch_size), output_tokens=_range(tokens))
        if length == "output"
        else Domain(batch_size=_range(batch_size), length=_range(tokens))
    )
    model = AffineBatchLatency(**coefficients, length=length, domain=domain, info=info)
    return FitReport("affine", model, coefficients, (quality,), tuple(warnings))


def _fit_phase(calibration: Calibration) -> FitReport:
    points = _points_of(calibration, "prefill")
    batch_size, prompt = _column(points["batch_size"]), _column(points["prompt_tokens"])
    prefill = Regime(
        "prefill",
        PREFILL_COEFFICIENTS,
        np.column_stack([np.ones(len(points)), batch_size * prompt, batch_size * prompt**2]),
        _column(points["mean_s"]),
        batch_size,
        prompt,
    )
    points = _points_of(calibration, "decode")
    num_seqs, context = _column(points["batch_size"]), _column(points["context_tokens"])
    decode = Regime(
        "decode",
        DECODE_COEFFICIENTS,
        np.column_stack([np.ones(len(points)), num_seqs > 1, num_seqs, num_seqs * context]),
        _column(points["mean_s"]),
        num_seqs,
        context,
    )
    prefill_values, prefill_warnings = prefill.solve()
    decode_values, decode_warnings = decode.solve()
    warnings = prefill_warnings + decode_warnings
    qualities = (prefill.quality(), decode.quality())
    sizes = _range(batch_size, num_seqs)
    if sizes[0] > sizes[1]:
        raise ConfigError("prefill and decode points have no range of batch sizes in common")
    domain = Domain(
        batch_size=sizes,
        prompt_tokens=_range(prompt),
        # The last of ``output - 1`` steps finds ``prompt + output - 2`` tokens in the cache.
        length=(int(context.min()), int(context.max()) + 2),
    )
    info = _info(calibration, qualities, warnings)
    coefficients = dict(zip(PHASE_COEFFICIENTS, prefill_values + decode_values, strict=True))
    model = PhaseBatchLatency(**coefficients, domain=domain, info=info)
    return FitReport("phase", model, coefficients, qualities, tuple(warnings))


def _fit_table(calibration: Calibration, length: TableLength) -> FitReport:
    points = _points_of(calibration, "batch")
    positions = np.column_stack([points["batch_size"], *lengths_of(points, length)])

    def predict(shown: Mask, asked: Mask) -> Floats:
        table = table_latency(points[shown], length, LatencyInfo(calibration.name))
        return np.array([table.interpolate(tuple(position)) for position in positions[asked].tolist()])

    # A table over prompt and output holds out values of the latter.
    quality = quality_of("batch", predict, _column(points["mean_s"]), positions[:, 0], positions[:, -1])
    warnings: list[str] = []
    info = _info(calibration, (quality,), warnings)
    return FitReport("table", table_latency(points, length, info), {}, (quality,), tuple(warnings))


def _info(calibration: Calibration, qualities: tuple[Quality, ...], warnings: list[str]) -> LatencyInfo:
    """Say what is known about a fit, after adding what its quality warns of to ``warnings``."""
    for quality in qualities:
        for what, error in (
            ("batch size", quality.heldout_batch_size_mape),
            ("length", quality.heldout_length_mape),
        ):
            if math.isnan(error):
                warnings.append(
                    f"{quality.kind}: too few points to hold out any {what}, so errors are unknown"
                )
            elif error > NOTABLE_ERROR:
                warnings.append(f"{quality.kind}: when a {what} is held out, the error there is {error:.0%}")
    warnings.extend(calibration.notices)
    details = {
        **calibration.details,
        "calibration": calibration.name,
        "sha256": calibration.sha256,
        "dropped_trials": dict(calibration.dropped),
        "qualities": [
            {name: None if value != value else value for name, value in asdict(quality).items()}
            for quality in qualities
        ],
        "warnings": list(warnings),
    }
    named = [str(calibration.details[key]) for key in ("model", "gpu") if key in calibration.details]
    return LatencyInfo(" on ".join(named) or calibration.name, calibration.provenance, details)


def _points_of(calibration: Calibration, kind: str) -> pd.DataFrame:
    points = calibration.of_kind(kind)
    if points.empty:
        raise ConfigError(f"no {kind} points; this family needs them")
    return points


def _column(column: pd.Series[Any]) -> Floats:
    return column.to_numpy(dtype=np.float64)


def _range(*columns: Floats) -> tuple[int, int]:
    """Return the range that all columns cover."""
    return int(max(column.min() for column in columns)), int(min(column.max() for column in columns))
