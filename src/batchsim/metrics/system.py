"""What the cluster did in a window of time: throughput, load, waste, goodput.

A request or batch counts for a window by its finish, ends included; a time average weighs each batch (or span
of iterations) by the part of its running time that lies inside. A value that cannot be told is NaN.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchsim.config import SloConfig
from batchsim.errors import TraceError
from batchsim.metrics.requests import TIMES
from batchsim.metrics.weighted import Floats
from batchsim.records import FINISHED, STRANDED, Columns, has_status

Mask = NDArray[np.bool_]

# Pairwise sums of any number of rows, each rounded once or twice, stay within.
_ROUNDING = 64 * math.ulp(1.0)


class Window(NamedTuple):
    """From when to when, in seconds; ends included."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """Seconds; NaN for a window without any, so that rates over it are NaN."""
        return self.end_s - self.start_s if self.end_s > self.start_s else math.nan


class Throughput(NamedTuple):
    """What finished per second: requests, their output tokens, their prompt and output tokens."""

    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float


def finishes_in(table: Columns[Any], window: Window) -> Mask:
    """Whether each request or batch finishes inside the window, shape ``(num_rows,)``."""
    return inside(table["finish_s"], window)


def inside(times_s: ArrayLike, window: Window) -> Mask:
    """Whether each time lies in the window, ends included; shape as that of the times."""
    times_s = np.asarray(times_s)
    return (times_s >= window.start_s) & (times_s <= window.end_s)


def throughput(requests: Columns[Any], window: Window) -> Throughput:
    """Return requests and tokens per second of the window, counted when a request finishes."""
    is_inside = finishes_in(requests, window)
    output_tokens = int(np.asarray(requests["output_tokens"])[is_inside].sum())
    total_tokens = output_tokens + int(np.asarray(requests["prompt_tokens"])[is_inside].sum())
    counts = (np.count_nonzero(is_inside), output_tokens, total_tokens)
    return Throughput(*(count / window.length_s for count in counts))


def busy_fraction(batches: Columns[Any], num_replicas: float, window: Window) -> float:
    """Share of all replicas' time in the window that a batch (or iteration) ran, well filled or not."""
    running = running_s(batches, window)
    share = float(running.sum()) / (num_replicas * window.length_s)
    return at_most_one(share, clock_error(len(running), window), "busy fraction", "rows of a GPU overlap")


def running_s(batches: Columns[Any], window: Window) -> Floats:
    """Seconds of the window in which each batch (or span of iterations) was running, ``(num_batches,)``."""
    return inside_s(batches["start_s"], batches["finish_s"], window)


def inside_s(start_s: ArrayLike, end_s: ArrayLike, window: Window) -> Floats:
    """Seconds of each interval that lie in the window, shape as that of the intervals."""
    later_s, earlier_s = np.maximum(start_s, window.start_s), np.minimum(end_s, window.end_s)
    return np.asarray(np.maximum(earlier_s - later_s, 0.0))


def waits_until_s(requests: Columns[Any]) -> Floats:
    """When each request stopped to wait: scheduled, given up, or never (infinity) if it was stranded.

    Shape ``(num_requests,)``. Refused requests do not wait, nor do abandoned ones in a log that does not say
    when they left.
    """
    until_s = np.asarray(requests["scheduled_s"])
    waits_on = has_status(requests, FINISHED, STRANDED) | ~np.isnan(until_s)
    until_s = np.where(waits_on, until_s, requests["arrival_s"])
    if "left_s" in requests:
        left_s = np.asarray(requests["left_s"])
        until_s = np.where(np.isnan(left_s), until_s, left_s)
    return np.where(np.isnan(until_s), math.inf, until_s)


def num_waiting(requests: Columns[Any], at_s: Floats) -> NDArray[np.int64]:
    """How many requests wait to be scheduled first, at each of some instants."""
    return num_between(np.asarray(requests["arrival_s"]), waits_until_s(requests), at_s)


def num_between(starts_s: Floats, ends_s: Floats, at_s: Floats) -> NDArray[np.int64]:
    """How many have begun and not ended at each of some instants; NaN: that never comes."""
    begun, ended = (np.searchsorted(np.sort(times_s), at_s, "right") for times_s in (starts_s, ends_s))
    return np.asarray(begun - ended, np.int64)


def waiting_mean(requests: Columns[Any], num_replicas: float, window: Window) -> float:
    """Time average of the requests that wait to be scheduled first, per replica.

    Those that wait again after a preemption are not in it.
    """
    waited_s = inside_s(requests["arrival_s"], waits_until_s(requests), window)
    return float(waited_s.sum()) / (num_replicas * window.length_s)


def batch_fill(batches: Columns[Any], window: Window) -> float:
    """Time average, over running batches, of batch size / size allowed."""
    weight_s = running_s(batches, window)
    filled_s = weight_s * np.asarray(batches["batch_size"]) / np.asarray(batches["size_limit"])
    fill = ratio(float(filled_s.sum()), float(weight_s.sum()))
    return at_most_one(fill, 0.0, "batch fill", "batches are larger than their size_limit")


