"""Results of benchmarks as run directories; expected times by hand, of those in the tests of the readers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from batchsim.config import SloConfig
from batchsim.errors import ConfigError
from batchsim.latency.store import save_latency
from batchsim.results.exchange.export import export_run
from batchsim.results.exchange.imported import is_imported, measured_summary, read_results, save_measured
from batchsim.results.measured_tables import MeasuredRun, read_measured
from batchsim.results.store import load_run
from batchsim.validation.replays.validate import validate
from batchsim.workload.formats import read_trace
from tests.results.test_measured_tables import SGLANG, VLLM, aiperf, guidellm, written
from tests.validation.replays.measured_worlds import engine

FAILED = {**VLLM, "output_lens": [3, 0, 2], "errors": ["", "429", ""]}
SENT_NS = 1_700_000_000_000_000_000


def imported(folder: Path, *documents: dict[str, Any], slo: SloConfig | None = None) -> Path:
    file = written(folder, *documents)
    (run,) = read_measured(file)
    save_measured(run, file, folder / "run", slo)
    return folder / "run"


@pytest.mark.parametrize(
    ("documents", "num_left_out"),
    [
        ([VLLM], 0),
        ([FAILED], 1),
        ([SGLANG], 0),
        ([guidellm()], 1),
        ([aiperf(SENT_NS), aiperf(SENT_NS + 5_000_000)], 0),
    ],
    ids=["vLLM", "vLLM with failures", "SGLang", "GuideLLM", "AIPerf"],
)
def test_an_imported_run_reads_as_its_file(
    documents: list[dict[str, Any]], num_left_out: int, tmp_path: Path
) -> None:
    directory = imported(tmp_path, *documents)

    (of_file,), (of_directory,) = read_results(tmp_path / "result.json"), read_results(directory)

    pd.testing.assert_frame_equal(of_directory.requests, of_file.requests)
    assert of_directory.tool == of_file.tool
    assert of_directory.notices == of_file.notices
    assert of_directory.has_arrivals == of_file.has_arrivals
    assert of_directory.num_left_out == of_file.num_left_out == num_left_out


def test_it_is_a_run_directory_whose_table_has_the_columns_of_a_simulated_one(tmp_path: Path) -> None:
    directory = imported(tmp_path, VLLM)

    manifest, summary, tables = load_run(directory)

    assert manifest["kind"] == "measured results"
    assert manifest["tool"] == "vLLM bench"
    requests = tables["requests"]
    assert requests["finish_s"].tolist() == [0.625, 1.0, 3.125]
    assert requests["scheduled_s"].isna().all()
    assert set(requests["status"]) == {"finished"}
    assert summary["num_finished"] == 3
    assert is_imported(directory)
    assert not is_imported(tmp_path)


def test_requests_are_in_the_order_in_which_they_were_sent(tmp_path: Path) -> None:
    directory = imported(tmp_path, {**VLLM, "start_times": [5003.0, 5000.5, 5001.0]})

    requests = load_run(directory)[2]["requests"]

    assert requests["request_id"].tolist() == [1, 2, 0]
    assert requests["arrival_s"].tolist() == [0.0, 0.5, 2.5]


def test_requests_that_failed_are_counted_in_the_summary(tmp_path: Path) -> None:
    directory = imported(tmp_path, FAILED)

    assert json.loads((directory / "summary.json").read_text(encoding="utf-8"))["num_dropped"] == 1


def test_its_requests_are_a_trace(tmp_path: Path) -> None:
    directory = imported(tmp_path, VLLM)

    for name in ("requests.parquet", "workload.csv"):
        trace = read_trace(directory / name)
        assert trace.arrival_s.tolist() == [0.0, 0.5, 2.5]
        assert trace.output_tokens.tolist() == [3, 1, 2]


def test_its_summary_has_times_rates_and_limits_and_nothing_of_the_engine(tmp_path: Path) -> None:
    directory = imported(tmp_path, VLLM, slo=SloConfig(ttft_ms=300))

    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))

    assert summary["ttft_mean_s"] == pytest.approx((0.25 + 0.5 + 0.125) / 3)
    assert summary["e2e_mean_s"] == pytest.approx((0.625 + 0.5 + 0.625) / 3)
    assert summary["whole_run_request_throughput_per_s"] == pytest.approx(3 / 3.125)
    assert summary["slo_attainment"] == pytest.approx(2 / 3)
    assert summary["num_dropped"] == 0
    for key in ("queueing_mean_s", "busy_fraction", "batch_size_mean", "kv_use_max", "waiting_mean"):
        assert summary[key] is None
    assert summary["world"] == "measured"


def run_of(ttft_s: float | np.ndarray[Any, Any], size: int = 2000) -> MeasuredRun:
    arrival_s = np.arange(size) * 0.1
    requests = pd.DataFrame(
        {
            "request_id": np.arange(size),
            "arrival_s": arrival_s,
            "first_token_s": arrival_s + ttft_s,
            "finish_s": arrival_s + np.nan_to_num(ttft_s) + 0.5,
            "prompt_tokens": 10,
            "output_tokens": 6,
        }
    )
    return MeasuredRun("any", requests)


@pytest.mark.parametrize(
    ("ttft_s", "verdict"),
    [(0.05, "stable"), (np.linspace(0.05, 60, 2000), "saturated"), (np.nan, "transient")],
    ids=["steady", "growing", "untold"],
)
def test_who_waits_longer_and_longer_for_a_first_token_is_saturated(ttft_s: Any, verdict: str) -> None:
    summary = measured_summary(run_of(ttft_s), SloConfig(), "any")

    assert summary["verdict"] == verdict
    assert summary["saturated"] == (verdict == "saturated")


def test_a_measured_run_is_exported_as_any_other(tmp_path: Path) -> None:
    directory = imported(tmp_path, VLLM)

    (notice,) = export_run(directory, tmp_path / "aiperf.jsonl", "aiperf")

    assert "imported results do not" in notice
    (back,) = read_measured(tmp_path / "aiperf.jsonl")
    (given,) = read_results(directory)
    pd.testing.assert_frame_equal(back.requests, given.requests)


@pytest.mark.parametrize("form", ["vllm-bench", "aiperf"])
@pytest.mark.parametrize("is_simulated", [False, True])
def test_what_was_measured_stays_so_and_what_was_simulated_too(
    is_simulated: bool, form: str, tmp_path: Path
) -> None:
    directory = imported(tmp_path, {**VLLM, "simulated": is_simulated})

    export_run(directory, tmp_path / "again", form)

    (back,) = read_measured(tmp_path / "again")
    assert back.is_simulated is is_simulated
    assert load_run(directory)[1]["expected_error"].endswith("simulated" if is_simulated else "measured")


def test_validate_takes_what_was_imported_as_it_takes_the_file(tmp_path: Path) -> None:
    directory = imported(tmp_path, VLLM)
    save_latency(engine(), tmp_path / "latency.json")

    of_file, of_directory = (
        validate([path], tmp_path / "latency.json") for path in (tmp_path / "result.json", directory)
    )

    (one,), (other,) = of_file.cases, of_directory.cases
    pd.testing.assert_frame_equal(one.comparison.errors, other.comparison.errors)


def test_a_simulated_run_is_no_measured_one(tmp_path: Path) -> None:
    directory = imported(tmp_path, VLLM)
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    (directory / "manifest.json").write_text(json.dumps({**manifest, "kind": None}), encoding="utf-8")

    with pytest.raises(ConfigError, match="holds no measured results"):
        read_results(directory)


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    directory = imported(tmp_path, VLLM)
    path = directory / "requests.parquet"
    pd.read_parquet(path).drop(columns="finish_s").to_parquet(path)

    with pytest.raises(ConfigError, match="has no column finish_s"):
        read_results(directory)
