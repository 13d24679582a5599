import pytest

from batchsim.study.aggregate import aggregated, over_replications

RUN = {
    "seed": 3,
    "policy": "sjf",
    "e2e_mean_s": 1.0,
    "num_preemptions": 2,
    "verdict": "stable",
    "verdict_reason": "fine",
    "saturated": False,
    "e2e_mean_ci95_low_s": 0.9,
    "goodput_requests_per_s": 2.0,
}


def test_numbers_are_averaged_and_their_own_intervals_replaced() -> None:
    merged = over_replications([RUN, {**RUN, "seed": 8, "e2e_mean_s": 1.1, "num_preemptions": 4}])

    assert merged["e2e_mean_s"] == 1.05
    half_width_s = 0.05 * 12.7062  # Student's 0.975 quantile, 1 degree of freedom
    assert merged["e2e_mean_ci95_low_s"] == pytest.approx(1.05 - half_width_s)
    assert merged["e2e_mean_ci95_high_s"] == pytest.approx(1.05 + half_width_s)
    assert merged["num_preemptions"] == 3
    assert merged["seed"] == 3
    assert merged["intervals"] == "Student's t over 2 replications"


def test_no_interval_reaches_where_the_number_cannot_be() -> None:
    few = {"ttft_p99_s": 1.0, "slo_attainment": 0.9, "kendall_tau": 0.2, "waiting_growth_per_s": 0.1}
    more = {"ttft_p99_s": 3.0, "slo_attainment": 1.0, "kendall_tau": 0.3, "waiting_growth_per_s": 0.3}

    merged = over_replications([{**RUN, **few}, {**RUN, **more}])

    assert merged["ttft_p99_ci95_low_s"] == 0.0
    assert merged["ttft_p99_ci95_high_s"] == pytest.approx(2 + 12.7062)
    assert merged["slo_attainment_ci95_high"] == 1.0
    assert merged["slo_attainment_ci95_low"] == pytest.approx(0.95 - 0.05 * 12.7062)
    assert merged["kendall_tau_ci95_low"] == pytest.approx(0.25 - 0.05 * 12.7062)
    assert merged["waiting_growth_ci95_low_per_s"] == pytest.approx(0.2 - 0.1 * 12.7062)


def test_what_does_not_vary_claims_no_interval() -> None:
    merged = over_replications([RUN, {**RUN, "e2e_mean_s": 3.0}])

    assert merged["goodput_requests_per_s"] == 2.0
    assert merged["goodput_ci95_low_requests_per_s"] is None
    assert "seed_ci95_low" not in merged


def test_what_one_run_lacks_has_no_mean() -> None:
    merged = over_replications([RUN, {**RUN, "e2e_mean_s": None}])

    assert merged["e2e_mean_s"] is None
    assert merged["e2e_mean_ci95_low_s"] is None


def test_the_worst_verdict_stands_for_all_and_is_counted() -> None:
    grown = {**RUN, "verdict": "saturated", "verdict_reason": "it grew", "saturated": True}

    merged = over_replications([RUN, grown, {**RUN, "verdict": "transient"}])

    assert (merged["verdict"], merged["verdict_reason"], merged["saturated"]) == (
        "saturated",
        "it grew",
        True,
    )
    assert (merged["num_saturated"], merged["num_transient"]) == (1, 1)


def test_rows_of_a_point_become_one() -> None:
    one, two = {"case": "", "cluster.num_gpus": 1}, {"case": "", "cluster.num_gpus": 2}
    runs = [
        {"run_id": "a", **one, "replication": 0, **RUN},
        {"run_id": "b", **one, "replication": 1, **RUN, "e2e_mean_s": 2.0},
        {"run_id": "c", **two, "replication": 0, **RUN},
    ]

    first, second = aggregated(runs, ["case", "cluster.num_gpus"])

    assert first | {**one, "e2e_mean_s": 1.5, "num_replications": 2} == first
    assert second | {**two, "e2e_mean_s": 1.0, "num_replications": 1} == second
    assert second["e2e_mean_ci95_low_s"] == 0.9  # of one run: its own
    assert not {"run_id", "replication"} & {*first, *second}


def test_what_was_asked_and_what_nobody_has_claim_no_interval() -> None:
    merged = over_replications(
        [{**RUN, "num_requests": 10, "usd_total": None}, {**RUN, "num_requests": 13, "usd_total": None}]
    )

    assert merged["num_requests"] == 11.5  # of blocks of a trace there are not always as many
    assert merged["usd_total"] is None
    assert not {"num_requests_ci95_low", "usd_total_ci95_low"} & set(merged)


def test_a_claim_holds_where_it_holds_in_all() -> None:
    merged = over_replications(
        [{**RUN, "slo_met": True, "other": True}, {**RUN, "slo_met": False, "other": True}]
    )

    assert (merged["slo_met"], merged["other"]) == (False, True)
