"""Cut a workload and change its pace: each function returns another `Workload`, provenance kept."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.errors import ConfigError
from batchsim.workload.prefixes import id_column
from batchsim.workload.request import Workload

#: Windows that are evened out: as long, or longer where fewer requests than this would come in one.
_HOUR_S = 3600.0
_FEWEST_PER_WINDOW = 100
_PARTS = 12
_SIGNIFICANCE = 1e-3


def filter_rows(workload: Workload, model: str | None = None, log_type: str | None = None) -> Workload:
    """Keep the requests of one model, one log type, or both; times stay as they are.

    Raises
    ------
    ConfigError
        If the workload has no such column, or nothing matches; the message lists the values present.
    """
    for column, wanted in (("model", model), ("log_type", log_type)):
        if wanted is None:
            continue
        name = workload.source.name
        if column not in workload.extra:
            raise ConfigError(f"{column} is {wanted!r}, but {name} has no {column} column")
        matches = workload.extra[column] == wanted
        if not matches.any():
            present = ", ".join(sorted({repr(str(value)) for value in workload.extra[column]}))
            raise ConfigError(
                f"{column} is {wanted!r}, but no request of {name} has it; present are {present}"
            )
        workload = workload.take(matches)
    return workload


def window(workload: Workload, start_s: float, end_s: float) -> Workload:
    """Keep arrivals in ``[start_s, end_s)``, shifted so that ``start_s`` becomes 0.

    Raises
    ------
    ConfigError
        If no request arrives in the window.
    """
    first, last = np.searchsorted(workload.arrival_s, (start_s, end_s), side="left")
    if first >= last:
        raise ConfigError(
            f"window [{start_s:g}, {end_s:g}) s holds no request of {workload.source.name}, "
            f"whose arrivals span {workload.arrival_s[0]:g} to {workload.arrival_s[-1]:g} s"
        )
    inside = workload.take(slice(first, last))
    return inside.with_arrivals(inside.arrival_s - start_s)


def resample(
    workload: Workload, block_s: float, rng: np.random.Generator, num_requests: int | None = None
) -> Workload:
    """Put blocks of so many seconds, each from a random place of a trace, one after the other.

    The circular block bootstrap (Politis and Romano, 1992): what hangs together for less than a block stays
    together, and each request is as likely as any other. There are as many seconds as in the trace, or as
    many as ``num_requests`` take. A session ends with its block.

    Raises
    ------
    ConfigError
        If the trace does not last for two blocks, or its prompts have prefix ids: a copy of a request would
        find what the request left in the caches.
    """
    name, num = workload.source.name, len(workload)
    span_s = float(workload.arrival_s[-1] - workload.arrival_s[0])
    if not block_s <= span_s / 2:
        raise ConfigError(
            f"workload.resample_s is {block_s:g}, but the requests of {name} come within {span_s:g} s; at "
            "most half of that is needed"
        )
    if (column := id_column(workload.extra)) is not None:
        raise ConfigError(
            f"workload.resample_s puts copies of requests beside each other, and {name} has prefix ids "
            f"({column}): a copy would find what the request left in the caches; leave it out"
        )
    length_s = span_s * num / (num - 1)  # the last gap is as long as the others are on average
    twice_s = np.concatenate([workload.arrival_s, workload.arrival_s + length_s])  # a block may go round
    starts_s, ends = np.empty(0), np.zeros((2, 0), dtype=np.int64)
    while (
        len(starts_s) * block_s < length_s if num_requests is None else np.diff(ends.T).sum() < num_requests
    ):
        more = rng.random(math.ceil(length_s / block_s)) * length_s
        starts_s = np.concatenate([starts_s, workload.arrival_s[0] + more])
        ends = np.searchsorted(twice_s, [starts_s, starts_s + block_s])
    block = np.repeat(np.arange(len(starts_s)), ends[1] - ends[0])
    row = np.concatenate([np.arange(*pair) for pair in ends.T])
    arrivals_s = block * block_s + twice_s[row] - starts_s[block]
    num_made = int(np.searchsorted(arrivals_s, length_s)) if num_requests is None else num_requests
    made = workload.take(row[:num_made] % num).with_arrivals(arrivals_s[:num_made])
    notice = f"{name}: blocks of {block_s:g} s from random places, one after the other, instead of the trace"
    source = replace(workload.source, notices=(*workload.source.notices, notice))
    extra = {**made.extra, **_sessions_of_blocks(made, block[:num_made])}
    return replace(made, request_id=np.arange(num_made, dtype=np.int64), extra=extra, source=source)


def _sessions_of_blocks(made: Workload, block: NDArray[np.int64]) -> dict[str, NDArray[np.object_]]:
    if "session_id" not in made.extra:
        return {}
    has_session = ~pd.isna(np.asarray(made.extra["session_id"], dtype=object))
    known = zip(block.tolist(), made.extra["session_id"], has_session, strict=True)
    named = [f"{number}:{one}" if is_one else one for number, one, is_one in known]
    return {"session_id": np.array(named, dtype=object)}


def rescale_time(workload: Workload, factor: float) -> Workload:
    """Compress time: every arrival happens ``factor`` times as early (2 doubles the rate)."""
    if not (factor > 0 and math.isfinite(factor)):
        raise ConfigError(f"rate scale is {factor:g}; a number > 0 is needed")
    return workload.with_arrivals(workload.arrival_s / factor)


def rescale_to_rate(workload: Workload, rate_per_s: float) -> Workload:
    """Compress or stretch time to this mean rate, ``(n - 1) / (last - first arrival)``.

    Raises
    ------
    ConfigError
        If all requests arrive at one instant: no factor gives them a rate.
    """
    mean_rate_per_s = workload.mean_rate_per_s
    if math.isnan(mean_rate_per_s):
        raise ConfigError(
            f"request rate {rate_per_s:g} per s cannot be reached: the {len(workload)} requests of "
            f"{workload.source.name} arrive at one instant"
        )
    return rescale_time(workload, rate_per_s / mean_rate_per_s)


def even_out(workload: Workload) -> Workload:
    """Give every hour of a trace the same rate: its days and nights go, what happens within an hour stays.

    A change of the clock, ``t -> N(t)``, with N the requests that came by then, linear within each window: so
    each window lasts as long as its requests take at the mean rate. Windows are of an hour, or as long as 100
    requests take on average. Where the windows do not differ more than their twelfths explain (one-way
    analysis of variance, 0.1 %), the process is as stationary as can be told, and nothing is changed.

    Variation of windows and longer is taken out whole: over several of them, even a Poisson process would
    be left with less than its own.
    """
    edges_s = _windows(workload)
    arrivals_s = workload.arrival_s
    if not _differ(_counts(arrivals_s, edges_s, _PARTS)):
        return workload
    came_before = np.searchsorted(arrivals_s, edges_s).astype(np.float64)
    came_before[-1] = len(arrivals_s) - 1
    evened = np.interp(arrivals_s, edges_s, came_before) / workload.mean_rate_per_s
    return workload.with_arrivals(arrivals_s[0] + evened)


def peak_to_mean(workload: Workload) -> float:
    """Rate of the busiest window (see `even_out`) over the mean rate."""
    counts = _counts(workload.arrival_s, _windows(workload), 1)
    return float(counts.max() / counts.mean())


def _windows(workload: Workload) -> NDArray[np.float64]:
    """Edges of equal windows over the trace, in seconds; of one if it is short."""
    first_s, last_s = workload.arrival_s[[0, -1]]
    least_s = _FEWEST_PER_WINDOW * (last_s - first_s) / len(workload)
    num = int((last_s - first_s) // max(_HOUR_S, least_s))
    return np.linspace(first_s, last_s, max(num, 1) + 1)


def _counts(
    arrivals_s: NDArray[np.float64], edges_s: NDArray[np.float64], num_parts: int
) -> NDArray[np.int64]:
    """Requests in equal parts of each window, shape ``(windows, parts)``."""
    num = len(edges_s) - 1
    counts, _ = np.histogram(arrivals_s, num * num_parts, (edges_s[0], edges_s[-1]))
    return counts.reshape(num, num_parts)


def _differ(counts: NDArray[np.int64]) -> bool:
    """Whether windows differ in more than chance explains."""
    num, num_parts = counts.shape
    if num < 2:
        return False
    from scipy.special import fdtri  # takes longer to load than a short run, and few runs need it

    between = num_parts * counts.mean(axis=1).var(ddof=1)
    within = counts.var(axis=1, ddof=1).mean()
    return bool(between > within * fdtri(num - 1, num * (num_parts - 1), 1 - _SIGNIFICANCE))


def split_training(workload: Workload, fraction: float) -> tuple[Workload, Workload]:
    """Set the first requests in time aside for training.

    Parameters
    ----------
    workload
        All requests.
    fraction
        Share in [0, 1) to set aside, rounded to whole requests and at least one unless it is 0.

    Returns
    -------
    training, evaluated
        Where any are set aside, the evaluated requests are shifted so that the first arrives at 0.

    Raises
    ------
    ConfigError
        If nothing is left to evaluate.
    """
    num_training = max(1, round(fraction * len(workload))) if fraction > 0 else 0
    if num_training >= len(workload):
        raise ConfigError(
            f"training fraction {fraction:g} of the {len(workload)} requests of {workload.source.name} "
            "leaves none to evaluate"
        )
    return split_at(workload, num_training)


def split_at(workload: Workload, num_training: int) -> tuple[Workload, Workload]:
    """Set exactly the first ``num_training`` requests aside; see `split_training`."""
    training, evaluated = workload.take(slice(0, num_training)), workload.take(slice(num_training, None))
    if num_training:
        evaluated = evaluated.with_arrivals(evaluated.arrival_s - evaluated.arrival_s[0])
    return training, evaluated
