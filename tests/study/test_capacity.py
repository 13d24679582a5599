import math
from typing import Any

import numpy as np
import pytest

from batchsim.config import load_config
from batchsim.errors import ConfigError
from batchsim.study.capacity import Capacity, find_capacity
from batchsim.study.compare import for_policies
from batchsim.workload.request import Workload
from tests.theory.worlds import AS_LONG_AS_THE_LONGEST, poisson_arrivals, requests_of

ONE_AT_A_TIME = {"preset": "static_fifo", "batch_size": 1}


def search(
    workload: Workload, e2e_s: float, config: dict[str, Any] | None = None, **options: Any
) -> Capacity:
    given = {
        "policy": ONE_AT_A_TIME,
        "slo": {"e2e_ms": e2e_s * 1000},
        "cluster": {"kv_capacity_tokens": 10**9},
        **(config or {}),
    }
    return find_capacity(given, workload, latency=AS_LONG_AS_THE_LONGEST, **options)


def evenly(num: int, service_s: float) -> Workload:
    return requests_of(np.arange(num), np.full(num, service_s))


def test_the_capacity_of_a_single_exponential_server_is_that_of_theory() -> None:
    # M/M/1: P(stay > t) = exp(-(mu - lambda) t), so 90 % stay at most 5 s where lambda = mu - ln(10) / 5.
    rng = np.random.default_rng(1)
    num = 12_000
    requests = requests_of(poisson_arrivals(rng, 1.0, num), rng.exponential(1.0, num))

    found = search(requests, 5.0, num_replications=6).request_rate_per_s

    assert found.half_width < 0.06
    assert found.mean == pytest.approx(1 - math.log(10) / 5, abs=1.5 * found.half_width)


def test_the_rate_found_attains_the_slo_and_a_little_more_was_seen_to_miss_it() -> None:
    rng = np.random.default_rng(2)
    requests = requests_of(poisson_arrivals(rng, 1.0, 2000), rng.exponential(1.0, 2000))

    found = search(requests, 5.0, num_replications=2, tolerance=0.02)

    for replication in (0, 1):
        trials = [trial for trial in found.trials if trial.replication == replication]
        good = [one.request_rate_per_s for one in trials if one.slo_attainment >= 0.9 and not one.saturated]
        others = [one.request_rate_per_s for one in trials if one.request_rate_per_s not in good]
        assert max(good) < min(others) <= 1.02 * max(good)


def test_the_fewest_gpus_serve_a_steady_stream_without_a_queue() -> None:
    # One request a second, each 2.5 s long: two GPUs fall behind, on three nobody waits.
    found = search(evenly(600, 2.5), 2.5, {"workload": {"request_rate": 1.0}}, share=1.0, num_replications=2)

    assert found.num_gpus == 3
    assert found.attainment == (1.0, 0.0)
    assert found.request_rate_per_s.mean == 1.0
    assert {trial.num_gpus for trial in found.trials} == {1, 2, 3, 4}


def test_a_limit_that_no_request_meets_even_alone_has_no_capacity() -> None:
    found = search(evenly(40, 2.0), 1.0, num_replications=2)

    assert found.request_rate_per_s == (0.0, 0.0)


def test_a_growing_queue_attains_nothing_however_long_the_limit() -> None:
    # Within 1000 s everything of so short a run has ended, at any rate; but a backlog that gains every tenth
    # request shows.
    found = search(evenly(800, 1.0), 1000.0, num_replications=2)

    assert 0.98 < found.request_rate_per_s.mean < 1.15


def test_policies_are_asked_about_the_same_requests() -> None:
    configs = for_policies(load_config(None), ["static_fifo", "multi_bin"])

    assert {config.workload.training_fraction for config in configs.values()} == {0.1}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"slo": {}}, {}, "needs an SLO"),
        ({}, {"share": 0.0}, "share is 0"),
        ({}, {"num_replications": 1}, "num_replications is 1"),
        ({}, {"tolerance": 1.0}, "tolerance is 1"),
        ({}, {"num_replications": 30}, "leaves 1 requests for each of 30"),
        ({"workload": {"rate_scale": 2.0}}, {}, "leave out workload.rate_scale"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    change: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        search(evenly(40, 1.0), 5.0, change, **options)
