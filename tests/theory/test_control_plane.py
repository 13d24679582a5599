"""Replicas that fail, or are off while nobody asks, are the queues of theory: breakdowns and setup times."""

import numpy as np
import pytest
from scipy.linalg import null_space

from batchsim.latency import LinearIterationLatency
from batchsim.metrics.summary import laws
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate
from batchsim.workload.request import Workload
from tests.sim.worlds import workload
from tests.theory.worlds import Floats, assert_agrees, poisson_arrivals, replicate

#: A pass takes 1 ms whatever is in it, so a request alone takes as long as its answer has tokens.
PER_TOKEN = LinearIterationLatency(0.001, 0.0, 0.0, 0.0, 0.0)


def requests_of(arrival_s: Floats, service_s: Floats) -> Workload:
    return workload(arrival_s, np.maximum(1, np.rint(service_s * 1000)).astype(np.int64))


def run_one_at_a_time(requests: Workload, seed: int, **config: object) -> SimulationResult:
    """One replica, which runs one request at a time."""
    given = {
        "policy": {"preset": "vllm_v1", "batch_size": 1},
        "cluster": {"kv_capacity_tokens": 10**6},
        "workload": {"training_fraction": 0.0},
        "seed": seed,
        **config,
    }
    result = simulate(given, requests, latency=PER_TOKEN)
    assert laws(result.records) == pytest.approx(dict.fromkeys(laws(result.records), 0.0), abs=1e-9)
    return result


def mean_stay_s(result: SimulationResult, warmup: float = 0.05) -> float:
    late = result.requests.iloc[int(warmup * len(result.requests)) :]
    return float((late["finish_s"] - late["arrival_s"]).mean())


def mean_number_with_breakdowns(
    arrivals: float, service: float, failure: float, repair: float, num_servers: int = 1
) -> float:
    """Mean number in an M/M/c queue whose servers fail and are repaired, from rates of each.

    White & Christie (1958) for one, Mitrany & Avi-Itzhak (1968) for several: the chain of (number in system,
    servers that are down), cut where hardly anybody gets, solved.
    """
    most, num_states = 150, num_servers + 1
    rates = np.zeros((num_states * most, num_states * most))
    for num in range(most):
        for num_down in range(num_states):
            here, num_up = num_states * num + num_down, num_servers - num_down
            if num_up:
                rates[here, here + 1] = num_up * failure
            if num_down:
                rates[here, here - 1] = num_down * repair
            if num + 1 < most:
                rates[here, here + num_states] = arrivals
            if num:
                rates[here, here - num_states] = min(num, num_up) * service
    np.fill_diagonal(rates, -rates.sum(axis=1))
    weights = null_space(rates.T, rcond=1e-13)[:, 0]
    shares = weights / weights.sum()
    assert shares[-num_states:].sum() < 1e-9
    return float(np.arange(most).repeat(num_states) @ shares)


def test_a_replica_that_fails_is_the_queue_of_white_and_christie() -> None:
    """What a request has been given it keeps, and it goes on after the repair."""

    def measure(rng: np.random.Generator) -> list[float]:
        requests = requests_of(poisson_arrivals(rng, 0.5, 2500), rng.exponential(1.0, 2500))
        failures = {"time_between_s": 5.0, "repair_s": 1.25, "max_retries": 1000}
        result = run_one_at_a_time(requests, int(rng.integers(2**31)), failures=failures)
        states = result.replica_states
        seconds = (states["end_s"] - states["start_s"]).groupby(states["state"], observed=True).sum()
        return [mean_stay_s(result), float(seconds["failed"] / seconds.sum())]

    replications = replicate(measure, 8, seed=1)

    expected = mean_number_with_breakdowns(0.5, 1.0, 0.2, 0.8) / 0.5
    assert_agrees(replications, [expected, 0.2], resolution=0.07)


