"""Figures of damaged results: a sentence that names the file, and the other figures all the same."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batchsim import ConfigError
from batchsim.cli import main
from batchsim.figures import draw_figures, write_report
from batchsim.results.dataset import describe
from tests.figures.datasets import change


def rewrite(content: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(content)


def runs(act: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], object]:
    return lambda file: change(file, act)


def described(**told: object) -> Callable[[Path], object]:
    return lambda file: change(file, described=told)


def without(name: str) -> Callable[[Path], object]:
    return lambda file: pq.write_table(pq.read_table(file).drop_columns([name]), file)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda file: file.unlink(),
    "an empty file": rewrite(b""),
    "a binary file": rewrite(b"\xff\xfe\x00\x01" * 50),
    "a garbled table": rewrite(b"PAR1 not a table PAR1"),
    "a cut table": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "a table without runs": runs(lambda table: table.iloc[:0]),
    "runs without their names": without("run_id"),
    "runs without the policy": without("policy"),
    "no courses": without("courses"),
    "courses of something else": lambda file: pq.write_table(
        (table := pq.read_table(file)).drop_columns(["courses"]).append_column("courses", table["tenants"]),
        file,
    ),
    "another version": described(schema_version=1),
    "no description": described(sweep=None),
    "a description that is a list": described(sweep=[1]),
    "a description of something else": described(sweep={"nom": 1}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_sweep_is_named_in_one_sentence(swept: Path, damage: Callable[[Path], object]) -> None:
    file = swept / "courses" / "dataset.parquet"
    damage(file)

    with pytest.raises(ConfigError) as raised:
        draw_figures(swept, ["courses"])

    assert str(file) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_metric_in_words_is_named(swept: Path) -> None:
    change(swept / "loads" / "dataset.parquet", lambda runs: runs.assign(e2e_p99_s="soon"))

    with pytest.raises(ConfigError, match=r"loads/dataset\.parquet: cannot be drawn .*'soon'"):
        draw_figures(swept, ["loads"])


def test_the_others_are_drawn_before_the_first_fault_is_raised(swept: Path) -> None:
    (swept / "courses" / "dataset.parquet").unlink()

    with pytest.raises(ConfigError, match="courses"):
        draw_figures(swept)

    assert (swept / "loads" / "loads.png").is_file()


def test_the_command_draws_the_others_says_what_is_wrong_and_fails(swept: Path) -> None:
    (swept / "courses" / "dataset.parquet").write_bytes(b"")

    done = CliRunner().invoke(main, ["figures", str(swept)])

    assert done.exit_code == 2
    assert "loads.png" in done.stdout
    assert "courses/dataset.parquet: cannot be read" in done.stderr
    assert "Traceback" not in done.output


def test_the_page_says_which_figure_is_missing_and_why(swept: Path) -> None:
    draw_figures(swept)
    (swept / "courses" / "dataset.parquet").write_bytes(b"")

    page = write_report(swept).read_text(encoding="utf-8")

    assert page.count("<img") == 1
    assert "Not drawn:" in page
    assert "courses/dataset.parquet" in page


def test_a_missing_metric_leaves_its_panel_out_and_is_named(swept: Path) -> None:
    change(swept / "loads" / "dataset.parquet", lambda runs: runs.drop(columns="e2e_p99_s"))

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
    figure = {"kind": "lines", "x": "workload.request_rate_per_gpu", "y": ["e2e_mean_s"], "hue": "case"}
    file = swept / "courses" / "dataset.parquet"
    sweep = describe(file.parent)["sweep"] | {"figure": figure}
    change(file, lambda runs: runs.assign(case=["=cmd()", "<script>"] * 2), {"sweep": sweep})

    draw_figures(swept, ["courses"])

    page = write_report(swept).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "\n'=cmd()," in (swept / "courses" / "courses.csv").read_text(encoding="utf-8")
