import math
from typing import Any

import numpy as np
import pytest

from batchsim.config import load_config
from batchsim.errors import ConfigError
from batchsim.latency.linear import LinearIterationLatency
from batchsim.study.capacity import Capacity, find_capacity, replicate_capacity
from batchsim.study.compare import for_policies
from batchsim.study.replications import Stopping, replication_seed
from batchsim.workload.request import Workload
from tests.study.test_replications import POISSON
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


def poisson(seed: int, num: int, *, is_exponential: bool = True) -> Workload:
    rng = np.random.default_rng(seed)
    services_s = rng.exponential(1.0, num) if is_exponential else np.ones(num)
    return requests_of(poisson_arrivals(rng, 1.0, num), services_s)


def erlang_c(num_servers: int, offered: float) -> float:
    blocking = 1.0
    for servers in range(1, num_servers + 1):
        blocking = offered * blocking / (servers + offered * blocking)
    return blocking / (1 - offered / num_servers * (1 - blocking))


def mmc_rate(num_servers: int, mean_s: float) -> float:
    """The rate at which M/M/c with services of 1 s has this mean stay."""
    low, high = 0.0, float(num_servers)
    for _ in range(60):
        rate = (low + high) / 2
        is_less = 1 + erlang_c(num_servers, rate) / (num_servers - rate) < mean_s
        low, high = (rate, high) if is_less else (low, rate)
    return low


@pytest.mark.parametrize(
    ("slo", "share", "num_gpus", "truth_per_s"),
    [
        # M/M/1: P(stay > t) = exp(-(mu - lambda) t).
        ({"e2e_ms": 5000}, 0.9, 1, 1 - math.log(10) / 5),
        ({"e2e_p90_ms": 5000}, 0.5, 1, 1 - math.log(10) / 5),
        ({"e2e_mean_ms": 3000}, 0.5, 1, 1 - 1 / 3),
        ({"e2e_mean_ms": 1500}, 0.5, 4, mmc_rate(4, 1.5)),
    ],
)
def test_the_capacity_of_exponential_servers_is_that_of_theory(
    slo: dict[str, float], share: float, num_gpus: int, truth_per_s: float
) -> None:
    config = {"slo": slo, "cluster": {"kv_capacity_tokens": 10**9, "num_gpus": num_gpus}}

    found = search(poisson(1, 12_000), math.nan, config, share=share)

    assert found.half_width_per_s is not None
    assert found.half_width_per_s < 0.1 * truth_per_s
    assert found.request_rate_per_s - 1.5 * found.half_width_per_s < truth_per_s
    assert truth_per_s < found.missed_per_s + 1.5 * found.half_width_per_s


def test_the_capacity_of_a_server_of_constant_speed_is_that_of_theory() -> None:
    # M/D/1: the mean wait is rho / (2 (1 - rho)) services, 1 of them at rho = 2 / 3.
    found = search(poisson(2, 12_000, is_exponential=False), math.nan, {"slo": {"e2e_mean_ms": 2000}})

    assert found.request_rate_per_s == pytest.approx(2 / 3, rel=0.03)
    assert found.binding == "e2e_mean"


def test_the_rate_found_attains_the_slo_and_a_little_more_was_seen_to_miss_it() -> None:
    found = search(poisson(2, 2000), 5.0, tolerance=0.02)

    of_all = [trial for trial in found.trials if trial.num_requests == 2000]
    assert found.request_rate_per_s == max(one.request_rate_per_s for one in of_all if one.attains)
    assert found.missed_per_s == min(one.request_rate_per_s for one in of_all if not one.attains)
    assert found.missed_per_s <= 1.02 * found.request_rate_per_s


def test_the_fewest_gpus_serve_a_steady_stream_without_a_queue() -> None:
    # One request a second, each 2.5 s long: two GPUs fall behind, on three nobody waits.
    found = search(evenly(600, 2.5), 2.5, {"workload": {"request_rate": 1.0}}, share=1.0)

    assert found.num_gpus == 3
    assert found.best.slo_attainment == 1.0
    assert found.request_rate_per_s == 1.0
    assert {trial.num_gpus for trial in found.trials} == {1, 2, 3, 4}


