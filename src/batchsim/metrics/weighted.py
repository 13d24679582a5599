"""A distribution in few rows: exact percentiles of 10^8 gaps between tokens without writing them out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FLAT = 1e-14  # relative growth that is lost in the rounding of the values


@dataclass(frozen=True, slots=True, eq=False)
class Weighted:
    """Values that each have a weight above 0: a count, or seconds. A statistic of no values is NaN.

    A row stands for the values ``first + j * growth`` for ``0 <= j < num``, all of the same weight.
    """

    first: Floats
    growth: Floats  # >= 0
    num: Ints
    weight: Floats

    @classmethod
    def of(cls, first: ArrayLike, weight: ArrayLike, growth: ArrayLike = 0.0, num: ArrayLike = 1) -> Weighted:
        """Build it from rows in any order; those of weight 0 are left out, falling ones turned round."""
        columns = np.broadcast_arrays(first, growth, weight, np.asarray(num, dtype=np.int64))
        counted = (columns[2] > 0) & (columns[3] > 0)
        starts, steps, weights = (column[counted].astype(np.float64, copy=False) for column in columns[:3])
        nums = columns[3][counted]
        is_flat = (nums == 1) | (np.abs(steps) <= _FLAT * np.abs(starts))
        weights[is_flat] *= nums[is_flat]
        nums[is_flat], steps[is_flat] = 1, 0.0
        falls = np.flatnonzero(steps < 0)
        starts[falls] += steps[falls] * (nums[falls] - 1)
        steps[falls] *= -1
        return cls(starts, steps, nums, weights)

    @classmethod
    def pooled(cls, parts: Sequence[Weighted]) -> Weighted:
        """All values of several."""
        return cls(
            np.concatenate([part.first for part in parts]),
            np.concatenate([part.growth for part in parts]),
            np.concatenate([part.num for part in parts]),
            np.concatenate([part.weight for part in parts]),
        )

    @property
    def total(self) -> float:
        """Sum of the weights: how many values there are, or over how many seconds."""
        return float(self.num @ self.weight)

    @property
    def sum(self) -> float:
        """Sum of the values, each times its weight."""
        count = self.num * self.weight
        total = self.first @ count
        count *= self.num - 1
        return float(total + self.growth @ count / 2)

    @property
    def mean(self) -> float:
        """Weighted mean."""
        return self.sum / self.total if len(self.first) else math.nan

    @property
    def max(self) -> float:
        """The largest value."""
        return float((self.first + self.growth * (self.num - 1)).max()) if len(self.first) else math.nan

    def percentiles(self, percents: ArrayLike) -> Floats:
        """For each of ``percents``, the smallest value such that so much of the weight is at or below it.

        No interpolation: each is a value that occurs (numpy's ``inverted_cdf``). Shape of ``percents``, 1-D.
        """
        targets = np.maximum(np.asarray(percents, dtype=np.float64) * self.total / 100, math.ulp(0.0))
        order = np.argsort(targets)
        found = np.full(len(order), self.max)  # of all the weight, should a rounding ask for more
        _select(
            _Part(self.first, self.growth, np.zeros(len(self.num), dtype=np.int64), self.num, self.weight),
            0.0,
            self.total,
            targets[order],
            found,
        )
        return found[np.argsort(order)]

    def written_out(self) -> tuple[Floats, Floats]:
        """All values in ascending order, and their weights; takes memory for each value."""
        row, index = expand(self.num)
        values = self.first[row] + index * self.growth[row]
        order = np.argsort(values)
        return values[order], self.weight[row][order]


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Values ``start <= j < stop`` of some rows."""

    first: Floats
    growth: Floats
    start: Ints
    stop: Ints
    weight: Floats

    def some_value(self, share: float) -> float:
        """Pick a value near the one below which that share of the weight lies, a little towards the middle.

        Near an end, most of the rows then lie beyond the value and are done with (Floyd and Rivest, 1975).
        """
        sample = slice(None, None, len(self.first) // 999 + 1)
        middle = (self.start[sample] + self.stop[sample]) // 2
        values = self.first[sample] + middle * self.growth[sample]
        order = np.argsort(values)
        weight_upto = np.cumsum(((self.stop - self.start)[sample] * self.weight[sample])[order])
        aside = 1.5 / math.sqrt(len(values))
        share = share + aside if share < 0.5 else share - aside
        place = int(np.searchsorted(weight_upto, share * weight_upto[-1]))
        return float(values[order[min(place, len(values) - 1)]])

    def end_of(self, most: float) -> Ints:
        """First ``j`` of each row, from ``start`` to ``stop``, whose value is larger than ``most``."""
        exact = most - self.first
        np.divide(exact, self.growth, out=exact, where=self.growth > 0)  # of a row of one, its sign will do
        np.floor(exact, out=exact)
        exact += 1
        guess: Ints = np.clip(exact, self.start, self.stop, out=exact).astype(np.int64)
        del exact
        # The division can be one off where the value itself is rounded.
        guess += (guess < self.stop) & (self.first + guess * self.growth <= most)
        guess -= (guess > self.start) & (self.first + (guess - 1) * self.growth > most)
        return guess

    def cut(self, start: Ints, stop: Ints) -> _Part:
        left = np.flatnonzero(start < stop)
        return _Part(self.first[left], self.growth[left], start[left], stop[left], self.weight[left])


def _select(rows: _Part, below: float, upto_all: float, targets: Floats, found: Floats) -> None:
    """Quickselect for several cumulative weights at once; ``below`` is the weight left behind below."""
    if not len(rows.first):
        return
    pivot = rows.some_value((targets[len(targets) // 2] - below) / (upto_all - below))
    upto = rows.end_of(pivot)
    last = (upto - 1) * rows.growth
    last += rows.first
    before = upto - ((last == pivot) & (upto > rows.start))
    del last
    weight_before = below + float((before - rows.start) @ rows.weight)
    weight_upto = below + float((upto - rows.start) @ rows.weight)
    low, high = np.searchsorted(targets, [weight_before, weight_upto], side="right")
    found[low:high] = pivot
    smaller = rows.cut(rows.start, before) if low else None
    larger = rows.cut(upto, rows.stop) if high < len(targets) else None
    del rows, upto, before  # or all steps of the search would be in memory at once
    if smaller is not None:
        _select(smaller, below, weight_before, targets[:low], found[:low])
        del smaller
    if larger is not None:
        _select(larger, weight_upto, upto_all, targets[high:], found[high:])


def expand(counts: Ints) -> tuple[Ints, Ints]:
    """Give each of ``counts`` so many rows: where it stands, and 0, 1, ... within it."""
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
