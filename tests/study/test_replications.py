from typing import Any

import pytest
from scipy import stats

from batchsim.config import RunConfig
from batchsim.errors import ConfigError
from batchsim.study.compare import compare_replications
from batchsim.study.replications import Stopping, replicate, replication, replication_seed
from batchsim.study.run import simulate
from tests.study.test_run import workload

POISSON: dict[str, Any] = {
    "workload": {
        "num_requests": 200,
        "generator": {
            "kind": "poisson",
            "rate_per_s": 0.3,
            "prompt": {"kind": "fixed", "tokens": 100},
            "output": {"kind": "exponential", "mean": 200},
        },
    },
    "seed": 7,
}


def test_replication_0_has_the_seed_itself_and_no_other_has_it_twice() -> None:
    seeds = [replication_seed(seed, k) for seed in range(40) for k in range(40)]

    assert seeds[::40] == list(range(40))
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed <= 2**52 for seed in seeds)


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert [replication_seed(0, k) for k in (1, 2)] == [1424933897815359, 4198075985539994]
    assert replication(RunConfig(seed=2**63 - 1), 3).seed == replication_seed(2**63 - 1, 3)


def test_replications_are_runs_with_their_seeds() -> None:
    replications = replicate(POISSON, num=3)

    alone = simulate(POISSON, overrides={"seed": replication_seed(7, 2)}).summary
    assert replications.summaries[2] == alone
    assert replications.first.summary == simulate(POISSON).summary
    assert replications.table["replication"].tolist() == [0, 1, 2]


def test_means_have_students_interval() -> None:
    replications = replicate(POISSON, num=5)

    p99_s = [summary["e2e_p99_s"] for summary in replications.summaries]
    low, high = stats.t.interval(0.95, 4, loc=sum(p99_s) / 5, scale=stats.sem(p99_s))
    summary = replications.summary
    assert summary["e2e_p99_s"] == pytest.approx(sum(p99_s) / 5)
    assert summary["e2e_p99_ci95_low_s"] == pytest.approx(low)
    assert summary["e2e_p99_ci95_high_s"] == pytest.approx(high)
    assert summary["num_replications"] == 5
    assert summary["seed"] == 7


def test_a_replayed_trace_with_nothing_random_is_run_once_and_said_so() -> None:
    seen: list[int] = []

    replications = replicate(None, workload(), num=8, on_start=lambda k, _: seen.append(k))

    assert seen == [0, 1]
    assert replications.is_fixed
    assert "cannot differ" in replications.notices[0]
    summary = replications.first.summary
    assert {key: replications.summary[key] for key in summary} == dict(summary)


@pytest.mark.parametrize("study", ["run", "compare"])
def test_failures_that_two_runs_were_spared_may_come_in_the_third(study: str) -> None:
    config = {
        "policy": {"preset": "vllm_v1"},
        "cluster": {"num_gpus": 2},
        "failures": {"time_between_s": 50 * 3600.0, "repair_s": 60.0},
    }

    if study == "run":
        replications = replicate(config, workload(50), num=3)
    else:
        done = compare_replications(config, ["vllm_v1", "sarathi"], workload(50), stopping=Stopping(3))
        replications = done.replications["vllm_v1"]

    assert len({one["e2e_mean_s"] for one in replications.summaries}) == 1  # none failed
    assert len(replications.summaries) == 3
    assert not replications.is_fixed


def test_a_replayed_trace_differs_in_what_is_predicted() -> None:
    config = {"policy": {"preset": "multi_bin"}, "predictor": {"kind": "lognormal", "sigma": 1.0}}

    replications = replicate(config, workload(rate_per_s=20), num=3)

    assert len({summary["e2e_mean_s"] for summary in replications.summaries}) == 3
    assert len({summary["request_rate_per_s"] for summary in replications.summaries}) == 1


def test_a_precision_stops_as_soon_as_it_is_reached() -> None:
    loose, tight = (replicate(POISSON, num=3, precision=precision, most=30) for precision in (0.9, 0.1))

    assert len(loose.summaries) == 3
    assert 3 < len(tight.summaries) < 30
    summary = tight.summary
    half_width_s = summary["e2e_mean_ci95_high_s"] - summary["e2e_mean_s"]
    assert half_width_s <= 0.1 * summary["e2e_mean_s"]
    values = [one["e2e_mean_s"] for one in tight.summaries[:-1]]
    assert not Stopping(3, 0.1).is_reached([values])


def test_a_precision_has_to_be_reached_by_every_policy() -> None:
    narrow, wide = [10.0, 10.01, 10.02], [10.0, 20.0, 30.0]
    stopping = Stopping(3, 0.05)

    assert stopping.is_done([narrow, narrow])
    assert not stopping.is_done([narrow, wide])
    assert not stopping.is_done([wide, narrow])


def test_a_precision_that_is_not_reached_is_told() -> None:
    replications = replicate(POISSON, num=2, precision=0.0001, most=4)

    assert len(replications.summaries) == 4
    (sentence,) = replications.notices
    assert "precision of 0.01% was not reached: after 4 replications" in sentence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 0}, "replications is 0"),
        ({"precision": 2.0}, "precision is 2; a share in"),
        ({"precision": 0.1, "num": 1}, "from at least 2"),
        ({"precision": 0.1, "num": 20, "most": 10}, "max_replications is 10; at least"),
        ({"precision": 0.1, "metric": "e2e_maen_s"}, "did you mean e2e_mean_s"),
        ({"precision": 0.1, "metric": "verdict"}, "a run has no such number"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replicate(None, workload(20), **options)


def test_replications_of_blocks_of_a_trace_differ_and_are_the_same_for_all_policies() -> None:
    config = {"workload": {"resample_s": 10.0, "num_requests": 200}}

    first, second = (
        replicate({**config, "policy": {"preset": preset}}, workload(), num=2)
        for preset in ("sjf", "vllm_v1")
    )

    rates = [[summary["request_rate_per_s"] for summary in one.summaries] for one in (first, second)]
    assert rates[0] == rates[1]
    assert rates[0][0] != rates[0][1]
    assert [summary["num_requests"] for summary in first.summaries] == [200, 200]


def test_blocks_of_a_generator_are_refused() -> None:
    with pytest.raises(ConfigError, match="resample_s draws from a trace"):
        replicate({**POISSON, "workload": {**POISSON["workload"], "resample_s": 10.0}}, num=2)