def padding_waste_output(batches: Columns[Any]) -> float:
    """Share of output slots that are padding: 1 - tokens wanted / (size * longest answer), batches pooled."""
    slots = np.asarray(batches["batch_size"]) @ np.asarray(batches["max_output_tokens"])
    return 1 - ratio(float(np.sum(batches["sum_output_tokens"])), float(slots))


def padding_waste_prompt(batches: Columns[Any]) -> float:
    """Share of prompt slots that are padding: 1 - tokens given / (size * longest prompt), batches pooled."""
    slots = np.asarray(batches["batch_size"]) @ np.asarray(batches["max_prompt_tokens"])
    return 1 - ratio(float(np.sum(batches["sum_prompt_tokens"])), float(slots))


def kv_use(batches: Columns[Any], num_replicas: int, capacity_tokens: int, window: Window) -> float:
    """Time average over all replicas of KV tokens / capacity, idle time counted as empty.

    A batch counts with what it holds at its end, so this is an upper bound while answers grow.
    """
    held = running_s(batches, window) * np.asarray(batches["kv_tokens"])
    use = float(held.sum()) / (num_replicas * capacity_tokens * window.length_s)
    error = clock_error(len(held), window)
    return at_most_one(use, error, "use of KV memory", "batches overlap or do not fit")


def slo_met(requests: Columns[Any], slo: SloConfig) -> dict[str, Mask]:
    """Whether each request meets each limit that is given, of ``e2e, ttft, tpot``; ``(num_requests,)`` each.

    A request that did not finish meets none. A one-token answer meets any TPOT limit, as in vLLM's
    benchmark. A limit is left out where a finished request's time is not known (no first-token times). The
    limits of a class hold for its requests; where only classes have a limit, others meet it.
    """
    is_finished, one_token = has_status(requests, FINISHED), np.asarray(requests["output_tokens"]) == 1
    met = {}
    for name, limits_s in _limits_s(requests, slo).items():
        time_s = np.asarray(TIMES[name](requests))
        if name == "tpot":
            time_s = np.where(one_token, 0.0, time_s)
        if not np.isnan(time_s[is_finished & np.isfinite(limits_s)]).any():
            met[name] = is_finished & ~(time_s > limits_s)
    return met


def _limits_s(requests: Columns[Any], slo: SloConfig) -> dict[str, Floats]:
    """The limit of each request, by metric; infinity where it has none, ``(num_requests,)`` each."""
    by_class = slo.per_class_ms if "slo_class" in requests else {}
    names = {*slo.per_request_ms, *(metric for limits in by_class.values() for metric in limits)}
    limits_s = {}
    for metric in filter(names.__contains__, TIMES):
        limit_s = np.full(len(requests["status"]), slo.per_request_ms.get(metric, math.inf) / 1000)
        for name, limits in by_class.items():
            limit_s[np.asarray(requests["slo_class"]) == name] = limits.get(metric, math.inf) / 1000
        limits_s[metric] = limit_s
    return limits_s


def is_good(requests: Columns[Any], slo: SloConfig) -> Mask | None:
    """Whether each request meets all limits; None where there is no limit or one cannot be judged."""
    met = slo_met(requests, slo)
    is_known = bool(met) and len(met) == len(_limits_s(requests, slo))
    return np.logical_and.reduce(list(met.values())) if is_known else None


def slo_attainment(requests: Columns[Any], slo: SloConfig) -> float:
    """Goodput as a fraction: share of all requests given, finished or not, that meet all limits."""
    good = is_good(requests, slo)
    return math.nan if good is None else mean(good)


def goodput_requests_per_s(requests: Columns[Any], slo: SloConfig, window: Window) -> float:
    """Goodput as a rate: requests per second of the window that finish in it and meet all limits."""
    good = is_good(requests, slo)
    if good is None:
        return math.nan
    return np.count_nonzero(good & finishes_in(requests, window)) / window.length_s


def clock_error(num_rows: int, window: Window) -> float:
    """Share of the window by which rows that follow each other may overlap, as their times are rounded."""
    return num_rows * math.ulp(window.end_s) / window.length_s


def at_most_one(share: float, error: float, name: str, cause: str) -> float:
    """Return a share of time without what rounding added to 1; `TraceError` with the cause if it is more.

    Allowed for are the sum's rounding and an ``error`` of its terms.
    """
    if share > 1 + _ROUNDING + error:
        raise TraceError(f"the {name} is {share!r}, more than 1: {cause}")
    return 1.0 if share > 1 else share


def ratio(part: float, whole: float) -> float:
    """Return part / whole, NaN of nothing."""
    return part / whole if whole > 0 else math.nan


def known(values: NDArray[Any]) -> NDArray[Any]:
    """Return the values that are not NaN."""
    told: NDArray[Any] = values[~np.isnan(values)]
    return told


def mean(values: NDArray[Any]) -> float:
    """Return the mean, NaN of nothing."""
    return float(values.mean()) if len(values) else math.nan


def largest(values: NDArray[Any]) -> float:
    """Return the largest value, NaN of nothing."""
    return values.max().item() if len(values) else math.nan
