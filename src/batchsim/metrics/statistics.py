"""How sure a number is: warm-up cut, and intervals for correlated values."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchsim.metrics.student import t_quantile, two_sided_p

Floats = NDArray[np.float64]

_NUM_BATCHES = 48
_FEWEST_VALUES = 2 * _NUM_BATCHES
#: A series this long shows its own memory; a shorter one may not have seen it, and gets an interval only
#: where its batches are nearly independent and it is so many times as long as the memory that it shows.
_LONG_SERIES, _FEWEST_MEMORIES = 10_000, 400
_FEWEST_BATCHES, _FEWEST_BATCHES_IF_SHORT = 4.0, 30.0
_MORE_CORRELATION = 0.08  # half a standard error: too much of it costs less than too little
_WIDEST = 0.9  # half width / mean, before it is stretched

#: A name, and the unit at its end.
_WITH_UNIT = re.compile(r"(.*?)((?:_requests|_tokens)?_per_s|_s)?", re.DOTALL)


#: Numbers of summaries that may be negative, and shares of a whole; all others are 0 or more.
_SIGNED = {"kendall_tau": (-1.0, 1.0), "waiting_growth_per_s": (-math.inf, math.inf)}
_SHARE = re.compile(
    r"slo_attainment.*|worst_tenant_slo_attainment|busy_fraction|bin_accuracy|within_one_bin|padding_waste_.*"
    r"|kv_use_.*|jain_index|.*_share|.*_hit_rate|draft_acceptance_rate"
)


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval, NaN where there are too few values to tell."""

    mean: float
    low: float
    high: float

    @classmethod
    def around(cls, mean: float, half_width: float) -> Interval:
        """One that reaches equally far to both sides."""
        return cls(mean, mean - half_width, mean + half_width)

    @property
    def half_width(self) -> float:
        """From the mean to the end that is further away."""
        return max(self.mean - self.low, self.high - self.mean)


@cache
def ci95_keys(key: str) -> tuple[str, str]:
    """Under which names the ends of a number's 95 % interval stand: the unit stays last.

    ``e2e_mean_s`` has ``e2e_mean_ci95_low_s`` and ``e2e_mean_ci95_high_s``.
    """
    start, unit = _WITH_UNIT.fullmatch(key).groups("")  # type: ignore[union-attr]  # matches any text
    return f"{start}_ci95_low{unit}", f"{start}_ci95_high{unit}"


@cache
def bounds(key: str) -> tuple[float, float]:
    """Return the least and the most that a number of a summary can be in any run.

    What lies beyond can be taken off an interval: the mean is not there, and it holds as often without.
    """
    return _SIGNED.get(key, (0.0, 1.0 if _SHARE.fullmatch(key) else math.inf))


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
        return Interval.around(math.nan, math.nan)
    means, half_widths = t_intervals(sample[np.newaxis], confidence)
    return Interval.around(float(means[0]), float(half_widths[0]))


