from pathlib import Path

import pandas as pd
import pytest

from batchsim.errors import ConfigError
from batchsim.study.plan import plan, read_sweep_file
from batchsim.study.replications import Stopping, replication_seed
from batchsim.study.sweeps.precision import run_sweep_until
from tests.study.test_sweep import SMALL, sweep_file


def test_each_point_has_as_many_replications_as_its_interval_takes(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, SMALL.replace("num_requests = 40", "num_requests = 80"))
    stopping = Stopping(2, precision=0.12, most=9)

    results = run_sweep_until(path, tmp_path, stopping)

    table = pd.read_csv(tmp_path / "small" / "aggregated.csv")
    half_widths_s = table["e2e_mean_ci95_high_s"] - table["e2e_mean_s"]
    is_precise = half_widths_s <= 0.12 * table["e2e_mean_s"]
    assert (is_precise | (table["num_replications"] == 9)).all()
    assert is_precise.any()
    assert table["num_replications"].min() < table["num_replications"].max()
    assert table["num_replications"].sum() == len(results)


def test_the_same_command_does_no_run_twice(tmp_path: Path) -> None:
    path, stopping = sweep_file(tmp_path), Stopping(2, precision=0.2, most=4)
    run_sweep_until(path, tmp_path, stopping)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("small/runs/*/manifest.json")}

    run_sweep_until(path, tmp_path, stopping)

    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_points_that_are_not_precise_enough_are_told(tmp_path: Path) -> None:
    said: list[str] = []

    run_sweep_until(
        sweep_file(tmp_path), tmp_path, Stopping(2, precision=1e-6, most=2), on_notice=said.append
    )

    (sentence,) = (one for one in said if "precision" in one)
    assert sentence.startswith("small: 4 of 4 points: a precision of 0.0001% was not reached: after 2 repl")
    assert sentence.endswith("the first: policy.preset=static_fifo, workload.request_rate_per_gpu=0.5")


def test_the_file_may_ask_for_more_replications_to_begin_with(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, f"replications = 3\n{SMALL}")

    results = run_sweep_until(path, tmp_path, Stopping(2, precision=0.9))

    assert len(results) == 12


def test_a_part_of_a_sweep_has_no_precision(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave out the shard"):
        run_sweep_until(sweep_file(tmp_path), tmp_path, Stopping(2, precision=0.5), shard=(1, 2))


def test_a_point_is_planned_with_as_many_replications_as_it_is_given(tmp_path: Path) -> None:
    sweep = read_sweep_file(sweep_file(tmp_path), replications=2)
    first = plan(sweep)[0]

    runs = plan(sweep, counts={first.point: 3})

    assert len(runs) == 3 + 3 * 2
    assert [run.config.seed for run in runs[:3]] == [replication_seed(0, k) for k in range(3)]
    assert {run.point for run in runs[:3]} == {first.point}
