"""An iteration model that interpolates between the points of a calibration."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import pandas as pd

from batchsim.errors import ConfigError
from batchsim.files import MAX_COUNT
from batchsim.latency.analytic import check_number
from batchsim.latency.base import (
    BatchShape,
    BatchTime,
    DecodeLine,
    Domain,
    IterationShape,
    LatencyInfo,
    padded_batch_time,
)
from batchsim.latency.grid import interpolate

#: Points of a grid that is made of a calibration.
MAX_GRID = 2**20


class DecodeRow(NamedTuple):
    """Decode iterations of one number of sequences, over the context of all of them together."""

    inner_tokens: tuple[int, ...]  # where one cell ends and the next begins
    cells: tuple[tuple[int, float, float, float], ...]  # start and seconds there, end, seconds per token


@dataclass(frozen=True, slots=True)
class TableIterationLatency:
    """Linear interpolation between the points of a complete grid; beyond its edges the outer cells go on.

    The third axis is the *mean* context of the decoding sequences, as calibrations vary it: alike for every
    number of sequences, and at a given number linear in the sum of contexts. How far back prompt tokens
    attend is no axis (`IterationShape.prefill_pairs` is not looked at): the time of chunks deep in a long
    prompt is underestimated.

    Attributes
    ----------
    prefill_tokens, decode_seqs, mean_context_tokens
        The axes: at least two increasing whole numbers each, from 0 on.
    grid_s
        Seconds at each point of the grid, last axis fastest. Without decodes the context has no meaning: its
        first value is taken.
    domain
        The range of whole batches; that of iterations is the grid.
    """

    prefill_tokens: tuple[int, ...]
    decode_seqs: tuple[int, ...]
    mean_context_tokens: tuple[int, ...]
    grid_s: tuple[float, ...]
    domain: Domain = field(default_factory=Domain)
    info: LatencyInfo = field(default_factory=LatencyInfo)
    _rows: dict[int, DecodeRow] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("prefill_tokens", "decode_seqs", "mean_context_tokens"):
            axis = getattr(self, name)
            is_whole = all(type(value) is int and 0 <= value <= MAX_COUNT for value in axis)
            if len(axis) < 2 or not is_whole or list(axis) != sorted(set(axis)):
                raise ConfigError(
                    f"{name} of the table is {list(axis)!r:.60}; "
                    "two or more increasing whole numbers >= 0 are needed"
                )
        num_points = math.prod(map(len, self._axes))
        if len(self.grid_s) != num_points:
            raise ConfigError(f"grid_s holds {len(self.grid_s)} times; the axes ask for {num_points}")
        for value in self.grid_s:
            check_number("a time in grid_s", value, above=0)

    @property
    def is_bounded(self) -> bool:
        """A table: it ends somewhere."""
        return True

    def covers(self, shape: IterationShape) -> bool:
        """Whether the shape lies in the grid."""
        seqs, context = self.decode_seqs, self.mean_context_tokens
        return (
            self.prefill_tokens[0] <= shape.prefill_tokens <= self.prefill_tokens[-1]
            and seqs[0] <= shape.decode_seqs <= seqs[-1]
            and context[0] * shape.decode_seqs <= shape.context_tokens <= context[-1] * shape.decode_seqs
        )

    def batch_time(self, shape: BatchShape) -> BatchTime:
        """Seconds to the first token and to the end of the batch; its prefill is one pass, without chunks."""
        return padded_batch_time(self, shape)

    def iteration_s(self, shape: IterationShape) -> float:
        """Seconds for one forward pass.

        Raises
        ------
        ConfigError
            Outside the grid, where its slope leads below zero.
        """
        prefill_tokens, decode_seqs, context_tokens = shape[:3]
        mean_context = context_tokens / decode_seqs if decode_seqs else self.mean_context_tokens[0]
        time_s = interpolate(self._axes, self.grid_s, (prefill_tokens, decode_seqs, mean_context))
        if time_s <= 0:
            raise self._too_far(shape, time_s)
        return time_s

    def decode_line(self, decode_seqs: int, context_tokens: int) -> DecodeLine:
        """Seconds of the following decode iterations, up to the next point of the grid.

        Raises
        ------
        ConfigError
            As `iteration_s`.
        """
        row = self._rows.get(decode_seqs) or self._row(decode_seqs)
        start_tokens, start_s, end_tokens, slope_s = row.cells[bisect_right(row.inner_tokens, context_tokens)]
        first_s = start_s + slope_s * (context_tokens - start_tokens)
        growth_s = slope_s * decode_seqs
        if first_s <= 0:
            raise self._too_far(IterationShape(0, decode_seqs, context_tokens), first_s)
        num_linear = math.inf if end_tokens == math.inf else (end_tokens - context_tokens) // decode_seqs + 1
        if growth_s < 0:  # up to where it would reach zero
            num_linear = min(num_linear, math.ceil(first_s / -growth_s))
        return DecodeLine(first_s, growth_s, num_linear)

    @property
    def _axes(self) -> tuple[tuple[int, ...], ...]:
        return self.prefill_tokens, self.decode_seqs, self.mean_context_tokens

    def _row(self, decode_seqs: int) -> DecodeRow:
        knots = [
            (decode_seqs * mean, interpolate(self._axes, self.grid_s, (0, decode_seqs, mean)))
            for mean in self.mean_context_tokens
        ]
        cells = [
            (start_tokens, start_s, float(end_tokens), (end_s - start_s) / (end_tokens - start_tokens))
            for (start_tokens, start_s), (end_tokens, end_s) in pairwise(knots)
        ]
        cells[-1] = (*cells[-1][:2], math.inf, cells[-1][3])
        row = self._rows[decode_seqs] = DecodeRow(tuple(tokens for tokens, _ in knots[1:-1]), tuple(cells))
        return row

    def _too_far(self, shape: IterationShape, time_s: float) -> ConfigError:
        return ConfigError(
            f"{self.info.name}: extrapolated to {time_s:.3g} s for {shape.prefill_tokens} prompt tokens, "
            f"{shape.decode_seqs} decoding sequences and {shape.context_tokens} context tokens, too far from "
            "the grid"
        )


def iteration_table(
    points: pd.DataFrame, domain: Domain, info: LatencyInfo
) -> tuple[TableIterationLatency, float]:
    """Make a table of prefill, decode and mixed points as `Calibration.points` holds them.

    Decode points must fill a grid of batch size and context. Prefills of as many tokens are averaged, however
    many prompts they come from. A pass of no tokens, which nobody can measure, is given the shortest time of
    all; prompts and decodes together, where no mixed point tells, take the time of both less that.

    Returns
    -------
    tuple
        The table, and the share of its points with prompts and decodes together that were measured.

    Raises
    ------
    ConfigError
        If decode points do not fill a grid, or an axis comes out too short.
    """
    tokens = points["batch_size"] * points["prompt_tokens"]
    by_kind = {str(kind): group for kind, group in points.assign(tokens=tokens).groupby("kind")}
    for kind in ("prefill", "decode"):
        if kind not in by_kind:
            raise ConfigError(f"no {kind} points; this family needs them")
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
    return TableIterationLatency(*axes, grid_s, domain, info), num_measured / (len(prefills) * len(decode_s))


def _times(points: pd.DataFrame, *columns: str) -> list[tuple[tuple[int, ...], float]]:
    """Return the mean time of the points that agree in these columns."""
    names = list(columns)
    means = points.groupby(names)["mean_s"].mean().reset_index()
    keys = (tuple(key) for key in means[names].to_numpy(dtype=np.int64).tolist())
    return list(zip(keys, means["mean_s"].tolist(), strict=True))
