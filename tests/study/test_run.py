from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import batchsim
from batchsim.errors import ConfigError
from batchsim.latency.analytic import AffineBatchLatency
from batchsim.latency.base import LatencyInfo
from batchsim.latency.linear import LinearIterationLatency
from batchsim.metrics.summary import summarise
from batchsim.policies.presets import PRESETS


def workload(num: int = 400, rate_per_s: float = 4.0, seed: int = 0) -> batchsim.Workload:
    rng = np.random.default_rng(seed)
    return batchsim.Workload.from_frame(
        pd.DataFrame(
            {
                "arrival_s": np.cumsum(rng.exponential(1 / rate_per_s, num)),
                "prompt_tokens": rng.integers(10, 500, num),
                "output_tokens": rng.integers(1, 300, num),
            }
        )
    )


SECOND_A_TOKEN = AffineBatchLatency(alpha_s=0.0, beta_s_per_token=1.0, gamma=0.0, length="output")


def test_static_fifo_by_hand() -> None:
    frame = pd.DataFrame(
        {"arrival_s": [0.0, 1.0, 2.0, 9.0], "prompt_tokens": [5, 5, 5, 5], "output_tokens": [4, 2, 3, 1]}
    )

    result = batchsim.simulate(
        {"policy": {"batch_size": 2}}, batchsim.Workload.from_frame(frame), latency=SECOND_A_TOKEN
    )

    # Request 0 runs alone until 4; 1 and 2 wait and run together until 4 + 3 = 7; 3 finds an idle GPU at 9.
    assert result.requests["scheduled_s"].tolist() == [0.0, 4.0, 4.0, 9.0]
    assert result.requests["finish_s"].tolist() == [4.0, 7.0, 7.0, 10.0]
    assert result.requests["batch_size"].tolist() == [1, 2, 2, 1]
    assert result.requests["first_token_s"].isna().all()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_saved_run_is_the_same_bytes_for_the_same_seed(preset: str, tmp_path: Path) -> None:
    config = {
        "policy": {"preset": preset},
        "predictor": {"kind": "lognormal", "sigma": 0.5},
        "latency": {"noise": 0.1},
    }

    for name in ("first", "second"):
        batchsim.simulate(config, workload()).save(tmp_path / name)

    first, second = (
        {table.name: table.read_bytes() for table in (tmp_path / name).glob("*.parquet")}
        for name in ("first", "second")
    )
    assert first == second
    assert {"requests.parquet", "controllers.parquet"} < set(first)


def test_another_seed_changes_a_noisy_run() -> None:
    config = {"latency": {"noise": 0.1}}

    first, second = (batchsim.simulate(config, workload(), overrides={"seed": seed}) for seed in (0, 1))

    assert not first.requests["finish_s"].equals(second.requests["finish_s"])


def test_training_requests_are_not_evaluated() -> None:
    result = batchsim.simulate({"policy": {"preset": "multi_bin"}}, workload(400))

    assert result.summary["num_training"] == 40
    assert result.summary["num_requests"] == 360
    assert result.requests["request_id"].min() == 40


def test_nothing_is_set_aside_where_nothing_learns() -> None:
    result = batchsim.simulate({"policy": {"preset": "static_fifo"}}, workload(400))

    assert result.summary["num_training"] == 0
    assert len(result.requests) == 400


def test_arrivals_stay_as_given_where_nothing_is_set_aside() -> None:
    given = workload(50)

    result = batchsim.simulate(None, given)

    assert given.arrival_s[0] > 0
    assert result.requests["arrival_s"].tolist() == given.arrival_s.tolist()


def test_more_bins_than_lengths_is_refused() -> None:
    frame = workload().to_frame().assign(output_tokens=lambda table: 1 + table["output_tokens"] % 3)

    with pytest.raises(ConfigError, match="5"):
        batchsim.simulate(
            {"policy": {"preset": "multi_bin", "num_bins": 5}}, batchsim.Workload.from_frame(frame)
        )


