"""Damaged results of others' benchmarks: one sentence, or times that an independent reading gives too."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.results.measured_tables import MeasuredRun, read_measured
from batchsim.validation.comparison import compare_requests
from tests.fuzz.mutations import fuzz, mutated_json, one_sentence
from tests.results.test_measured_tables import SGLANG, VLLM, aiperf, guidellm

Latencies = list[float]


def bench_latencies(tree: Any) -> Latencies:
    lists = zip(tree["ttfts"], tree["itls"], tree["output_lens"], strict=True)
    return [float(first) + math.fsum(gaps) for first, gaps, tokens in lists if tokens]


def guidellm_latencies(tree: Any) -> Latencies:
    requests = tree["benchmarks"][0]["requests"]["successful"]
    return [
        float(one.get("request_end_time", one.get("end_time")))
        - float(one.get("request_start_time", one.get("start_time")))
        for one in requests
    ]


def aiperf_latencies(tree: Any) -> Latencies:
    metric = tree["metrics"]["request_latency"]
    return [float(metric["value"]) / {"s": 1, "ms": 1e3}[metric["unit"]]]


def check(runs: list[MeasuredRun] | None, path: Path, latencies: Callable[[Any], Latencies]) -> None:
    """Whatever is read can be compared, and the first run is what the file says."""
    if runs is None:
        return
    for run in runs:
        comparison = compare_requests([run.requests], run.requests)
        assert (comparison.errors["error"].abs() == 0).all()
    requests = runs[0].requests
    first, _ = json.JSONDecoder().raw_decode(path.read_text(encoding="utf-8-sig").lstrip())
    said = latencies(first)
    assert (requests["finish_s"] - requests["arrival_s"]).tolist() == pytest.approx(said, rel=1e-6, abs=1e-6)


@given(data=st.data())
@fuzz
@pytest.mark.parametrize(
    ("tree", "latencies"),
    [
        (VLLM, bench_latencies),
        (SGLANG, bench_latencies),
        (guidellm(), guidellm_latencies),
        (aiperf(1_759_000_000_000_000_000), aiperf_latencies),
    ],
    ids=["vllm", "sglang", "guidellm", "aiperf"],
)
def test_damaged_result_is_refused_or_holds_the_times_it_says(
    tree: Any, latencies: Callable[[Any], Latencies], data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(data.draw(mutated_json(tree)))

    check(one_sentence(lambda: read_measured(path)), path, latencies)
