"""One queue for all replicas, and a door before them: engines of one seat as queues that are known."""

import math
from typing import Any

import numpy as np
import pytest

from batchsim.latency import LinearIterationLatency
from batchsim.metrics.summary import laws
from batchsim.records import FINISHED, Records
from batchsim.study.run import simulate
from tests.theory.worlds import TOKENS_PER_S, Floats, assert_agrees, poisson_arrivals, replicate, requests_of

#: An iteration takes a token's time, whatever is in it.
A_TOKEN = LinearIterationLatency(1 / TOKENS_PER_S, 0.0, 0.0, 0.0, 0.0)

NUM_REPLICAS = 3


def checked_run(
    rng: np.random.Generator, rate_per_s: float, num_requests: int, num_replicas: int, **policy: Any
) -> Records:
    """Answers that take an exponential time, of 1 s in the mean; one seat in each replica."""
    requests = requests_of(poisson_arrivals(rng, rate_per_s, num_requests), rng.exponential(1, num_requests))
    config = {
        "policy": {"preset": "vllm_v1", "batch_size": 1, **policy},
        "workload": {"training_fraction": 0.0},
        "cluster": {"num_gpus": num_replicas},
        "engine": {"num_kv_blocks": 10**7},
        "metrics": {"warmup": 0.0},
    }
    records = simulate(config, requests, latency=A_TOKEN).records
    residuals = laws(records)
    assert residuals == pytest.approx(dict.fromkeys(residuals, 0.0), abs=1e-9)
    return records


def mean_wait_s(records: Records) -> float:
    late = records.requests.iloc[len(records.requests) // 10 :]
    return float((late["scheduled_s"] - late["arrival_s"]).mean())


def erlang_c(num_servers: int, load: float) -> float:
    """Probability that all servers of an M/M/c are busy, at `load` = arrival rate x mean service time."""
    busy = load**num_servers / math.factorial(num_servers) * num_servers / (num_servers - load)
    return busy / (sum(load**num / math.factorial(num) for num in range(num_servers)) + busy)


def test_erlangs_formula_is_that_of_the_tables() -> None:
    assert erlang_c(1, 0.8) == pytest.approx(0.8)
    assert erlang_c(2, 1.5) == pytest.approx(0.6428571)
    assert erlang_c(3, 2.4) == pytest.approx(0.6471910)


def test_one_queue_for_all_replicas_is_an_m_m_c() -> None:
    load = 2.0

    def measure(rng: np.random.Generator) -> float:
        return mean_wait_s(checked_run(rng, load, 2000, NUM_REPLICAS, routing={"kind": "Central"}))

    replications = replicate(measure, 12, seed=5)

    assert_agrees(replications, erlang_c(NUM_REPLICAS, load) / (NUM_REPLICAS - load), resolution=0.08)


def test_one_queue_waits_less_than_the_best_of_several() -> None:
    def measure(rng: np.random.Generator) -> list[float]:
        seed = rng.integers(2**32)
        return [
            mean_wait_s(
                checked_run(np.random.default_rng(seed), 2.4, 1000, NUM_REPLICAS, routing={"kind": kind})
            )
            for kind in ("Central", "LeastLoaded", "RoundRobin")
        ]

    central, least_loaded, round_robin = replicate(measure, 4, seed=6).T

    assert (central < least_loaded).all()
    assert (least_loaded < round_robin).all()


@pytest.mark.parametrize(("most", "load"), [(1, 0.7), (3, 0.7), (6, 1.3)])
def test_a_queue_limit_blocks_as_an_m_m_1_k_does(most: int, load: float) -> None:
    """Of at most `most` requests in the system one is served; who finds so many is lost."""

    def measure(rng: np.random.Generator) -> float:
        door = {"kind": "QueueLimit", "max_waiting": most - 1}
        records = checked_run(rng, load, 2000, 1, admission=door)
        return float((records.requests["status"] != FINISHED).mean())

    replications: Floats = replicate(measure, 8, seed=7)

    blocked = (1 - load) * load**most / (1 - load ** (most + 1))
    assert_agrees(replications, blocked, resolution=0.04)
