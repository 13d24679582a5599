import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from batchsim.cli import main
from tests.latency.synthetic import kneed, write_calibration


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_calibration(tmp_path_factory.mktemp("fits") / "kneed.csv", kneed)


def test_fit_shows_all_families_and_why_others_are_missing(measured: Path, tmp_path: Path) -> None:
    phases = measured.read_text(encoding="utf-8").splitlines()
    (tmp_path / "phases.csv").write_text(
        "\n".join(line for line in phases if not line.startswith("batch,")), encoding="utf-8"
    )

    result = CliRunner().invoke(
        main, ["fit", str(tmp_path / "phases.csv"), "-o", str(tmp_path / "latency.json")]
    )

    assert result.exit_code == 0, result.output
    assert "iteration_table *" in result.stdout
    assert all(family in result.stdout for family in ("phase", "linear", "of prefill, decode points"))
    assert "table cannot be fitted: no batch points" in result.stdout


def test_fit_prints_intervals_and_says_where_the_classic_form_fails(measured: Path, tmp_path: Path) -> None:
    out = tmp_path / "latency.json"

    result = CliRunner().invoke(main, ["fit", str(measured), "--family", "phase", "-o", str(out)])

    assert result.exit_code == 0, result.output
    low, high = json.loads(out.read_text(encoding="utf-8"))["details"]["intervals_95"]["decode_s"]
    assert f"[{low:.4g}, {high:.4g}]" in result.stdout
    assert "saturates in the batch size: batches of 64" in result.stderr
    assert "policies that batch at every iteration need --family auto-iteration" in result.stderr


def test_fit_takes_the_clock_that_it_is_told(measured: Path, tmp_path: Path) -> None:
    table = pd.read_csv(measured).assign(cpu_s=lambda rows: rows["wall_s"] / 2)
    table.to_csv(tmp_path / "grid.csv", index=False)
    arguments = ["fit", str(tmp_path / "grid.csv"), "--family", "phase", "--json"]

    by_wall, by_cpu = (
        json.loads(
            CliRunner()
            .invoke(main, [*arguments, "--clock", clock, "-o", str(tmp_path / "latency.json")])
            .stdout
        )
        for clock in ("wall_s", "cpu_s")
    )

    assert (by_wall["clock"], by_cpu["clock"]) == ("wall_s", "cpu_s")
    assert by_cpu["coefficients"]["decode_s"] == pytest.approx(by_wall["coefficients"]["decode_s"] / 2)


def test_what_a_measurement_is_worth_is_told_wherever_it_is_used(tmp_path: Path) -> None:
    calibration, out = write_calibration(tmp_path / "grid.csv", kneed), tmp_path / "latency.json"
    provenance = {"kind": "measured", "drift": 0.89}
    calibration.with_suffix(".json").write_text(json.dumps(provenance), encoding="utf-8")
    (tmp_path / "sweep.toml").write_text('name = "one"\n[grid]\nseed = [1, 2]\n', encoding="utf-8")
    few = ["--latency", str(out), "--extrapolate"]
    requests = ["--num-requests", "20", "--request-rate", "1", "--slo", "e2e:1e6"]
    both = ["--policy", "static_fifo,multi_bin"]

    CliRunner().invoke(main, ["fit", str(calibration), "-o", str(out)])
    told = [
        CliRunner().invoke(main, words)
        for words in (
            ["run", *few, *requests],
            ["compare", *few, *requests, *both],
            ["capacity", *few, "--num-requests", "20", "--slo", "e2e:1", "--parts", "2", *both],
            [
                "sweep",
                str(tmp_path / "sweep.toml"),
                "-o",
                str(tmp_path),
                *few,
                "--set",
                "workload.num_requests=20",
            ],
        )
    ]

    for result in told:
        assert result.exit_code == 0, result.output
        assert result.stderr.count("the machine's speed drifted by 89% while it was measured") == 1


def test_families_that_cannot_run_engines_are_not_compared_for_them(measured: Path, tmp_path: Path) -> None:
    arguments = ["fit", str(measured), "--family", "auto-iteration", "-o", str(tmp_path / "latency.json")]

    result = CliRunner().invoke(main, arguments)

    assert result.stdout.count("not compared") == 3  # affine, phase and table


