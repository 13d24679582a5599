"""An iteration model that sums the measured times of a forward pass's operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np

from batchsim.errors import ConfigError
from batchsim.files import MAX_COUNT
from batchsim.latency.analytic import MOST
from batchsim.latency.base import (
    BatchShape,
    BatchTime,
    DecodeLine,
    Domain,
    Floats,
    IterationShape,
    LatencyInfo,
    padded_batch_time,
)
from batchsim.latency.tables.grid import interpolate
from batchsim.latency.tables.iteration_grid import DecodeRow, along, decode_row, line_of, too_far


class OperatorTable(NamedTuple):
    """Seconds at each point of a complete grid, last axis fastest."""

    axes: tuple[tuple[int, ...], ...]
    seconds: tuple[float, ...]


class Lag(NamedTuple):
    """How far uneven decodes lag, by their number: 0 as with the mean context, 1 as with the longest."""

    seqs: tuple[int, ...]
    share: tuple[float, ...]


#: Where the axes end of which every whole number is held: a million tokens or sequences in one pass.
MOST_LISTED = 2**20

#: The tables of the model, and what their axes count.
TABLES = {
    "by_tokens": ("tokens",),
    "by_sequences": ("sequences",),
    "prefill": ("chunk", "tokens before it"),
    "decode": ("sequences", "mean context"),
    "mixed": ("chunk", "tokens before it", "sequences", "mean context"),
}


@dataclass(frozen=True, slots=True)
class OperatorTableLatency:
    """What follows the tokens of a pass, plus what follows its sequences, plus its attention.

    Seconds of whole passes, all layers together; linear between the points. The attention of prompt chunks
    beside decodes is a table of its own, as an engine runs other kernels for it: it can take twice the time
    of both alone. The chunks of a pass count as one of as many tokens and pairs; several prompts, which have
    fewer pairs than one so long, as one of as many pairs. Decodes count with their mean context;
    where the longest is known, attention takes a share of the way to the time of as many decodes that long.
    Below the first point of an axis the time is that of the first point: kernels work by tiles.

    Attributes
    ----------
    by_tokens
        Projections, feed-forward blocks or experts, norms, exchanges between GPUs: over prompt tokens and
        decodes. Beyond the last point the slope is that from half of it on; so for ``by_sequences``.
    by_sequences
        Output head and sampler, over decodes and prompt chunks.
    prefill, decode, mixed
        Attention, over the axes that `TABLES` names. Beyond the last points the outer cells go on.
    domain
        The range of whole batches; that of iterations is where all tables have points.
    decode_lag, mixed_lag
        That share, without and with chunks beside the decodes; ``None``: 0. Linear between the points, 0 for
        a single decode.
    """

    by_tokens: OperatorTable
    by_sequences: OperatorTable
    prefill: OperatorTable
    decode: OperatorTable
    mixed: OperatorTable
    domain: Domain = field(default_factory=Domain)
    info: LatencyInfo = field(default_factory=lambda: LatencyInfo("operators", "derived"))
    decode_lag: Lag | None = None
    mixed_lag: Lag | None = None
    # Seconds at every whole number up to the end of the axis, and per unit beyond it.
    _tokens_s: list[float] = field(init=False, repr=False, compare=False)
    _sequences_s: list[float] = field(init=False, repr=False, compare=False)
    _beyond_s: tuple[float, float] = field(init=False, repr=False, compare=False)
    _decode_shares: list[float] = field(init=False, repr=False, compare=False)
    _mixed_shares: list[float] = field(init=False, repr=False, compare=False)
    _rows: dict[int, DecodeRow] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in TABLES:
            check_table(name, getattr(self, name), TABLES[name])
        for name in ("decode_lag", "mixed_lag"):
            shares = _shares(name, getattr(self, name))
            object.__setattr__(self, f"_{name.removesuffix('_lag')}_shares", shares)
        if self.info.provenance == "measured":
            raise ConfigError(
                "a sum of operators is computed, not measured; its provenance must be derived or synthetic"
            )
        tokens_s, sequences_s = _at_whole_numbers(self.by_tokens), _at_whole_numbers(self.by_sequences)
        object.__setattr__(self, "_tokens_s", tokens_s)
        object.__setattr__(self, "_sequences_s", sequences_s)
        object.__setattr__(self, "_beyond_s", (_last_slope(tokens_s), _last_slope(sequences_s)))

    @property
    def is_bounded(self) -> bool:
        """Tables: they end somewhere."""
        return True

    @property
    def follows_longest(self) -> bool:
        """Whether uneven decodes lag."""
        return self.decode_lag is not None or self.mixed_lag is not None

    def covers(self, shape: IterationShape) -> bool:
        """Whether no axis of the tables that tell of the shape ends before it."""
        prefill_tokens, decode_seqs, context_tokens, prefill_seqs, prefill_pairs, longest_tokens = shape
        if prefill_tokens + decode_seqs >= len(self._tokens_s) or prefill_seqs + decode_seqs >= len(
            self._sequences_s
        ):
            return False
        if not prefill_tokens:
            seqs, context = self.decode.axes
            return decode_seqs <= seqs[-1] and _reaches(context, context_tokens, decode_seqs, longest_tokens)
        chunk, before = _one_chunk(prefill_tokens, prefill_pairs)
        axes = self.mixed.axes if decode_seqs else self.prefill.axes
        inside = chunk <= axes[0][-1] and before <= axes[1][-1]
        if decode_seqs:
            inside = inside and decode_seqs <= axes[2][-1]
            inside = inside and _reaches(axes[3], context_tokens, decode_seqs, longest_tokens)
        return inside

    def batch_time(self, shape: BatchShape) -> BatchTime:
        """Seconds to the first token and to the end of the batch; its prefill is one pass, without chunks."""
        return padded_batch_time(self, shape)

    def iteration_s(self, shape: IterationShape) -> float:
        """Seconds for one forward pass.

        Raises
        ------
        ConfigError
            Outside the tables, where their slope leads below zero.
        """
        prefill_tokens, decode_seqs, context_tokens, prefill_seqs, prefill_pairs, longest_tokens = shape
        if not prefill_tokens:
            return self.decode_line(decode_seqs, context_tokens, longest_tokens).first_s
        chunk = _one_chunk(prefill_tokens, prefill_pairs)
        time_s = self._beside_attention_s(prefill_tokens + decode_seqs, (prefill_seqs or 1) + decode_seqs)
        if not decode_seqs:
            time_s += look_up(self.prefill, chunk)
        else:
            mean_s = look_up(self.mixed, (*chunk, decode_seqs, context_tokens / decode_seqs))
            time_s += mean_s
            share = self._mixed_shares[min(decode_seqs, len(self._mixed_shares) - 1)]
            if share and longest_tokens * decode_seqs > context_tokens:
                time_s += share * (look_up(self.mixed, (*chunk, decode_seqs, longest_tokens)) - mean_s)
        if time_s <= 0:
            raise too_far(self.info, shape, time_s, "the tables")
        return time_s

    def tokens_s(self, tokens: int) -> float:
        """Seconds of what follows the tokens of a pass."""
        return self._beside_attention_s(tokens, 0)

    def iterations_s(self, shapes: Sequence[IterationShape] | Floats) -> Floats:
        """Seconds of many passes: shapes ``(num_shapes, 6)`` in the order of `IterationShape`'s fields."""
        columns = np.asarray(shapes, dtype=np.float64).reshape(-1, len(IterationShape._fields)).T
        prefill_tokens, decode_seqs, context_tokens, prefill_seqs, pairs, longest = columns
        is_prefill, is_decode = prefill_tokens > 0, decode_seqs > 0
        chunk = np.where(is_prefill, prefill_tokens, 1.0)
        before = pairs / chunk - chunk / 2
        chunk = np.where(before >= 0, chunk, np.sqrt(2 * pairs))
        before = np.maximum(before, 0)
        context = context_tokens / np.where(is_decode, decode_seqs, 1.0)
        longest = np.maximum(longest, context)

        sequences = decode_seqs + np.where(is_prefill, np.maximum(prefill_seqs, 1), prefill_seqs)
        total_s = self._lookup_all(0, prefill_tokens + decode_seqs) + self._lookup_all(1, sequences)
        for table, rows, position, shares in (
            (self.prefill, is_prefill & ~is_decode, (chunk, before), None),
            (self.decode, is_decode & ~is_prefill, (decode_seqs, context), self._decode_shares),
            (self.mixed, is_decode & is_prefill, (chunk, before, decode_seqs, context), self._mixed_shares),
        ):
            if not rows.any():
                continue
            here = [values[rows] for values in position]
            seconds = interpolate_all(table, here)
            if shares is not None and any(shares):
                longest_s = interpolate_all(table, [*here[:-1], longest[rows]])
                last = np.minimum(decode_seqs[rows], len(shares) - 1).astype(np.int64)
                seconds = seconds + np.asarray(shares)[last] * (longest_s - seconds)
            total_s[rows] += seconds
        return total_s

    def decode_line(self, decode_seqs: int, context_tokens: int, longest_tokens: int = 0) -> DecodeLine:
        """Seconds of the following decode iterations, up to the next point of the mean or longest context.

        Raises
        ------
        ConfigError
            As `iteration_s`.
        """
        row = self._rows.get(decode_seqs) or self._row(decode_seqs)
        first_s, slope_s, num_linear = along(row, decode_seqs, context_tokens)
        share = self._decode_shares[min(decode_seqs, len(self._decode_shares) - 1)]
        if share and longest_tokens * decode_seqs > context_tokens:
            longest_s, longest_slope_s, num = along(row, decode_seqs, longest_tokens * decode_seqs)
            first_s += share * (longest_s - first_s)
            slope_s += share * (longest_slope_s - slope_s)
            num_linear = min(num_linear, num)
        if first_s <= 0:
            raise too_far(self.info, IterationShape(0, decode_seqs, context_tokens), first_s, "the tables")
        return line_of(first_s, slope_s, num_linear, decode_seqs)

    def _row(self, decode_seqs: int) -> DecodeRow:
        axes, seconds = self.decode
        beside_s = self._beside_attention_s(decode_seqs, decode_seqs)
        seqs = max(axes[0][0], decode_seqs)
        row = self._rows[decode_seqs] = decode_row(
            [(decode_seqs * mean, beside_s + interpolate(axes, seconds, (seqs, mean))) for mean in axes[1]]
        )
        return row

    def _beside_attention_s(self, tokens: int, sequences: int) -> float:
        total_s = 0.0
        for times_s, number, slope_s in zip(
            (self._tokens_s, self._sequences_s), (tokens, sequences), self._beyond_s, strict=True
        ):
            last = len(times_s) - 1
            total_s += times_s[number] if number <= last else times_s[last] + slope_s * (number - last)
        return total_s

    def _lookup_all(self, which: int, numbers: Floats) -> Floats:
        times_s = np.asarray((self._tokens_s, self._sequences_s)[which])
        last = len(times_s) - 1
        inside = times_s[np.minimum(numbers, last).astype(np.int64)]
        return np.asarray(inside + self._beyond_s[which] * np.maximum(numbers - last, 0), dtype=np.float64)


