"""Batches that share a service time: bulk queues, launched greedily or only when full."""

import numpy as np
import pytest

from batchsim.study.result import SimulationResult
from tests.sim.worlds import LinearLatency, workload
from tests.theory.worlds import (
    ExponentialLatency,
    assert_agrees,
    busy_fraction,
    checked_run,
    poisson_arrivals,
    replicate,
    stays_s,
    waits_s,
)


def greedy(size: int) -> dict[str, object]:
    return {"preset": "static_fifo", "batch_size": size}


def full(size: int) -> dict[str, object]:
    return {"preset": "multi_bin", "num_bins": 1, "batch_size": size}


def assembly_and_queue_s(result: SimulationResult, size: int) -> tuple[float, float]:
    """Mean wait for the batch to fill, and from there to its launch; without the partial batch at the end."""
    num_full = len(result.requests) // size * size
    arrivals_s = result.requests["arrival_s"].to_numpy()[:num_full].reshape(-1, size)
    starts_s = result.requests["scheduled_s"].to_numpy()[:num_full].reshape(-1, size)
    filled_s = arrivals_s[:, -1:]
    late = slice(len(arrivals_s) // 10, None)
    return float((filled_s - arrivals_s)[late].mean()), float((starts_s - filled_s)[late].mean())


def test_greedy_batches_with_exponential_times_are_the_bulk_queue_m_m_1_b_1() -> None:
    def measure(rng: np.random.Generator) -> list[float]:
        requests = workload(poisson_arrivals(rng, 2.0, 8000), 1)
        result = checked_run(requests, ExponentialLatency(1.0, rng), greedy(4))
        sizes = result.batches["batch_size"]
        return [waits_s(result).mean(), stays_s(result).mean(), busy_fraction(result), sizes.mean()]

    replications = replicate(measure, 16, seed=1)

    assert_agrees(replications, [1.26843, 2.26843, 1 - 0.114546, 2.25873], resolution=0.025)


def test_greedy_batches_with_a_constant_time_are_the_bulk_queue_m_d_1_b_1() -> None:
    def measure(rng: np.random.Generator) -> list[float]:
        result = checked_run(
            workload(poisson_arrivals(rng, 2.0, 8000), 1), LinearLatency(fixed_s=1.0), greedy(4)
        )
        sizes = result.batches["batch_size"]
        return [waits_s(result).mean(), busy_fraction(result), sizes.mean()]

    replications = replicate(measure, 10, seed=2)

    assert_agrees(replications, [0.516960, 0.940524, 2.126475], resolution=0.01)


@pytest.mark.parametrize(
    ("rate_per_s", "num_requests", "stay_s"),
    [(0.5, 4000, 1.40191), (2.0, 8000, 1.96613), (5.0, 10_000, 3.16664), (8.0, 20_000, 7.88889)],
)
def test_greedy_unlimited_batches_with_linear_time_have_the_exact_mean_stay(
    rate_per_s: float, num_requests: int, stay_s: float
) -> None:
    def measure(rng: np.random.Generator) -> float:
        requests = workload(poisson_arrivals(rng, rate_per_s, num_requests), 1)
        latency = LinearLatency(fixed_s=1.0, per_request_s=0.1)
        return float(stays_s(checked_run(requests, latency, greedy(10**6))).mean())

    replications = replicate(measure, 8, seed=3)

    assert_agrees(replications, stay_s, resolution=0.025)


def test_greedy_unlimited_batches_with_linear_time_have_the_exact_load_and_batch_size() -> None:
    def measure(rng: np.random.Generator) -> list[float]:
        requests = workload(poisson_arrivals(rng, 2.0, 8000), 1)
        result = checked_run(requests, LinearLatency(fixed_s=1.0, per_request_s=0.1), greedy(10**6))
        return [busy_fraction(result), result.batches["batch_size"].mean()]

    replications = replicate(measure, 8, seed=4)

    assert_agrees(replications, [0.96784, 2.60471], resolution=0.01)


def test_dynamic_batches_whose_limits_never_bind_have_the_exact_mean_stay_as_well() -> None:
    def measure(rng: np.random.Generator) -> float:
        requests = workload(poisson_arrivals(rng, 2.0, 8000), 10)
        latency = LinearLatency(fixed_s=1.0, per_request_s=0.1)
        policy = {"preset": "dynamic_no_bins", "sizing": {"SloFeedback": {"target_s": 100.0}}}
        return float(stays_s(checked_run(requests, latency, policy)).mean())

    replications = replicate(measure, 6, seed=5)

    assert_agrees(replications, 1.96613, resolution=0.025)


def test_full_batches_with_exponential_times_are_the_queue_e_b_m_1() -> None:
    def measure(rng: np.random.Generator) -> list[float]:
        requests = workload(poisson_arrivals(rng, 1.6, 8000), 1)
        result = checked_run(requests, ExponentialLatency(2.0, rng), full(4))
        return [*assembly_and_queue_s(result, 4), stays_s(result).mean()]

    replications = replicate(measure, 16, seed=6)

    assert_agrees(replications, [0.9375, 4.53477, 7.47227], resolution=0.07)


def test_full_batches_with_a_constant_time_wait_as_simulated_independently() -> None:
    def measure(rng: np.random.Generator) -> list[float]:
        requests = workload(poisson_arrivals(rng, 1.6, 10_000), 1)
        result = checked_run(requests, LinearLatency(fixed_s=2.0), full(4))
        return [*assembly_and_queue_s(result, 4), stays_s(result).mean()]

    replications = replicate(measure, 12, seed=7)

    # The queueing time has no closed form: 0.772 is Lindley's recursion over 2e7 batches (error 0.001).
    assert_agrees(replications, [0.9375, 0.772, 3.710], resolution=0.035)


def test_waiting_for_a_full_batch_takes_less_time_at_a_higher_rate() -> None:
    rng = np.random.default_rng(8)
    slow, fast = (
        checked_run(workload(poisson_arrivals(rng, rate, 4000), 1), LinearLatency(fixed_s=0.01), full(8))
        for rate in (1.0, 2.0)
    )

    assembly_s = [assembly_and_queue_s(result, 8)[0] for result in (slow, fast)]

    assert assembly_s == pytest.approx([7 / 2, 7 / 4], rel=0.05)
