"""Tables made of a calibration's points, and how far off they are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from batchsim.errors import ConfigError
from batchsim.latency.base import Domain, Floats, LatencyInfo
from batchsim.latency.fitting.iterations import domain_of, iteration_shapes, iterations_of, measurements_of
from batchsim.latency.fitting.regression import Mask, qualities_of
from batchsim.latency.fitting.report import (
    NOTABLE_ERROR,
    FitReport,
    column,
    fit_info,
    need_two_sizes,
    unseen_batches,
)
from batchsim.latency.tables.iteration_grid import TableIterationLatency
from batchsim.latency.tables.table import Calibration

#: Points of a grid that is made of a calibration.
MAX_GRID = 2**20
#: What prompts cost besides their tokens, in the order of the table's coefficients.
_COSTS = ("prefill_pairs", "prefill_seqs")


def fit_iteration_table(calibration: Calibration) -> FitReport:
    """Make a table of the points, see `iteration_table`."""
    need_two_sizes(calibration)
    points, domain = iterations_of(calibration), domain_of(calibration)
    shapes = iteration_shapes(points)
    mean_s, batch_size, length = measurements_of(points)

    def table(shown: Mask | slice, info: LatencyInfo) -> tuple[TableIterationLatency, float]:
        return iteration_table(points[shown], domain, info)

    def predict(shown: Mask, asked: Mask) -> Floats:
        model, _ = table(shown, LatencyInfo(calibration.name))
        return np.array([model.iteration_s(shapes[row]) for row in np.flatnonzero(asked)])

    def without(sizes: Floats) -> TableIterationLatency:
        return table(~np.isin(batch_size, sizes), LatencyInfo(calibration.name))[0]

    qualities = qualities_of(points["kind"].to_numpy(dtype=np.str_), predict, mean_s, batch_size, length)
    qualities += unseen_batches(calibration, without)
    warnings: list[str] = []
    model, measured = table(slice(None), LatencyInfo())
    averaged = next(quality.max_error for quality in qualities if quality.kind == "prefill")
    if averaged > NOTABLE_ERROR:
        warnings.append(
            f"prefills of equally many tokens, from one prompt or several, take up to {averaged:.0%} more or "
            "less than the table tells"
        )
    if measured < 1:
        warnings.append(
            f"mixed points tell {measured:.0%} of the grid's iterations with prompts and decodes; the others "
            "are prefill plus decode less the shortest pass"
        )
    num_off_grid = _num_off_grid(calibration.of_kind("mixed"), model)
    if num_off_grid:
        warnings.append(
            f"{num_off_grid} mixed points are not used: no prefill has as many tokens, or no decode their "
            "batch size and context"
        )
    model, _ = table(slice(None), fit_info(calibration, qualities, warnings))
    return FitReport("iteration_table", model, {}, qualities, tuple(warnings))


def iteration_table(
    points: pd.DataFrame, domain: Domain, info: LatencyInfo
) -> tuple[TableIterationLatency, float]:
    """Make a table of prefill, decode and mixed points as `Calibration.points` holds them.

    Decode points must fill a grid of batch size and context. What a pair of tokens and a prompt cost is
    told by prefills and chunks of as many tokens: of many prompts or few, deep in a prompt or not. These
    taken off, prefills of as many tokens are averaged. A pass of no tokens, which nobody can measure, is
    given the shortest time of all; prompts and decodes together, where no mixed point tells, take the time of
    both less that.

    Returns
    -------
    tuple
        The table, and the share of its points with prompts and decodes together that were measured.

    Raises
    ------
    ConfigError
        If decode points do not fill a grid, or an axis comes out too short.
    """
    for kind in ("prefill", "decode"):
        if not (points["kind"] == kind).any():
            raise ConfigError(f"no {kind} points; this family needs them")
    shapes = pd.DataFrame(iteration_shapes(points), points.index)
    points = points.assign(tokens=shapes["prefill_tokens"], **shapes[[*_COSTS]])
    costs = _costs_of_prompts(points)
    points = points.assign(mean_s=points["mean_s"] - sum(cost * points[name] for name, cost in costs.items()))
    by_kind = {str(kind): group for kind, group in points.groupby("kind")}
    prefill_s = {key[0]: time_s for key, time_s in _times(by_kind["prefill"], "tokens")}
    decode_s = dict(_times(by_kind["decode"], "batch_size", "context_tokens"))
    mixed_s = dict(_times(by_kind.get("mixed", points[:0]), "prompt_tokens", "batch_size", "context_tokens"))
    shortest_s = min([*prefill_s.values(), *decode_s.values(), *mixed_s.values()])
    seqs, contexts = (tuple(sorted(set(axis))) for axis in zip(*decode_s, strict=True))
    for key in product(seqs, contexts):
        if key not in decode_s:
            raise ConfigError(
                f"the grid lacks the decode point at batch size and context {key}; a table needs all of them"
            )

    def pass_s(num_tokens: int, num_seqs: int, context: int) -> float:
        if not num_seqs:
            return prefill_s.get(num_tokens, shortest_s)
        alone_s = decode_s[num_seqs, context]
        if not num_tokens:
            return alone_s
        return mixed_s.get((num_tokens, num_seqs, context), prefill_s[num_tokens] + alone_s - shortest_s)

    prefills = tuple(sorted(prefill_s))
    if len(prefills) * len(decode_s) > MAX_GRID:
        raise ConfigError(
            f"{len(prefills)} prefills by {len(decode_s)} decodes are too many for a table; a grid of at "
            f"most {MAX_GRID} points is needed"
        )
    axes = ((0, *prefills), (0, *seqs), contexts)
    grid_s = tuple(pass_s(*key) for key in product(*axes))
    num_measured = sum(key in mixed_s for key in product(prefills, seqs, contexts))
    model = TableIterationLatency(
        *axes,
        grid_s,
        pair_s=costs["prefill_pairs"],
        prompt_s=costs["prefill_seqs"],
        domain=domain,
        info=info,
    )
    return model, num_measured / (len(prefills) * len(decode_s))


def _costs_of_prompts(points: pd.DataFrame) -> dict[str, float]:
    """Seconds per pair and per prompt, at least 0.

    By least squares of relative errors among passes of as many tokens, each group with a time of its own.
    However steep they come out, a tenth of every pass is left to its tokens.
    """
    prompts = points[points["kind"].isin(["prefill", "chunk"])]
    tokens, weight = prompts["tokens"], 1 / prompts["mean_s"]

    def deviations(name: str) -> Floats:
        sums = (weight**2 * prompts[name]).groupby(tokens).transform("sum")
        mean = sums / (weight**2).groupby(tokens).transform("sum")
        return column(weight * (prompts[name] - mean))

    design = np.column_stack([deviations(name) for name in _COSTS])
    scale = np.abs(design).max(axis=0, initial=0)
    scale[scale == 0] = 1  # none of as many tokens that differ in it: nothing is told, and 0 comes out
    costs = nnls(design / scale, deviations("mean_s"))[0] / scale
    most = float((points[[*_COSTS]].to_numpy() @ costs / points["mean_s"]).max())
    return dict(zip(_COSTS, (costs * min(1.0, 0.9 / most) if most else costs).tolist(), strict=True))


def _times(points: pd.DataFrame, *columns: str) -> list[tuple[tuple[int, ...], float]]:
    """Return the mean time of the points that agree in these columns."""
    names = list(columns)
    means = points.groupby(names)["mean_s"].mean().reset_index()
    keys = (tuple(key) for key in means[names].to_numpy(dtype=np.int64).tolist())
    return list(zip(keys, means["mean_s"].tolist(), strict=True))


def _num_off_grid(mixed: pd.DataFrame, model: TableIterationLatency) -> int:
    is_on_grid = (
        mixed["prompt_tokens"].isin(model.prefill_tokens)
        & mixed["batch_size"].isin(model.decode_seqs)
        & mixed["context_tokens"].isin(model.mean_context_tokens)
    )
    return int((~is_on_grid).sum())
