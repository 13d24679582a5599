from pathlib import Path

from click.testing import CliRunner

from batchsim.cli import main
from batchsim.files import read_json
from tests.validation.roofline.published import write_batches, write_loops


def test_errors_and_what_is_left_out_are_printed_and_written(tmp_path: Path) -> None:
    batches = write_batches(tmp_path / "batches.csv", {}, {"Hardware": "Abacus"})
    loops = write_loops(tmp_path / "loops.csv", {})

    result = CliRunner().invoke(
        main, ["roofline-error", str(batches), str(loops), "-o", str(tmp_path / "docs")]
    )

    assert result.exit_code == 0, result.output
    assert "1 of 3 rows" in result.stdout
    assert "Abacus (1)" in result.stdout
    assert all(metric in result.stdout for metric in ("batch", "TTFT", "TPOT"))
    names = {path.name for path in (tmp_path / "docs").iterdir()}
    assert names == {"roofline.md", "roofline.png", "roofline.pdf"}


def test_ranges_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    batches = write_batches(tmp_path / "batches.csv", {}, {"Latency": 3.0})
    loops = write_loops(tmp_path / "loops.csv", {})
    errors = tmp_path / "errors.json"

    result = CliRunner().invoke(
        main,
        ["roofline-error", str(batches), str(loops), "-o", str(tmp_path), "--errors", str(errors)],
    )

    assert result.exit_code == 0, result.output
    told = read_json(errors)
    static = told["roofline, static batches"]["ranges"]
    assert set(told["roofline, closed loops"]["ranges"]["h100"]["errors"]) == {"tpot", "ttft", "e2e"}
    assert static["h100"] == static["any"]
    assert static["h100"]["num_points"] == 2
    assert not static["h100"]["has_experts"]
    assert static["h100"]["errors"]["batch"]["low"] < static["h100"]["errors"]["batch"]["high"]


def test_without_a_table_it_asks_for_one() -> None:
    assert CliRunner().invoke(main, ["roofline-error"]).exit_code == 2
