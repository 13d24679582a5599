"""How sure a number is: warm-up cut, and intervals for correlated values."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from batchsim.metrics.student import t_quantile

_NUM_BATCHES = 20


class Interval(NamedTuple):
    """A mean and the half width of its confidence interval, NaN where there are too few values to tell."""

    mean: float
    half_width: float


def mser5(values: ArrayLike) -> int:
    """Return how many values at the start are warm-up, by MSER-5: a multiple of 5, maybe 0.

    The cut minimises the squared standard error of what remains, of means of five. It is sought in the
    first half; a minimum at the very end of that half means that no steady state was found, and nothing is
    cut.
    """
    series = np.asarray(values, dtype=np.float64)
    num_means = len(series) // 5
    limit = num_means // 2
    if limit == 0:
        return 0
    means = series[: num_means * 5].reshape(num_means, 5).mean(axis=1)
    means = means - means[-1]  # near zero once steady, so that the sums below lose no digits
    remaining = np.arange(num_means, 0, -1)
    sums = np.cumsum(means[::-1])[::-1]
    squares = np.cumsum(means[::-1] ** 2)[::-1]
    errors = (squares - sums**2 / remaining) / remaining.astype(np.float64) ** 2
    cut = int(np.argmin(errors[: limit + 1]))
    return 0 if cut == limit else cut * 5


def t_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of independent values (replications) with Student's interval."""
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) == 0:
        return Interval(math.nan, math.nan)
    mean = float(sample.mean())
    if len(sample) == 1:
        return Interval(mean, math.nan)
    quantile = t_quantile((1 + confidence) / 2, len(sample) - 1)
    return Interval(mean, quantile * float(sample.std(ddof=1)) / math.sqrt(len(sample)))


def batch_means_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of values in time order, neighbours correlated, with an interval from the means of 20 batches.

    The batches are consecutive and as equal as can be; with fewer than 20 values, each is a batch. The
    interval is too narrow where the correlation reaches further than a batch.
    """
    series = np.asarray(values, dtype=np.float64)
    if len(series) == 0:
        return Interval(math.nan, math.nan)
    num_batches = min(_NUM_BATCHES, len(series))
    starts = np.arange(num_batches) * len(series) // num_batches
    sizes = np.diff(np.append(starts, len(series)))
    of_batches = t_interval(np.add.reduceat(series, starts) / sizes, confidence)
    return Interval(float(series.mean()), of_batches.half_width)


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of ``a - b`` for the same requests in arrival order, with a batch-means interval.

    Both hold a value per request, shape ``(num_requests,)``, under two policies on the same arrivals: what
    these have in common cancels in the difference.
    """
    return batch_means_interval(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), confidence)
