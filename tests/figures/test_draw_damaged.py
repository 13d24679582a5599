"""Figures of damaged results: a sentence that names the file, and the other figures all the same."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from batchsim import ConfigError, simulate
from batchsim.cli import main
from batchsim.figures import draw_figures, write_report
from batchsim.figures.results import TEXTS
from batchsim.results.store import load_run


def first_run(swept: Path) -> Path:
    table = pd.read_csv(swept / "courses" / "results.csv")
    return swept / "courses" / "runs" / str(table["run_id"].iloc[0])


def rewrite(name: str, content: bytes) -> Callable[[Path], Path]:
    """Damage a file of the sweep ``courses``, or of its first run."""

    def damage(swept: Path) -> Path:
        at_sweep = name in ("sweep.json", "results.csv")
        file = (swept / "courses" if at_sweep else first_run(swept)) / name
        file.write_bytes(content)
        return file

    return damage


def remove(name: str) -> Callable[[Path], Path]:
    def damage(swept: Path) -> Path:
        file = rewrite(name, b"")(swept)
        file.unlink()
        return file

    return damage


def cut_in_half(name: str) -> Callable[[Path], Path]:
    def damage(swept: Path) -> Path:
        file = first_run(swept) / name
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        return file

    return damage


def without_column(name: str, column: str) -> Callable[[Path], Path]:
    def damage(swept: Path) -> Path:
        if name == "results.csv":
            file = swept / "courses" / name
            pd.read_csv(file).drop(columns=column).to_csv(file, index=False)
        else:
            file = first_run(swept) / name
            pd.read_parquet(file).drop(columns=column).to_parquet(file)
        return file

    return damage


DAMAGES = {
    "no table of results": remove("results.csv"),
    "an empty table of results": rewrite("results.csv", b""),
    "a table of results without runs": rewrite("results.csv", b"run_id,case\n"),
    "a binary table of results": rewrite("results.csv", b"\xff\xfe\x00\x01" * 50),
    "results of too many columns": rewrite("results.csv", b"," * 20_000 + b"\n"),
    "results without the name of the runs": without_column("results.csv", "run_id"),
    "results without the policy": without_column("results.csv", "policy"),
    "an empty description": rewrite("sweep.json", b""),
    "a garbled description": rewrite("sweep.json", b'{"sweep": {"name": '),
    "a description that is a list": rewrite("sweep.json", b"[1]"),
    "a description of something else": rewrite("sweep.json", b'{"sweep": {"nom": 1}}'),
    "a description as deep as the sea": rewrite("sweep.json", b"[" * 100_000),
    "no manifest": remove("manifest.json"),
    "a cut manifest": cut_in_half("manifest.json"),
    "no summary": remove("summary.json"),
    "an empty summary": rewrite("summary.json", b""),
    "a garbled summary": rewrite("summary.json", b"\x00{]"),
    "no requests": remove("requests.parquet"),
    "empty requests": rewrite("requests.parquet", b""),
    "garbled requests": rewrite("requests.parquet", b"PAR1 not a table PAR1"),
    "cut requests": cut_in_half("requests.parquet"),
    "requests without arrivals": without_column("requests.parquet", "arrival_s"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_sweep_is_named_in_one_sentence(swept: Path, damage: Callable[[Path], Path]) -> None:
    file = damage(swept)

    with pytest.raises(ConfigError) as raised:
        draw_figures(swept, ["courses"])

    assert str(file.parent) in str(raised.value)
    assert file.name in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_the_others_are_drawn_before_the_first_fault_is_raised(swept: Path) -> None:
    (swept / "courses" / "results.csv").unlink()

    with pytest.raises(ConfigError, match="courses"):
        draw_figures(swept)

    assert (swept / "loads" / "loads.png").is_file()


def test_the_command_draws_the_others_says_what_is_wrong_and_fails(swept: Path) -> None:
    (swept / "courses" / "results.csv").write_bytes(b"")

    done = CliRunner().invoke(main, ["figures", str(swept)])

    assert done.exit_code == 2
    assert "loads.png" in done.stdout
    assert "courses/results.csv: cannot be read" in done.stderr
    assert "Traceback" not in done.output


def test_the_page_says_which_figure_is_missing_and_why(swept: Path) -> None:
    draw_figures(swept)
    (swept / "courses" / "results.csv").write_bytes(b"")

    page = write_report(swept).read_text(encoding="utf-8")

    assert page.count("<img") == 1
    assert "Not drawn:" in page
    assert "courses/results.csv" in page


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("e2e_p99_s", "soon"),
        ("e2e_p99_s", "inf"),
        ("e2e_mean_ci95_high_s", "wide"),
        ("num_gpus", "four"),
        ("num_runs_planned", "many"),
        ("workload.request_rate_per_gpu", "fast"),
        ("seed", "=1+1"),
        ("slo_attainment", "[red]"),
    ],
)
def test_a_number_that_is_none_is_named_with_its_row(swept: Path, column: str, value: str) -> None:
    file = swept / "loads" / "results.csv"
    table = pd.read_csv(file, dtype=str)
    table.loc[1, column] = value
    table.to_csv(file, index=False)

    with pytest.raises(
        ConfigError, match=rf"loads/results.csv: {column} is .*{re.escape(value)}.* in row 3; a number is"
    ):
        draw_figures(swept, ["loads"])


@pytest.mark.parametrize(
    ("column", "value", "needed"),
    [
        ("arrival_s", "soon", "a number"),
        ("batch_size", "7.5", r"a whole number up to 2,147,483,647"),
        ("bin", "70000", r"a whole number up to 32,767"),
        ("gpu_id", None, "a whole number"),
    ],
)
def test_a_value_of_a_run_that_is_none_is_named_with_its_row(
    swept: Path, column: str, value: str | None, needed: str
) -> None:
    file = first_run(swept) / "requests.parquet"
    table = pd.read_parquet(file)
    table[column] = table[column].astype(str).astype(object)
    table.loc[2, column] = value
    table.to_parquet(file)
    shown = "blank" if value is None else f"'{value}'"

    with pytest.raises(ConfigError, match=rf"requests.parquet: {column} is {shown} in row 3; {needed}"):
        draw_figures(swept, ["courses"])


def test_a_truth_that_is_none_is_named_with_its_row(swept: Path) -> None:
    file = first_run(swept) / "batches.parquet"
    table = pd.read_parquet(file)
    table["is_flush"] = ["False", *["True"] * (len(table) - 1)]
    table.to_parquet(file)

    with pytest.raises(ConfigError, match=r"batches.parquet: is_flush is 'False' in row 1; true or false is"):
        load_run(first_run(swept))


def test_a_row_that_is_too_long_is_refused(swept: Path) -> None:
    file = swept / "loads" / "results.csv"
    header, *rows = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([header, *(f"{row},1" for row in rows)]), encoding="utf-8")

    with pytest.raises(ConfigError, match=r"results.csv: cannot be read \(rows have more fields"):
        draw_figures(swept, ["loads"])


def test_what_is_text_in_results_is_known() -> None:
    lengths = {"kind": "uniform", "low": 1, "high": 99}
    generator = {"kind": "poisson", "rate_per_s": 1.0, "prompt": lengths, "output": lengths}
    texts = {"run_id", "case", "warmup_rule"}
    for preset in ("multi_bin", "vllm_v1"):
        config = {
            "policy": {"preset": preset},
            "workload": {"num_requests": 40, "generator": generator},
            "cost": {"usd_per_gpu_hour": 1.0},
        }
        summary = simulate(config).summary
        texts |= {name for name, value in summary.items() if isinstance(value, str | list | dict)}

    assert texts == set(TEXTS)


def test_a_missing_metric_leaves_its_panel_out_and_is_named(swept: Path) -> None:
    file = swept / "loads" / "results.csv"
    pd.read_csv(file).drop(columns="e2e_p99_s").to_csv(file, index=False)

    with pytest.warns(UserWarning, match="no run has e2e_p99_s; its panel is left out"):
        draw_figures(swept, ["loads"])

    drawn = pd.read_csv(swept / "loads" / "loads.csv")
    assert "e2e_mean_s" in drawn
    assert "e2e_p99_s" not in drawn


def test_text_from_files_is_text_on_the_page_and_in_the_picture(swept: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_figures(swept)

    page = write_report(swept).read_text(encoding="utf-8")

    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt; &amp; $a_b" in page


def test_a_hostile_case_is_text_on_the_page_and_in_the_table(swept: Path) -> None:
    sweep = json.loads((swept / "courses" / "sweep.json").read_text(encoding="utf-8"))
    sweep["sweep"]["figure"] = {"kind": "lines", "x": "workload.request_rate_per_gpu", "y": ["e2e_mean_s"],
                                "hue": "case"}  # fmt: skip
    (swept / "courses" / "sweep.json").write_text(json.dumps(sweep), encoding="utf-8")
    table = pd.read_csv(swept / "courses" / "results.csv")
    table["case"] = ["=cmd()", "<script>"] * (len(table) // 2)
    table.to_csv(swept / "courses" / "results.csv", index=False)

    draw_figures(swept, ["courses"])

    page = write_report(swept).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "\n'=cmd()," in (swept / "courses" / "courses.csv").read_text(encoding="utf-8")
