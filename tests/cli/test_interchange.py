"""Commands that give runs to other tools, and take theirs."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from batchsim.cli import main
from batchsim.results.measured_tables import read_measured

TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "".join(
    f"{0.4 * row},{20 + row % 7},{1 + row * 37 % 90}\n" for row in range(40)
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    trace, folder = tmp_path / "trace.csv", tmp_path / "run"
    trace.write_text(TRACE, encoding="utf-8")
    done = CliRunner().invoke(main, ["run", "--trace", str(trace), "--policy", "vllm_v1", "-o", str(folder)])
    assert done.exit_code == 0, done.output
    return folder


@pytest.mark.parametrize("form", ["vllm-bench", "aiperf"])
def test_a_run_is_exported_as_the_option_says(form: str, run_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "result"

    done = CliRunner().invoke(main, ["export", str(run_dir), str(file), "--to", form])
    again = CliRunner().invoke(main, ["export", str(run_dir), str(file), "--to", form])

    assert done.exit_code == 0, done.output
    assert f"written: {file}" in done.stderr
    (read,) = read_measured(file)
    assert len(read.requests) == 40
    assert again.exit_code == 2
    assert "replace it with --overwrite" in again.stderr


def test_a_file_of_the_run_is_not_replaced(run_dir: Path) -> None:
    before = (run_dir / "summary.json").read_bytes()

    done = CliRunner().invoke(
        main, ["export", str(run_dir), str(run_dir / "summary.json"), "--to", "aiperf", "--overwrite"]
    )

    assert done.exit_code == 2
    assert "is an input" in done.stderr
    assert (run_dir / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("form", "suffix"), [("burstgpt", ".csv"), ("mooncake", ".jsonl"), ("guidellm", ".jsonl")]
)
def test_a_trace_is_converted_for_others_and_what_is_lost_is_told(
    form: str, suffix: str, run_dir: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "given.csv", tmp_path / f"out{suffix}"
    rows = TRACE.splitlines()
    source.write_text("\n".join([f"{rows[0]},priority", *(f"{row},1" for row in rows[1:])]), encoding="utf-8")

    done = CliRunner().invoke(main, ["trace", "convert", str(source), str(target), "--to", form])

    assert done.exit_code == 0, done.output
    assert f"as {form}, priority cannot be carried" in done.stderr
    lines = target.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 40 + (form == "burstgpt")
    if form != "burstgpt":
        assert json.loads(lines[1])["timestamp"] == {"mooncake": 400, "guidellm": 0.4}[form]
