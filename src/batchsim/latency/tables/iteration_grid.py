"""An iteration model that interpolates between the points of a calibration."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

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
from batchsim.latency.tables.grid import interpolate


class DecodeRow(NamedTuple):
    """Decode iterations of one number of sequences, over the context of all of them together."""

    inner_tokens: tuple[int, ...]  # where one cell ends and the next begins
    cells: tuple[tuple[int, float, float, float], ...]  # start and seconds there, end, seconds per token


@dataclass(frozen=True, slots=True)
class TableIterationLatency:
    """Linear interpolation between the points of a complete grid; beyond its edges the outer cells go on.

    The third axis is the *mean* context of the decoding sequences, as calibrations vary it: alike for every
    number of sequences, and at a given number linear in the sum of contexts. How far back prompt tokens
    attend is no axis, nor is how many prompts they are of: each pair of tokens, each prompt costs the same
    wherever in the grid.

    Attributes
    ----------
    prefill_tokens, decode_seqs, mean_context_tokens
        The axes: at least two increasing whole numbers each, from 0 on.
    grid_s
        Seconds at each point of the grid, last axis fastest. Without decodes the context has no meaning: its
        first value is taken.
    pair_s, prompt_s
        Seconds for each of `IterationShape.prefill_pairs` and `prefill_seqs`, beside what the grid holds.
    domain
        The range of whole batches; that of iterations is the grid.
    """

    prefill_tokens: tuple[int, ...]
    decode_seqs: tuple[int, ...]
    mean_context_tokens: tuple[int, ...]
    grid_s: tuple[float, ...]
    pair_s: float = 0.0
    prompt_s: float = 0.0
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
        check_number("pair_s", self.pair_s)
        check_number("prompt_s", self.prompt_s)

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
        prefill_tokens, decode_seqs, context_tokens, prefill_seqs, prefill_pairs, _ = shape
        mean_context = context_tokens / decode_seqs if decode_seqs else self.mean_context_tokens[0]
        time_s = interpolate(self._axes, self.grid_s, (prefill_tokens, decode_seqs, mean_context))
        time_s += self.pair_s * prefill_pairs + self.prompt_s * prefill_seqs
        if time_s <= 0:
            raise too_far(self.info, shape, time_s, "the grid")
        return time_s

    def decode_line(self, decode_seqs: int, context_tokens: int) -> DecodeLine:
        """Seconds of the following decode iterations, up to the next point of the grid.

        Raises
        ------
        ConfigError
            As `iteration_s`.
        """
        row = self._rows.get(decode_seqs) or self._row(decode_seqs)
        first_s, slope_s, num_linear = along(row, decode_seqs, context_tokens)
        if first_s <= 0:
            raise too_far(self.info, IterationShape(0, decode_seqs, context_tokens), first_s, "the grid")
        return line_of(first_s, slope_s, num_linear, decode_seqs)

    @property
    def _axes(self) -> tuple[tuple[int, ...], ...]:
        return self.prefill_tokens, self.decode_seqs, self.mean_context_tokens

    def _row(self, decode_seqs: int) -> DecodeRow:
        knots = [
            (decode_seqs * mean, interpolate(self._axes, self.grid_s, (0, decode_seqs, mean)))
            for mean in self.mean_context_tokens
        ]
        inner_tokens = tuple(tokens for tokens, _ in knots[1:-1])
        row = self._rows[decode_seqs] = DecodeRow(inner_tokens, _cells(knots))
        return row


def decode_row(knots: Sequence[tuple[int, float]]) -> DecodeRow:
    """Make a row of points, context of all sequences and seconds there; it is level before the first."""
    level = (0, knots[0][1], float(knots[0][0]), 0.0)
    return DecodeRow(tuple(tokens for tokens, _ in knots[:-1]), _cells(knots, level))


def along(row: DecodeRow, decode_seqs: int, context_tokens: int) -> tuple[float, float, float]:
    """Seconds at a context, their slope per token, and for how many iterations that holds."""
    start_tokens, start_s, end_tokens, slope_s = row.cells[bisect_right(row.inner_tokens, context_tokens)]
    num_linear = math.inf if end_tokens == math.inf else (end_tokens - context_tokens) // decode_seqs + 1
    return start_s + slope_s * (context_tokens - start_tokens), slope_s, num_linear


def line_of(first_s: float, slope_s: float, num_linear: float, decode_seqs: int) -> DecodeLine:
    """Make a line of what `along` tells, up to where it would reach zero."""
    growth_s = slope_s * decode_seqs
    if growth_s < 0:
        num_linear = min(num_linear, math.ceil(first_s / -growth_s))
    return DecodeLine(first_s, growth_s, num_linear)


def too_far(info: LatencyInfo, shape: IterationShape, time_s: float, measured: str) -> ConfigError:
    """Say that slopes were followed below zero, away from what was measured."""
    return ConfigError(
        f"{info.name}: extrapolated to {time_s:.3g} s for {shape.prefill_tokens} prompt tokens, "
        f"{shape.decode_seqs} decoding sequences and {shape.context_tokens} context tokens, too far from "
        f"{measured}"
    )


def _cells(
    knots: Sequence[tuple[int, float]], *before: tuple[int, float, float, float]
) -> tuple[tuple[int, float, float, float], ...]:
    """Cells from each of these points to the next, after those before; the last goes on for ever."""
    between = [
        (start_tokens, start_s, float(end_tokens), (end_s - start_s) / (end_tokens - start_tokens))
        for (start_tokens, start_s), (end_tokens, end_s) in pairwise(knots)
    ]
    *all_but_last, (start_tokens, start_s, _, slope_s) = [*before, *between]
    return (*all_but_last, (start_tokens, start_s, math.inf, slope_s))
