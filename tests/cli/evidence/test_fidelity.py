import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from batchsim.cli.evidence.fidelity import fidelity, fidelity_report
from batchsim.errors import BatchsimError
from batchsim.validation.fidelity.predict import PREDICTED_COLUMNS
from tests.validation.fidelity.fidelity_worlds import write_world


def invoke(root: Path, run: Path, *options: str) -> Result:
    arguments = [str(run), "--profile", str(root / "profiles"), "-o", str(root / "out"), *options]
    arguments += ["--workload", str(root / "workloads" / "sent.jsonl")]
    return CliRunner().invoke(fidelity, [*arguments, "--model-config", str(root / "models" / "tiny.json")])


def test_times_errors_and_a_picture_are_written(tmp_path: Path) -> None:
    result = invoke(tmp_path, write_world(tmp_path))

    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "predicted_requests.csv",
        "errors.json",
        "fidelity.png",
        "fidelity.pdf",
    }
    table = pd.read_csv(out / "predicted_requests.csv")
    assert tuple(table.columns) == PREDICTED_COLUMNS
    assert table["last_token_s"].tolist() == pytest.approx([0.0021, 0.0024])
    errors = json.loads((out / "errors.json").read_text(encoding="utf-8"))
    assert len(errors["bases"]["queued"]["aggregates"]) == len(errors["bases"]["arrival"]["aggregates"]) == 13
    assert "mean absolute error" in result.stdout


def test_options_win_over_the_record(tmp_path: Path) -> None:
    options = ("--num-kv-blocks", "100", "--max-num-seqs", "1", "--max-num-batched-tokens", "16", "--json")

    result = invoke(tmp_path, write_world(tmp_path), *options)

    assert result.exit_code == 0, result.output
    settings = json.loads(result.stdout)["settings"]
    assert (settings["num_kv_blocks"], settings["max_num_seqs"], settings["max_num_batched_tokens"]) == (
        100,
        1,
        16,
    )


def test_a_run_without_measured_times_is_predicted_all_the_same(tmp_path: Path) -> None:
    result = invoke(tmp_path, write_world(tmp_path, measured=None), "--latency-family", "linear")

    assert result.exit_code == 0, result.output
    assert len(pd.read_csv(tmp_path / "out" / "predicted_requests.csv")) == 2
    assert "nothing to compare with" in result.stderr


def test_a_missing_profile_is_one_sentence(tmp_path: Path) -> None:
    run = write_world(tmp_path)

    result = invoke(tmp_path, run, "--profile", str(tmp_path / "nowhere"))

    assert isinstance(result.exception, BatchsimError)
    assert "no such folder; an operator profile is one" in str(result.exception)


def test_a_report_covers_all_runs_of_a_folder(tmp_path: Path) -> None:
    write_world(tmp_path)

    result = CliRunner().invoke(fidelity_report, [str(tmp_path), "-o", str(tmp_path / "docs")])

    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "docs").iterdir()}
    assert names == {"fidelity.md", "fidelity_toy_one.png", "fidelity_toy_one.pdf"}