def t_intervals(samples: Floats, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Do `t_interval` for each row; return their means and half widths."""
    num = samples.shape[1]
    means = samples.mean(axis=1)
    if num == 1:
        return means, np.full(len(samples), math.nan)
    quantile = t_quantile((1 + confidence) / 2, num - 1)
    return means, quantile * samples.std(axis=1, ddof=1) / math.sqrt(num)


def t_test(differences: ArrayLike) -> tuple[Interval, float]:
    """Mean of independent differences with Student's 95 % interval, and the p-value that it is 0.

    Differences that are all the same, as of runs that the seed changes nothing in, have neither.
    """
    sample = np.asarray(differences, dtype=np.float64)
    interval = t_interval(sample)
    if len(sample) < 2 or (sample == sample[0]).all():
        return Interval.around(float(sample[0]) if len(sample) else math.nan, math.nan), math.nan
    t = interval.mean / (float(sample.std(ddof=1)) / math.sqrt(len(sample)))
    return interval, two_sided_p(t, len(sample) - 1)


def batch_means_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of values in time order, neighbours correlated, with an interval; NaN where they are too few.

    The means of 48 consecutive batches are taken for an autoregressive series of order one: with their
    correlation ``r`` the variance of the overall mean is that of independent batches times ``(1 + r) / (1 -
    r)``, and Student's interval has the ``48 (1 - r) / (1 + r)`` batches that are left of them. ``r`` is
    corrected for its bias (Marriott and Pope, 1954) and made larger by half a standard error.

    Times are the longer the more they vary: near saturation a queue's standard error grows with the square
    of its mean, so a run that was calm by chance looks surer than it is. The interval is therefore symmetric
    for 1 / mean, and its upper side is the longer. Values of both signs are left as they are.
    """
    series = np.asarray(values, dtype=np.float64)
    if len(series) == 0:
        return Interval.around(math.nan, math.nan)
    mean, half_width = float(series.mean()), _half_width(series, confidence)
    stretch = _stretch(series, confidence)
    return Interval(mean, mean - half_width / (2 - 1 / stretch), mean + half_width * stretch)


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of ``a - b`` for the same requests in arrival order, with an interval as `batch_means_interval`.

    Both hold a value per request, shape ``(num_requests,)``, under two policies on the same arrivals: what
    these have in common cancels in the difference. Near saturation the standard error of a difference grows
    with the cube of the mean: one power more than that of a mean, so it is stretched twice.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    difference = first - second
    if len(difference) == 0:
        return Interval.around(math.nan, math.nan)
    stretch = float(np.maximum(_stretch(first, confidence), _stretch(second, confidence)))
    return Interval.around(float(difference.mean()), _half_width(difference, confidence) * stretch**2)


def _half_width(series: NDArray[np.float64], confidence: float) -> float:
    """Of an interval for the mean, from an autoregression of batch means; NaN where values are too few."""
    if len(series) < _FEWEST_VALUES:
        return math.nan
    starts = np.arange(_NUM_BATCHES) * len(series) // _NUM_BATCHES
    means = np.add.reduceat(series, starts) / np.diff(np.append(starts, len(series)))
    deviations = means - means.mean()
    squares = float(deviations @ deviations)
    if squares == 0:
        return 0.0
    correlation = float(deviations[1:] @ deviations[:-1]) / squares
    correlation = min(max(correlation + (1 + 3 * correlation) / _NUM_BATCHES + _MORE_CORRELATION, 0.0), 0.99)
    num_batches = _NUM_BATCHES * (1 - correlation) / (1 + correlation)
    is_long = len(series) >= _LONG_SERIES
    if num_batches < (_FEWEST_BATCHES if is_long else _FEWEST_BATCHES_IF_SHORT):
        return math.nan
    if not is_long and not _forgets(series):
        return math.nan
    quantile = t_quantile((1 + confidence) / 2, round(num_batches) - 1)
    return quantile * math.sqrt(squares / (_NUM_BATCHES - 1) / num_batches)


def _forgets(series: NDArray[np.float64]) -> bool:
    """Whether a series is long against its memory: the lag at which its autocorrelation falls below 1 / e."""
    deviations = series - series.mean()
    squares = np.abs(np.fft.rfft(deviations, 2 * len(series))) ** 2  # twice as long: nothing wraps around
    correlation = np.fft.irfft(squares)[: len(series)]
    memory = int(np.argmax(correlation < correlation[0] / math.e))
    return len(series) >= _FEWEST_MEMORIES * memory


def _stretch(series: NDArray[np.float64], confidence: float) -> float:
    """How much longer the upper side is of an interval that is symmetric for 1 / mean; NaN: no interval.

    With ``r = half width / mean`` its ends are ``mean / (1 + r)`` and ``mean / (1 - r)``: the lower side is
    shorter by ``1 + r``, the upper longer by ``1 / (1 - r)``, which is returned.
    """
    if series.min() < 0:
        return 1.0
    half_width, mean = _half_width(series, confidence), float(series.mean())
    if half_width == 0:
        return 1.0
    return 1 / (1 - half_width / mean) if half_width < _WIDEST * mean else math.nan
