"""Fit latency models to a calibration, and report how well they predict points they were not shown.

A high R2 hides errors of tens of per cent at single points: judge a fit by its held-out errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from batchsim.errors import ConfigError
from batchsim.latency.analytic import (
    DECODE_COEFFICIENTS,
    LENGTHS,
    PHASE_COEFFICIENTS,
    PREFILL_COEFFICIENTS,
    AffineBatchLatency,
    PhaseBatchLatency,
)
from batchsim.latency.base import Domain, LatencyInfo
from batchsim.latency.fit_iterations import fit_iteration_table, fit_linear
from batchsim.latency.fit_report import (
    NOTABLE_ERROR,
    FitReport,
    batch_domain,
    column,
    common_range,
    fit_info,
    points_of,
)
from batchsim.latency.grid import TableLength, lengths_of, table_latency
from batchsim.latency.regression import Floats, Mask, Regime, quality_of
from batchsim.latency.table import Calibration

__all__ = ["Family", "FitReport", "fit"]

Family = Literal["affine", "phase", "table", "linear", "iteration_table", "auto"]

#: What ``auto`` chooses from.
BATCH_FAMILIES = ("affine", "phase", "table")


def fit(
    calibration: Calibration, family: Family = "auto", length: TableLength = "prompt+output"
) -> FitReport:
    """Fit a model.

    Parameters
    ----------
    calibration
        Whole-batch points for ``affine`` and ``table``; prefill and decode points for the others, and mixed
        ones for ``linear`` and ``iteration_table``, if there are any.
    family
        ``auto`` takes the family with the smallest held-out error among those the points allow that are made
        for whole batches. ``linear`` and ``iteration_table`` do for whole batches and single iterations.
    length
        What the length of a whole batch counts; a ``max_seq_len`` column is taken to hold just that.
        Only ``affine`` and ``table`` have a use for it, and only a table can be over ``prompt,output``.

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
        "linear": lambda: fit_linear(calibration),
        "iteration_table": lambda: fit_iteration_table(calibration),
    }
    if family != "auto" and family not in fits:
        raise ConfigError(f"latency family is {family!r}; known: {', '.join(get_args(Family))}")
    reports, reasons = [], []
    for name in BATCH_FAMILIES if family == "auto" else [family]:
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
    points = points_of(calibration, "batch")
    batch_size, tokens = column(points["batch_size"]), column(lengths_of(points, length)[0])
    regime = Regime(
        "batch",
        ("alpha_s", "beta_s_per_token", "beta_s_per_token * gamma"),
        np.column_stack([np.ones(len(points)), tokens, tokens * (batch_size - 1) / batch_size]),
        column(points["mean_s"]),
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
    info = fit_info(calibration, (quality,), warnings)
    coefficients = {"alpha_s": alpha_s, "beta_s_per_token": beta_s, "gamma": beta_gamma_s / beta_s}
    domain = (
        Domain(batch_size=common_range(batch_size), output_tokens=common_range(tokens))
        if length == "output"
        else Domain(batch_size=common_range(batch_size), length=common_range(tokens))
    )
    model = AffineBatchLatency(**coefficients, length=length, domain=domain, info=info)
    return FitReport("affine", model, coefficients, (quality,), tuple(warnings))


def _fit_phase(calibration: Calibration) -> FitReport:
    points = points_of(calibration, "prefill")
    batch_size, prompt = column(points["batch_size"]), column(points["prompt_tokens"])
    prefill = Regime(
        "prefill",
        PREFILL_COEFFICIENTS,
        np.column_stack([np.ones(len(points)), batch_size * prompt, batch_size * prompt**2]),
        column(points["mean_s"]),
        batch_size,
        prompt,
    )
    points = points_of(calibration, "decode")
    num_seqs, context = column(points["batch_size"]), column(points["context_tokens"])
    decode = Regime(
        "decode",
        DECODE_COEFFICIENTS,
        np.column_stack([np.ones(len(points)), num_seqs > 1, num_seqs, num_seqs * context]),
        column(points["mean_s"]),
        num_seqs,
        context,
    )
    prefill_values, prefill_warnings = prefill.solve()
    decode_values, decode_warnings = decode.solve()
    warnings = prefill_warnings + decode_warnings
    qualities = (prefill.quality(), decode.quality())
    domain = batch_domain(points_of(calibration, "prefill"), points)
    info = fit_info(calibration, qualities, warnings)
    coefficients = dict(zip(PHASE_COEFFICIENTS, prefill_values + decode_values, strict=True))
    model = PhaseBatchLatency(**coefficients, domain=domain, info=info)
    return FitReport("phase", model, coefficients, qualities, tuple(warnings))


def _fit_table(calibration: Calibration, length: TableLength) -> FitReport:
    points = points_of(calibration, "batch")
    positions = np.column_stack([points["batch_size"], *lengths_of(points, length)])

    def predict(shown: Mask, asked: Mask) -> Floats:
        table = table_latency(points[shown], length, LatencyInfo(calibration.name))
        return np.array([table.interpolate(tuple(position)) for position in positions[asked].tolist()])

    # A table over prompt and output holds out values of the latter.
    quality = quality_of("batch", predict, column(points["mean_s"]), positions[:, 0], positions[:, -1])
    warnings: list[str] = []
    info = fit_info(calibration, (quality,), warnings)
    return FitReport("table", table_latency(points, length, info), {}, (quality,), tuple(warnings))
