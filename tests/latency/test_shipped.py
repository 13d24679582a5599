"""What the calibrations that ship say: measured on a real machine, by a command anyone can give."""

import json
from pathlib import Path

import pytest

from batchsim.latency.fitting.fit import FamilyComparison, compare_families
from batchsim.latency.tables.table import read_calibration

TABLES = sorted((Path(__file__).parents[2] / "calibration" / "data").glob("*.csv"))


@pytest.fixture(scope="module", params=TABLES, ids=lambda table: table.stem)
def table(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(scope="module")
def comparison(table: Path) -> FamilyComparison:
    # By the processor's own time: the machine was shared, and neighbours are no property of a form.
    clock = "cpu_s" if json.loads(table.with_suffix(".json").read_text())["device"] == "cpu" else "wall_s"
    return compare_families(read_calibration(table, clock))


def test_a_table_ships() -> None:
    assert TABLES


def test_it_is_measured_and_says_on_what(table: Path) -> None:
    calibration = read_calibration(table)

    assert calibration.provenance == "measured"
    assert calibration.details["gpu"]
    assert calibration.details["model"]
    assert str(calibration.details["command"]).startswith("batchsim-calibrate measure ")
    assert not str(calibration.details["git_revision"]).endswith("-dirty")


def test_the_chosen_family_is_within_a_tenth_of_every_kind_held_out(comparison: FamilyComparison) -> None:
    assert comparison.chosen.heldout_mape < 0.1


def test_the_classic_form_fails_on_it_and_that_is_said(comparison: FamilyComparison) -> None:
    assert comparison.chosen.family != "affine"
    assert any(
        sentence.startswith("the affine form (alpha, beta, gamma) saturates in the batch size")
        for sentence in comparison.warnings
    )
