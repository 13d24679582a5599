from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from batchsim.errors import ConfigError
from batchsim.policies.presets import PRESETS, names_of
from batchsim.study.compare import Comparison, compare, compare_replications
from batchsim.study.replications import Stopping
from tests.study.test_replications import POISSON
from tests.study.test_run import workload


def test_all_presets_meet_the_same_requests() -> None:
    comparison = compare(None, list(PRESETS), workload(600))

    ids = [result.requests["request_id"].tolist() for result in comparison.results.values()]
    assert all(one == ids[0] for one in ids)
    assert comparison.results["static_fifo"].summary["num_training"] == 60


def test_policies_that_do_the_same_at_low_load_are_called_out() -> None:
    comparison = compare(
        {"workload": {"request_rate": 0.001}}, ["static_fifo", "dynamic_no_bins"], workload(60)
    )

    (sentence,) = comparison.twins
    assert "static_fifo and dynamic_no_bins gave identical results" in sentence
    assert "share Fifo() and Greedy(order='oldest')" in sentence
    assert "busy fraction" in sentence


def test_the_presets_differ_where_requests_queue() -> None:
    names = names_of(is_iteration_level=False)

    comparison = compare({"workload": {"request_rate": 3.0}}, names, workload(1500))

    assert comparison.twins == []
    means = [result.summary["e2e_mean_s"] for result in comparison.results.values()]
    assert len(set(means)) == len(names)


def test_engines_differ_where_memory_is_short() -> None:
    names = names_of(is_iteration_level=True)
    config = {"workload": {"request_rate": 6.0}, "engine": {"num_kv_blocks": 260}}

    comparison = compare(config, names, workload(1500))

    assert comparison.twins == []


def test_differences_are_paired_by_request() -> None:
    comparison = compare(
        {"workload": {"request_rate": 2.0}}, ["static_fifo", "multi_bin_dynamic"], workload(500)
    )

    assert_is_mean_difference(comparison)


def test_differences_are_paired_by_request_where_clients_send_in_another_order() -> None:
    clients = {"kind": "sessions", "think_time_s": 1.0, "think_time": "fixed"}
    requests = workload(400)
    turns = replace(requests, extra={"session_id": np.arange(400) % 40})

    comparison = compare({"clients": clients}, ["static_fifo", "multi_bin_dynamic"], turns)

    ids = [result.requests["request_id"].tolist() for result in comparison.results.values()]
    assert ids[0] != ids[1]
    assert_is_mean_difference(comparison)


def assert_is_mean_difference(comparison: Comparison) -> None:
    first, second = (
        (result.requests["finish_s"] - result.requests["arrival_s"])
        .set_axis(result.requests["request_id"])
        .iloc[result.summary["num_warmup"] :]
        for result in comparison.results.values()
    )
    row = comparison.differences.iloc[0]
    assert row["num_paired"] == (second - first).notna().sum()
    assert row["e2e_difference_mean_s"] == pytest.approx((second - first).mean())


def test_fewer_than_two_policies_are_refused() -> None:
    with pytest.raises(ConfigError, match="two different"):
        compare(None, ["static_fifo", "static_fifo"], workload(50))


def test_all_policies_are_summarised_over_the_same_requests() -> None:
    comparison = compare({"workload": {"request_rate": 3.0}}, list(PRESETS), workload(4000))

    cuts = {result.summary["num_warmup"] for result in comparison.results.values()}
    starts = {result.summary["window_start_s"] for result in comparison.results.values()}
    assert len(starts) == 1
    assert len(cuts) == 1  # the longest that any of them needs


def test_replications_are_paired_and_tested_as_students_paired_test() -> None:
    config = {**POISSON, "predictor": {"kind": "lognormal", "sigma": 1.0}}

    done = compare_replications(config, ["static_fifo", "multi_bin_dynamic"], stopping=Stopping(5))

    first, second = (
        np.array([summary["e2e_p99_s"] for summary in one.summaries]) for one in done.replications.values()
    )
    (row,) = done.differences[done.differences["metric"] == "e2e_p99_s"].to_dict("records")
    test = stats.ttest_rel(second, first)
    assert row["difference"] == pytest.approx((second - first).mean())
    assert row["p_value"] == pytest.approx(test.pvalue)
    assert (row["ci95_low"], row["ci95_high"]) == pytest.approx(tuple(test.confidence_interval()))
    assert (row["policy"], row["baseline"]) == ("multi_bin_dynamic", "static_fifo")


def test_policies_meet_the_same_requests_in_each_replication() -> None:
    done = compare_replications(POISSON, ["vllm_v1", "sarathi"], stopping=Stopping(3))

    rates = [
        [summary["request_rate_per_s"] for summary in one.summaries] for one in done.replications.values()
    ]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) == 3
    assert done.first.results["vllm_v1"].summary["seed"] == POISSON["seed"]


def test_twins_are_so_in_every_replication() -> None:
    apart, crowded = (
        {**POISSON, "workload": {**POISSON["workload"], "request_rate": rate_per_s}}
        for rate_per_s in (1e-5, 2)
    )

    done = compare_replications(apart, ["static_fifo", "dynamic_no_bins"], stopping=Stopping(2))
    busy = compare_replications(crowded, ["static_fifo", "dynamic_no_bins"], stopping=Stopping(2))

    assert len(done.twins) == 1
    assert busy.twins == []


def test_a_comparison_in_which_nothing_is_random_is_made_once() -> None:
    seen: list[str] = []

    done = compare_replications(
        None, ["static_fifo", "vllm_v1"], workload(60), on_start=lambda name, _: seen.append(name)
    )

    assert done.is_fixed
    assert len(seen) == 4
    assert done.differences["p_value"].isna().all()
    assert len(done.first.differences) == 1
    assert len(done.notices) == 1
