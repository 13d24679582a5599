"""Results of others' benchmarks; expected times are worked out by hand from the values written below."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchsim.errors import BatchsimError
from batchsim.results.derived_arrivals import derived_arrivals
from batchsim.results.measured_tables import COLUMNS, MeasuredRun, measured_trace, read_measured
from tests.shared_data import shared_path

VLLM: dict[str, Any] = {
    "date": "20260101-000000",
    "tokenizer_id": "m",
    "request_rate": 2.0,
    "burstiness": 1.0,
    "max_concurrency": None,
    "input_lens": [100, 200, 50],
    "output_lens": [3, 1, 2],
    "ttfts": [0.25, 0.5, 0.125],
    "itls": [[0.125, 0.25], [], [0.5]],
    "start_times": [5000.5, 5001.0, 5003.0],
    "errors": ["", "", ""],
}
SGLANG = {
    name: value for name, value in VLLM.items() if name not in ("tokenizer_id", "start_times", "burstiness")
}


def guidellm(**changes: Any) -> dict[str, Any]:
    request = {
        "request_id": "a",
        "request_start_time": 1700000001.5,
        "request_end_time": 1700000003.0,
        "time_to_first_token_ms": 500.0,
        "prompt_tokens": 40,
        "output_tokens": 5,
    }
    earlier = {**request, "request_start_time": 1700000001.0, "time_to_first_token_ms": None}
    successful = [{**request, **changes}, earlier]
    return {"benchmarks": [{"requests": {"successful": successful, "incomplete": [{}], "errored": []}}]}


def aiperf(start_ns: int, **changes: Any) -> dict[str, Any]:
    metrics = {
        "input_sequence_length": {"value": 7, "unit": "tokens"},
        "output_sequence_length": {"value": 4, "unit": "tokens"},
        "time_to_first_token": {"value": 20.5, "unit": "ms"},
        "request_latency": {"value": 0.25, "unit": "s"},
    }
    metadata = {"request_start_ns": start_ns, "benchmark_phase": "profiling", "was_cancelled": False}
    return {"metadata": metadata, "metrics": metrics, "error": None, **changes}


def written(folder: Path, *documents: Mapping[str, Any], indent: int | None = None) -> Path:
    path = folder / "result.json"
    path.write_text("\n".join(json.dumps(one, indent=indent) for one in documents), encoding="utf-8")
    return path


def rows(run: MeasuredRun) -> list[tuple[float, ...]]:
    assert tuple(run.requests.columns) == COLUMNS
    return [tuple(row) for row in run.requests.to_numpy().tolist()]


@pytest.mark.parametrize("indent", [None, 2])
def test_vllm_sends_at_its_start_times_and_ends_with_the_last_gap(tmp_path: Path, indent: int | None) -> None:
    (run,) = read_measured(written(tmp_path, VLLM, indent=indent))

    assert run.tool == "vLLM bench"
    assert run.has_arrivals
    assert rows(run) == [
        (0, 0.0, 0.25, 0.625, 100, 3),
        (1, 0.5, 1.0, 1.0, 200, 1),
        (2, 2.5, 2.625, 3.125, 50, 2),
    ]


def test_requests_that_failed_are_left_out_and_told_of(tmp_path: Path) -> None:
    failed = {**VLLM, "output_lens": [3, 0, 2], "ttfts": [0.25, 0.0, 0.125], "errors": ["", "refused", ""]}

    (run,) = read_measured(written(tmp_path, failed))

    assert [row[0] for row in rows(run)] == [0, 2]
    assert any("1 failed or unfinished" in sentence for sentence in run.notices)


def test_an_answer_in_one_piece_does_not_tell_its_first_token(tmp_path: Path) -> None:
    (run,) = read_measured(written(tmp_path, {**VLLM, "itls": [[], [], [0.5]]}))

    first_s = [row[2] for row in rows(run)]
    assert math.isnan(first_s[0])
    assert first_s[1:] == [1.0, 2.625]
    assert any("1 of 3 requests" in sentence for sentence in run.notices)


def test_without_start_times_an_unlimited_rate_sends_all_at_once(tmp_path: Path) -> None:
    (run,) = read_measured(written(tmp_path, {**SGLANG, "request_rate": math.inf}))

    assert (run.tool, run.has_arrivals) == ("SGLang bench", True)
    assert [row[1] for row in rows(run)] == [0, 0, 0]
    assert any("all requests at once" in sentence for sentence in run.notices)


def test_a_limit_on_requests_under_way_holds_back_until_the_next_one_ends(tmp_path: Path) -> None:
    # They take 0.625, 0.5 and 0.625 s: the third goes when the second ends.
    (run,) = read_measured(written(tmp_path, {**SGLANG, "request_rate": "inf", "max_concurrency": 2}))

    assert [row[1] for row in rows(run)] == [0, 0, 0.5]


def test_with_start_times_a_limit_on_requests_under_way_is_only_told_of(tmp_path: Path) -> None:
    (run,) = read_measured(written(tmp_path, {**VLLM, "max_concurrency": 1}))

    assert [row[1] for row in rows(run)] == [0.0, 0.5, 2.5]
    assert any("max_concurrency held requests back" in sentence for sentence in run.notices)


def test_drawn_arrivals_have_the_rate_and_are_said_to_be_drawn(tmp_path: Path) -> None:
    num = 4000
    many = {name: VLLM[name][:1] * num for name in ("input_lens", "output_lens", "ttfts", "itls")}

    (run,) = read_measured(written(tmp_path, {**SGLANG, **many}))

    assert not run.has_arrivals
    assert any("arrivals are drawn at request_rate 2/s" in sentence for sentence in run.notices)
    gaps_s = run.requests["arrival_s"].diff().dropna()
    assert gaps_s.mean() == pytest.approx(0.5, rel=0.06)  # 4 standard errors of an exponential's mean
    assert gaps_s.std() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 4.0])
def test_drawn_arrivals_have_the_rate_and_the_burstiness_that_are_told(burstiness: float) -> None:
    tree = {"request_rate": 2.0, "burstiness": burstiness}

    arrival_s, _, is_exact = derived_arrivals(tree, np.full(20_001, 0.5), "result.json")

    gaps_s = np.diff(arrival_s)
    assert arrival_s[0] == 0
    assert not is_exact
    assert gaps_s.mean() == pytest.approx(0.5, rel=0.05)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(burstiness**-0.5, rel=0.05)


def test_every_line_of_sglang_is_a_run(tmp_path: Path) -> None:
    runs = read_measured(written(tmp_path, SGLANG, {**SGLANG, "input_lens": [1, 2, 3]}))

    assert [run.requests["prompt_tokens"].tolist() for run in runs] == [[100, 200, 50], [1, 2, 3]]


def test_guidellm_counts_from_its_first_request_and_may_not_know_first_tokens(tmp_path: Path) -> None:
    (run,) = read_measured(written(tmp_path, guidellm(), indent=1))

    (first, second) = rows(run)
    assert first == (0, 0.5, 1.0, 2.0, 40, 5)
    assert second[:2] == (1, 0.0)
    assert math.isnan(second[2])
    assert second[3:] == (2.0, 40, 5)
    assert any("1 failed or unfinished" in sentence for sentence in run.notices)


def test_older_guidellm_names_its_times_otherwise(tmp_path: Path) -> None:
    tree = json.loads(json.dumps(guidellm()).replace('"request_start_time"', '"start_time"'))
    tree = json.loads(json.dumps(tree).replace('"request_end_time"', '"end_time"'))

    (run,) = read_measured(written(tmp_path, tree))

    assert rows(run)[0] == (0, 0.5, 1.0, 2.0, 40, 5)


def test_every_benchmark_of_a_guidellm_report_is_a_run(tmp_path: Path) -> None:
    tree = {"benchmarks": guidellm()["benchmarks"] + guidellm(prompt_tokens=41)["benchmarks"]}

    runs = read_measured(written(tmp_path, tree))

    assert [run.requests["prompt_tokens"].tolist() for run in runs] == [[40, 40], [41, 40]]


def test_aiperf_heeds_units_and_keeps_nanoseconds_apart(tmp_path: Path) -> None:
    start_ns = 1_759_000_000_000_000_000
    warmup = aiperf(start_ns - 10**9)
    warmup["metadata"]["benchmark_phase"] = "warmup"
    failed = aiperf(start_ns, metrics={}, error={"code": 500})

    (run,) = read_measured(written(tmp_path, warmup, aiperf(start_ns), failed, aiperf(start_ns + 3)))

    assert [row[0] for row in rows(run)] == [1, 3]
    assert [row[1] for row in rows(run)] == [0.0, 3e-9]
    assert rows(run)[0] == (1, 0.0, 0.0205, 0.25, 7, 4)
    assert any("1 requests of the warm-up" in sentence for sentence in run.notices)
    assert any("1 failed or unfinished" in sentence for sentence in run.notices)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"request_throughput": 2.0, "mean_ttft_ms": 1.0}, "a summary of all requests is not enough"),
        ({"a": "x" * 10_000}, "holds no measured requests in a known form"),
        ({**VLLM, "ttfts": [0.1]}, "not equally long"),
        ({**VLLM, "itls": [["x"], [], []]}, "row 1: itls is ['x']"),
        ({**VLLM, "itls": [2.0, [], []]}, "row 1: itls is 2.0; a list"),
        ({**VLLM, "itls": [[-1.0], [], []]}, "row 1: itls is [-1.0]"),
        ({**VLLM, "output_lens": [3, 1.5, 2]}, "row 2: output_tokens is 1.5"),
        ({**VLLM, "output_lens": [0, 0, 0]}, "no request was answered"),
        ({**VLLM, "start_times": [0, 1, 1e9]}, "requests are sent over 1e+09 s"),
        ({**SGLANG, "request_rate": None}, "request_rate is missing"),
        ({**SGLANG, "max_concurrency": 0}, "max_concurrency is 0"),
        (guidellm(request_end_time=1700000001.5), "row 1: latency is 0.0"),
        (guidellm(time_to_first_token_ms=9000.0), "the first must not be later"),
        (guidellm(output_tokens=None), "row 1: output_tokens is missing"),
        ({"benchmarks": []}, "benchmarks is empty"),
        (aiperf(-5), "row 1: request_start_ns is -5"),
        (
            aiperf(1, metrics={"request_latency": {"value": 1, "unit": "ly"}}),
            "unit of a time is 'ly'",
        ),
        (aiperf(1, metrics={"request_latency": 0}), "request_latency: 0 stands where an object"),
        (aiperf(1, metadata=[]), "[] stands where an object is needed"),
    ],
)
def test_what_cannot_be_is_one_short_sentence(document: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(BatchsimError) as refusal:
        read_measured(written(tmp_path, document))

    assert said in str(refusal.value)
    assert len(str(refusal.value)) < 400
    assert str(refusal.value).isprintable()


def test_a_json_array_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "array.json"
    for text in ("", "[]", "[1, 2]\n", '{"a": 1}\n[2]\n', "{}"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(BatchsimError):
            read_measured(path)


def test_the_requests_are_a_trace_where_it_is_known_when_they_were_sent(tmp_path: Path) -> None:
    trace = measured_trace(written(tmp_path, guidellm()))

    assert trace is not None
    assert trace.request_id.tolist() == [1, 0]  # in the order in which they were sent
    assert trace.arrival_s.tolist() == [0.0, 0.5]
    assert measured_trace(written(tmp_path, {"timestamp": 0, "input_length": 1})) is None
    with pytest.raises(BatchsimError, match="start_times are needed"):
        measured_trace(written(tmp_path, SGLANG))
    with pytest.raises(BatchsimError, match="holds 2 measured runs"):
        measured_trace(written(tmp_path, VLLM, VLLM))


@pytest.mark.parametrize(
    ("name", "tool", "finish_s"),
    [
        ("vllm_detailed.json", "vLLM bench", [0.2, 1.2, 3.3]),
        ("sglang.jsonl", "SGLang bench", None),
        ("guidellm.json", "GuideLLM", [1.0]),
        ("aiperf_profile_export.jsonl", "AIPerf", [0.2]),
    ],
)
def test_shared_examples(name: str, tool: str, finish_s: list[float] | None) -> None:
    (run,) = read_measured(shared_path(f"cases/result-files/{name}"))

    assert run.tool == tool
    assert run.has_arrivals == (finish_s is not None)
    if finish_s is not None:
        assert run.requests["finish_s"].tolist() == pytest.approx(finish_s)
