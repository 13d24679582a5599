"""Damaged records of real engines: one sentence, or the values of another reading and finite predictions."""

import csv
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.results.store import load_run
from batchsim.validation.fidelity.end_times import timeline_ends
from batchsim.validation.fidelity.engine_run import MeasuredRun, read_measured_run
from batchsim.validation.fidelity.kv_memory import read_model_config
from batchsim.validation.fidelity.predict import predict, read_workload
from batchsim.validation.points import Points
from batchsim.validation.replays.measured_replay import read_recording
from batchsim.validation.replays.recorded_times import replay_recorded
from batchsim.validation.roofline.closed_loops import predict_closed_loops
from batchsim.validation.roofline.static_batches import predict_static_batches
from tests.fuzz.mutations import fuzz, mutated_bytes, mutated_csv, mutated_json, one_sentence
from tests.validation.fidelity import test_end_times
from tests.validation.fidelity.fidelity_worlds import write_world
from tests.validation.replays.measured_worlds import measure
from tests.validation.roofline.published import write_batches, write_loops


def damage(path: Path, data: st.DataObject) -> None:
    """Damage a file as its name says that it is."""
    if path.suffix == ".json":
        content = data.draw(mutated_json(json.loads(path.read_text(encoding="utf-8"))))
    elif path.suffix == ".csv":
        content = data.draw(mutated_csv(path.read_text(encoding="utf-8")))
    else:
        content = data.draw(mutated_bytes(path.read_bytes()))
    path.write_bytes(content)


@given(data=st.data())
@fuzz
@pytest.mark.parametrize("name", ["meta.json", "measured_requests.csv", "peer_toysim.csv"])
def test_damaged_measured_run_is_refused_or_read_as_it_stands(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = write_world(tmp_path_factory.mktemp("world"))
    damage(directory / name, data)

    run = one_sentence(lambda: read_measured_run(directory))

    if run is not None:
        check_times(run, directory / "measured_requests.csv")


def check_times(run: MeasuredRun, path: Path) -> None:
    text = path.read_bytes().decode("utf-8-sig")
    header, *rows = (row for row in csv.reader(io.StringIO(text, newline=""), skipinitialspace=True) if row)
    names = [name.strip() for name in header]
    tokens = "output_tokens" if "output_tokens" in names else "output_toks"
    expected = []
    for cells in rows:
        row = dict(zip(names, (cell.strip() for cell in cells), strict=True))
        needed = [row[name] for name in (tokens, "first_token_s", "last_token_s")]
        if all(cell.lower() not in ("", "nan", "none", "null") for cell in needed):
            expected.append((row["request_id"], *map(float, needed)))
    assert run.requests is not None
    columns = ["request_id", "output_tokens", "first_token_s", "last_token_s"]
    assert list(run.requests[columns].itertuples(index=False, name=None)) == expected


@given(data=st.data())
@fuzz
@pytest.mark.parametrize("name", ["runs/toy/one/meta.json", "models/tiny.json", "workloads/sent.jsonl"])
def test_damaged_engine_is_refused_or_predicted_in_finite_times(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("world")
    directory = write_world(root)
    damage(root / name, data)

    def read() -> list[float]:
        settings = read_measured_run(directory).settings
        workload = read_workload(root / "workloads/sent.jsonl")
        model = read_model_config(root / "models/tiny.json")
        prediction = predict(settings, root / "profiles/toy/tiny/bf16", model, *workload)
        return prediction.requests["last_token_s"].tolist()

    last_token_s = one_sentence(read)

    assert last_token_s is None or all(0 < time_s < math.inf for time_s in last_token_s)


@given(data=st.data())
@fuzz
@pytest.mark.parametrize(
    "name",
    [
        "runs/toy/A_config.json",
        "runs/toy/A_throughput.measured_vllm.csv",
        "runs/workloads/sent_tiny.jsonl",
        "data/models/org/Tiny-1.json",
    ],
)
def test_damaged_timeline_is_refused_or_ends(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = test_end_times.make_world(tmp_path_factory.mktemp("world"))
    test_end_times.write_run(world, "A")
    damage(world / name, data)

    ends = one_sentence(lambda: list(timeline_ends(world / "runs", world / "data")))

    for end in ends or ():
        assert 1 <= end.measured_s < math.inf
        assert end.reason or 0 < end.predicted_s < math.inf


@given(data=st.data())
@fuzz
@pytest.mark.parametrize(
    ("write", "read"),
    [(write_batches, predict_static_batches), (write_loops, predict_closed_loops)],
    ids=["batches", "loops"],
)
def test_damaged_measurements_are_refused_or_counted(
    write: Callable[..., Path], read: Callable[[Path], Points], data: st.DataObject, tmp_path: Path
) -> None:
    path = write(tmp_path / "table.csv", {}, {})
    damage(path, data)

    points = one_sentence(lambda: read(path))

    if points is not None:
        assert ((points.table["measured_s"] > 0) & (points.table["predicted_s"] > 0)).all()
        per_row = points.table["metric"].nunique() or 1
        assert len(points.table) / per_row + points.skipped.total() == points.num_rows


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recordings")
    return {preset: measure(folder / preset, preset, trace=(8,)) for preset in ("vllm_v1", "static_fifo")}


@given(data=st.data())
@fuzz
@pytest.mark.parametrize("preset", ["vllm_v1", "static_fifo"])
@pytest.mark.parametrize("name", ["manifest.json", "summary.json", "workload.csv", "requests.parquet"])
def test_damaged_recording_is_refused_or_replayed(
    name: str,
    preset: str,
    recordings: dict[str, Path],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(recordings[preset], directory)
    damage(directory / name, data)

    recording = one_sentence(lambda: read_recording(directory))

    assert recording is None or one_sentence(lambda: load_run(directory)) is not None
    if recording is not None:
        replay = one_sentence(lambda: replay_recorded(recording))
        assert replay is None or replay.num_operations == len(recording.operations)


def test_what_is_no_file_or_table_is_refused(
    recordings: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in ("manifest.json", "summary.json", "requests.parquet", "iterations.parquet"):
        for content in (b"", b"PAR1", b"[" * 100_000, b"[]", b"null"):
            directory = tmp_path_factory.mktemp("run") / "run"
            shutil.copytree(recordings["vllm_v1"], directory)
            (directory / name).write_bytes(content)

            assert one_sentence(lambda directory=directory: load_run(directory)) is None, (name, content)