def test_a_summary_says_what_it_holds_for() -> None:
    summary = batchsim.simulate(None, workload()).summary

    assert summary["latency_provenance"] == "derived"
    assert summary["predictor"] == "oracle"
    assert summary["policy"] == "static_fifo"
    assert summary["combination"].startswith("Fifo() x FixedSize(size=8) x Greedy(")


def test_without_a_latency_file_the_speed_is_that_of_the_gpu_named() -> None:
    slow, fast = (
        batchsim.simulate({"cluster": {"gpu": gpu}}, workload()).summary for gpu in ("rtx4080-laptop", "h100")
    )

    assert fast["latency_model"] == "roofline of qwen2.5-1.5b on h100"
    assert fast["latency_provenance"] == "derived"
    assert fast["e2e_mean_s"] < slow["e2e_mean_s"] / 3


def test_a_request_that_can_never_fit_is_refused_with_its_reason() -> None:
    frame = pd.DataFrame({"arrival_s": [0.0, 0.0], "prompt_tokens": [900, 10], "output_tokens": [200, 10]})

    result = batchsim.simulate(
        {"cluster": {"kv_capacity_tokens": 1000}}, batchsim.Workload.from_frame(frame), latency=SECOND_A_TOKEN
    )

    assert result.requests["status"].tolist() == ["refused", "finished"]
    assert result.summary["num_refused"] == 1
    assert "1100 KV tokens" in result.manifest["refusals"]["0"]


def test_leaving_the_calibrated_range_is_refused_unless_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    grid = tmp_path / "grid.csv"
    rows = [
        (b, n, 0.05 + 0.01 * n * (1 + 0.3 * (b - 1) / b), 0.001, 5) for b in (1, 2, 4) for n in (16, 64, 128)
    ]
    names = ["batch_size", "max_seq_len", "mean_latency_sec", "std_latency_sec", "num_trials"]
    pd.DataFrame(rows, columns=names).to_csv(grid, index=False)
    from batchsim.latency.fitting.fit import fit
    from batchsim.latency.store import save_latency
    from batchsim.latency.tables.table import read_calibration

    save_latency(fit(read_calibration(grid), family="affine").model, file)

    with pytest.raises(ConfigError, match="extrapolate"):
        batchsim.simulate({"latency": {"file": str(file)}}, workload())
    result = batchsim.simulate({"latency": {"file": str(file), "outside": "extrapolate"}}, workload())

    assert 0 < result.summary["num_extrapolated_batches"] <= result.summary["num_batches"]


@pytest.mark.parametrize("num_requests", [100, 150])
def test_a_result_with_another_warmup_is_summarised_as_its_records_are(num_requests: int) -> None:
    result = batchsim.simulate({"metrics": {"warmup": 0.25}}, workload())
    assert result.summary["num_warmup"] == 100

    summary = result.with_warmup(num_requests).summary

    again = summarise(result.records, result.config.slo, num_requests, result.hardware, result.expenses)
    assert {name: summary[name] for name in again} == again


@pytest.mark.parametrize(("given", "expected_s"), [({}, 0.25), ({"engine": {"wake_s": 0.0}}, 0.0)])
def test_a_calibration_tells_how_long_an_idle_engine_takes_to_wake(
    given: dict[str, Any], expected_s: float
) -> None:
    latency = LinearIterationLatency(0.5, 0.0, 0.0, 0.0, 0.0, info=LatencyInfo(details={"wake_s": 0.25}))
    config = {"policy": {"preset": "vllm_v1"}, "cluster": {"kv_capacity_tokens": 100_000}, **given}

    result = batchsim.simulate(config, workload(), latency=latency)

    first = result.records.requests.sort_values("first_token_s").iloc[0]
    assert first["first_token_s"] - first["arrival_s"] == pytest.approx(0.5 + expected_s)


def test_a_calibration_that_wakes_in_no_number_of_seconds_is_refused() -> None:
    latency = LinearIterationLatency(0.5, 0.0, 0.0, 0.0, 0.0, info=LatencyInfo(details={"wake_s": "3 ms"}))

    with pytest.raises(ConfigError, match=r"details\.wake_s is '3 ms'; seconds, 0 to 1, are needed"):
        batchsim.simulate({"policy": {"preset": "vllm_v1"}}, workload(), latency=latency)
