"""Kendall's rank correlation, as ``scipy.stats`` has it, whose import takes longer than a short run."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def kendall_tau(first: ArrayLike, second: ArrayLike) -> float:
    """Kendall's tau-b of values in pairs; neither side may be constant."""
    one, other = _ranks(first), _ranks(second)
    num_pairs = _num_pairs(len(one))
    tied_one, tied_other = _num_tied(one), _num_tied(other)
    both = one * (int(other.max()) + 1) + other
    num_discordant = _num_inversions(other[np.argsort(both)])
    excess = num_pairs - tied_one - tied_other + _num_tied(both) - 2 * num_discordant
    tau = excess / math.sqrt(num_pairs - tied_one) / math.sqrt(num_pairs - tied_other)
    return min(1.0, max(-1.0, tau))


def p_of_no_rise(values: ArrayLike) -> float:
    """Chance that values in random order would rise as steadily as these do, or more so (Kendall's test).

    Exact without ties, else by the normal law with its variance for ties. The work grows with the cube of
    the number of values.
    """
    ranks = _ranks(values)
    num = len(ranks)
    num_falling, num_tied = _num_inversions(ranks), _num_tied(ranks)
    num_rising = _num_pairs(num) - num_tied - num_falling
    if num_tied:
        ties = np.bincount(ranks)
        variance = (num * (num - 1) * (2 * num + 5) - int((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
        return math.erfc((num_rising - num_falling) / math.sqrt(2 * variance)) / 2
    chances: NDArray[np.float64] = np.ones(
        1
    )  # of each number of rising pairs; a value more can add 0, 1, ...
    for num_present in range(1, num):
        chances = np.convolve(chances, np.full(num_present + 1, 1 / (num_present + 1)))
    return float(chances[num_rising:].sum())


def _ranks(values: ArrayLike) -> NDArray[np.int64]:
    return np.unique(np.asarray(values), return_inverse=True)[1].astype(np.int64)


def _num_pairs(num: int) -> int:
    return num * (num - 1) // 2


def _num_tied(keys: NDArray[np.int64]) -> int:
    """Pairs of equal keys."""
    counts = np.unique(keys, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _num_inversions(ranks: NDArray[np.int64]) -> int:
    """Pairs in which the earlier rank is larger.

    Such a pair agrees in some leading bits and has a one before a zero in the next: sorted by those bits, in
    their old order where these agree, each zero counts the ones before it in its group.
    """
    inversions = 0
    if (ranks[1:] >= ranks[:-1]).all():
        return inversions
    for bit in reversed(range(int(ranks.max()).bit_length())):
        is_one = (ranks >> bit) & 1
        ones_before = np.cumsum(is_one) - is_one
        group = ranks >> (bit + 1)
        is_first = np.concatenate([[True], group[1:] != group[:-1]])
        before_group = ones_before[is_first][np.cumsum(is_first) - 1]
        inversions += int(((ones_before - before_group) * (1 - is_one)).sum())
        ranks = ranks[np.argsort(ranks >> bit, kind="stable")]
    return inversions
