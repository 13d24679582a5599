"""A linear model of the iterations in the log of an engine, as far as the log tells what they did."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import pandas as pd

from batchsim.errors import ConfigError
from batchsim.latency.base import RECORDED_FIELDS, Domain, Floats, IterationDomain, LatencyInfo
from batchsim.latency.fitting.regression import Mask, Regime, intervals_of, qualities_of
from batchsim.latency.fitting.report import FitReport, column, held_out_warnings, known
from batchsim.latency.fitting.vllm_log import EngineLog
from batchsim.latency.linear import (
    IF_SEVERAL_TOKENS,
    LINEAR_COEFFICIENTS,
    PER_PREFILL_SEQ,
    LinearIterationLatency,
)

#: Shapes that are fitted; of a log with more, so many passes spread over it.
MOST_SHAPES = 20_000
#: Groups of batch sizes and of lengths, and stretches of the log, each of which is held out in turn.
NUM_GROUPS = 8

_OF_FIELD = {"context_tokens": "per_context_token_s", "prefill_pairs": "per_prefill_pair_s"}
#: Why a model of a server's lines is not that of a calibration.
_SERVER_TIME = (
    "vLLM's elapsed time begins when a pass is waited for: scheduling is not in it, nor, where the engine "
    "runs its worker in its own process, what the forward pass does before; engine.launch_s adds what lacks"
)


def fit_log(log: EngineLog) -> FitReport:
    """Fit by least squares of relative errors at the mean of each shape, each as often as it occurs.

    A coefficient whose predictor the log does not tell is 0: what it stands for is then part of the others.

    Raises
    ------
    ConfigError
        If the iterations cannot tell the coefficients apart.
    """
    passes = log.passes
    if len(passes) > MOST_SHAPES:
        passes = passes.iloc[np.linspace(0, len(passes) - 1, MOST_SHAPES).astype(np.int64)]
    points = _points(passes)
    for name, what in (("prefill_tokens", "prompt tokens"), ("decode_seqs", "decodes")):
        if not (points[name] > 0).any():
            raise ConfigError(
                f"{log.name}: no iteration has {what}; a log with prompts and answers is needed"
            )
    regime = _regime(points, log)
    values, warnings = regime.solve()
    warnings += _untold(log)

    def predict(shown: Mask, asked: Mask) -> Floats:
        return regime.design[asked] @ regime.solve(shown)[0]

    kinds = points["kind"].to_numpy(dtype=np.str_)
    qualities = qualities_of(kinds, predict, regime.mean_s, regime.batch_size, regime.length)
    noise = {quality.kind: _noise(points[points["kind"] == quality.kind]) for quality in qualities}
    warnings += held_out_warnings(qualities, noise)
    coefficients = dict.fromkeys(LINEAR_COEFFICIENTS, 0.0) | dict(zip(regime.names, values, strict=True))
    intervals = intervals_of(regime.names, regime.refits())
    details = {
        "log": log.name,
        "sha256": log.sha256,
        "num_iterations": len(log.passes),
        "num_fitted": len(passes),
        "skipped": dict(log.skipped),
        "not_told": list(log.untold),
        "qualities": [known(quality) for quality in qualities],
        "held_out_lines": _held_out_lines(passes, log),
        "noise": {kind: None if value != value else value for kind, value in noise.items()},
        "intervals_95": {name: list(ends) for name, ends in intervals.items()},
        "warnings": list(warnings),
    }
    bounds = {
        name: (int(points[name].min()), int(points[name].max()))
        for name in ("prefill_tokens", "decode_seqs", "context_tokens")
        if name not in log.untold
    }
    model = LinearIterationLatency(
        **coefficients,
        domain=Domain(batch_size=(1, max(int(points["decode_seqs"].max()), 1))),
        iteration_domain=IterationDomain(**bounds),
        info=LatencyInfo(log.name, "measured", details),
    )
    return FitReport("linear", model, coefficients, qualities, tuple(warnings), intervals)


def _points(passes: pd.DataFrame) -> pd.DataFrame:
    """Pool passes of one shape: their mean, spread and number."""
    pooled = passes.groupby(list(RECORDED_FIELDS), dropna=False)["time_s"].agg(["mean", "std", "size"])
    points = pooled.reset_index()
    has_prompts, has_decodes = points["prefill_tokens"] > 0, points["decode_seqs"] > 0
    return points.assign(kind=np.where(~has_prompts, "decode", np.where(has_decodes, "mixed", "prefill")))


def _regime(points: pd.DataFrame, log: EngineLog) -> Regime:
    """The form with all coefficients that these points tell apart."""
    told = {
        "fixed_s": np.ones(len(points)),
        "per_prefill_token_s": column(points["prefill_tokens"]),
        "per_decode_seq_s": column(points["decode_seqs"]),
    }
    more: dict[str, Floats] = {
        name: column(points[field]) for field, name in _OF_FIELD.items() if field not in log.untold
    }
    more[PER_PREFILL_SEQ] = column(points["prefill_seqs"])
    is_several: Floats = column(points["prefill_tokens"] + points["decode_seqs"] > 1)
    if 0 < is_several.mean() < 1:
        more[IF_SEVERAL_TOKENS] = is_several
    size = column(points["decode_seqs"] + points["prefill_seqs"])
    context = points["context_tokens"] / points["decode_seqs"].where(points["decode_seqs"] > 0)
    length = column(points["prefill_tokens"].where(points["prefill_tokens"] > 0, context))
    groups = (_grouped(size), _grouped(length))

    def form(columns: Mapping[str, Floats]) -> Regime:
        return Regime(
            "iterations",
            tuple(columns),
            np.column_stack([*columns.values()]),
            column(points["mean"]),
            *groups,
            is_relative=True,
            weight=column(points["size"]),
        )

    for name, values in more.items():
        with suppress(ConfigError):
            if not form({**told, name: values}).solve()[1]:
                told[name] = values
    return form(told)


def _grouped(values: Floats) -> Floats:
    """Put values into groups of about equally many, each under its middle; NaN stays."""
    is_known = ~np.isnan(values)
    if not is_known.any():
        return values
    edges = np.unique(np.quantile(values[is_known], np.linspace(0, 1, NUM_GROUPS + 1)))
    group = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(len(edges) - 2, 0))
    grouped = np.full(len(values), np.nan)
    for one in np.unique(group[is_known]):
        is_mine = is_known & (group == one)
        grouped[is_mine] = np.median(values[is_mine])
    return grouped


def _held_out_lines(passes: pd.DataFrame, log: EngineLog) -> dict[str, float | None]:
    """Predict each stretch of the log by the others: errors of single lines, and of their total."""
    stretch = np.arange(len(passes)) * NUM_GROUPS // len(passes)
    predicted = np.full(len(passes), np.nan)
    for one in range(NUM_GROUPS):
        asked = stretch == one
        if asked.all() or not asked.any():
            continue
        with suppress(ConfigError):
            shown = _regime(_points(passes[~asked]), log)
            model = dict(zip(shown.names, shown.solve()[0], strict=True))
            predicted[asked] = _seconds(passes[asked], model)
    measured = column(passes["time_s"])
    is_known = ~np.isnan(predicted)
    if not is_known.any():
        return {"mape": None, "total_error": None}
    errors = np.abs(predicted[is_known] / measured[is_known] - 1)
    total = predicted[is_known].sum() / measured[is_known].sum() - 1
    return {"mape": float(errors.mean()), "total_error": float(total)}


def _seconds(passes: pd.DataFrame, model: Mapping[str, float]) -> Floats:
    several = (passes["prefill_tokens"] + passes["decode_seqs"] > 1).astype(np.float64)
    columns = {
        "fixed_s": pd.Series(1.0, index=passes.index),
        "per_prefill_token_s": passes["prefill_tokens"],
        "per_decode_seq_s": passes["decode_seqs"],
        "per_context_token_s": passes["context_tokens"],
        "per_prefill_pair_s": passes["prefill_pairs"],
        PER_PREFILL_SEQ: passes["prefill_seqs"],
        IF_SEVERAL_TOKENS: several,
    }
    return column(pd.Series(sum(value * columns[name] for name, value in model.items())))


def _noise(points: pd.DataFrame) -> float:
    """Mean standard error of the means of shapes that occur several times, relative to them."""
    several = points[points["size"] > 1]
    return float((several["std"] / np.sqrt(several["size"]) / several["mean"]).mean())


def _untold(log: EngineLog) -> list[str]:
    sentences = [f"left out: {num} iterations {why}" for why, num in log.skipped.items()]
    if log.untold:
        sentences += [
            "the log does not tell context lengths, nor how far back prompt tokens attend: what these cost "
            "is spread over the other coefficients, and right on average over contexts like those of the log",
            _SERVER_TIME,
        ]
    return sentences
