"""Whether the requests of a run waited longer and longer: stable, saturated, or too short to tell.

The verdict looks at who waits for service, never at service itself: answers that take long to generate fill
a system without overloading it.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from batchsim.metrics.filling import fill
from batchsim.metrics.weighted import Floats
from batchsim.records import FAILED, REFUSED, Columns, has_status

_FEWEST_REQUESTS = 200
_FEWEST_BLOCKS, _MOST_BLOCKS, _PER_BLOCK = 10, 50, 40
_FEWEST_STARTS = 10
#: Growth as a share of the arrivals: the least that counts, and what a run must be able to rule out. Fewer
#: requests than ten come and go by chance in any queue.
_LEAST_GROWTH, _TOLERATED_GROWTH = 0.005, 0.02
_FEWEST_GROWTH = 10
#: A queue that drifts about spans more than this many standard errors (97 %); one at rest, less.
_STATIONARY_RANGE = 0.55
#: Of growth in standard errors. In a run so long that an overload of 2 % would be two of them, no growth or
#: one of 2 % are told apart near the middle; else growth must be more than chance (1 %).
_SURE, _SURE_IF_LONG, _LONG_ERROR = 2.33, 1.0, 0.01
_AT_MOST = 1.645
#: A stretch inside the run: its growth in standard errors, as a share of its arrivals, its share of all, and
#: its blocks. The stretch is chosen for its growth, so much more than chance is asked for.
_STRETCH_SURE, _STRETCH_GROWTH, _STRETCH_SHARE, _STRETCH_BLOCKS = 10.0, 0.2, 0.1, 5
_SHORTEST_S = 1e-9  # arrivals within less come at once
#: Requests that a part of the arrivals must have to be called overloaded: a fifth of them is then three times
#: what the queue of a stable system gains by chance.
_PER_OVERLOADED_BLOCK = 400


class Verdict(NamedTuple):
    """What a run says about its load.

    Attributes
    ----------
    name
        ``stable``, ``saturated``, or ``transient``: too short to tell.
    reason
        One sentence.
    growth_per_s
        Requests that those waiting gain per second, from the first to the last arrival; NaN where all arrive
        at once.
    overload_time_share
        Share of the time of arrivals in which they came at least a quarter faster than they were taken up;
        NaN where there are too few to tell.
    """

    name: Literal["stable", "saturated", "transient"]
    reason: str
    growth_per_s: float
    overload_time_share: float


def verdict(requests: Columns[Any]) -> Verdict:
    """Judge a table of requests; those that were refused never wait, nor do those lost with a replica."""
    kept = ~has_status(requests, REFUSED) & ~has_status(requests, FAILED)
    names = [name for name in ("arrival_s", "scheduled_s", "finish_s", "left_s") if name in requests]
    return judge(*(np.asarray(requests[name])[kept] for name in names))


def judge(
    arrival_s: ArrayLike, start_s: ArrayLike, finish_s: ArrayLike, left_s: ArrayLike = math.nan
) -> Verdict:
    """Judge from the times of each request in order of arrival, NaN where one never came.

    The number of requests that wait is looked at after each of up to 50 equal parts of the arrivals. Under
    overload it gains the same in each, give or take; in a stable system what it gains it loses again. So its
    growth over all of them is held against ``standard deviation * sqrt(parts)``, what independent gains
    would add up to by chance, and which a stable queue falls far short of once the run is much longer than
    the queue's memory. A long stretch inside the run that is overloaded beyond doubt counts as well,
    whatever came after it.

    A run is too short to tell if the requests in service could not build up within a third of it (unless a
    fifth of all were left waiting), or if an overload of 2 % might hide in its noise and the queue went as
    far from where it began as one that drifts about (its rescaled range).

    Parameters
    ----------
    start_s
        When service began; a request without one waits for ever, or to ``left_s``.
    left_s
        When a request that never began gave up. As such requests bound the queue, they count as still
        waiting where requests came faster than they were taken up while any waited.
    """
    arrivals_s, starts_s, finishes_s, lefts_s = np.broadcast_arrays(
        *(np.asarray(times_s, dtype=np.float64) for times_s in (arrival_s, start_s, finish_s, left_s))
    )
    num = len(arrivals_s)
    span_s = float(arrivals_s[-1] - arrivals_s[0]) if num else 0.0
    if not span_s > _SHORTEST_S:
        return Verdict("transient", "all requests arrive at once", math.nan, math.nan)
    ends_s = np.where(np.isnan(starts_s), lefts_s, starts_s)
    are_lost = (~np.isnan(lefts_s)).any() and _takes_up_too_slowly(arrivals_s, starts_s, ends_s)
    waited_to_s = starts_s if are_lost else ends_s
    _, queue = _waiting(arrivals_s, waited_to_s, _PER_BLOCK, _FEWEST_BLOCKS)
    name, reason = _judge_queue(queue, num)
    is_flooded = name == "saturated" and queue[-1] - queue[0] > _STRETCH_GROWTH * num
    name, reason = _too_short(arrivals_s, finishes_s - starts_s, is_flooded=is_flooded) or (name, reason)
    if name == "saturated" and _num_starts(starts_s, float(arrivals_s[-1])) < _FEWEST_STARTS:
        name, reason = "transient", f"service began fewer than {_FEWEST_STARTS} times while requests arrived"
    growth_per_s = float(queue[-1] - queue[0]) / span_s
    return Verdict(name, reason, growth_per_s, _overload_time_share(arrivals_s, waited_to_s))


def _waiting(arrivals_s: Floats, ends_s: Floats, per_block: int, fewest_blocks: int) -> tuple[Floats, Floats]:
    """When those who arrive first, at one instant, and each block of the others are there; who waits then."""
    num = len(arrivals_s)
    first = int(np.searchsorted(arrivals_s, arrivals_s[0], side="right"))
    num_blocks = min(max((num - first) // per_block, fewest_blocks), _MOST_BLOCKS)
    times_s = arrivals_s[first - 1 + np.arange(num_blocks + 1) * (num - first) // num_blocks]
    arrived = np.searchsorted(arrivals_s, times_s, side="right")
    block_of_end = np.searchsorted(times_s, ends_s)  # those without an end come after the last
    ended = np.cumsum(np.bincount(block_of_end, minlength=len(times_s) + 1)[:-1])
    return times_s, (arrived - ended).astype(np.float64)


def _overload_time_share(arrivals_s: Floats, ends_s: Floats) -> float:
    """Time of the blocks of arrivals that left a fifth of their requests waiting, as a share of all."""
    times_s, queue = _waiting(arrivals_s, ends_s, _PER_OVERLOADED_BLOCK, 1)
    if len(arrivals_s) < _PER_OVERLOADED_BLOCK:
        return math.nan
    is_overloaded = np.diff(queue) > _STRETCH_GROWTH * len(arrivals_s) / (len(times_s) - 1)
    return float(np.diff(times_s) @ is_overloaded / (times_s[-1] - times_s[0]))


def _takes_up_too_slowly(arrivals_s: Floats, starts_s: Floats, ends_s: Floats) -> bool:
    """Whether requests that had to wait began at a lower rate, while any waited, than requests arrived."""
    end_s = float(arrivals_s[-1])
    times_s = np.concatenate([arrivals_s, np.fmin(ends_s, end_s)])
    order = np.argsort(times_s, kind="stable")
    num_waiting = np.cumsum(np.repeat([1, -1], len(arrivals_s))[order])[:-1]
    waiting_s = float(np.diff(times_s[order]) @ (num_waiting > 0))
    num_started = np.count_nonzero((starts_s > arrivals_s) & (starts_s <= end_s))
    return bool(num_started * np.ptp(arrivals_s) < waiting_s * len(arrivals_s))


def _too_short(arrivals_s: Floats, service_s: Floats, *, is_flooded: bool) -> tuple[Any, str] | None:
    """Why it cannot be told, if so; a system that is flooded before it is full will not catch up."""
    num = len(arrivals_s)
    if num < _FEWEST_REQUESTS:
        return "transient", f"{num} requests are too few to tell; {_FEWEST_REQUESTS} are needed"
    filled = fill(arrivals_s, service_s)
    if filled.window is None and not is_flooded:
        return "transient", (
            f"requests arrive for {np.ptp(arrivals_s):.3g} s and take {filled.service_mean_s:.3g} s each "
            "once they are served: too short for the requests in service to build up"
        )
    return None


def _judge_queue(queue: Floats, num: int) -> tuple[Any, str]:
    gains = np.diff(queue)
    growth = float(queue[-1] - queue[0])
    error = _chance(gains)
    is_long = error < _LONG_ERROR * num
    if (
        growth > max(_LEAST_GROWTH * num, _FEWEST_GROWTH)
        and growth > (_SURE_IF_LONG if is_long else _SURE) * error
    ):
        return "saturated", (
            f"those who wait grew by {growth:,.0f} over {num:,} arrivals: {growth / num:.1%} of the requests "
            "arrived faster than they were taken up"
        )
    stretch = _overloaded_stretch(queue, num)
    if stretch is not None:
        low, high = stretch
        return "saturated", (
            f"for {(high - low) / len(gains):.0%} of the arrivals, requests came faster than they were taken "
            f"up: those who wait grew from {queue[low]:,.0f} to {queue[high]:,.0f}"
        )
    if growth + _AT_MOST * error > _TOLERATED_GROWTH * num and np.ptp(queue) > _STATIONARY_RANGE * error:
        return "transient", (
            f"those who wait went up and down too far for {num:,} requests to tell an overload of "
            f"{_TOLERATED_GROWTH:.0%} from none"
        )
    return "stable", f"those who wait did not grow beyond chance over {num:,} arrivals"


def _overloaded_stretch(queue: Floats, num: int) -> tuple[int, int] | None:
    """Blocks between which the queue rose most, if it rose far beyond chance."""
    num_gains = len(queue) - 1
    length = np.arange(num_gains + 1) - np.arange(num_gains + 1)[:, np.newaxis]
    rise = queue - queue[:, np.newaxis]
    fewest = max(_STRETCH_SHARE * num_gains, _STRETCH_BLOCKS)
    beyond_chance = np.where(length >= fewest, rise / np.sqrt(np.maximum(length, 1)), -math.inf)
    low, high = divmod(int(np.argmax(beyond_chance)), num_gains + 1)
    if rise[low, high] < _STRETCH_GROWTH * (high - low) / num_gains * num:
        return None
    return (low, high) if rise[low, high] > _STRETCH_SURE * _chance(np.diff(queue[low : high + 1])) else None


def _chance(gains: Floats) -> float:
    """What independent gains like these add up to by chance: the standard deviation of their sum."""
    return float(gains.std(ddof=1)) * math.sqrt(len(gains)) if len(gains) > 1 else math.inf


def _num_starts(starts_s: Floats, until_s: float) -> int:
    return len(np.unique(starts_s[starts_s <= until_s]))
