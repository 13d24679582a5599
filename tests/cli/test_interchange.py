"""Commands that give runs to other tools, and take theirs."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from batchsim.cli import main
from batchsim.cli.interchange import export
from batchsim.cli.traces import convert
from batchsim.results.exchange.export import FORMS
from batchsim.results.measured_tables import read_measured
from batchsim.workload.writers.foreign import FOREIGN
from tests.results.test_measured_tables import SGLANG, written

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


def test_measured_results_become_a_run_and_stand_beside_simulations(run_dir: Path, tmp_path: Path) -> None:
    file, folder, out = tmp_path / "mine.json", tmp_path / "mine", tmp_path / "out"
    CliRunner().invoke(main, ["export", str(run_dir), str(file), "--to", "vllm-bench"])

    done = CliRunner().invoke(main, ["import-results", str(file), "-o", str(folder), "--slo", "ttft:500"])
    shown = CliRunner().invoke(main, ["compare", "--measured", str(folder), "-o", str(out)])
    printed = CliRunner().invoke(
        main, ["compare", "--measured", str(file), "--policy", "vllm_v1,orca", "--json"]
    )

    for result in (done, shown, printed):
        assert result.exit_code == 0, result.output
    assert "40 requests of vLLM bench" in done.stderr
    assert json.loads((folder / "summary.json").read_text("utf-8"))["slo_attainment"] is not None
    for text in ("simulated (vLLM bench)", "vllm_v1", "E2E against mine, same requests (ms)"):
        assert text in shown.stdout
    assert {path.name for path in out.iterdir()} == {"differences.csv", "vllm_v1"}
    tree = json.loads(printed.stdout)
    assert list(tree["summaries"]) == ["vllm_v1", "orca"]
    means_s = [one["e2e_mean_s"] for one in (tree["measured"], tree["summaries"]["vllm_v1"])]
    assert means_s[0] == pytest.approx(means_s[1])
    assert tree["measured"]["busy_fraction"] is None


def test_several_runs_of_a_file_get_a_folder_each(tmp_path: Path) -> None:
    file = written(tmp_path, SGLANG, SGLANG)

    done = CliRunner().invoke(main, ["import-results", str(file), "-o", str(tmp_path / "all")])
    refused = CliRunner().invoke(main, ["compare", "--measured", str(file)])
    repeated = CliRunner().invoke(
        main, ["compare", "--measured", str(tmp_path / "all" / "run-1"), "--replications", "2"]
    )

    assert done.exit_code == 0, done.output
    assert repeated.exit_code == 2
    assert "--measured is a single run" in repeated.stderr
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["run-1", "run-2"]
    assert refused.exit_code == 2
    assert "holds 2 runs" in refused.stderr


def test_a_folder_that_is_taken_is_refused_before_anything_is_read(run_dir: Path, tmp_path: Path) -> None:
    file = written(tmp_path, SGLANG)

    refused = CliRunner().invoke(main, ["import-results", str(file), "-o", str(run_dir)])

    assert refused.exit_code == 2
    assert "holds a run already" in refused.stderr


def test_the_options_name_all_forms_that_can_be_written() -> None:
    def choices(command: click.Command) -> list[str]:
        (option,) = [one for one in command.params if one.name == "form"]
        assert isinstance(option.type, click.Choice)
        return list(option.type.choices)

    assert choices(export) == list(FORMS)
    assert choices(convert) == ["batchsim", *FOREIGN]