def test_gpus_are_added_by_the_replica() -> None:
    config = {
        "policy": {"preset": "vllm_v1"},
        "cluster": {"model": "llama-3.1-70b", "gpu": "h100", "tensor_parallel": 4},
        "workload": {"request_rate": 5.0},
        "slo": {"ttft_ms": 2000},
    }
    requests = Workload(np.arange(300), np.arange(300) / 5, np.full(300, 500), np.full(300, 20))

    found = find_capacity(config, requests)

    assert {trial.num_gpus % 4 for trial in found.trials} == {0}
    assert found.num_gpus == 4


def test_too_few_gpus_are_told_what_they_lack() -> None:
    with pytest.raises(ConfigError, match="the share of good requests misses its limit"):
        search(evenly(100, 2.0), 1.0, {"workload": {"request_rate": 1.0}})


def test_a_limit_that_no_request_meets_even_alone_has_no_capacity() -> None:
    found = search(evenly(100, 2.0), 1.0)

    assert found.request_rate_per_s == 0.0
    assert found.notices == ["even requests that are served alone miss the SLO (its limits are in ms)"]


def test_requests_that_cannot_miss_the_limit_have_a_lower_bound() -> None:
    requests = Workload(np.arange(10), np.arange(10.0), np.full(10, 50), np.full(10, 10))

    found = find_capacity({"policy": {"preset": "vllm_v1"}, "slo": {"e2e_ms": 20_000}}, requests)

    assert found.is_unbounded
    assert found.request_rate_per_s > 100
    assert "cannot miss the limits" in found.notices[0]


def test_long_answers_under_way_are_no_queue() -> None:
    # 1,024 seats, each taken for 1,000 iterations of 20 ms: 51.2 requests a second.
    rng = np.random.default_rng(0)
    num = 4000
    requests = Workload(
        np.arange(num), np.cumsum(rng.exponential(1.0, num)), np.full(num, 10), np.full(num, 1000)
    )
    config = {
        "policy": {"preset": "vllm_v1", "batch_size": 1024, "batching": {"max_num_batched_tokens": 65536}},
        "engine": {"num_kv_blocks": 1_000_000},
        "slo": {"e2e_ms": 25_000},
    }

    found = find_capacity(config, requests, latency=LinearIterationLatency(0.02, 0.0, 0.0, 0.0, 0.0))

    assert 48 < found.request_rate_per_s < 75  # of so few requests, the first 1,024 find the seats empty


def test_a_growing_queue_attains_nothing_however_long_the_limit() -> None:
    # Within 1000 s everything of so short a run has ended, at any rate; but a queue that gains every tenth
    # request shows.
    found = search(evenly(800, 1.0), 1000.0)

    assert 0.98 < found.request_rate_per_s < 1.15
    assert found.binding == "queue"
    assert found.half_width_per_s is None


