from pathlib import Path

import pandas as pd
import pytest

from batchsim.errors import ConfigError, TraceError
from batchsim.validation.replays.gates import logic_gate
from batchsim.validation.replays.measured_replay import read_recording, recordings_in
from batchsim.validation.replays.recorded_times import RecordedReplay, replay_recorded
from tests.validation.replays.measured_worlds import measure

ENGINES = ["orca", "vllm_v0", "vllm_v1", "sarathi", "sjf", "multi_bin_continuous", "dynamic_batching"]
BATCHES = ["static_fifo", "multi_bin", "multi_bin_dynamic", "dynamic_no_bins"]

#: Served by a real model in real time; the provenance in each manifest says on what.
MEASURED = sorted((Path(__file__).parents[3] / "calibration" / "data" / "replays").glob("*/*/"))


def replayed(directory: Path) -> RecordedReplay:
    return replay_recorded(read_recording(directory))


def rewrite(directory: Path, table: str, column: str, row: int, value: float) -> None:
    frame = pd.read_parquet(directory / f"{table}.parquet")
    values = frame[column].to_numpy().copy()
    values[row] = value
    frame.assign(**{column: values}).to_parquet(directory / f"{table}.parquet")


@pytest.mark.parametrize("preset", [*ENGINES, *BATCHES])
def test_recorded_durations_bring_every_request_back_at_its_time(preset: str, tmp_path: Path) -> None:
    directory = measure(tmp_path / "run", preset)

    replay = replayed(directory)

    assert replay.first_mismatch is None
    assert replay.num_alike == replay.num_operations > 15
    assert replay.largest_difference_s < 1e-9
    recorded = pd.read_parquet(directory / "requests.parquet")
    assert replay.result.requests["finish_s"].tolist() == pytest.approx(
        recorded["finish_s"].tolist(), abs=1e-9
    )


def test_batches_that_outgrew_their_memory_outgrow_it_again(tmp_path: Path) -> None:
    directory = measure(tmp_path / "run", "static_fifo", predicted_tokens=8)

    replay = replayed(directory)

    assert replay.first_mismatch is None
    assert replay.largest_difference_s < 1e-9
    assert replay.result.batches["num_evicted"].sum() > 0


def test_the_worlds_of_these_tests_preempt_and_decide(tmp_path: Path) -> None:
    engine = read_recording(measure(tmp_path / "engine", "vllm_v1"))
    batches = read_recording(measure(tmp_path / "batches", "static_fifo"))
    sized = measure(tmp_path / "sized", "dynamic_batching")

    assert engine.operations["num_preempted"].sum() > 0
    assert batches.operations["batch_size"].nunique() > 3
    assert len(pd.read_parquet(sized / "controllers.parquet")) > 10


def test_durations_that_were_tampered_with_are_noticed_in_the_times(tmp_path: Path) -> None:
    directory = measure(tmp_path / "run", "vllm_v1")
    iterations, requests = (
        pd.read_parquet(directory / f"{name}.parquet") for name in ("iterations", "requests")
    )
    row = int(iterations["finish_s"].searchsorted(requests["first_token_s"][20]))
    half_s = (iterations["finish_s"][row + 1] - iterations["start_s"][row + 1]) / 2
    # That iteration got longer, and the next shorter by as much: only who had a token in between is late.
    rewrite(directory, "iterations", "finish_s", row, iterations["finish_s"][row] + half_s)
    rewrite(directory, "iterations", "start_s", row + 1, iterations["start_s"][row + 1] + half_s)

    replay = replayed(directory)

    assert replay.largest_difference_s == pytest.approx(half_s, rel=1e-6)


def test_an_edited_shape_is_the_first_mismatch(tmp_path: Path) -> None:
    directory = measure(tmp_path / "run", "vllm_v1")
    rewrite(directory, "iterations", "decode_seqs", 30, 99)

    replay = replayed(directory)

    assert replay.first_mismatch is not None
    assert replay.first_mismatch.number == 30
    assert replay.first_mismatch.recorded == {"decode_seqs": 99}
    assert list(replay.first_mismatch.simulated) == ["decode_seqs"]
    assert replay.num_alike == replay.num_operations - 1
    assert str(replay.first_mismatch).startswith("operation 30: decode_seqs 99 recorded, decode_seqs ")


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("vllm_v1", {"policy.preset": "vllm_v0"}),
        ("vllm_v0", {"policy.preset": "orca"}),
        ("vllm_v1", {"policy.batch_size": 5}),
        ("sarathi", {"engine.num_kv_blocks": 30}),
        ("static_fifo", {"policy.batch_size": 3}),
        ("multi_bin", {"policy.queueing.boundaries": [10, 20, 30]}),
        ("dynamic_no_bins", {"policy.preset": "static_fifo"}),
    ],
)
def test_another_policy_in_the_manifest_is_noticed(
    preset: str, changes: dict[str, object], tmp_path: Path
) -> None:
    directory = measure(tmp_path / "run", preset, changes=changes)

    replay = replayed(directory)

    assert replay.first_mismatch is not None
    assert replay.num_alike < replay.num_operations
    assert replay.largest_difference_s > 0.01


