import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim import simulate
from batchsim.records import (
    BATCH_COLUMNS,
    CONTROLLER_COLUMNS,
    ITERATION_COLUMNS,
    ITERATION_REQUEST_COLUMNS,
    PREEMPTION_COLUMNS,
    Records,
    empty,
    table,
)
from batchsim.results.timeline import timeline, write_timeline

# A replica that prefills, decodes three iterations, admits beside the decodes, and idles before the last.
SPANS = {
    "start_s": [0.0, 0.1, 0.4, 2.0],
    "finish_s": [0.1, 0.4, 0.6, 2.1],
    "num_iterations": [1, 3, 1, 1],
    "prefill_tokens": [8, 0, 4, 2],
    "decode_seqs": [0, 1, 1, 0],
    "num_waiting": [1, 1, 0, 0],
    "kv_blocks": [2, 3, 4, 1],
}


def replicas(
    spans: dict[str, Any], num_replicas: int = 1, preemptions: dict[str, Any] | None = None
) -> Records:
    """The world of these spans, other columns zero."""
    num = len(spans["start_s"])
    return Records(
        requests=empty(ITERATION_REQUEST_COLUMNS),
        batches=empty(BATCH_COLUMNS),
        controllers=empty(CONTROLLER_COLUMNS),
        num_replicas=num_replicas,
        kv_capacity_tokens=160,
        refusals={},
        iterations=table(ITERATION_COLUMNS, {name: np.zeros(num) for name in ITERATION_COLUMNS} | spans),
        preemptions=table(PREEMPTION_COLUMNS, preemptions) if preemptions else empty(PREEMPTION_COLUMNS),
        kv_blocks=(10,) * num_replicas,
    )


def events(records: Records, phase: str) -> list[dict[str, Any]]:
    return [event for event in timeline(records)["traceEvents"] if event["ph"] == phase]


def test_a_span_is_named_by_what_it_runs_and_says_of_what_size() -> None:
    spans = events(replicas(SPANS), "X")

    assert [(span["name"], span["ts"], span["dur"]) for span in spans] == [
        ("prefill", 0, 100_000),
        ("decode", 100_000, 300_000),
        ("prefill and decode", 400_000, 200_000),
        ("prefill", 2_000_000, 100_000),
    ]
    assert spans[1]["args"] == {
        "num_iterations": 3,
        "decode_seqs": 1,
        "prefill_seqs": 0,
        "prefill_tokens": 0,
        "context_tokens": 0,
    }


def test_each_replica_is_a_named_thread_of_one_process_busy_or_not() -> None:
    names = events(replicas(SPANS, num_replicas=2), "M")

    assert [(event["name"], event["tid"], event["args"]) for event in names] == [
        ("process_name", 0, {"name": "batchsim"}),
        ("thread_name", 1, {"name": "replica 0"}),
        ("thread_sort_index", 1, {"sort_index": 0}),
        ("thread_name", 2, {"name": "replica 1"}),
        ("thread_sort_index", 2, {"sort_index": 1}),
    ]


def test_counters_tell_changes_and_fall_to_zero_where_the_replica_idles() -> None:
    spans = SPANS | {"num_waiting": [1, 1, 2, 0]}

    counters = events(replicas(spans), "C")

    assert [(event["ts"], event["args"]["requests"]) for event in counters if "waiting" in event["name"]] == [
        (0, 1),
        (400_000, 2),
        (600_000, 0),
    ]
    assert [(event["ts"], event["args"]["blocks"]) for event in counters if "KV" in event["name"]] == [
        (100_000, 2),
        (400_000, 3),
        (600_000, 0),
    ]


def test_preemptions_are_instants_on_the_thread_of_their_replica() -> None:
    preemptions = {
        "request_id": [7],
        "gpu_id": [1],
        "time_s": [0.4],
        "mode": ["recompute"],
        "decode_start_s": [0.1],
        "lost_tokens": [12],
    }

    [preemption] = events(replicas(SPANS, num_replicas=2, preemptions=preemptions), "i")

    assert (preemption["ts"], preemption["tid"], preemption["s"]) == (400_000, 2, "t")
    assert preemption["args"] == {"request_id": 7, "mode": "recompute", "lost_tokens": 12}