def test_json_holds_the_comparison(measured: Path, tmp_path: Path) -> None:
    arguments = ["fit", str(measured), "--family", "auto-iteration", "--json"]

    result = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "latency.json")])

    told = json.loads(result.stdout)
    assert told["family"] == "iteration_table"
    assert told["compared_by"] == ["prefill", "decode", "mixed"]
    assert told["scores"].keys() == {"linear", "iteration_table"}
    assert told["families"]["phase"][2]["is_unseen"]
    assert told["families"].keys() == {"affine", "phase", "table", "linear", "iteration_table"}
    assert told["not_fitted"] == {}


def test_fit_for_iterations_runs_a_policy_that_batches_at_every_iteration(
    measured: Path, tmp_path: Path
) -> None:
    out = tmp_path / "latency.json"
    CliRunner().invoke(main, ["fit", str(measured), "--family", "auto-iteration", "-o", str(out)])

    run = ["run", "--latency", str(out), "--policy", "vllm_v1", "--extrapolate", "--num-requests", "20"]
    result = CliRunner().invoke(main, [*run, "--json"])

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["num_covered"] > 0


def test_a_calibration_goes_through_fit_run_and_sweep(measured: Path, tmp_path: Path) -> None:
    latency, trace, cut = tmp_path / "latency.json", tmp_path / "trace.csv", tmp_path / "cut.csv"
    lengths = pd.DataFrame({"prompt_tokens": range(20, 2020, 20), "output_tokens": range(1, 101)})
    lengths.assign(arrival_s=range(100)).to_csv(trace, index=False)
    few = ["--latency", str(latency), "--set"]
    (tmp_path / "sweep.toml").write_text(
        'name = "two"\nbase.workload.training_fraction = 0.1\n'
        '[grid]\npolicy.preset = ["static_fifo", "multi_bin_dynamic"]\n',
        encoding="utf-8",
    )

    def batchsim(*arguments: str) -> Result:
        return CliRunner().invoke(main, list(arguments))

    assert batchsim("fit", str(measured), "--family", "phase", "-o", str(latency)).exit_code == 0
    refused = batchsim("run", *few, f"workload.trace={trace}")
    command = refused.stderr.partition("batchsim trace convert ")[2].split(" keeps ")[0]
    converted = batchsim("trace", "convert", *command.replace("CUT.csv", str(cut)).split())
    run = batchsim("run", *few, f"workload.trace={cut}", "--json")
    sweep = ["sweep", str(tmp_path / "sweep.toml"), "-o", str(tmp_path), *few]
    swept = batchsim(*sweep, f"workload.trace={cut}")
    extrapolated = batchsim(*sweep, f"workload.trace={trace}", "--extrapolate")

    assert "lies outside" in refused.stderr
    assert converted.exit_code == 0, converted.output
    assert "Notice: kept " in converted.stderr
    assert json.loads(run.stdout)["num_extrapolated_batches"] == 0
    assert (swept.exit_code, extrapolated.exit_code) == (0, 0), swept.output + extrapolated.output


def test_a_server_log_is_fitted_and_its_held_out_lines_told(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    shapes = [(n % 3, 100 * (n % 3), n % 7 + 1) for n in range(90)]
    log.write_text(
        "".join(
            f"INFO Iteration({n}): {prompts} context requests, {tokens} context tokens, {decodes} generation "
            f"requests, {decodes} generation tokens, iteration elapsed time: "
            f"{5 + 0.05 * tokens + 0.25 * decodes:.2f} ms\n"
            for n, (prompts, tokens, decodes) in enumerate(shapes)
        )
    )

    result = CliRunner().invoke(main, ["fit", "--vllm-log", str(log), "-o", str(tmp_path / "latency.json")])

    assert result.exit_code == 0, result.output
    assert "90 iterations" in result.stdout
    assert "Held-out lines" in result.stdout
    assert "does not tell context lengths" in result.stderr
    assert json.loads((tmp_path / "latency.json").read_text())["family"] == "linear"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a calibration or --vllm-log is needed"),
        (["a.csv", "--vllm-log", "b.log"], "give one of the two"),
        (["latency.json"], "latency.json: is no table; a calibration is a CSV file"),
        (["--vllm-log", "b.log", "--family", "phase"], "a log tells a linear model of iterations alone"),
    ],
)
def test_what_a_fit_cannot_be_made_of_is_refused(words: list[str], said: str) -> None:
    result = CliRunner().invoke(main, ["fit", *words])

    assert result.exit_code == 2
    assert said in result.stderr
