"""Whether a mean is above a threshold, for sure: tested by betting, at any time, on values of any law.

Whoever bets on each value in turn, at odds that are fair if the mean is at most the threshold, multiplies
their money by 1 / error or more with a probability of at most ``error`` (Ville's inequality), however long
they go on and whenever they stop. So, once they have done that, the mean is above. Nothing is asked of the
values but that they lie between 0 and 1: a replication in twenty that goes badly, and that none of the first
ten was, fools no one, as it does an interval by Student's t.

The method is that of Waudby-Smith and Ramdas (Estimating means of bounded random variables by betting, JRSS B
2024), which also treats values that are drawn without replacement. The money is shared out over a few
stakes, each of which is the same share of all that can be staked all the time.
"""

from __future__ import annotations

import math
from itertools import count

import numpy as np
from numpy.typing import ArrayLike

from batchsim.metrics.weighted import Floats

#: Shares of what can be staked without losing all: much is right where values vary little.
STAKES = np.array([0.98, 0.5, 0.25, 0.1, 0.04])
_ROUNDING = 1e-9


def is_above(values: ArrayLike, threshold: float, error: float, population: int | None = None) -> bool:
    """Whether the mean is above the threshold (or at it), but for this probability of error.

    Parameters
    ----------
    values
        In [0, 1], ``(num_values,)``, in the order in which they came. The same question may be asked again
        with more of them: the error is that of all the answers together.
    threshold
        In (0, 1).
    population
        How many there are in all, of which these were drawn at random, none twice; the mean is that of all.
        None: independent values of one law.
    """
    return _is_beyond(np.asarray(values, dtype=np.float64), threshold, error, population, is_at_enough=True)


def is_below(values: ArrayLike, threshold: float, error: float, population: int | None = None) -> bool:
    """The same of a mean that is below: one that is at the threshold is not."""
    mirrored = 1 - np.asarray(values, dtype=np.float64)
    return _is_beyond(mirrored, 1 - threshold, error, population, is_at_enough=False)


def _is_beyond(
    drawn: Floats, threshold: float, error: float, population: int | None, *, is_at_enough: bool
) -> bool:
    before = np.concatenate([[0.0], np.cumsum(drawn)])
    if population is None:
        means = np.full(len(drawn), threshold)
    else:
        left = population - np.arange(len(drawn) + 1)
        missing = population * threshold - before  # to the sum that the threshold asks for
        most_missing = (_ROUNDING if is_at_enough else -_ROUNDING) * population
        if (missing <= most_missing).any():
            return True
        if not left[-1]:
            return False
        means = (missing / left)[:-1]  # of what is left, at most, if the mean of all is not above
    is_open = (means > _ROUNDING) & (means < 1)  # else nothing can be won, or what is left would have to be 0
    factors = np.where(is_open, drawn / np.where(is_open, means, 1.0), 1.0)
    wealth = np.cumsum(np.log1p(STAKES[:, None] * (factors - 1)), axis=1)
    reached = np.logaddexp.reduce(wealth, axis=0) - math.log(len(STAKES))
    return bool((reached >= -math.log(error)).any())


def fewest(threshold: float, error: float) -> int:
    """Values that it takes to be sure of a mean above, where all are 1."""
    gains = np.log1p(STAKES * (1 / threshold - 1))
    enough = math.log(len(STAKES)) - math.log(error)
    return next(num for num in count(1) if np.logaddexp.reduce(num * gains) >= enough)