@given(
    gaps_s=st.lists(
        st.tuples(st.sampled_from([0.0, 1e-9, 0.3]), st.floats(1e-6, 10.0), st.integers(0, 2)), min_size=1
    )
)
def test_spans_of_a_replica_never_overlap_and_last_as_long_as_it_is_busy(
    gaps_s: list[tuple[float, float, int]],
) -> None:
    start_s, finish_s, gpu_ids = [], [], []
    now_s = [0.0] * 3
    for gap_s, duration_s, gpu_id in gaps_s:
        start_s.append(now_s[gpu_id] + gap_s)
        now_s[gpu_id] += gap_s + duration_s
        finish_s.append(now_s[gpu_id])
        gpu_ids.append(gpu_id)

    spans = events(replicas({"start_s": start_s, "finish_s": finish_s, "gpu_id": gpu_ids}, 3), "X")

    for thread in (1, 2, 3):
        of_thread = [span for span in spans if span["tid"] == thread]
        for earlier, later in pairwise(of_thread):
            assert round((earlier["ts"] + earlier["dur"]) * 1000) <= round(later["ts"] * 1000)
    busy_s = sum(duration_s for _, duration_s, _ in gaps_s)
    assert sum(span["dur"] for span in spans) / 1e6 == pytest.approx(busy_s, abs=2e-9 * len(spans))


def test_batches_that_run_to_completion_are_events_of_their_gpu() -> None:
    result = simulate(
        overrides={"policy.preset": "multi_bin", "cluster.num_gpus": 2, "workload.num_requests": 60}
    )

    shown = events(result.records, "X")

    batches = result.batches
    assert [event["args"]["batch_id"] for event in shown] == batches["batch_id"].tolist()
    assert [event["name"] for event in shown] == [f"batch of bin {bin_}" for bin_ in batches["bin"]]
    assert [event["tid"] - 1 for event in shown] == batches["gpu_id"].tolist()
    busy_s = (batches["finish_s"] - batches["start_s"]).sum()
    assert sum(event["dur"] for event in shown) / 1e6 == pytest.approx(busy_s)
    assert not events(result.records, "C")


def test_a_run_at_the_iteration_level_has_an_event_for_each_span_and_each_preemption() -> None:
    result = simulate(
        overrides={
            "policy.preset": "vllm_v1",
            "cluster.num_gpus": 2,
            "engine.num_kv_blocks": 700,
            "workload.num_requests": 200,
            "workload.request_rate": 50.0,
        }
    )

    shown = timeline(result.records)["traceEvents"]

    spans, preemptions = result.records.iterations, result.records.preemptions
    assert len(preemptions) > 0
    for gpu_id in (0, 1):
        of_thread = [event for event in shown if event["ph"] == "X" and event["tid"] == gpu_id + 1]
        of_replica = spans[spans["gpu_id"] == gpu_id]
        assert [event["args"]["context_tokens"] for event in of_thread] == of_replica[
            "context_tokens"
        ].tolist()
        busy_s = (of_replica["finish_s"] - of_replica["start_s"]).sum()
        assert sum(event["dur"] for event in of_thread) / 1e6 == pytest.approx(busy_s)
        for earlier, later in pairwise(of_thread):
            assert round((earlier["ts"] + earlier["dur"]) * 1000) <= round(later["ts"] * 1000)
    instants = [event["args"]["request_id"] for event in shown if event["ph"] == "i"]
    assert instants == preemptions["request_id"].tolist()


def test_the_file_holds_the_timeline(tmp_path: Path) -> None:
    records = replicas(SPANS)

    write_timeline(records, tmp_path / "timeline.json")

    assert json.loads((tmp_path / "timeline.json").read_text(encoding="utf-8")) == timeline(records)
    assert [path.name for path in tmp_path.iterdir()] == ["timeline.json"]


def test_a_run_without_iterations_is_still_a_timeline(tmp_path: Path) -> None:
    write_timeline(replicas({"start_s": []}), tmp_path / "timeline.json")

    read = json.loads((tmp_path / "timeline.json").read_text(encoding="utf-8"))

    assert [event["ph"] for event in read["traceEvents"]] == ["M"] * 3


def test_every_event_has_the_keys_that_its_kind_needs() -> None:
    needed = {
        "M": {"name", "ph", "pid", "args"},
        "X": {"name", "ph", "ts", "dur", "pid", "tid"},
        "C": {"name", "ph", "ts", "pid", "args"},
    }

    for event in timeline(replicas(SPANS))["traceEvents"]:
        assert needed[event["ph"]] <= event.keys()