def test_replicas_that_fail_before_one_queue_are_servers_with_breakdowns() -> None:
    """Three of them: whoever is thrown out waits in the one queue again, and goes on where it was."""

    def measure(rng: np.random.Generator) -> float:
        requests = requests_of(poisson_arrivals(rng, 1.5, 3000), rng.exponential(1.0, 3000))
        result = run_one_at_a_time(
            requests,
            int(rng.integers(2**31)),
            policy={"preset": "vllm_v1", "batch_size": 1, "routing": {"kind": "Central"}},
            cluster={"num_gpus": 3, "kv_capacity_tokens": 10**6},
            failures={"time_between_s": 5.0, "repair_s": 1.25, "max_retries": 1000},
        )
        return mean_stay_s(result)

    replications = replicate(measure, 8, seed=4)

    expected = mean_number_with_breakdowns(1.5, 1.0, 0.2, 0.8, num_servers=3) / 1.5
    assert_agrees(replications, expected, resolution=0.05)


def test_servers_without_end_fill_as_theory_says() -> None:
    """M/M/infinity from empty: ``rho (1 - exp(-mu t))`` are there on average at time t."""
    at_s = np.array([0.5, 1.0, 2.0, 5.0])

    def measure(rng: np.random.Generator) -> Floats:
        arrivals_s = poisson_arrivals(rng, 8.0, 80)
        result = run_one_at_a_time(
            requests_of(arrivals_s, rng.exponential(1.0, 80)),
            0,
            cluster={"num_gpus": 40, "kv_capacity_tokens": 10**6},
        )
        start_s, finish_s = (result.requests[name].to_numpy() for name in ("arrival_s", "finish_s"))
        assert result.requests["finish_s"].sub(result.requests["scheduled_s"]).min() > 0
        return np.array([np.count_nonzero((start_s <= time_s) & (finish_s > time_s)) for time_s in at_s])

    replications = replicate(measure, 120, seed=5)

    assert_agrees(replications, 8.0 * (1 - np.exp(-at_s)), resolution=0.06)


def test_a_request_that_begins_anew_takes_the_completion_time_of_gaver() -> None:
    """Preemptive repeat (Gaver, 1962): ``(1 / f + mean repair) (exp(f * service) - 1)``, failure rate f."""

    def measure(rng: np.random.Generator) -> float:
        result = run_one_at_a_time(
            requests_of(np.zeros(1500), np.full(1500, 2.0)),
            int(rng.integers(2**31)),
            failures={"time_between_s": 4.0, "repair_s": 0.7, "on_failure": "retry", "max_retries": 1000},
            clients={"kind": "closed_loop", "concurrency": 1},
        )
        assert result.summary["wasted_output_tokens"] > 0
        return float((result.requests["finish_s"] - result.requests["arrival_s"]).mean())

    replications = replicate(measure, 8, seed=2)

    assert_agrees(replications, (4.0 + 0.7) * (np.exp(2.0 / 4.0) - 1), resolution=0.02)


@pytest.mark.parametrize(("law", "second_moment"), [("exponential", 2.0), ("fixed", 1.0)])
def test_a_replica_that_is_off_while_nobody_asks_is_the_queue_with_setup(
    law: str, second_moment: float
) -> None:
    """``E[T] = 1 / (mu - lambda) + (2 E[S] + lambda E[S^2]) / (2 (1 + lambda E[S]))`` (Welch, 1964)."""
    rate, setup_s = 0.5, 1.5

    def measure(rng: np.random.Generator) -> float:
        autoscaler = {
            "kind": "TargetTracking",
            "metric": "requests_per_replica",
            "target": 1e9,  # so that one is enough, while anybody is there
            "scale_down_after_s": 0.0,
            "interval_s": 0.1,  # it is on for half of that after the last has left: 1 % less of a wait
            "min_replicas": 0,
            "cold_start_s": setup_s,
            "cold_start": law,
        }
        requests = requests_of(poisson_arrivals(rng, rate, 1000), rng.exponential(1.0, 1000))
        return mean_stay_s(run_one_at_a_time(requests, int(rng.integers(2**31)), autoscaler=autoscaler))

    replications = replicate(measure, 6, seed=3)

    wait_s = (2 * setup_s + rate * second_moment * setup_s**2) / (2 * (1 + rate * setup_s))
    assert_agrees(replications, 1 / (1 - rate) + wait_s, resolution=0.07)
