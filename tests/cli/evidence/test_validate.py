import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from batchsim.cli import main
from batchsim.latency.store import save_latency
from tests.results.test_measured_tables import VLLM
from tests.validation.replays.measured_worlds import engine, measure


def runs_and_model(folder: Path, changes: dict[str, object] | None = None) -> list[str]:
    for number in (1, 2):
        measure(
            folder / "runs" / f"static_fifo-{number}",
            "static_fifo",
            trace=(40, 2.0),
            seed=number,
            changes=changes,
        )
    save_latency(engine(), folder / "latency.json")
    return [str(folder / "runs"), str(folder / "latency.json")]


def test_errors_runs_and_gates_are_printed_and_written(tmp_path: Path) -> None:
    out = tmp_path / "out"

    result = CliRunner().invoke(main, ["validate", *runs_and_model(tmp_path), "-o", str(out)])

    assert result.exit_code == 0, result.output
    for printed in ("static_fifo: 40 requests, 2 measured runs", "TTFT", "(a) logic", "(b) model", "(c) end"):
        assert printed in result.stdout
    names = {"validation.csv", "validation.json", "validation_static_fifo.pdf", "validation_static_fifo.png"}
    assert {path.name for path in out.iterdir()} == names
    assert (out / "validation_static_fifo.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(out / "validation.csv")
    assert list(table.columns)[:6] == ["case", "metric", "statistic", "measured", "predicted", "error"]
    assert len(table) == 3 * 6 + 2


def test_json_is_one_object_and_the_file_holds_the_same(tmp_path: Path) -> None:
    out = tmp_path / "out"

    result = CliRunner().invoke(main, ["validate", *runs_and_model(tmp_path), "--json", "-o", str(out)])

    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed == json.loads((out / "validation.json").read_text(encoding="utf-8"))
    assert [run["run"] for run in printed["runs"]] == ["static_fifo-1", "static_fifo-2"]


def test_exit_status_is_1_where_the_logic_fails_and_all_is_written_all_the_same(tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = runs_and_model(tmp_path, changes={"policy.batch_size": 1})

    result = CliRunner().invoke(main, ["validate", *given, "-o", str(out)])

    assert result.exit_code == 1
    assert "first difference" in result.stdout
    assert (out / "validation.json").is_file()


def test_a_folder_without_measured_runs_is_bad_usage(tmp_path: Path) -> None:
    model = runs_and_model(tmp_path)[1]
    (tmp_path / "empty").mkdir()

    result = CliRunner().invoke(main, ["validate", str(tmp_path / "empty"), model])

    assert result.exit_code == 2
    assert "no measured run in it" in result.stderr


@pytest.mark.parametrize("given", [[], ["result.json"]])
def test_one_path_alone_lacks_what_it_is_compared_with(given: list[str]) -> None:
    result = CliRunner().invoke(main, ["validate", *given])

    assert result.exit_code == 2
    missing = "after result.json, PREDICTED is missing" if given else "argument 'MEASURED... PREDICTED'"
    assert missing in result.stderr


def test_results_of_other_benchmarks_are_simulated_as_the_options_say(tmp_path: Path) -> None:
    result, model, out = tmp_path / "result.json", tmp_path / "latency.json", tmp_path / "out"
    result.write_text(json.dumps(VLLM), encoding="utf-8")
    save_latency(engine(), model)
    options = ["--policy", "sarathi", "--set", "policy.batch_size=2", "-o", str(out)]

    shown = CliRunner().invoke(main, ["validate", str(result), str(model), *options])
    printed = CliRunner().invoke(main, ["validate", str(result), str(model), "--json"])

    assert shown.exit_code == printed.exit_code == 0, shown.output
    assert "result: 3 requests, 1 measured run (vLLM bench)" in shown.stdout
    assert "under sarathi" in " ".join(shown.stdout.split())
    assert "read as of vLLM bench" in shown.stderr
    assert (out / "validation_result.png").is_file()
    assert json.loads(printed.stdout)["cases"][0]["load"] is None
    assert json.loads(printed.stdout)["prediction"].endswith("under vllm_v1")


def test_a_file_of_no_known_benchmark_is_bad_usage(tmp_path: Path) -> None:
    result, model = tmp_path / "result.json", tmp_path / "latency.json"
    result.write_text(json.dumps([{"timestamp": 0}] * 10_000), encoding="utf-8")
    save_latency(engine(), model)

    refused = CliRunner().invoke(main, ["validate", str(result), str(model)])

    assert refused.exit_code == 2
    assert "read are vLLM bench JSON" in refused.stderr
    assert len(refused.stderr) < 500


def test_measured_requests_become_a_trace(tmp_path: Path) -> None:
    result, trace = tmp_path / "result.json", tmp_path / "trace.csv"
    result.write_text(json.dumps(VLLM), encoding="utf-8")

    converted = CliRunner().invoke(main, ["trace", "convert", str(result), str(trace)])

    assert converted.exit_code == 0, converted.output
    lines = trace.read_text(encoding="utf-8").splitlines()
    assert lines == ["arrival_s,prompt_tokens,output_tokens", "0.0,100,3", "0.5,200,1", "2.5,50,2"]