def test_a_run_that_goes_on_after_the_last_recorded_operation_ends_all_the_same(tmp_path: Path) -> None:
    directory = measure(tmp_path / "run", "static_fifo")
    batches = pd.read_parquet(directory / "batches.parquet")
    batches[:-3].to_parquet(directory / "batches.parquet")

    replay = replayed(directory)

    assert replay.num_alike == replay.num_operations == len(batches) - 3
    assert replay.first_mismatch is not None
    assert replay.first_mismatch.number == len(batches) - 3
    assert replay.first_mismatch.recorded == {}
    assert "none recorded" in str(replay.first_mismatch)


def test_a_folder_gives_its_measured_runs_in_order_and_leaves_simulated_ones_out(tmp_path: Path) -> None:
    for name in ("b-2", "b-1"):
        measure(tmp_path / "runs" / name, "static_fifo", trace=(20,))
    measure(tmp_path / "simulated", "static_fifo", trace=(20,)).rename(tmp_path / "runs" / "c")
    (tmp_path / "runs" / "c" / "manifest.json").write_text('{"config": {}}')

    recordings = recordings_in([tmp_path / "runs"])

    assert [recording.directory.name for recording in recordings] == ["b-1", "b-2"]


def test_the_load_is_the_share_of_time_in_which_the_engine_ran(tmp_path: Path) -> None:
    recording = read_recording(measure(tmp_path / "run", "static_fifo", trace=(30,)))

    busy_s = sum(recording.durations_s)

    assert recording.load == pytest.approx(busy_s / recording.requests["finish_s"].max())
    assert 0.2 < recording.load < 1


def test_a_simulated_run_is_no_measured_one(tmp_path: Path) -> None:
    directory = measure(tmp_path / "run", "static_fifo", trace=(20,))
    (directory / "manifest.json").write_text('{"config": {}}')

    with pytest.raises(ConfigError, match="does not say that it was measured"):
        read_recording(directory)


def test_a_measured_run_of_every_policy_is_at_hand() -> None:
    policies = {directory.name.rpartition("-")[0] for directory in MEASURED}

    assert policies == {"static_fifo", "multi_bin_dynamic", "vllm_v1"}


@pytest.mark.parametrize(
    "directory", MEASURED, ids=lambda directory: f"{directory.parent.name}/{directory.name}"
)
def test_the_simulator_takes_the_decisions_that_a_real_engine_took(directory: Path) -> None:
    recording = read_recording(directory)

    gate = logic_gate(recording)
    replay = replay_recorded(recording)

    assert recording.provenance["gpu"]
    assert gate.verdict == "pass", gate.finding
    assert replay.num_alike == replay.num_operations > 15
    assert replay.largest_difference_s < 1e-6


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no measured run in it"):
        recordings_in([tmp_path])


@pytest.mark.parametrize(
    ("preset", "change", "message"),
    [
        ("vllm_v1", {"engine.num_kv_blocks": None}, "leaves engine.num_kv_blocks open"),
        ("static_fifo", {"cluster.kv_capacity_tokens": None}, "leaves cluster.kv_capacity_tokens open"),
        ("vllm_v1", {"cluster.num_gpus": 2}, "several engines"),
    ],
)
def test_a_configuration_that_does_not_settle_the_run_is_refused(
    preset: str, change: dict[str, object], message: str, tmp_path: Path
) -> None:
    directory = measure(tmp_path / "run", preset, trace=(20,), changes=change)

    with pytest.raises(ConfigError, match=message):
        read_recording(directory)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("num_iterations", 2, "operation 7 holds several iterations"),
        ("finish_s", 0.0, "operation 7 ends before it starts"),
        ("start_s", 0.001, "operation 7 starts before the one before it ends"),
    ],
)
def test_operations_that_do_not_follow_one_another_are_refused(
    column: str, value: float, message: str, tmp_path: Path
) -> None:
    directory = measure(tmp_path / "run", "vllm_v1", trace=(20,))
    rewrite(directory, "iterations", column, 7, value)

    with pytest.raises(TraceError, match=message):
        read_recording(directory)