def _one_chunk(tokens: int, pairs: float) -> tuple[float, float]:
    """Return the chunk, and the tokens before it, that stand for all chunks of a pass."""
    before = pairs / tokens - tokens / 2
    return (tokens, before) if before >= 0 else (math.sqrt(2 * pairs), 0.0)


def _reaches(context: Sequence[int], context_tokens: int, decode_seqs: int, longest_tokens: int) -> bool:
    return context_tokens <= context[-1] * decode_seqs and longest_tokens <= context[-1]


def look_up(table: OperatorTable, position: Sequence[float]) -> float:
    """Look a place up, held at the first point of each axis."""
    axes, seconds = table
    return interpolate(
        axes, seconds, tuple(max(axis[0], value) for axis, value in zip(axes, position, strict=True))
    )


def interpolate_all(table: OperatorTable, position: Sequence[Floats]) -> Floats:
    """Do as `interpolate` for many positions at once, held at the first point of each axis."""
    values = np.asarray(table.seconds).reshape([len(axis) for axis in table.axes])
    lows, shares = [], []
    for axis, numbers in zip(table.axes, position, strict=True):
        points, clipped = np.asarray(axis, dtype=np.float64), np.maximum(numbers, axis[0])
        low = np.clip(np.searchsorted(points, clipped, side="right") - 1, 0, len(axis) - 2)
        lows.append(low)
        shares.append((clipped - points[low]) / (points[low + 1] - points[low]))
    total_s = np.zeros(len(position[0]))
    for steps in product((0, 1), repeat=len(table.axes)):
        weight = np.ones(len(total_s))
        for step, share in zip(steps, shares, strict=True):
            weight *= share if step else 1 - share
        total_s += weight * values[tuple(low + step for low, step in zip(lows, steps, strict=True))]
    return total_s


