"""Others' results beside a simulation: of a known engine, written down as such results."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from batchsim.errors import ConfigError
from batchsim.latency.store import save_latency
from batchsim.study.run import simulate
from batchsim.validation.comparison import MAPE, THROUGHPUT
from batchsim.validation.replays.validate import validate
from tests.results.test_measured_tables import SGLANG, VLLM, guidellm
from tests.validation.replays.measured_worlds import engine, measure, requests

LIMITS = {"policy.batch_size": 4, "engine.num_kv_blocks": 60}


def vllm_result(served: pd.DataFrame, **others: Any) -> dict[str, Any]:
    """What vLLM's benchmark would have written of these requests, by a clock that started earlier."""
    gaps_s = (served["finish_s"] - served["first_token_s"]) / (served["output_tokens"] - 1)
    lengths = served["output_tokens"].tolist()
    return {
        "tokenizer_id": "m",
        "input_lens": served["prompt_tokens"].tolist(),
        "output_lens": lengths,
        "ttfts": (served["first_token_s"] - served["arrival_s"]).tolist(),
        "itls": [[gap] * (num - 1) for gap, num in zip(gaps_s.tolist(), lengths, strict=True)],
        "start_times": (served["arrival_s"] + 5000.0).tolist(),
        **others,
    }


def served_by_vllm() -> pd.DataFrame:
    """Requests of an engine of four seats and little memory, in the order in which they came."""
    tree = {"policy": {"preset": "vllm_v1", "batch_size": 4}, "engine": {"num_kv_blocks": 60}}
    tree |= {"workload": {"training_fraction": 0.0}, "latency": {"outside": "extrapolate"}}
    return simulate(tree, requests(60, 12.0), latency=engine()).requests.sort_values("request_id")


def given(folder: Path, *documents: dict[str, Any], slowness: float = 1.0) -> tuple[Path, Path]:
    result, model = folder / "result.json", folder / "latency.json"
    result.write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    save_latency(engine(slowness), model)
    return result, model


def test_the_engine_that_was_measured_has_no_errors_and_another_has(tmp_path: Path) -> None:
    result, model = given(tmp_path, vllm_result(served_by_vllm()))

    same = validate([result], model, LIMITS)
    roomier = validate([result], model)

    assert same.cases[0].comparison.num_requests == 60
    assert same.errors["error"].abs().max() < 1e-6
    assert roomier.errors["error"].abs().max() > 0.05
    assert set(same.errors["verdict"]) == {"not judged"}
    assert [(gate.gate, gate.verdict) for gate in same.gates] == [
        ("model", "not judged"),
        ("end to end", "not judged"),
    ]
    json.dumps(same.to_json(), allow_nan=False)


def test_errors_of_one_request_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    # 10 prompt tokens take 0.02 + 10 * 1e-4 s; two more 0.02 + 1e-3 + 1e-6 s per token before.
    one = {**VLLM, "input_lens": [10], "output_lens": [3], "ttfts": [0.042], "itls": [[0.02, 0.022]]}
    result, model = given(tmp_path, {**one, "start_times": [7.0]})

    errors = validate([result], model).errors.set_index(["metric", "statistic"])["error"]

    assert errors["ttft", "mean"] == pytest.approx(0.021 / 0.042 - 1)
    assert errors["tpot", "p50"] == pytest.approx(0.0210105 / 0.021 - 1)
    assert errors["e2e", "p99"] == pytest.approx(0.063021 / 0.084 - 1)
    assert errors[THROUGHPUT, "requests"] == pytest.approx(0.084 / 0.063021 - 1)


def test_drawn_arrivals_leave_out_what_depends_on_single_ones(tmp_path: Path) -> None:
    result, model = given(tmp_path, SGLANG)

    validation = validate([result], model)

    assert set(validation.errors["metric"]) == {"ttft", "tpot", "e2e"}
    assert MAPE not in set(validation.errors["statistic"])
    assert any("neither single requests nor throughput" in sentence for sentence in validation.notices)


def test_unknown_first_tokens_leave_their_times_out(tmp_path: Path) -> None:
    result, model = given(tmp_path, guidellm(time_to_first_token_ms=None))

    assert set(validate([result], model).errors["metric"]) == {"e2e", THROUGHPUT}


def test_runs_of_a_file_are_cases_of_their_own(tmp_path: Path) -> None:
    result, model = given(tmp_path, VLLM, {**VLLM, "input_lens": [1, 2, 3]})

    validation = validate([result, result], model)

    assert [case.name for case in validation.cases] == ["result", "result_2"]
    assert validation.runs["num_requests"].tolist() == [3, 3]


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    result, model = given(tmp_path, VLLM)
    run = measure(tmp_path / "static_fifo-1", "static_fifo", trace=(10, 2.0))

    for measured, predicted, settings, said in (
        ([result], model, {"workload.request_rate": 2}, "workload.request_rate: the requests are those"),
        ([tmp_path / "absent.json"], model, {}, "absent.json: no such file or folder"),
        ([result], run, {}, "a latency file is needed"),
        ([result, run], model, {}, "files and folders of measured runs go apart"),
        ([run], model, LIMITS, "says its configuration itself"),
    ):
        with pytest.raises(ConfigError, match=said):
            validate(measured, predicted, settings)
