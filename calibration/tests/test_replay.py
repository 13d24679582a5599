"""Replays on a small real model: every request gets its tokens, and the record repeats in the simulator."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

from batchsim.config import load_config
from batchsim.errors import ConfigError
from batchsim.latency.base import (
    RECORDED_FIELDS,
    BatchShape,
    BatchTime,
    DecodeLine,
    Domain,
    IterationShape,
    LatencyInfo,
)
from batchsim.records import BATCH_COLUMNS, ITERATION_COLUMNS, ITERATION_REQUEST_COLUMNS, REQUEST_COLUMNS
from batchsim.results.store import load_run
from batchsim.study.run import simulate
from batchsim.workload.formats import read_trace
from batchsim.workload.request import Workload
from batchsim_calibration import provenance
from batchsim_calibration.measuring.grid import Extent, Point
from batchsim_calibration.measuring.interleaved import Interleaved
from batchsim_calibration.measuring.operations import EnginePoints
from batchsim_calibration.replay_command import replay as replay_command
from batchsim_calibration.replaying import replay_series
from batchsim_calibration.replaying.inbox import WallClock
from batchsim_calibration.replaying.measured_run import write_run
from batchsim_calibration.replaying.replay import Limits, Trace, prompts_of, replay, settle, trace_of
from batchsim_calibration.serving.engine import Chunk, Engine
from batchsim_calibration.serving.models import LoadedModel

LIMITS = Limits(num_slots=4, max_tokens=64)
MakeModel = Callable[..., LoadedModel]


class Recorded:
    """Latencies of the simulator: what a replay took, one operation after the other."""

    info = LatencyInfo("recorded", "measured")
    domain = Domain()
    is_bounded = False

    def __init__(self, operations: pd.DataFrame) -> None:
        self._rows = iter(operations.to_dict("records"))

    def covers(self, shape: IterationShape) -> bool:
        return True

    def iteration_s(self, shape: IterationShape) -> float:
        row = next(self._rows)
        assert shape == IterationShape(*(row[name] for name in RECORDED_FIELDS))
        return float(row["finish_s"] - row["start_s"])

    def decode_line(self, decode_seqs: int, context_tokens: int) -> DecodeLine:
        return DecodeLine(self.iteration_s(IterationShape(0, decode_seqs, context_tokens, 0, 0.0)), 0.0, 1)


class RecordedBatches(Recorded):
    """The same for batches."""

    iteration_s = decode_line = None  # type: ignore[assignment]

    def batch_time(self, shape: BatchShape) -> BatchTime:
        row = next(self._rows)
        names = ("max_prompt_tokens", "max_output_tokens")
        assert tuple(shape) == (row["batch_size"] + row["num_evicted"], *(row[name] for name in names))
        return BatchTime(row["first_token_s"] - row["start_s"], row["finish_s"] - row["start_s"])


def eight_requests() -> Workload:
    """Three at once, two more while those run, and three after a pause."""
    arrival_s = np.array([0.0, 0.0, 0.0, 0.001, 0.002, 0.25, 0.255, 0.4])
    return Workload(
        request_id=np.arange(8),
        arrival_s=arrival_s,
        prompt_tokens=np.array([5, 30, 12, 1, 20, 9, 31, 8]),
        output_tokens=np.array([9, 3, 12, 6, 1, 10, 4, 7]),
    )


def run_directory(make: MakeModel, path: Path, given: dict[str, Any], **options: Any) -> Path:
    loaded = make()
    engine = Engine(loaded, num_slots=LIMITS.num_slots, max_tokens=LIMITS.max_tokens)
    requests = eight_requests()
    config = settle(load_config(given), requests, LIMITS)
    log = replay(engine, config, requests)
    trace = Trace(requests, requests.take(slice(0, 0)), {})
    write_run(path, log, trace, config, {"kind": "measured", "gpu": "a test"}, **options)
    return path


#: A small budget and cache, so that prompts are chunked and requests preempted.
CONTINUOUS = {
    "policy": {"preset": "vllm_v1", "batching": {"max_num_batched_tokens": 16}},
    "engine": {"block_size": 4, "num_kv_blocks": 12},
}
ORCA = {"policy": {"preset": "orca", "batching": {"max_tokens": 20}}}


@pytest.mark.parametrize("given", [CONTINUOUS, ORCA, {"policy": {"preset": "vllm_v0"}}])
def test_iterations_follow_one_another_and_give_every_request_its_tokens(
    varied_model: MakeModel, tmp_path: Path, given: dict[str, Any]
) -> None:
    path = run_directory(varied_model, tmp_path / "run", given)

    manifest, summary, tables = load_run(path)
    requests, iterations = tables["requests"], tables["iterations"]
    assert summary == {
        "kind": "measured",
        "policy": given["policy"]["preset"],
        "world": "iteration level",
        "num_requests": 8,
        "num_finished": 8,
    }
    assert manifest["kind"] == manifest["provenance"]["kind"] == "measured"
    assert (list(requests), list(iterations)) == (list(ITERATION_REQUEST_COLUMNS), list(ITERATION_COLUMNS))
    assert (requests["status"] == "finished").all()
    # The last token of an answer is never stored; what a preemption drops is computed again.
    stored_tokens = (requests["prompt_tokens"] + requests["output_tokens"] - 1).sum()
    lost_tokens = tables["preemptions"]["lost_tokens"].sum()
    assert iterations["prefill_tokens"].sum() + iterations["decode_seqs"].sum() == stored_tokens + lost_tokens
    start_s, finish_s = iterations["start_s"].to_numpy(), iterations["finish_s"].to_numpy()
    gaps_s = start_s[1:] - finish_s[:-1]
    is_arrival = np.isin(start_s[1:], requests["arrival_s"])
    assert (gaps_s[~is_arrival] == 0).all()
    assert (gaps_s >= 0).all()
    assert start_s[0] == 0.0


def test_batches_follow_one_another_and_end_with_the_longest_answer(
    varied_model: MakeModel, tmp_path: Path
) -> None:
    path = run_directory(varied_model, tmp_path / "run", {"policy": {"preset": "static_fifo"}})

    _, summary, tables = load_run(path)
    requests, batches = tables["requests"], tables["batches"]
    assert summary["world"] == "run to completion"
    assert (list(requests), list(batches)) == (list(REQUEST_COLUMNS), list(BATCH_COLUMNS))
    assert batches["batch_size"].iloc[:2].tolist() == [3, 2]
    assert batches["max_output_tokens"].iloc[:2].tolist() == [12, 6]
    assert batches["start_s"].iloc[1] == batches["finish_s"].iloc[0]
    assert (batches["start_s"] < batches["first_token_s"]).all()
    assert requests["finish_s"].tolist() == [
        batches["finish_s"].iloc[batch_id] for batch_id in requests["batch_id"]
    ]


@pytest.mark.parametrize(
    "given",
    [
        CONTINUOUS,
        {"policy": {"preset": "vllm_v0"}},
        {"policy": {"preset": "sarathi", "batching": {"max_num_batched_tokens": 16}}},
        {"policy": {"preset": "dynamic_batching"}, "slo": {"tpot_ms": 5.0}},
        {"policy": {"preset": "static_fifo"}},
        {"policy": {"preset": "multi_bin", "num_bins": 2, "batch_size": 2}},
        {"policy": {"preset": "multi_bin_dynamic", "num_bins": 2}, "slo": {"tpot_ms": 5.0}},
    ],
)
def test_the_simulator_fed_with_what_a_replay_took_repeats_it(
    varied_model: MakeModel, tmp_path: Path, given: dict[str, Any]
) -> None:
    path = run_directory(varied_model, tmp_path / "run", given)

    manifest, _, measured = load_run(path)
    operations = measured.get("iterations", measured.get("batches"))
    latency = Recorded(operations) if "iterations" in measured else RecordedBatches(operations)
    simulated = simulate(manifest["config"], read_trace(path / "workload.csv"), latency=latency)

    assert manifest["latency"] is None
    assert next(latency._rows, None) is None, "the replay did more than the simulator"
    pd.testing.assert_frame_equal(simulated.requests, measured["requests"], rtol=0, atol=1e-9)


def test_answers_are_those_of_the_model_one_request_at_a_time(varied_model: MakeModel) -> None:
    engine = Engine(varied_model(), num_slots=LIMITS.num_slots, max_tokens=LIMITS.max_tokens)
    requests = eight_requests()
    config = settle(load_config(CONTINUOUS), requests, LIMITS)

    log = replay(engine, config, requests.with_arrivals(np.zeros(8)))

    assert sum(request.num_preemptions for request in log.requests) > 0
    expected = []
    for prompt, num_tokens in zip(
        prompts_of(requests, engine, config.seed), requests.output_tokens, strict=True
    ):
        engine.clear(0)
        answer = [engine.step([Chunk(0, prompt, completes=True)], ())[0]]
        answer += [engine.step((), [0])[0] for _ in range(num_tokens - 1)]
        expected.append(answer)
    assert [request.answer for request in log.requests] == expected


def test_a_run_that_is_there_is_kept_unless_told_otherwise(varied_model: MakeModel, tmp_path: Path) -> None:
    given = {"policy": {"preset": "static_fifo"}}
    path = run_directory(varied_model, tmp_path / "run", given)
    before = (path / "requests.parquet").read_bytes()

    with pytest.raises(ConfigError, match="run: holds a run already; choose another directory"):
        run_directory(varied_model, path, given)
    assert (path / "requests.parquet").read_bytes() == before
    run_directory(varied_model, path, given, overwrite=True)
    assert (path / "requests.parquet").read_bytes() != before
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_a_run_can_be_written_from_sources_that_are_not_installed(
    varied_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(provenance, "version", version)

    path = run_directory(varied_model, tmp_path / "run", {"policy": {"preset": "static_fifo"}})

    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["versions"] == {"batchsim": None, "batchsim-calibration": None}


def test_the_wall_clock_never_wakes_early() -> None:
    clock = WallClock()

    for time_s in (0.003, 0.0031, 0.01):
        clock.sleep_until(time_s)

        assert clock.now() >= time_s


def test_traces_are_cut_renumbered_and_paced(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"{10 + 2 * number},{number + 1},{2 * number + 1}" for number in range(20)]
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]))
    config = load_config({"workload": {"trace": str(trace), "num_requests": 4, "window": [10, 100]}})

    made = trace_of(config, trains=True, duration_s=1.5, max_prompt_tokens=5)

    # The first two of twenty are set aside.
    assert made.training.output_tokens.tolist() == [1, 3]
    assert made.workload.request_id.tolist() == [0, 1, 2, 3]
    assert made.workload.arrival_s == pytest.approx([0.0, 0.5, 1.0, 1.5])
    assert made.workload.prompt_tokens.tolist() == [3, 4, 5, 5]
    assert made.workload.output_tokens.tolist() == [5, 7, 9, 11]
    assert made.changes["num_cut"] == {"prompt_tokens": 1, "output_tokens": 0}
    assert any(
        "1 of 4 requests have prompt_tokens above 5" in notice for notice in made.workload.source.notices
    )


def serve(folder: Path, *more: str) -> Result:
    """Call the command: ten requests, two policies, two repeats."""
    trace = folder / "trace.csv"
    rows = [f"{0.1 * number},{number % 9 + 1},{number % 5 + 1}" for number in range(60)]
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]))
    return CliRunner().invoke(
        replay_command,
        [
            *("--device", "cpu", "--model", str(next(folder.glob("**/config.json"))), "--random-weights"),
            *("--trace", str(trace), "--policy", "multi_bin", "--policy", "vllm_v1", "--num-requests", "10"),
            *("--duration", "0.2", "--max-num-seqs", "4", "--max-tokens", "96", "--repeats", "2"),
            *("-o", str(folder / "out"), *more),
        ],
    )


def calibrating(folder: Path) -> list[str]:
    return ["--calibrate-between", str(folder / "out" / "between.csv"), "--calibration", "smoke"]


NAMES = ["multi_bin-1", "multi_bin-2", "vllm_v1-1", "vllm_v1-2"]


def test_the_command_writes_a_run_for_each_policy_and_repeat(varied_model: MakeModel, tmp_path: Path) -> None:
    varied_model()

    done = serve(tmp_path, *calibrating(tmp_path))

    assert done.exit_code == 0, done.output
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir() if entry.is_dir()) == NAMES
    workloads = {(tmp_path / "out" / name / "workload.csv").read_bytes() for name in NAMES}
    assert len(workloads) == 1
    told = json.loads((tmp_path / "out" / "vllm_v1-1" / "manifest.json").read_text())["provenance"]
    assert (told["dtype"], told["weights"], told["device"]) == ("fp32", "random", "cpu")
    assert told["command"].startswith("batchsim-calibrate ")
    assert "git_revision" in told
    rows_between = pd.read_csv(tmp_path / "out" / "between.csv")
    assert rows_between["trial"].nunique() >= 5  # a round before, between and after the four replays
    assert not math.isnan(rows_between["wall_s"].median())
    assert torch.get_num_threads() == 1


def test_an_interrupted_series_goes_on_with_the_replays_that_lack(
    varied_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    varied_model()
    out = tmp_path / "out"
    num_written = 0

    def write_twice(directory: Path, *given: Any, **options: Any) -> None:
        nonlocal num_written
        num_written += 1
        if num_written == 3:
            raise KeyboardInterrupt
        write_run(directory, *given, **options)

    monkeypatch.setattr(replay_series, "write_run", write_twice)
    stopped = serve(tmp_path, *calibrating(tmp_path))
    monkeypatch.undo()
    before = {name: (out / name / "requests.parquet").read_bytes() for name in ("multi_bin-1", "vllm_v1-1")}
    measured = (out / "between.csv.partial").read_text()

    resumed = serve(tmp_path, *calibrating(tmp_path), "--resume")

    assert stopped.exit_code == 1
    assert "--resume" in stopped.stderr
    assert resumed.exit_code == 0, resumed.output
    assert sorted(entry.name for entry in out.iterdir() if entry.is_dir()) == NAMES
    assert {name: (out / name / "requests.parquet").read_bytes() for name in before} == before
    assert (out / "between.csv").read_text().startswith(measured)


def test_a_series_is_not_resumed_over_other_replays(varied_model: MakeModel, tmp_path: Path) -> None:
    varied_model()
    serve(tmp_path)

    other = serve(tmp_path, "--resume", "--num-requests", "9")

    assert isinstance(other.exception, ConfigError)
    assert "multi_bin-1: is a run with another trace" in str(other.exception)


@pytest.mark.parametrize("resume", [False, True])
def test_only_a_resumed_series_keeps_what_an_interrupted_one_calibrated(
    varied_model: MakeModel, tmp_path: Path, resume: bool
) -> None:
    loaded = varied_model()
    engine = Engine(loaded, num_slots=4, max_tokens=64)
    points = [Point("decode", 1, context_tokens=8)]
    partial = tmp_path / "between.csv.partial"
    partial.write_text("left by a series that was interrupted\n")

    Interleaved(EnginePoints(engine), {}, points, tmp_path / "between.csv", 2, Extent(1, 9), resume=resume)

    assert partial.exists() == resume
