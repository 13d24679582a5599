"""Batches of one: the simulator is a classic queue, on average and request by request."""

from collections.abc import Callable
from dataclasses import replace
from heapq import heapreplace

import numpy as np
import pytest

from tests.theory.worlds import (
    AS_LONG_AS_THE_LONGEST,
    Floats,
    assert_agrees,
    busy_fraction,
    checked_run,
    poisson_arrivals,
    replicate,
    requests_of,
    stays_s,
    waits_s,
)

Law = Callable[[np.random.Generator, int], Floats]

ONE_AT_A_TIME = {"preset": "static_fifo", "batch_size": 1}


def exponential(rng: np.random.Generator, num: int) -> Floats:
    return rng.exponential(1.0, num)


def constant(rng: np.random.Generator, num: int) -> Floats:
    return np.ones(num)


def uniform(rng: np.random.Generator, num: int) -> Floats:
    return rng.uniform(1, 20, num)


@pytest.mark.parametrize(
    ("law", "rate_per_s", "num_requests", "wait_s", "stay_s", "busy"),
    [
        pytest.param(exponential, 0.8, 3500, 4.0, 5.0, 0.8, id="M/M/1"),
        pytest.param(constant, 0.8, 1800, 2.0, 3.0, 0.8, id="M/D/1"),
        pytest.param(uniform, 0.07, 2500, 18.5346, 29.0346, 0.735, id="M/G/1"),
    ],
)
def test_one_gpu_with_batches_of_one_is_a_single_server_queue(
    law: Law, rate_per_s: float, num_requests: int, wait_s: float, stay_s: float, busy: float
) -> None:
    def measure(rng: np.random.Generator) -> list[float]:
        requests = requests_of(poisson_arrivals(rng, rate_per_s, num_requests), law(rng, num_requests))
        result = checked_run(requests, AS_LONG_AS_THE_LONGEST, ONE_AT_A_TIME)
        return [waits_s(result).mean(), stays_s(result).mean(), busy_fraction(result)]

    replications = replicate(measure, 24, seed=1)

    assert_agrees(replications, [wait_s, stay_s, busy], resolution=0.07)


def test_several_gpus_with_batches_of_one_are_the_queue_of_erlang_c() -> None:
    def measure(rng: np.random.Generator) -> list[float]:
        requests = requests_of(poisson_arrivals(rng, 3.2, 5000), exponential(rng, 5000))
        result = checked_run(requests, AS_LONG_AS_THE_LONGEST, ONE_AT_A_TIME, num_gpus=4)
        waits = waits_s(result)
        return [waits.mean(), stays_s(result).mean(), np.mean(waits > 0), busy_fraction(result)]

    replications = replicate(measure, 16, seed=2)

    assert_agrees(replications, [0.74554, 1.74554, 0.59643, 0.8], resolution=0.07)


def test_sojourn_of_the_exponential_queue_is_exponential() -> None:
    def measure(rng: np.random.Generator) -> Floats:
        requests = requests_of(poisson_arrivals(rng, 0.5, 5000), exponential(rng, 5000))
        return np.percentile(
            stays_s(checked_run(requests, AS_LONG_AS_THE_LONGEST, ONE_AT_A_TIME)), [50, 90, 99]
        )

    replications = replicate(measure, 8, seed=3)

    assert_agrees(replications, -np.log([0.5, 0.1, 0.01]) / (1 - 0.5), resolution=0.07)


def test_shortest_first_has_the_waits_of_cobhams_formula_by_size() -> None:
    # The continuous-size limit of priority queues: W(x) = rate * E[S^2] / 2 / (1 - rate * E[S; S < x])^2.
    def measure(rng: np.random.Generator) -> list[float]:
        service_s = uniform(rng, 5000)
        requests = requests_of(poisson_arrivals(rng, 0.07, 5000), service_s)
        policy = {**ONE_AT_A_TIME, "queueing": {"kind": "ShortestFirst"}}
        waits = waits_s(checked_run(requests, AS_LONG_AS_THE_LONGEST, policy), warmup=0)
        return [waits[(low <= service_s) & (service_s < low + 1)].mean() for low in (1, 10, 15)]

    replications = replicate(measure, 8, seed=4)

    sizes = 1 + np.arange(1_900_000) / 100_000
    load_below = 0.07 * np.cumsum(sizes) / len(sizes)
    waits = 0.07 * (1 + 20 + 400) / 3 / 2 / (1 - load_below) ** 2
    expected = [waits[(low <= sizes) & (sizes < low + 1)].mean() for low in (1, 10, 15)]
    assert expected[0] == pytest.approx(4.912, rel=0.01)
    assert_agrees(replications, expected, resolution=0.07)


def test_priorities_have_the_waits_of_cobhams_formula() -> None:
    # Non-preemptive: W1 = R / (1 - load1), W2 = R / ((1 - load1) * (1 - load)), with R = rate * E[S^2] / 2.
    def measure(rng: np.random.Generator) -> list[float]:
        requests = requests_of(poisson_arrivals(rng, 0.7, 5000), exponential(rng, 5000))
        priority = (rng.random(5000) < 4 / 7).astype(np.int64)
        policy = {**ONE_AT_A_TIME, "queueing": {"kind": "HighestPriority"}}
        urgent_first = replace(requests, extra={"priority": priority})
        waits = waits_s(checked_run(urgent_first, AS_LONG_AS_THE_LONGEST, policy), warmup=0)
        return [waits[priority == one].mean() for one in (0, 1)]

    replications = replicate(measure, 12, seed=6)

    residual_s, load_1, load = 0.7, 0.3, 0.7
    expected = [residual_s / (1 - load_1), residual_s / ((1 - load_1) * (1 - load))]
    assert_agrees(replications, expected, resolution=0.07)


@pytest.mark.parametrize("num_gpus", [1, 3])
def test_every_single_wait_is_that_of_the_recursion_of_kiefer_and_wolfowitz(num_gpus: int) -> None:
    rng = np.random.default_rng(5)
    arrivals_s = np.sort(np.round(rng.uniform(0, 8000 / num_gpus, 2000), 1))  # with ties
    requests = requests_of(arrivals_s, rng.lognormal(1, 0.7, 2000))

    result = checked_run(requests, AS_LONG_AS_THE_LONGEST, ONE_AT_A_TIME, num_gpus=num_gpus)

    free_s = [0.0] * num_gpus
    starts_s = []
    for arrival_s, tokens in zip(arrivals_s, requests.output_tokens, strict=True):
        starts_s.append(max(arrival_s, free_s[0]))
        heapreplace(free_s, starts_s[-1] + tokens / 10_000)
    assert result.requests["scheduled_s"].to_numpy() == pytest.approx(np.array(starts_s), abs=1e-6)
