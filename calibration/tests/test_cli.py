from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

from batchsim_calibration.cli import main
from batchsim_calibration.measuring import operations
from batchsim_calibration.provenance import device_name, slug
from batchsim_calibration.serving.timing import Timing, timed

SMALL = ("--trials", "2", "--max-batch-size", "2", "--max-tokens", "48")


def calibrate(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def smoke(output_dir: Path, *more: str) -> Result:
    return calibrate("measure", "--device", "cpu", "--smoke", *SMALL, "-o", output_dir, *more)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    result = smoke(folder)
    assert result.exit_code == 0, result.output
    return Path(result.stdout.strip())


def test_a_table_is_named_after_model_device_and_dtype(table: Path) -> None:
    assert table.name == f"tiny_{slug(device_name(torch.device('cpu')))}_fp32.csv"
    assert json.loads(table.with_suffix(".json").read_text())["kind"] == "measured"
    assert [path.name for path in sorted(table.parent.iterdir())] == [table.name, f"{table.stem}.json"]


def test_a_second_run_does_not_replace_the_first(table: Path) -> None:
    result = smoke(table.parent)

    assert result.exit_code == 2
    assert "--overwrite" in result.stderr


def test_a_run_agrees_with_itself(table: Path) -> None:
    result = calibrate("check", table, table)

    assert result.exit_code == 0
    assert "The runs agree" in result.stdout


def test_a_run_disagrees_with_a_slower_one(table: Path, tmp_path: Path) -> None:
    slower = tmp_path / "slower.csv"
    rows = pd.read_csv(table)
    rows.assign(wall_s=rows["wall_s"] * 10).to_csv(slower, index=False)

    result = calibrate("check", table, slower)

    assert result.exit_code == 1
    assert "The runs DISAGREE" in result.stdout


def test_a_missing_table_is_bad_input(tmp_path: Path) -> None:
    result = calibrate("check", tmp_path / "absent.csv", tmp_path / "absent.csv")

    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_the_alternative_is_named() -> None:
    result = calibrate("measure")

    assert result.exit_code == 2
    assert "--device cpu" in result.stderr


def test_ctrl_c_keeps_what_was_measured_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_calls = 0

    def interrupted(device: torch.device, action: Callable[[], object]) -> Timing:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 60:
            raise KeyboardInterrupt
        return timed(device, action)

    monkeypatch.setattr(operations, "timed", interrupted)
    stopped = smoke(tmp_path)
    monkeypatch.undo()

    resumed = smoke(tmp_path)

    assert stopped.exit_code == 1
    assert "the same command goes on from there" in stopped.stderr
    assert resumed.exit_code == 0, resumed.output
    details = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert details["num_resumed_rows"] > 0


def test_progress_is_told_where_no_terminal_is(tmp_path: Path) -> None:
    result = smoke(tmp_path, "--budget", "0.000001")

    assert result.exit_code == 0, result.output
    assert "no repeats after 0 s" in result.stderr
    assert "warming up: 0 %" in result.stderr
    assert "measuring: 100 %" in result.stderr
    assert "the time was up before" in " ".join(result.stderr.split())
