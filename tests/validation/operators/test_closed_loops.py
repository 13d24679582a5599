from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from batchsim.errors import ConfigError
from batchsim.latency.passes import PassTableLatency
from batchsim.latency.profiles.aiconfigurator import Known, SetUp
from batchsim.validation.operators import closed_loops
from batchsim.validation.operators.closed_loops import (
    COLUMNS,
    INFERENCEMAX,
    UNKNOWN,
    predict_measured_loops,
    protocol_of,
)
from batchsim.validation.operators.report import STATISTICS, write_operators_report
from batchsim.validation.tables import error_rows
from tests.latency.flat_passes import flat_passes

MODELS = ("nvidia/Llama-3.1-70B-Instruct-FP8", "Qwen/Qwen3-32B")
ROW: dict[str, Any] = {
    "system": "h200_sxm",
    "model_path": "meta-llama/Llama-3.1-70B",
    "backend": "vllm",
    "precision": "fp8",
    "mode": "agg",
    "silicon_data_source": "source_file=2026-01-01.csv; model=x",
    "isl": 64,
    "osl": 16,
    "batch_size": 1,
    "tp_size": 4,
    "pp_size": 1,
    "attention_dp_size": 1,
    "moe_ep_size": 1,
    "silicon_ttft_ms": 40.0,
    "silicon_tpot_ms": 25.0,
}


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[SetUp]:
    """Stand in for the package: a pass takes 20 ms, and no room is left on an L40S."""
    asked: list[SetUp] = []

    def latency(set_up: SetUp) -> PassTableLatency:
        asked.append(set_up)
        if set_up.system == "l4":
            raise ConfigError("aiconfigurator-core has no times of it on l4: there are none")
        return flat_passes()

    monkeypatch.setattr(closed_loops, "known", lambda: Known({}, MODELS))
    monkeypatch.setattr(closed_loops, "aiconfigurator_latency", latency)
    monkeypatch.setattr(
        closed_loops, "kv_capacity_tokens", lambda set_up: None if set_up.system == "l40s" else 10_000
    )
    closed_loops._simulated.cache_clear()
    return asked


def table_of(path: Path, *rows: dict[str, Any]) -> Path:
    pd.DataFrame([{**ROW, **row} for row in rows])[list(COLUMNS)].to_csv(path, index=False)
    return path


def test_row_is_predicted_with_the_host_s_times(tmp_path: Path) -> None:
    points = predict_measured_loops(table_of(tmp_path / "rows.csv", {}))

    times = points.table.set_index("metric").predicted_s
    assert times["TPOT"] == pytest.approx(0.021)  # a pass and its launch
    assert times["TTFT"] == pytest.approx(0.02 + 0.001 + 0.016 + 58 * 6e-6, abs=1e-4)
    assert points.table.num_gpus.tolist() == [4, 4]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"mode": "disagg"}, "prefill and decode on GPUs of their own"),
        ({"precision": "int4"}, "model that the package has not"),
        ({"model_path": "someone/Else"}, "model that the package has not"),
        ({"batch_size": 10**6}, "more clients than are simulated"),
        ({"system": "l40s"}, "no memory for KV beside the weights"),
        ({"isl": 20_000}, "no memory for KV beside the weights"),
        ({"system": "l4"}, "no times of it"),
        ({"osl": None}, "a number that is not there"),
    ],
)
def test_row_without_a_prediction_is_counted_with_its_reason(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    points = predict_measured_loops(table_of(tmp_path / "rows.csv", row, {}))

    assert [why for why, _ in points.skipped] == [reason]
    assert len(points.table) == 2


def test_gpus_that_are_given_twice_are_groups_of_one(tmp_path: Path, asked: list[SetUp]) -> None:
    twice = {"tp_size": 4, "attention_dp_size": 4, "moe_ep_size": 16}

    predict_measured_loops(table_of(tmp_path / "rows.csv", twice))

    assert (asked[0].tensor_parallel, asked[0].data_parallel, asked[0].expert_parallel) == (1, 4, 4)


def test_model_without_a_precision_is_the_published_one(tmp_path: Path, asked: list[SetUp]) -> None:
    predict_measured_loops(
        table_of(tmp_path / "rows.csv", {"model_path": "Qwen/Qwen3-32B", "precision": None})
    )

    assert asked[0].model == "Qwen/Qwen3-32B"


def test_same_rows_are_simulated_once(tmp_path: Path, asked: list[SetUp]) -> None:
    points = predict_measured_loops(table_of(tmp_path / "rows.csv", {}, {"silicon_tpot_ms": 30.0}))

    assert len(points.table) == 4
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("source", "protocol"),
    [
        ("db-dump/2026-04-27; config_id=733", INFERENCEMAX),
        ("source_file=2026-03-25.csv; model=x", INFERENCEMAX),
        ("source_file=kimi-k2.5-gap-analysis.csv", INFERENCEMAX),
        ("source_file=Qwen_Qwen3-32B.csv; silicon_concurrency=16", UNKNOWN),
    ],
)
def test_protocol_is_told_by_where_a_row_comes_from(source: str, protocol: closed_loops.Protocol) -> None:
    assert protocol_of(source) == protocol


def test_page_tells_errors_and_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchsim.validation.operators.report.package_version", lambda: "0.12.0")
    points = predict_measured_loops(table_of(tmp_path / "rows.csv", {}, {"mode": "disagg"}))

    page = write_operators_report(points, tmp_path).read_text(encoding="utf-8")

    assert error_rows(points.table, ["framework", "metric"], STATISTICS)[0] == [
        "vllm", "TPOT", "1", "-16.0%", "16.0%", "16.0%", "100%",
    ]  # fmt: skip
    assert "1 of 2 rows have a prediction" in " ".join(page.split())
    assert "| prefill and decode on GPUs of their own | 1 | disagg (1) |" in page
    assert max(map(len, page.splitlines())) < 400


def test_parallelism_of_0_is_none(tmp_path: Path, asked: list[SetUp]) -> None:
    predict_measured_loops(table_of(tmp_path / "rows.csv", {"moe_ep_size": 0, "attention_dp_size": 0}))

    assert (asked[0].expert_parallel, asked[0].data_parallel) == (1, 1)
