"""Where bins of output lengths begin: rules that turn a sample of lengths into the inner edges of the bins.

Edges rise strictly, and bin ``i`` holds the lengths in ``[edges[i-1], edges[i])``: the bin of ``x`` is
``searchsorted(edges, x, side="right")``. The sample must not be the requests that are evaluated.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchsim.errors import ConfigError, nearest

Floats = NDArray[np.float64]

RULES = ("equal_mass", "uniform", "exponential", "optimal")

_GRID = 400


def fit_boundaries(rule: str, lengths: ArrayLike, num_bins: int, batch_size: int) -> Floats:
    """Place the edges by one of `RULES`.

    Parameters
    ----------
    rule
        ``exponential`` takes the sample's mean, the other rules the sample itself.
    lengths
        Output lengths of the training part, shape ``(num_training,)``.
    num_bins, batch_size
        How many bins, and how many requests run together, which ``exponential`` and ``optimal`` look at.

    Returns
    -------
    NDArray[float64]
        The inner edges, shape ``(num_bins - 1,)``; no bin of the sample is empty.

    Raises
    ------
    ConfigError
        For an unknown rule, fewer distinct lengths than bins, or a rule that leaves a bin empty.
    """
    if rule not in RULES:
        raise ConfigError(f"boundaries {rule!r} are unknown; {nearest(rule, RULES)}")
    for name, value in {"num_bins": num_bins, "batch_size": batch_size}.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; a whole number >= 1 is needed")
    sample = np.asarray(lengths, dtype=np.float64)
    num_distinct = len(np.unique(sample))
    if num_distinct < num_bins:
        raise ConfigError(
            f"{num_bins} bins need as many distinct training lengths, "
            f"but the {len(sample)} given have {num_distinct}"
        )
    if rule == "exponential":
        edges = exponential_rule(float(sample.mean()), num_bins, batch_size)
    elif rule == "uniform":
        edges = uniform(sample, num_bins)
    elif rule == "equal_mass":
        edges = equal_mass(sample, num_bins)
    else:
        edges = optimal(sample, num_bins, batch_size)
    counts = np.bincount(np.searchsorted(edges, sample, side="right"), minlength=num_bins)
    if not counts.all():
        raise ConfigError(
            f"boundaries {rule!r} leave bin {int(np.argmin(counts)) + 1} of {num_bins} without a training "
            f"length (edges {', '.join(f'{edge:g}' for edge in edges)}); use fewer bins or another rule"
        )
    return edges


def uniform(lengths: ArrayLike, num_bins: int) -> Floats:
    """Edges of bins of equal width between the shortest and the longest length.

    Optimal for uniform lengths (Multi-Bin Batching, Lemma 4.1); on skewed ones the upper bins may stay empty.
    """
    sample = np.asarray(lengths, dtype=np.float64)
    return np.linspace(sample.min(), sample.max(), num_bins + 1)[1:-1]


def equal_mass(lengths: ArrayLike, num_bins: int) -> Floats:
    """Edges of bins that hold shares of the sample as equal as ties allow: the paper's choice for LLMs.

    Each edge is the length that starts a bin. Where a common length swallows several quantiles, the edges
    move to the next distinct lengths, so ``num_bins`` distinct lengths are needed.
    """
    values, counts = np.unique(np.asarray(lengths, dtype=np.float64), return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    cuts = _nearest_cuts(below, below[-1] * np.arange(1, num_bins) / num_bins)
    return values[cuts]


def exponential_rule(mean: float, num_bins: int, batch_size: int) -> Floats:
    """Edges for exponential lengths (Multi-Bin Batching, Lemma A.1), in the unit of ``mean``.

    ``l_i = mean * sum_{j<=i} ln L_{k-j}`` with ``L_1 = H_B`` (harmonic number) and ``L_m = 1 + ln L_{m-1}``.
    They minimise an upper bound of the expected batch time, which then is ``mean * L_k``.

    Raises
    ------
    ConfigError
        For ``batch_size`` 1 and more than one bin: all edges would be zero.
    """
    if num_bins == 1:
        return np.empty(0)
    if batch_size == 1:
        raise ConfigError(
            "boundaries 'exponential' need batch_size >= 2: alone, every request takes its own time"
        )
    levels = [float(np.sum(1 / np.arange(1, batch_size + 1)))]
    while len(levels) < num_bins - 1:
        levels.append(1 + math.log(levels[-1]))
    return mean * np.cumsum(np.log(levels[::-1]))


def optimal(lengths: ArrayLike, num_bins: int, batch_size: int) -> Floats:
    """Edges that minimise `expected_batch_time` of the sample, by dynamic programming.

    Exact up to 400 distinct lengths; beyond, edges are sought on a grid of about 1200, evenly spaced in mass,
    in length and among the distinct lengths, so that a rare long tail is resolved as well.
    """
    if batch_size == 1:
        return equal_mass(lengths, num_bins)  # every split is equally good
    values, counts = np.unique(np.asarray(lengths, dtype=np.float64), return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    starts = _candidate_cells(values, below, num_bins)
    cell_mass = np.add.reduceat(counts, starts)
    cell_mean = np.add.reduceat(counts * values, starts) / cell_mass
    cost = _segment_costs(cell_mean, np.concatenate([[0], np.cumsum(cell_mass)]), batch_size)

    best = cost[0]
    choices = []
    for _ in range(num_bins - 1):
        totals = best[:, np.newaxis] + cost
        choices.append(np.argmin(totals, axis=0))
        best = np.min(totals, axis=0)
    cuts: list[int] = []
    end = len(starts)
    for choice in reversed(choices):
        end = int(choice[end])
        cuts.append(end)
    return values[starts[cuts[::-1]]]


def expected_batch_time(lengths: ArrayLike, boundaries: ArrayLike, batch_size: int) -> float:
    """Mean time of a full batch whose members come from one bin of the sample, in the unit of the lengths.

    ``sum_i p_i E[max of batch_size draws | bin i]``, the draws from the sample itself: a batch takes as long
    as its longest member, and each bin forms batches in proportion to its share of the requests.
    """
    sample = np.sort(np.asarray(lengths, dtype=np.float64))
    edges = np.searchsorted(sample, np.asarray(boundaries, dtype=np.float64), side="left")
    total = 0.0
    for members in np.split(sample, edges):
        if len(members):
            powers = np.linspace(0, 1, len(members) + 1) ** batch_size
            total += len(members) / len(sample) * float(members @ np.diff(powers))
    return total


def _nearest_cuts(below: NDArray[np.int64], targets: Floats) -> NDArray[np.int64]:
    right = np.clip(np.searchsorted(below, targets), 1, len(below) - 1)
    cuts = np.where(targets - below[right - 1] <= below[right] - targets, right - 1, right)
    order = np.arange(1, len(targets) + 1)
    cuts = np.maximum.accumulate(np.maximum(cuts, order) - order) + order  # each beyond the one before
    return np.minimum(cuts, len(below) - 1 - order[::-1])  # and room for those that follow


def _candidate_cells(values: Floats, below: NDArray[np.int64], num_bins: int) -> NDArray[np.int64]:
    num_distinct = len(values)
    if num_distinct <= max(_GRID, num_bins):
        return np.arange(num_distinct)
    by_mass = np.searchsorted(below, np.linspace(0, below[-1], _GRID, endpoint=False))
    by_length = np.searchsorted(values, np.linspace(values[0], values[-1], _GRID, endpoint=False))
    by_rank = np.arange(max(_GRID, num_bins)) * num_distinct // max(_GRID, num_bins)
    starts = np.union1d(np.union1d(by_mass, by_length), by_rank)
    return starts[starts < num_distinct]


def _segment_costs(cell_mean: Floats, below: NDArray[np.int64], batch_size: int) -> Floats:
    """``cost[i, j]``: share of the sample in cells ``i..j-1`` times a batch's expected maximum, inf if empty.

    All draws miss the last cell with a known probability, and the maximum then is that of the segment without
    it: each column follows from the one before, O(g^2) in all.
    """
    num_cells = len(cell_mean)
    cost = np.full((num_cells + 1, num_cells + 1), np.inf)
    expected_max = np.zeros(num_cells)
    for end in range(1, num_cells + 1):
        start = slice(0, end)
        mass = below[end] - below[start]
        all_before = ((below[end - 1] - below[start]) / mass) ** batch_size
        expected_max[start] = expected_max[start] * all_before + cell_mean[end - 1] * (1 - all_before)
        cost[start, end] = mass / below[-1] * expected_max[start]
    return cost