def test_policies_are_asked_about_the_same_requests() -> None:
    configs = for_policies(load_config(None), ["static_fifo", "multi_bin"])

    assert {config.workload.training_fraction for config in configs.values()} == {0.1}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"slo": {}}, {}, "needs an SLO"),
        ({}, {"share": 0.0}, "share is 0"),
        ({}, {"num_parts": 1}, "num_parts is 1"),
        ({}, {"tolerance": 1.0}, "tolerance is 1"),
        ({"clients": {"kind": "closed_loop", "concurrency": 4}}, {}, "their rate is an outcome"),
        ({"workload": {"rate_scale": 2.0}}, {}, "leave out workload.rate_scale"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    change: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        search(evenly(40, 1.0), 5.0, change, **options)


def test_the_best_split_into_pools_is_found() -> None:
    """Prompts cost twice what answers do: of six replicas four compute prompts."""
    rng = np.random.default_rng(3)
    num = 800
    requests = Workload(
        np.arange(num),
        np.cumsum(rng.exponential(1.0, num)),
        rng.integers(150, 250, num),
        rng.integers(15, 25, num),
    )
    latency = LinearIterationLatency(0.005, 0.001, 0.0, 0.0, 0.0)
    config = {
        "policy": {"preset": "vllm_v1", "batch_size": 1},
        "cluster": {"num_gpus": 6},
        "slo": {"ttft_ms": 2000, "e2e_ms": 4000},
    }
    found = find_capacity(config, requests, latency=latency, split_pools=True)
    each = {
        num_prefill: find_capacity(
            {**config, "cluster": {"num_gpus": 6, "num_prefill_replicas": num_prefill}},
            requests,
            latency=latency,
        ).request_rate_per_s
        for num_prefill in range(1, 6)
    }
    assert found.best.num_prefill_replicas == max(each, key=lambda one: each[one]) == 4
    assert found.request_rate_per_s == pytest.approx(each[4], rel=0.02)

    asked = {**config, "workload": {"request_rate": 0.9 * each[4]}}
    fewest = find_capacity(asked, requests, latency=latency, split_pools=True)
    assert (fewest.num_gpus, fewest.best.num_prefill_replicas) == (6, 4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"policy": {"preset": "static_fifo"}}, "hands no prompts over"),
        ({"cluster": {"num_gpus": 4, "num_prefill_replicas": 1}}, "leave it out"),
        ({"cluster": {"num_gpus": 1}}, "at least 2 GPUs"),
    ],
)
def test_a_cluster_that_cannot_be_split_says_so(config: dict[str, Any], message: str) -> None:
    given = {"policy": {"preset": "vllm_v1"}, "slo": {"ttft_ms": 500}, **config}
    with pytest.raises(ConfigError, match=message):
        find_capacity(given, split_pools=True)


@pytest.fixture
def drawn() -> dict[str, Any]:
    return {**POISSON, "policy": {"preset": "static_fifo"}, "slo": {"e2e_ms": 15_000.0}}


def test_the_rate_of_replications_is_the_mean_of_their_rates(drawn: dict[str, Any]) -> None:
    found = replicate_capacity(drawn, Stopping(3), tolerance=0.1)

    alone = find_capacity({**drawn, "seed": replication_seed(drawn["seed"], 2)}, tolerance=0.1)
    rates = [one.request_rate_per_s for one in found.replications]
    assert rates[2] == alone.request_rate_per_s
    assert found.request_rate_per_s == pytest.approx(sum(rates) / 3)
    assert found.half_width_per_s == pytest.approx(4.302653 * np.std(rates, ddof=1) / 3**0.5)
    assert len(found.trials) == sum(len(one.trials) for one in found.replications)


def test_gpus_of_replications_are_as_many_as_any_needs(drawn: dict[str, Any]) -> None:
    asked = {**drawn, "workload": {**drawn["workload"], "request_rate": 3.0}}

    found = replicate_capacity(asked, Stopping(3))

    assert found.num_gpus == max(one.num_gpus for one in found.replications) > 1
    with pytest.raises(ConfigError, match="a precision is one of a rate"):
        replicate_capacity(asked, Stopping(3, precision=0.1))


def test_a_rate_that_is_not_precise_is_told(drawn: dict[str, Any]) -> None:
    found = replicate_capacity(drawn, Stopping(2, precision=0.001, most=3), tolerance=0.3)

    assert len(found.replications) == 3
    assert "a precision of 0.1% was not reached" in found.cautions[-1]


def test_searches_over_a_replayed_trace_are_made_once_and_said_so() -> None:
    config = {"policy": {"preset": "vllm_v1"}, "slo": {"e2e_ms": 20_000}}

    found = replicate_capacity(config, Stopping(5), workload=evenly(60, 0.01), tolerance=0.3)

    assert found.replications == ()
    assert "cannot differ" in found.cautions[-1]


def test_searches_that_all_find_the_limits_met_are_not_the_same(drawn: dict[str, Any]) -> None:
    asked = {**drawn, "slo": {"e2e_ms": 1e6}, "workload": {**drawn["workload"], "request_rate": 0.3}}

    found = replicate_capacity({**asked, "metrics": {"warmup": 0}}, Stopping(3))

    assert len({trial.margin for trial in found.trials}) == 1
    assert len(found.replications) == 3
    assert "cannot differ" not in " ".join(found.cautions)
