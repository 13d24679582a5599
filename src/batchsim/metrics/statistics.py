"""How sure a number is: warm-up cut, intervals for correlated values, and whether a queue diverges."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from batchsim.metrics.student import t_quantile
from batchsim.metrics.system import Window, backlog, busy_fraction, stays
from batchsim.ranks import p_of_no_rise

_NUM_BATCHES = 20
_NUM_SEGMENTS = 20
_SHORTEST_S = 1e-9  # segments of a shorter window would be lost to rounding


class Interval(NamedTuple):
    """A mean and the half width of its confidence interval, NaN where there are too few values to tell."""

    mean: float
    half_width: float


class Trend(NamedTuple):
    """Whether the number of requests in the system grows without end.

    Attributes
    ----------
    is_saturated
        The verdict of `backlog_trend`.
    slope_per_s
        Requests that the system gains per second, by least squares; NaN where all arrive at once.
    p_value
        Of no growth, one-sided.
    """

    is_saturated: bool
    slope_per_s: float
    p_value: float


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


def backlog_trend(requests: pd.DataFrame, window: Window) -> Trend:
    """Tell whether the queue diverges, from the number in the system up to the window's last arrival.

    It is saturated if three things hold: the means over 20 equal segments of time rise (Kendall's test, p <
    0.01); the backlog gained is more than 5 % of the requests that arrived; and it is more than ``2
    sqrt(n)`` for ``n`` arrivals. The last holds off short runs: the backlog of a queue that is exactly
    critical, with exponential times, is about ``|N(0, 2n)|``, so a stable one hardly gets there, and from
    1600 arrivals on the 5 % are the stricter limit. A run that overloads the cluster by less than about 5 %
    is therefore not flagged, and a run of a hundred requests cannot tell.
    """
    arrivals_s, _ = stays(requests)
    if len(arrivals_s) == 0:
        return Trend(False, math.nan, math.nan)
    end_s = min(window.end_s, float(arrivals_s[-1]))
    if not end_s - window.start_s > _SHORTEST_S:
        return Trend(False, math.nan, math.nan)
    edges_s = np.linspace(window.start_s, end_s, _NUM_SEGMENTS + 1)
    means = np.diff(request_seconds(requests, edges_s)) / np.diff(edges_s)
    middles_s = (edges_s[1:] + edges_s[:-1]) / 2
    slope_per_s = float(np.polyfit(middles_s - middles_s.mean(), means, 1)[0])
    if np.ptp(means) == 0:
        return Trend(False, slope_per_s, 1.0)
    p_value = p_of_no_rise(means)
    num_arrivals = int(np.count_nonzero((arrivals_s >= window.start_s) & (arrivals_s <= end_s)))
    at_start, at_end = backlog(requests, [window.start_s, end_s])
    tolerated = max(0.05 * num_arrivals, 2 * math.sqrt(num_arrivals))
    return Trend(bool(p_value < 0.01 and at_end - at_start > tolerated), slope_per_s, p_value)


def falls_behind(requests: pd.DataFrame, batches: pd.DataFrame, num_gpus: int) -> bool:
    """Tell whether the GPUs never rest while requests arrive, and yet many still wait after the last arrival.

    More than 99 % busy, and a backlog of more than 10 % of all requests and of more than ``2 sqrt(n)``. This
    sees what `backlog_trend` misses: a burst that builds the backlog early, after which it just stays.
    """
    arrivals_s, _ = stays(requests)
    if len(arrivals_s) == 0 or not arrivals_s[-1] - arrivals_s[0] > _SHORTEST_S:
        return False
    span = Window(float(arrivals_s[0]), float(arrivals_s[-1]))
    (left,) = backlog(requests, [span.end_s])
    most = max(0.1 * len(arrivals_s), 2 * math.sqrt(len(arrivals_s)))
    return bool(left > most and busy_fraction(batches, num_gpus, span) > 0.99)


def request_seconds(requests: pd.DataFrame, times_s: ArrayLike) -> NDArray[np.float64]:
    """Integral of the number in the system up to each time, in request seconds, shape of ``times_s``."""
    until_s: NDArray[np.float64] = np.asarray(times_s, dtype=np.float64)

    def since(events_s: NDArray[np.float64]) -> NDArray[np.float64]:
        count = np.searchsorted(events_s, until_s)
        before: NDArray[np.float64] = np.concatenate([[0.0], np.cumsum(events_s)])[count]
        return count * until_s - before

    arrivals_s, finishes_s = stays(requests)
    return since(arrivals_s) - since(finishes_s)
