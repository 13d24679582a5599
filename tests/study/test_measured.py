"""A benchmark's run beside simulations: made by the simulator itself, so that one of them is the truth."""

import math
from pathlib import Path

import pandas as pd
import pytest

from batchsim.errors import ConfigError
from batchsim.results.exchange.export import export_run
from batchsim.results.measured_tables import MeasuredRun, read_measured
from batchsim.study.measured import compare_measured
from batchsim.study.run import simulate

LENGTHS = {"kind": "uniform", "low": 1, "high": 60}
RUN = {
    "policy": {"preset": "vllm_v1"},
    "workload": {
        "num_requests": 300,
        "generator": {"kind": "poisson", "rate_per_s": 4.0, "prompt": LENGTHS, "output": LENGTHS},
    },
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> MeasuredRun:
    folder: Path = tmp_path_factory.mktemp("measured")
    simulate(RUN).save(folder / "run")
    export_run(folder / "run", folder / "result.json", "vllm-bench")
    (run,) = read_measured(folder / "result.json")
    return run


def test_the_policy_that_it_was_measured_with_agrees_and_another_does_not(measured: MeasuredRun) -> None:
    compared = compare_measured(None, ["vllm_v1", "static_fifo"], measured, "mine")

    own, other = compared.differences.to_dict("records")
    assert own["baseline"] == "mine"
    assert own["e2e_difference_mean_s"] == pytest.approx(0, abs=1e-7)
    assert other["e2e_difference_mean_s"] > 0.1
    summary = compared.results["vllm_v1"].summary
    for key in ("e2e_mean_s", "ttft_p99_s", "tpot_mean_s", "window_start_s", "num_covered", "num_warmup"):
        assert compared.measured[key] == pytest.approx(summary[key])


def test_what_a_policy_learns_from_is_taken_from_the_measured_run_too(measured: MeasuredRun) -> None:
    compared = compare_measured(None, ["vllm_v1", "multi_bin"], measured, "mine")

    assert compared.results["vllm_v1"].summary["num_training"] == 30
    assert compared.measured["num_requests"] == 270
    assert set(compared.differences["num_paired"]) == {compared.measured["num_covered"]}


def test_the_first_requests_of_both_sides_may_be_asked_for(measured: MeasuredRun) -> None:
    compared = compare_measured(
        {"workload": {"num_requests": 200}}, ["vllm_v1", "multi_bin"], measured, "mine"
    )

    assert compared.measured["num_requests"] == compared.results["multi_bin"].summary["num_requests"] == 200
    assert compared.differences["e2e_difference_mean_s"].iloc[0] == pytest.approx(0, abs=1e-5)
    assert set(compared.differences["num_paired"]) == {compared.measured["num_covered"]}


def test_limits_hold_for_both_sides(measured: MeasuredRun) -> None:
    compared = compare_measured({"slo": {"e2e_ms": 400.0}}, ["vllm_v1"], measured, "mine")

    attained = compared.results["vllm_v1"].summary["slo_attainment"]
    assert 0 < compared.measured["slo_attainment"] == attained < 1


def test_nothing_is_paired_where_arrivals_were_drawn(measured: MeasuredRun) -> None:
    drawn = MeasuredRun(measured.tool, measured.requests, has_arrivals=False)

    compared = compare_measured(None, ["vllm_v1"], drawn, "mine")

    assert math.isnan(compared.differences["e2e_difference_mean_s"].iloc[0])


def test_requests_are_paired_by_their_ids_whatever_their_order(measured: MeasuredRun) -> None:
    turned = measured.requests.iloc[::-1].reset_index(drop=True)

    compared = compare_measured(None, ["vllm_v1"], MeasuredRun("any", turned), "mine")

    first = compare_measured(None, ["vllm_v1"], measured, "mine")
    pd.testing.assert_frame_equal(compared.differences, first.differences)


@pytest.mark.parametrize(
    ("config", "policies", "message"),
    [
        (None, [], r"policies are \(none\)"),
        (None, ["orca", "orca"], "policies are orca, orca"),
        (
            {"workload": {"rate_scale": 2.0}},
            ["orca"],
            "workload.rate_scale: the requests are those that were measured",
        ),
        ({"clients": {"kind": "sessions"}}, ["orca"], "clients: the requests are those that were measured"),
    ],
)
def test_what_makes_no_sense_is_refused(
    config: dict[str, object] | None, policies: list[str], message: str, measured: MeasuredRun
) -> None:
    with pytest.raises(ConfigError, match=message):
        compare_measured(config, policies, measured, "mine")
