"""Fits of the models that know single iterations, to prefill, decode and mixed points together."""

from __future__ import annotations

import numpy as np
import pandas as pd

from batchsim.latency.base import Domain, IterationDomain, IterationShape, LatencyInfo
from batchsim.latency.fit_report import FitReport, batch_domain, column, fit_info, points_of
from batchsim.latency.iteration_grid import TableIterationLatency, iteration_table
from batchsim.latency.linear import LINEAR_COEFFICIENTS, LinearIterationLatency
from batchsim.latency.regression import Floats, Mask, Regime, qualities_of
from batchsim.latency.table import Calibration


def iteration_shapes(points: pd.DataFrame) -> list[IterationShape]:
    """Return the iterations that prefill, decode and mixed points stand for.

    A prefill is of ``batch_size`` whole prompts; a mixed point has one whole prompt beside its decodes.
    """
    is_prefill = points["kind"] == "prefill"
    num_prompts = points["batch_size"].where(is_prefill, (points["kind"] == "mixed").astype("int64"))
    num_seqs = points["batch_size"].where(~is_prefill, 0)
    prompt = points["prompt_tokens"].where(num_prompts > 0, 0)
    context = points["context_tokens"].where(num_seqs > 0, 0)
    columns = (num_prompts * prompt, num_seqs, num_seqs * context, num_prompts)
    pairs = num_prompts * prompt**2 / 2
    whole = (one.astype("int64").tolist() for one in columns)
    return [IterationShape(*shape) for shape in zip(*whole, pairs.tolist(), strict=True)]


def fit_linear(calibration: Calibration) -> FitReport:
    """Fit by least squares of relative errors, with coefficients >= 0."""
    points = _iterations(calibration)
    shapes = np.array(iteration_shapes(points))
    mean_s, batch_size, length = _measured(points)
    design = np.column_stack([np.ones(len(points)), shapes[:, [0, 4, 1, 2]]])
    relative = Regime(
        "iterations", LINEAR_COEFFICIENTS, design / mean_s[:, None], np.ones(len(points)), batch_size, length
    )
    values, warnings = relative.solve()

    def predict(shown: Mask, asked: Mask) -> Floats:
        return design[asked] @ relative.solve(shown)[0]

    qualities = qualities_of(points["kind"].to_numpy(dtype=np.str_), predict, mean_s, batch_size, length)
    if not (points["kind"] == "mixed").any():
        warnings.append("no mixed points: prompts and decodes in one iteration are only presumed to add up")
    info = fit_info(calibration, qualities, warnings)
    ranges = ((int(axis.min()), int(axis.max())) for axis in shapes[:, :3].T)
    coefficients = dict(zip(LINEAR_COEFFICIENTS, values, strict=True))
    model = LinearIterationLatency(
        **coefficients, domain=_domain(calibration), iteration_domain=IterationDomain(*ranges), info=info
    )
    return FitReport("linear", model, coefficients, qualities, tuple(warnings))


def fit_iteration_table(calibration: Calibration) -> FitReport:
    """Make a table of the points, see `iteration_table`."""
    points, domain = _iterations(calibration), _domain(calibration)
    shapes = iteration_shapes(points)
    mean_s, batch_size, length = _measured(points)

    def table(shown: Mask | slice, info: LatencyInfo) -> tuple[TableIterationLatency, float]:
        return iteration_table(points[shown], domain, info)

    def predict(shown: Mask, asked: Mask) -> Floats:
        model, _ = table(shown, LatencyInfo(calibration.name))
        return np.array([model.iteration_s(shapes[row]) for row in np.flatnonzero(asked)])

    qualities = qualities_of(points["kind"].to_numpy(dtype=np.str_), predict, mean_s, batch_size, length)
    warnings: list[str] = []
    _, measured = table(slice(None), LatencyInfo())
    if measured < 1:
        warnings.append(
            f"mixed points tell {measured:.0%} of the grid's iterations with prompts and decodes; the others "
            "are prefill plus decode less the shortest pass"
        )
    model, _ = table(slice(None), fit_info(calibration, qualities, warnings))
    return FitReport("iteration_table", model, {}, qualities, tuple(warnings))


def _iterations(calibration: Calibration) -> pd.DataFrame:
    parts = [
        points_of(calibration, "prefill"),
        points_of(calibration, "decode"),
        calibration.of_kind("mixed"),
    ]
    return pd.concat([part for part in parts if not part.empty], ignore_index=True)


def _measured(points: pd.DataFrame) -> tuple[Floats, Floats, Floats]:
    """Return seconds, batch sizes, and lengths: prompts of prefills, contexts of decodes."""
    length = points["prompt_tokens"].where(points["kind"] == "prefill", points["context_tokens"])
    return column(points["mean_s"]), column(points["batch_size"]), column(length)


def _domain(calibration: Calibration) -> Domain:
    return batch_domain(calibration.of_kind("prefill"), calibration.of_kind("decode"))
