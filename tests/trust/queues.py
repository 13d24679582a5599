"""Queues that need no simulator: when each request arrives, is taken up and finishes, in a few lines each."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ITERATION_S = 0.02
SEATS = 1024
ANSWER_TOKENS = 1000
BATCH_SIZE = 16


class Times(NamedTuple):
    """Of each request, in order of arrival, in seconds."""

    arrival_s: Floats
    start_s: Floats
    finish_s: Floats


Queue = Callable[[float, int, np.random.Generator], Times]


def single_server(arrival_s: Floats, service_s: Floats) -> Times:
    """First come, first served by one server (Lindley's recursion, as a running maximum)."""
    worked_s = np.cumsum(service_s)
    finish_s = worked_s + np.maximum.accumulate(arrival_s - (worked_s - service_s))
    return Times(arrival_s, np.maximum(arrival_s, np.concatenate([[0.0], finish_s[:-1]])), finish_s)


def servers(arrival_s: Floats, service_s: Floats, num: int) -> Times:
    """First come, first served by several servers."""
    free_s = [0.0] * num
    start_s = []
    for arrival, service in zip(arrival_s.tolist(), service_s.tolist(), strict=True):
        start = max(free_s[0], arrival)
        heapq.heapreplace(free_s, start + service)
        start_s.append(start)
    return Times(arrival_s, np.array(start_s), np.array(start_s) + service_s)


def batch_server(arrival_s: Floats, service_s: Floats, size: int) -> Times:
    """One server that takes all who wait, up to ``size``; the next batch takes the next of ``service_s``."""
    num, first, free_s = len(arrival_s), 0, 0.0
    start_s, finish_s = np.empty(num), np.empty(num)
    for service in service_s.tolist():
        start = max(free_s, float(arrival_s[first]))
        stop = min(first + size, int(np.searchsorted(arrival_s, start, side="right")))
        free_s = start + service
        start_s[first:stop], finish_s[first:stop] = start, free_s
        first = stop
        if first == num:
            break
    return Times(arrival_s, start_s, finish_s)


def poisson(rate_per_s: float, num: int, random: np.random.Generator) -> Floats:
    """Arrivals."""
    return np.cumsum(random.exponential(1 / rate_per_s, num))


def m_m_1(rho: float, num: int, random: np.random.Generator) -> Times:
    """One server, exponential service of mean 1 s."""
    return single_server(poisson(rho, num, random), random.exponential(1.0, num))


def m_d_1(rho: float, num: int, random: np.random.Generator) -> Times:
    """One server, service of 1 s."""
    return single_server(poisson(rho, num, random), np.ones(num))


def m_m_16(rho: float, num: int, random: np.random.Generator) -> Times:
    """16 servers, exponential service of mean 1 s."""
    return servers(poisson(16 * rho, num, random), random.exponential(1.0, num), 16)


def batches(rho: float, num: int, random: np.random.Generator) -> Times:
    """One server of batches of at most 16, each 1 s."""
    return batch_server(poisson(BATCH_SIZE * rho, num, random), np.ones(num), BATCH_SIZE)


def batches_exponential(rho: float, num: int, random: np.random.Generator) -> Times:
    """One server of batches of at most 16, exponential of mean 1 s whatever is in them."""
    return batch_server(poisson(BATCH_SIZE * rho, num, random), random.exponential(1.0, num), BATCH_SIZE)


def engine(rho: float, num: int, random: np.random.Generator) -> Times:
    """1,024 seats, answers of 1,000 tokens, iterations of 20 ms."""
    return _seats(rho, num, random, np.full(num, ANSWER_TOKENS))


def engine_geometric(rho: float, num: int, random: np.random.Generator) -> Times:
    """1,024 seats, answers of geometric length with mean 1,000 tokens, iterations of 20 ms."""
    return _seats(rho, num, random, random.geometric(1 / ANSWER_TOKENS, num))


def _seats(rho: float, num: int, random: np.random.Generator, tokens: NDArray[np.int64]) -> Times:
    arrival_s = poisson(rho * SEATS / (ANSWER_TOKENS * ITERATION_S), num, random)
    joins_s = np.ceil(arrival_s / ITERATION_S) * ITERATION_S  # at the next iteration
    times = servers(joins_s, tokens * ITERATION_S, SEATS)
    return times._replace(arrival_s=arrival_s)


QUEUES: Mapping[str, Queue] = {
    "M/M/1": m_m_1,
    "M/D/1": m_d_1,
    "M/M/16": m_m_16,
    "batches of 16": batches,
    "1,024 seats, fixed": engine,
    "1,024 seats, geometric": engine_geometric,
    "batches of 16, exponential": batches_exponential,
}
