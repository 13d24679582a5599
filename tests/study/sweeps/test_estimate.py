"""How long a sweep takes is told from what is known of it, and what that is."""

import json
from pathlib import Path

import pytest

from batchsim.study.plan import PlannedRun, plan, read_sweep_file
from batchsim.study.sweep import SweepProgress, look, run_sweep
from batchsim.study.sweeps.estimate import estimate, num_requests, shares

SWEEP = """
name = "small"
[base]
workload.generator.kind = "poisson"
workload.generator.rate_per_s = 1.0
workload.generator.prompt = {kind = "fixed", tokens = 10}
workload.generator.output = {kind = "uniform", low = 1, high = 90}
workload.training_fraction = 0.1
[grid]
policy.preset = ["static_fifo", "multi_bin"]
workload.num_requests = [100, 400]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "sweep.toml"
    file.write_text(SWEEP, encoding="utf-8")
    return file


def planned(path: Path, **overrides: object) -> list[PlannedRun]:
    return plan(read_sweep_file(path, overrides=overrides), path)


def finished(run: PlannedRun, folder: Path, duration_s: object) -> tuple[PlannedRun, Path]:
    """A run that says that it took so long."""
    place = folder / run.run_id
    place.mkdir()
    told = {"workload": {"num_requests": num_requests(run) or 1000}, "duration_s": duration_s}
    (place / "manifest.json").write_text(json.dumps(told), encoding="utf-8")
    return run, place


def test_runs_take_as_long_as_finished_ones_of_their_policy_by_request(path: Path, tmp_path: Path) -> None:
    fifo, long_fifo, bins, long_bins = planned(path)

    told = estimate([long_fifo, long_bins], [finished(fifo, tmp_path, 1.0), finished(bins, tmp_path, 3.0)])

    assert told.run_s == {long_fifo.run_id: 4.0, long_bins.run_id: 12.0}
    assert told.source == "from 2 finished runs of this sweep"


def test_a_policy_of_which_none_is_finished_takes_as_long_as_the_others(path: Path, tmp_path: Path) -> None:
    fifo, _, _, long_bins = planned(path)

    assert estimate([long_bins], [finished(fifo, tmp_path, 1.0)]).run_s == {long_bins.run_id: 4.0}


def test_where_the_trace_says_how_many_requests_runs_take_the_mean(path: Path, tmp_path: Path) -> None:
    whole = PlannedRun("0" * 12, planned(path)[0].config.model_validate({}), "", {}, "", {})

    told = estimate(
        [whole], [finished(run, tmp_path, 2.0 * number) for number, run in enumerate(planned(path), 1)]
    )

    assert told.run_s == {whole.run_id: pytest.approx(3.0)}  # of the two of its policy


@pytest.mark.parametrize("duration_s", [None, "long", -1])
def test_without_a_finished_run_that_tells_small_ones_are_made(
    path: Path, tmp_path: Path, duration_s: object
) -> None:
    run, _, _, long_bins = planned(path)

    told = estimate([run, long_bins], [finished(run, tmp_path, duration_s)])

    assert told.source == "from a run of 500 requests, or fewer, of each policy"
    assert set(told.run_s) == {run.run_id, long_bins.run_id}
    assert all(seconds > 0 for seconds in told.run_s.values())


def test_runs_that_cannot_be_tried_tell_nothing(path: Path) -> None:
    config = planned(path)[0].config
    gone = config.model_copy(update={"policy": config.policy.model_copy(update={"preset": "gone:gone"})})

    assert estimate([PlannedRun("0" * 12, gone, "", {}, "", {})], []) == (
        {},
        "no run tells how long they take",
    )


def test_the_share_of_a_run_is_that_of_its_requests(path: Path) -> None:
    runs = planned(path)
    unknown = PlannedRun("0" * 12, runs[0].config.model_validate({}), "", {}, "", {})

    assert list(shares(runs).values()) == [0.1, 0.4, 0.1, 0.4]
    assert list(shares([*runs, unknown]).values()) == [0.2] * 5
    assert shares([]) == {}


def test_requests_by_gpu_count_for_all_gpus(path: Path) -> None:
    given = {"workload.num_requests": None, "workload.num_requests_per_gpu": 7, "cluster.num_gpus": 3}

    assert {num_requests(run) for run in planned(path, **given)} == {21}


def test_a_sweep_that_has_run_says_how_long_the_rest_takes(path: Path, tmp_path: Path) -> None:
    states: list[SweepProgress] = []

    run_sweep(path, tmp_path / "out", shard=(1, 2), on_progress=states.append)
    state = look(path, tmp_path / "out")

    assert states[0].remaining_s is None
    assert states[-1].remaining_s == pytest.approx(0.0, abs=1e-6)
    assert [run.varied["workload.num_requests"] for run in state.to_do] == [400, 400]
    assert state.estimate().source == "from 2 finished runs of this sweep"
    assert not (tmp_path / "out" / "small" / "runs" / state.to_do[0].run_id).exists()


def test_to_look_changes_nothing(path: Path, tmp_path: Path) -> None:
    assert len(look(path, tmp_path / "out").to_do) == 4
    assert not (tmp_path / "out").exists()
