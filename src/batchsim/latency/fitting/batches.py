"""Fits of the models made for whole batches: to batch points, or to prefill and decode points."""

from __future__ import annotations

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
from batchsim.latency.base import Domain, Floats, LatencyInfo
from batchsim.latency.choices import TableLength
from batchsim.latency.fitting.regression import Mask, Quality, Regime, intervals_of, quality_of
from batchsim.latency.fitting.report import (
    NOTABLE_ERROR,
    FitReport,
    batch_domain,
    column,
    common_range,
    fit_info,
    need_two_sizes,
    points_of,
    unseen_batches,
)
from batchsim.latency.tables.grid import lengths_of, table_latency
from batchsim.latency.tables.table import Calibration


def fit_affine(calibration: Calibration, length: TableLength) -> FitReport:
    """Fit the classic form by least squares, with coefficients >= 0."""
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
    warnings += misfit_at_largest(quality, calibration)
    refits = regime.refits()
    refits = refits[refits[:, 1] > 0]
    refits[:, 2] /= refits[:, 1]
    intervals = intervals_of(("alpha_s", "beta_s_per_token", "gamma"), refits)
    info = fit_info(calibration, (quality,), warnings, intervals)
    coefficients = {"alpha_s": alpha_s, "beta_s_per_token": beta_s, "gamma": beta_gamma_s / beta_s}
    domain = (
        Domain(batch_size=common_range(batch_size), output_tokens=common_range(tokens))
        if length == "output"
        else Domain(batch_size=common_range(batch_size), length=common_range(tokens))
    )
    model = AffineBatchLatency(**coefficients, length=length, domain=domain, info=info)
    return FitReport("affine", model, coefficients, (quality,), tuple(warnings), intervals)


def misfit_at_largest(quality: Quality, calibration: Calibration) -> tuple[str, ...]:
    """Say what the classic form does to the largest batches, if that is notable."""
    bias, largest = quality.largest_batch_bias, calibration.of_kind("batch")["batch_size"].max()
    if not abs(bias) > NOTABLE_ERROR:
        return ()
    return (
        f"the affine form (alpha, beta, gamma) {'saturates in' if bias < 0 else 'does not follow'} the batch "
        f"size: batches of {largest}, held out, are predicted {abs(bias):.0%} too "
        f"{'short' if bias < 0 else 'long'}",
    )


def fit_phase(calibration: Calibration) -> FitReport:
    """Fit both phases by least squares of relative errors, with coefficients >= 0."""
    points = points_of(calibration, "prefill")
    batch_size, prompt = column(points["batch_size"]), column(points["prompt_tokens"])
    prefill = Regime(
        "prefill",
        PREFILL_COEFFICIENTS,
        np.column_stack([np.ones(len(points)), batch_size * prompt, batch_size * prompt**2]),
        column(points["mean_s"]),
        batch_size,
        prompt,
        is_relative=True,
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
        is_relative=True,
    )
    prefill_values, prefill_warnings = prefill.solve()
    decode_values, decode_warnings = decode.solve()
    warnings = prefill_warnings + decode_warnings
    domain = batch_domain(points_of(calibration, "prefill"), points)

    def model(values: list[float], info: LatencyInfo) -> PhaseBatchLatency:
        coefficients = dict(zip(PHASE_COEFFICIENTS, values, strict=True))
        return PhaseBatchLatency(**coefficients, domain=domain, info=info)

    def without(sizes: Floats) -> PhaseBatchLatency:
        (prefill_values, _), (decode_values, _) = (
            part.solve(~np.isin(part.batch_size, sizes)) for part in (prefill, decode)
        )
        return model(prefill_values + decode_values, LatencyInfo())

    qualities = (prefill.quality(), decode.quality(), *unseen_batches(calibration, without))
    intervals = intervals_of(PREFILL_COEFFICIENTS, prefill.refits())
    intervals |= intervals_of(DECODE_COEFFICIENTS, decode.refits())
    fitted = model(prefill_values + decode_values, fit_info(calibration, qualities, warnings, intervals))
    coefficients = dict(zip(PHASE_COEFFICIENTS, prefill_values + decode_values, strict=True))
    return FitReport("phase", fitted, coefficients, qualities, tuple(warnings), intervals)


def fit_table(calibration: Calibration, length: TableLength) -> FitReport:
    """Make a table of the points."""
    need_two_sizes(calibration)
    points = points_of(calibration, "batch")
    positions = np.column_stack([points["batch_size"], *lengths_of(points, length)])

    def predict(shown: Mask, asked: Mask) -> Floats:
        table = table_latency(points[shown], length, LatencyInfo(calibration.name))
        return np.array([table.interpolate(tuple(position)) for position in positions[asked].tolist()])

    # A table over prompt and output holds out values of the latter.
    quality = quality_of("batch", predict, column(points["mean_s"]), positions[:, 0], positions[:, -1])
    warnings: list[str] = []
    if length == "prompt+output" and quality.heldout_length_mape > NOTABLE_ERROR and calibration.is_raw:
        warnings.append(
            "batch: prompts and answers may differ in time; a length of prompt,output keeps them apart"
        )
    info = fit_info(calibration, (quality,), warnings)
    return FitReport("table", table_latency(points, length, info), {}, (quality,), tuple(warnings))
