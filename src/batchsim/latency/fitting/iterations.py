"""Which iterations prefill, decode, mixed and chunk points are, and the linear fit to them together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import pandas as pd

from batchsim.errors import ConfigError
from batchsim.latency.base import Domain, Floats, IterationDomain, IterationShape, LatencyInfo
from batchsim.latency.fitting.regression import Mask, Regime, intervals_of, qualities_of
from batchsim.latency.fitting.report import (
    FitReport,
    batch_domain,
    column,
    fit_info,
    need_two_sizes,
    points_of,
    unseen_batches,
)
from batchsim.latency.linear import (
    IF_SEVERAL_TOKENS,
    LINEAR_COEFFICIENTS,
    PER_PREFILL_SEQ,
    LinearIterationLatency,
)
from batchsim.latency.tables.table import Calibration


def iteration_shapes(points: pd.DataFrame) -> list[IterationShape]:
    """Return the iterations that prefill, decode, mixed and chunk points stand for.

    A prefill is of ``batch_size`` whole prompts; a mixed point has one whole prompt beside its decodes; a
    chunk is one of each of ``batch_size`` prompts.
    """
    has_prompts = points["kind"].isin(["prefill", "chunk"])
    num_prompts = points["batch_size"].where(has_prompts, (points["kind"] == "mixed").astype("int64"))
    num_seqs = points["batch_size"].where(~has_prompts, 0)
    prompt = points["prompt_tokens"].where(num_prompts > 0, 0)
    context = points["context_tokens"].where(num_seqs > 0, 0)
    before = points["context_tokens"].where(points["kind"] == "chunk", 0)
    columns = (num_prompts * prompt, num_seqs, num_seqs * context, num_prompts)
    pairs = num_prompts * prompt * (before + prompt / 2)
    whole = (one.astype("int64").tolist() for one in columns)
    return [IterationShape(*shape) for shape in zip(*whole, pairs.tolist(), strict=True)]


def fit_linear(calibration: Calibration) -> FitReport:
    """Fit by least squares of relative errors, with coefficients >= 0.

    What a prompt costs besides its tokens is told only where prefills of several batch sizes tell it, what
    several tokens cost beyond a lone one only where single decodes do.
    """
    need_two_sizes(calibration)
    points = iterations_of(calibration)
    shapes = np.array(iteration_shapes(points))
    mean_s, batch_size, length = measurements_of(points)
    columns = dict(zip(LINEAR_COEFFICIENTS, [np.ones(len(points)), *shapes[:, [0, 4, 1, 2]].T], strict=True))
    optional: dict[str, Floats] = {}
    if len(calibration.of_kind("prefill")["batch_size"].unique()) > 1:
        optional[PER_PREFILL_SEQ] = shapes[:, 3]
    is_several = (shapes[:, 0] + shapes[:, 1] > 1).astype(np.float64)
    if not is_several.all():
        optional[IF_SEVERAL_TOKENS] = is_several

    def form(columns: Mapping[str, Floats]) -> Regime:
        design = np.column_stack([*columns.values()])
        return Regime("iterations", tuple(columns), design, mean_s, batch_size, length, is_relative=True)

    for name, column_ in optional.items():
        with suppress(ConfigError):
            form({**columns, name: column_}).solve()
            columns[name] = column_
    regime = form(columns)
    values, warnings = regime.solve()
    domain = domain_of(calibration)
    iteration_domain = IterationDomain(*((int(axis.min()), int(axis.max())) for axis in shapes[:, :3].T))

    def model(values: list[float], info: LatencyInfo) -> LinearIterationLatency:
        coefficients = dict(zip(regime.names, values, strict=True))
        return LinearIterationLatency(
            **coefficients, domain=domain, iteration_domain=iteration_domain, info=info
        )

    def predict(shown: Mask, asked: Mask) -> Floats:
        return regime.design[asked] @ regime.solve(shown)[0]

    def without(sizes: Floats) -> LinearIterationLatency:
        return model(regime.solve(~np.isin(batch_size, sizes))[0], LatencyInfo())

    qualities = qualities_of(points["kind"].to_numpy(dtype=np.str_), predict, mean_s, batch_size, length)
    qualities += unseen_batches(calibration, without)
    if not (points["kind"] == "mixed").any():
        warnings.append("no mixed points: prompts and decodes in one iteration are only presumed to add up")
    intervals = intervals_of(regime.names, regime.refits())
    fitted = model(values, fit_info(calibration, qualities, warnings, intervals))
    coefficients = dict(zip(regime.names, values, strict=True))
    return FitReport("linear", fitted, coefficients, qualities, tuple(warnings), intervals)


def iterations_of(calibration: Calibration) -> pd.DataFrame:
    """Return the points that single iterations are told by."""
    parts = [
        points_of(calibration, "prefill"),
        points_of(calibration, "decode"),
        calibration.of_kind("mixed"),
        calibration.of_kind("chunk"),
    ]
    return pd.concat([part for part in parts if not part.empty], ignore_index=True)


def measurements_of(points: pd.DataFrame) -> tuple[Floats, Floats, Floats]:
    """Return seconds, batch sizes, and lengths: prompts of prefills, contexts of decodes."""
    length = points["prompt_tokens"].where(points["kind"] == "prefill", points["context_tokens"])
    return column(points["mean_s"]), column(points["batch_size"]), column(length)


def domain_of(calibration: Calibration) -> Domain:
    """Return the range of whole batches that prefills and decodes have in common."""
    return batch_domain(calibration.of_kind("prefill"), calibration.of_kind("decode"))