def _at_whole_numbers(table: OperatorTable) -> list[float]:
    (axis,), seconds = table
    return np.interp(np.arange(axis[-1] + 1), axis, seconds).tolist()


def _shares(name: str, lag: Lag | None) -> list[float]:
    """Return the share at every whole number of decodes up to the last point."""
    if lag is None:
        return [0.0]
    seqs, share = lag
    is_whole = all(type(num) is int and 1 < num <= MOST_LISTED for num in seqs)
    is_increasing = is_whole and list(seqs) == sorted(set(seqs))
    if not seqs or len(seqs) != len(share) or not is_increasing or not all(0 <= one <= 1 for one in share):
        raise ConfigError(
            f"{name} is {lag!r:.200}; increasing whole numbers > 1 (up to {MOST_LISTED}) and as many shares "
            "in [0, 1] are needed"
        )
    return np.interp(np.arange(seqs[-1] + 1), (1, *seqs), (0.0, *share)).tolist()


def _last_slope(times_s: Sequence[float]) -> float:
    last = len(times_s) - 1
    return max(0.0, (times_s[last] - times_s[last // 2]) / (last - last // 2))


def check_table(name: str, table: OperatorTable, counted_by: Sequence[str]) -> None:
    """Raise `ConfigError` if a table is no grid of seconds over axes that count this."""
    axes, seconds = table
    if len(axes) != len(counted_by):
        raise ConfigError(
            f"{name} has {len(axes)} axes; {len(counted_by)} are needed: {', '.join(counted_by)}"
        )
    most = MOST_LISTED if len(counted_by) == 1 else MAX_COUNT
    for axis, counted in zip(axes, counted_by, strict=True):
        is_whole = all(type(value) is int and 0 <= value <= most for value in axis)
        if len(axis) < 2 or not is_whole or list(axis) != sorted(set(axis)):
            raise ConfigError(
                f"{name}: {counted} are {list(axis)!r:.60}; two or more increasing whole numbers from 0 to "
                f"{most} are needed"
            )
    num_points = math.prod(map(len, axes))
    if len(seconds) != num_points:
        raise ConfigError(f"{name} holds {len(seconds)} times; its axes ask for {num_points}")
    try:
        times_s = np.asarray(seconds, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        times_s = np.full(1, np.nan)
    if not ((times_s > 0) & (times_s <= MOST)).all():
        raise ConfigError(f"{name} holds a time that is not a finite number > 0, up to {MOST:g} s")
