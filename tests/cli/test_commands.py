import json
import re
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from batchsim.cli import main
from batchsim.latency.store import default_latency, save_latency
from batchsim.policies.presets import PRESETS, names_of
from batchsim.specs import load_gpu, load_model
from tests.latency.flat_passes import flat_passes

TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "".join(
    f"{0.4 * row},{20 + row % 7},{1 + (row * 37) % 90}\n" for row in range(300)
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "trace.csv"
    file.write_text(TRACE, encoding="utf-8")
    return file


def test_json_prints_one_object_and_nothing_else(trace: Path) -> None:
    result = CliRunner().invoke(
        main, ["run", "--trace", str(trace), "--policy", "multi_bin_dynamic", "--json"]
    )

    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["policy"] == "multi_bin_dynamic"
    assert summary["num_finished"] == summary["num_requests"] == 270


def test_a_run_directory_holds_all_tables(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    result = CliRunner().invoke(main, ["run", "--trace", str(trace), "-o", str(out), "--slo", "e2e:2000"])

    assert result.exit_code == 0, result.output
    names = {
        "manifest.json",
        "sketches.parquet",
        "summary.json",
        "requests.parquet",
        "batches.parquet",
        "controllers.parquet",
    }
    assert {path.name for path in out.iterdir()} == names
    assert len(pd.read_parquet(out / "requests.parquet")) == 300
    assert json.loads((out / "manifest.json").read_text())["config"]["slo"]["e2e_ms"] == 2000


def test_a_run_with_tenants_tells_what_each_got(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    rows = TRACE.splitlines()
    labelled = [f"{row},{'chat' if number % 3 else 'crawler'}" for number, row in enumerate(rows[1:])]
    file.write_text("\n".join([f"{rows[0]},tenant", *labelled]), encoding="utf-8")
    given = ["run", "--trace", str(file), "--policy", "vllm_v1", "--set", "policy.queueing.kind=FairShare"]

    printed = CliRunner().invoke(main, [*given, "--slo", "ttft:2000"])
    told = CliRunner().invoke(main, [*given, "--json"])

    assert printed.exit_code == told.exit_code == 0, printed.output + told.output
    assert "tenant chat" in printed.stdout
    assert "200 of 200" in printed.stdout
    assert "Jain's index" in printed.stdout
    tenants = json.loads(told.stdout)["tenants"]
    assert [one["name"] for one in tenants] == ["chat", "crawler"]
    assert tenants[0]["slo_attainment"] is None


def test_compare_prints_every_preset_and_warns_of_twins(trace: Path) -> None:
    result = CliRunner().invoke(main, ["compare", "--trace", str(trace), "--rate-scale", "0.001"])

    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in names_of(is_iteration_level=False))
    assert "gave identical results" in " ".join(result.stderr.split())


def test_a_heading_says_how_many_requests_were_set_aside(trace: Path) -> None:
    few = ["--trace", str(trace), "--num-requests", "100"]

    alone = CliRunner().invoke(main, ["run", *few])
    compared = CliRunner().invoke(main, ["compare", *few, "--policy", "static_fifo,multi_bin"])

    assert "100 requests of trace.csv (unknown), 1 GPU" in " ".join(alone.stdout.split())
    assert "100 requests of trace.csv (unknown) after 30 set aside for training" in " ".join(
        compared.stdout.split()
    )


def test_capacity_gives_a_rate_for_each_policy_and_keeps_its_trials(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--policy", "static_fifo,vllm_v1", "--slo", "e2e:5000", "--parts", "2"]
    options += ["--tolerance", "0.2"]

    shown = CliRunner().invoke(main, ["capacity", "--trace", str(trace), *options, "-o", str(out)])
    printed = CliRunner().invoke(main, ["capacity", "--trace", str(trace), *options, "--json"])

    assert shown.exit_code == printed.exit_code == 0, shown.output
    found = json.loads(printed.stdout)
    assert json.loads((out / "capacity.json").read_text()) == found
    trials = pd.read_csv(out / "trials.csv")
    for policy in ("static_fifo", "vllm_v1"):
        assert policy in shown.stdout
        assert found[policy]["num_simulations"] == (trials["policy"] == policy).sum()
        assert found[policy]["request_rate_per_s"] > 0


def test_capacity_without_a_limit_is_bad_usage(trace: Path) -> None:
    result = CliRunner().invoke(main, ["capacity", "--trace", str(trace)])

    assert result.exit_code == 2
    assert "a capacity needs an SLO" in result.stderr


def test_options_reach_the_configuration(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--num-gpus", "3", "--batch-size", "4", "--seed", "9", "--predictor", "lognormal:sigma=0.2"]
    options += ["--set", "policy.batching.order=longest", "--window", "0:60", "--request-rate", "2"]

    result = CliRunner().invoke(main, ["run", "--trace", str(trace), *options, "-o", str(out), "--verbose"])

    assert result.exit_code == 0, result.output
    config = json.loads((out / "manifest.json").read_text())["config"]
    assert config["cluster"]["num_gpus"] == 3
    assert config["policy"]["batch_size"] == 4
    assert config["predictor"] == {"kind": "lognormal", "sigma": 0.2}
    assert config["workload"]["window"] == [0.0, 60.0]
    assert "Fifo() x FixedSize(size=4) x Greedy(order='longest')" in result.stderr


def test_policies_lists_every_preset() -> None:
    result = CliRunner().invoke(main, ["policies", "--verbose"])

    assert result.exit_code == 0
    assert all(name in result.stdout for name in PRESETS)


def test_a_synthetic_trace_is_labelled_and_reads_back(tmp_path: Path) -> None:
    file = tmp_path / "made.csv.gz"

    made = CliRunner().invoke(
        main, ["trace", "synth", "--num-requests", "500", "--seed", "3", "-o", str(file)]
    )
    shown = CliRunner().invoke(main, ["trace", "info", str(file)])
    run = CliRunner().invoke(main, ["run", "--trace", str(file), "--json"])

    assert made.exit_code == shown.exit_code == run.exit_code == 0, made.output + shown.output + run.output
    assert "synthetic" in shown.stdout
    assert json.loads(run.stdout)["workload_kind"] == "synthetic"


def test_fit_recovers_the_coefficients_of_an_exact_grid(tmp_path: Path) -> None:
    grid, out = tmp_path / "grid.csv", tmp_path / "latency.json"
    rows = [
        (b, n, 0.05965 + 0.005742 * n * (1 + 0.3157 * (b - 1) / b), 0.001, 5)
        for b in (1, 2, 4, 8)
        for n in (64, 128, 256)
    ]
    names = ["batch_size", "max_seq_len", "mean_latency_sec", "std_latency_sec", "num_trials"]
    pd.DataFrame(rows, columns=names).to_csv(grid, index=False)

    result = CliRunner().invoke(main, ["fit", str(grid), "-o", str(out)])

    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in ("alpha", "beta", "gamma", "held-out MAPE"))
    coefficients = json.loads(out.read_text())["coefficients"]
    assert coefficients["alpha_s"] == pytest.approx(0.05965, rel=1e-9)
    assert coefficients["gamma"] == pytest.approx(0.3157, rel=1e-9)
    assert "R2" in result.stdout
    assert out.with_suffix(".png").stat().st_size > 1000


BAD_ARGUMENTS = [
    (["--policy", "static_fif"], "did you mean static_fifo"),
    (["--batch-size", "0"], "batch_size"),
    (["--slo", "20000"], "METRIC:MILLISECONDS"),
    (["--slo", "speed:3"], "e2e, ttft or tpot"),
    (["--slo", "e2e:-1"], "limit > 0"),
    (["--policy", "multi_bin", "--num-bins", "500"], "500"),
    (["--num-bins", "4"], "only MultiBin has bins"),
    (["--num-requests", "100000"], "has only 300"),
    (["--predictor", "psychic"], "predictor"),
    (["--set", "cluster.num_gpu=2"], "num_gpu"),
    (["--set", "nonsense"], "KEY=VALUE"),
    (["--window", "5"], "START:END"),
    (["--latency", "no_such.json"], "no_such.json"),
    (["--trace-model", "GPT-9"], "GPT-9"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD_ARGUMENTS)
def test_bad_arguments_are_one_sentence_and_exit_2(
    arguments: list[str], said: str, trace: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    result = CliRunner().invoke(main, ["run", "--trace", str(trace), "-o", str(out), *arguments])

    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()


BAD_TRACES = {
    "missing column": "arrival_s,prompt_tokens\n0,5\n",
    "negative tokens": "arrival_s,prompt_tokens,output_tokens\n0,5,5\n1,-3,5\n",
    "NaN tokens": "arrival_s,prompt_tokens,output_tokens\n0,5,5\n1,,5\n",
    "text": "arrival_s,prompt_tokens,output_tokens\n0,5,5\n1,many,5\n",
    "empty": "",
    "header only": "arrival_s,prompt_tokens,output_tokens\n",
    "broken JSONL": '{"timestamp": 0, "input_length": 5, "output_length": 5}\n{"timestamp": 3, "inp\n',
}


@pytest.mark.parametrize("content", BAD_TRACES.values(), ids=BAD_TRACES.keys())
def test_a_bad_trace_is_one_sentence_and_exit_2(content: str, tmp_path: Path) -> None:
    file, out = tmp_path / "bad.csv", tmp_path / "out"
    file.write_text(content, encoding="utf-8")

    result = CliRunner().invoke(main, ["run", "--trace", str(file), "-o", str(out)])

    assert result.exit_code == 2, result.output
    assert "bad.csv" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()


def test_unsorted_arrivals_are_sorted_with_a_notice(tmp_path: Path) -> None:
    file = tmp_path / "unsorted.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n5,5,5\n1,6,6\n", encoding="utf-8")

    result = CliRunner().invoke(main, ["run", "--trace", str(file), "--json"])

    assert result.exit_code == 0, result.output
    assert "go back in time" in result.stderr


BAD_GRIDS = {
    "one batch size": [(4, 64, 1.0), (4, 128, 2.0), (4, 256, 4.0)],
    "zero": [(1, 64, 1.0), (2, 64, 0.0), (1, 128, 2.0), (2, 128, 3.0)],
    "NaN": [(1, 64, 1.0), (2, 64, float("nan")), (1, 128, 2.0), (2, 128, 3.0)],
}


@pytest.mark.parametrize("rows", BAD_GRIDS.values(), ids=BAD_GRIDS.keys())
def test_a_bad_calibration_is_one_sentence_and_exit_2(
    rows: list[tuple[int, int, float]], tmp_path: Path
) -> None:
    grid, out = tmp_path / "grid.csv", tmp_path / "latency.json"
    frame = pd.DataFrame(rows, columns=["batch_size", "max_seq_len", "mean_latency_sec"])
    frame.assign(std_latency_sec=0.01, num_trials=5).to_csv(grid, index=False)

    result = CliRunner().invoke(main, ["fit", str(grid), "-o", str(out)])

    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert "grid.csv" in result.stderr
    assert not out.exists()


def test_an_output_directory_that_cannot_be_written_is_refused(trace: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way", encoding="utf-8")

    result = CliRunner().invoke(main, ["run", "--trace", str(trace), "-o", str(blocked / "out")])

    assert result.exit_code == 2, result.output
    assert "cannot be written" in result.stderr


def test_results_are_not_overwritten_unasked(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["run", "--trace", str(trace), "-o", str(out)]
    CliRunner().invoke(main, arguments)

    refused = CliRunner().invoke(main, arguments)
    replaced = CliRunner().invoke(main, [*arguments, "--overwrite"])

    assert refused.exit_code == 2
    assert "holds a run already" in refused.stderr
    assert replaced.exit_code == 0


def test_a_trace_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "made.csv"
    blocked.mkdir()

    result = CliRunner().invoke(main, ["trace", "synth", "--num-requests", "50", "-o", str(blocked)])

    assert result.exit_code == 2, result.output
    assert "cannot be written" in result.stderr
    assert list(tmp_path.iterdir()) == [blocked]


def test_nothing_but_a_result_is_written_over(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, old = trace.read_bytes(), tmp_path / "old.json"
    old.write_text("{}", encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    run = ["run", "--trace", str(trace)]
    refused = {
        "an input": [*run, "--timeline", str(trace), "--overwrite"],
        "there already": [*run, "--timeline", str(old)],
        "symbolic link": [*run, "-o", "link", "--overwrite"],
        "a name is needed": [*run, "-o", "."],
        "a path is needed": [*run, "-o", ""],
        "no name of a file": [*run, "-o", "/"],
        "never replaced": ["fit", str(trace), "-o", str(trace)],
        "is an input": ["trace", "convert", str(trace), str(trace)],
    }

    results = {said: CliRunner().invoke(main, arguments) for said, arguments in refused.items()}

    for said, result in results.items():
        assert result.exit_code == 2, said
        assert said in result.stderr
    assert trace.read_bytes() == before
    assert old.read_text() == "{}"


SWEEP = """
name = "small"
figure = "scheduler_comparison"
base.workload.trace = "trace.csv"
base.workload.num_requests = 20
grid.policy.preset = ["static_fifo"]
grid.workload.request_rate_per_gpu = [0.5, 1.0]
"""


def test_nothing_is_shown_of_a_sweep_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "nothing.toml"

    result = CliRunner().invoke(main, ["sweep", str(file), "-o", str(tmp_path)])

    assert result.output == f"Error: {file}: cannot be read (No such file or directory)\n"


def test_results_that_are_there_name_the_option_that_replaces_them(trace: Path, tmp_path: Path) -> None:
    run = ["run", "--trace", str(trace), "--num-requests", "9"]
    written = [*run, "-o", str(tmp_path / "out"), "--timeline", str(tmp_path / "timeline.json")]

    first = CliRunner().invoke(main, written)
    again = CliRunner().invoke(main, written)
    drawn = CliRunner().invoke(main, [*run, "--timeline", str(tmp_path / "timeline.json")])

    assert first.exit_code == 0, first.output
    assert "holds a run already; choose another directory, or replace it with --overwrite" in again.stderr
    assert "is there already; choose another name, or replace it with --overwrite" in drawn.stderr


def test_a_sweep_takes_settings_that_win_over_its_file(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP, encoding="utf-8")
    latency = tmp_path / "latency.json"
    save_latency(default_latency(load_model("qwen2.5-1.5b"), load_gpu("h100")), latency)
    arguments = ["--latency", str(latency), "--set", "workload.num_requests=30", "--set", "seed=3"]

    result = CliRunner().invoke(
        main, ["sweep", str(tmp_path / "sweep.toml"), "-o", str(tmp_path), *arguments]
    )

    assert result.exit_code == 0, result.output
    stored = pd.read_csv(tmp_path / "small" / "results.csv")
    assert stored["num_requests"].tolist() == [30, 30]
    assert stored["seed"].tolist() == [3, 3]
    manifest = next((tmp_path / "small" / "runs").glob("*/manifest.json"))
    assert json.loads(manifest.read_text())["config"]["latency"]["file"] == str(latency)


def test_a_dry_run_prints_the_plan_with_an_estimate_and_runs_nothing(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP, encoding="utf-8")
    dry = ["sweep", str(tmp_path / "sweep.toml"), "-o", str(tmp_path), "--dry-run"]

    result = CliRunner().invoke(main, [*dry, "--replications", "3"])
    there = (tmp_path / "small").exists()
    CliRunner().invoke(main, dry[:-1])
    after = CliRunner().invoke(main, dry)

    assert result.exit_code == 0, result.output
    assert not there
    assert "small: 6 runs, 0 of them finished" in result.stdout
    assert re.search(
        r"6 runs to do, about [\d.]+ s with 1 at once, from a run of 500 requests", result.stdout
    )
    assert result.stdout.count("static_fifo") == 6
    assert "small: 2 runs, 2 of them finished" in after.stdout
    assert after.stdout.endswith("nothing to do\n")


def test_a_sweep_is_asked_in_sql_and_answers_as_a_table_csv_or_json(trace: Path, tmp_path: Path) -> None:
    pytest.importorskip("duckdb", reason="the extra [query] is not installed")
    (tmp_path / "sweep.toml").write_text(SWEEP, encoding="utf-8")
    CliRunner().invoke(main, ["sweep", str(tmp_path / "sweep.toml"), "-o", str(tmp_path)])
    sql = 'select "workload.request_rate_per_gpu" as rate, num_requests as n from runs order by rate'

    def ask(sql: str, *options: str) -> Result:
        return CliRunner().invoke(main, ["query", sql, str(tmp_path), *options])

    table, wide, long = ask(sql), ask("select * from runs"), ask("select r.* from runs r, range(20)")
    empty, both = ask("select * from runs where n > 5"), ask(sql, "--csv", "--json")
    swapped = CliRunner().invoke(main, ["query", str(tmp_path), sql])

    assert ask(sql, "--csv").stdout == "rate,n\n0.5,20\n1.0,20\n"
    assert json.loads(ask(sql, "--json").stdout) == {"rows": [{"rate": 0.5, "n": 20}, {"rate": 1.0, "n": 20}]}
    assert json.loads(ask("select date '2020-01-31' as d", "--json").stdout) == {
        "rows": [{"d": "2020-01-31"}]
    }
    assert [line for line in table.stdout.splitlines() if "0.5" in line and "20" in line]
    assert [line for line in wide.stdout.splitlines() if line.startswith("│ e2e_mean_s ")]  # a line a column
    assert long.stderr.startswith("Error: query: 40 rows of")
    assert (empty.exit_code, both.exit_code, swapped.exit_code) == (2, 2, 2)
    assert "the query comes first" in swapped.stderr
    assert 'Referenced column "n" not found' in empty.stderr
    assert "no row answers" in ask("select policy from runs where num_gpus = 0").stderr


def test_a_figure_that_is_not_there_is_told_before_any_sweep_runs(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "good.toml").write_text(SWEEP, encoding="utf-8")
    (tmp_path / "bad.toml").write_text(SWEEP.replace("scheduler_c", "scheduler_k"), encoding="utf-8")

    files = [str(tmp_path / "good.toml"), str(tmp_path / "bad.toml")]
    result = CliRunner().invoke(main, ["sweep", *files, "-o", str(tmp_path / "out")])

    assert result.exit_code == 2
    assert "did you mean scheduler_comparison" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_sweep_of_policies_that_fail_goes_on_and_exits_with_1(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "ending.py").write_text(
        "import sys\n"
        "from batchsim.policies.presets import PRESETS, Preset\n"
        "from batchsim.policies.queueing import Fifo\n"
        "class Ending(Fifo):\n"
        "    def prepare(self, setting):\n"
        "        raise SystemExit('[/x] \\x1b[31mred')\n"
        "ending = Preset(Ending(), PRESETS['static_fifo'].sizing, PRESETS['static_fifo'].batching)\n",
        encoding="utf-8",
    )
    text = SWEEP.replace('"static_fifo"', '"ending:ending", "static_fifo"')
    (tmp_path / "sweep.toml").write_text(text, encoding="utf-8")

    result = CliRunner().invoke(main, ["sweep", str(tmp_path / "sweep.toml"), "-o", str(tmp_path)])

    assert result.exit_code == 1, result.output
    assert "2 of 4 runs failed" in result.stderr
    assert "[/x] ?[31mred" in result.stderr
    assert "\x1b[31m" not in result.stderr
    assert len(pd.read_csv(tmp_path / "small" / "results.csv")) == 2


@pytest.mark.parametrize("name", ["[red]", "[bold]x[blink]", ":smile:", "\x1b[31mred", "two\nlines"])
def test_names_from_files_are_printed_as_they_are(tmp_path: Path, name: str) -> None:
    file = tmp_path / f"{name}.csv"
    file.write_text(TRACE, encoding="utf-8")

    shown = CliRunner().invoke(main, ["trace", "info", str(file)])
    missing = CliRunner().invoke(main, ["trace", "info", str(tmp_path / f"{name}.gone.csv")])

    assert shown.exit_code == 0, shown.output
    assert missing.exit_code == 2
    assert len(missing.stderr.strip().splitlines()) == 1
    for text in (shown.stdout, missing.stderr):
        assert name.replace("\x1b", "").replace("\n", " ") in " ".join(text.split())


def test_a_trace_is_described_in_the_unit_that_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 5 * number, "input_length": 10, "output_length": 5} for number in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    unsaid = CliRunner().invoke(main, ["trace", "info", str(file)])
    said = CliRunner().invoke(main, ["trace", "info", str(file), "--time-unit", "s", "--json"])
    run = CliRunner().invoke(main, ["run", "--trace", str(file), "--time-unit", "s", "--json"])

    assert unsaid.exit_code == 2
    assert "--time-unit s (10 s)" in unsaid.stderr
    assert json.loads(said.stdout)["span_s"] == 10.0
    assert json.loads(run.stdout)["request_rate_per_s"] == 0.2


def test_a_run_that_fails_says_which_hardware_was_assumed(trace: Path, tmp_path: Path) -> None:
    rows = {"gpu": "Abacus 1", "tensor_parallel": 8, "model": "someone/Else"}
    latency = tmp_path / "latency.json"
    save_latency(flat_passes(rows), latency)

    for command in (["run"], ["capacity", "--slo", "ttft:500"]):
        options = ["--trace", str(trace), "--policy", "vllm_v1", "--latency", str(latency)]
        result = CliRunner().invoke(main, [*command, *options])

        assert result.exit_code == 2
        assert result.stderr.startswith("Notice: latency model made up is of someone/Else on Abacus 1")
        assert "12 query heads of qwen2.5-1.5b" in result.stderr


GENERATED = """
[workload]
num_requests = 60

[workload.generator]
kind = "poisson"
rate_per_s = 0.3
prompt = {kind = "fixed", tokens = 100}
output = {kind = "exponential", mean = 200}
"""


@pytest.fixture
def generated(tmp_path: Path) -> str:
    file = tmp_path / "run.toml"
    file.write_text(GENERATED, encoding="utf-8")
    return str(file)


def test_a_run_is_repeated_and_its_intervals_are_shown_and_kept(generated: str, tmp_path: Path) -> None:
    out = tmp_path / "out"

    shown = CliRunner().invoke(main, ["run", generated, "--replications", "3", "-o", str(out)])
    printed = CliRunner().invoke(main, ["run", generated, "--replications", "3", "--json"])

    assert shown.exit_code == printed.exit_code == 0, shown.output
    assert re.search(r"E2E mean +│ +[\d,.]+ ± [\d,.]+ │", shown.stdout)
    assert "means over 3 replications" in " ".join(shown.stdout.split())
    told = json.loads(printed.stdout)
    runs = told.pop("replications")
    assert json.loads((out / "aggregated.json").read_text()) == told
    assert told["e2e_mean_ci95_low_s"] < told["e2e_mean_s"] < told["e2e_mean_ci95_high_s"]
    assert json.loads((out / "summary.json").read_text()) == runs[0]
    assert pd.read_csv(out / "replications.csv")["e2e_mean_s"].tolist() == [one["e2e_mean_s"] for one in runs]


def test_a_run_that_was_repeated_is_replaced_by_one_that_was_not(generated: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    CliRunner().invoke(main, ["run", generated, "--replications", "2", "-o", str(out)])

    result = CliRunner().invoke(main, ["run", generated, "-o", str(out), "--overwrite"])

    assert result.exit_code == 0, result.output
    assert not (out / "aggregated.json").exists()


def test_a_precision_is_a_share_and_what_falls_short_is_said(generated: str) -> None:
    options = ["--precision", "1%", "--max-replications", "3"]

    result = CliRunner().invoke(main, ["run", generated, *options, "--precision-of", "ttft_mean_s"])

    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    assert "a precision of 1% was not reached: after 3 replications the 95 % interval of ttft_mean_s" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "two"], "--precision 'two': write a share"),
        (["--precision", "3"], "a share in (0, 1) is needed"),
        (["--max-replications", "9"], "--max-replications 9: says something of --precision"),
        (["--replications", "0"], "replications is 0"),
    ],
)
def test_repetitions_that_make_no_sense_are_bad_usage(
    generated: str, options: list[str], message: str
) -> None:
    for command in ("run", "compare"):
        result = CliRunner().invoke(main, [command, generated, *options])

        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())


def test_a_replayed_trace_says_that_replications_cannot_differ(trace: Path) -> None:
    result = CliRunner().invoke(main, ["run", "--trace", str(trace), "--replications", "4"])

    assert result.exit_code == 0, result.output
    assert "replications of this run cannot differ" in result.stderr
    assert "±" not in result.stdout


def test_compare_tells_differences_over_replications(generated: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--policy", "static_fifo,vllm_v1", "--replications", "3"]

    shown = CliRunner().invoke(main, ["compare", generated, *options, "-o", str(out)])
    printed = CliRunner().invoke(main, ["compare", generated, *options, "--json"])

    assert shown.exit_code == printed.exit_code == 0, shown.output
    assert "over 3 replications in pairs" in shown.stdout
    table = pd.read_csv(out / "paired_differences.csv")
    assert table.to_dict("list") == pd.DataFrame(json.loads(printed.stdout)["differences"]).to_dict("list")
    assert {"e2e_mean_s", "ttft_p99_s"} <= set(table["metric"])
    assert (out / "vllm_v1" / "replications.csv").exists()


def test_capacity_is_searched_for_in_each_replication(generated: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--replications", "2", "--slo", "e2e:20000", "--tolerance", "0.3"]

    shown = CliRunner().invoke(main, ["capacity", generated, *options, "-o", str(out)])
    asked = CliRunner().invoke(
        main, ["capacity", generated, *options, "--request-rate", "3", "--num-gpus", "2"]
    )

    assert shown.exit_code == asked.exit_code == 0, shown.output + asked.output
    assert "over 2 replications (Student's t)" in shown.stdout
    assert " of 2" in asked.stdout
    assert "however many are given: 2 is not heeded" in asked.stderr
    assert "not heeded" not in shown.stderr
    assert "attains, misses" in shown.stdout
    assert "attains, misses" not in asked.stdout  # no rate was searched for
    (found,) = json.loads((out / "capacity.json").read_text()).values()
    assert found["num_replications"] == len(found["replications"]) == 2
    assert set(pd.read_csv(out / "trials.csv")["replication"]) == {0, 1}


def test_a_sweep_goes_on_until_its_points_are_precise(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    body = GENERATED.replace("[workload", "[base.workload")
    file.write_text(f'name = "few"\n{body}[grid]\npolicy.preset = ["static_fifo"]\n', encoding="utf-8")
    options = ["--replications", "2", "--precision", "30%", "--max-replications", "6", "-o", str(tmp_path)]

    planned = CliRunner().invoke(main, ["sweep", str(file), *options, "--dry-run"])
    done = CliRunner().invoke(main, ["sweep", str(file), *options])

    assert planned.exit_code == done.exit_code == 0, planned.output + done.output
    assert "these come first; points that are not precise enough then go on, to 6 runs each" in planned.stderr
    (point,) = pd.read_csv(tmp_path / "few" / "aggregated.csv").to_dict("records")
    is_precise = point["e2e_mean_ci95_high_s"] <= 1.3 * point["e2e_mean_s"]
    assert is_precise or point["num_replications"] == 6


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--gpu", "no option --gpu; write --set cluster.gpu=VALUE"),
        ("--tensor-parallel", "no option --tensor-parallel; write --set cluster.tensor_parallel=VALUE"),
        ("--overwrit", "Did you mean '--overwrite'?"),
    ],
)
def test_a_setting_without_an_option_of_its_own_is_told_how_to_give(option: str, said: str) -> None:
    result = CliRunner().invoke(main, ["run", option, "2"])

    assert result.exit_code == 2
    assert said in result.stderr


def test_limits_that_nobody_keeps_are_told_in_their_unit(trace: Path) -> None:
    run = ["run", "--trace", str(trace), "--policy", "vllm_v1", "--num-requests", "50"]

    seconds, milliseconds = (
        CliRunner().invoke(main, [*run, "--slo", f"e2e:{limit}"]) for limit in (0.5, 60000)
    )

    assert "vllm_v1: no request is within the SLO, whose limits are in ms" in seconds.stderr
    assert "whose limits" not in milliseconds.stderr


def test_a_trace_that_was_converted_is_named(trace: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["trace", "convert", str(trace), str(tmp_path / "to.csv")])

    assert result.stderr.endswith(f"written: {tmp_path / 'to.csv'}\n")


@pytest.mark.parametrize("group", [[], ["trace"]])
def test_the_list_of_commands_tells_whole_sentences(group: list[str]) -> None:
    listed = CliRunner().invoke(main, [*group, "--help"]).stdout.partition("Commands:")[2]

    assert len(listed.splitlines()) > 3
    assert "..." not in listed
