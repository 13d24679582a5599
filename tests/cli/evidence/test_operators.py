from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from batchsim.cli import main
from batchsim.files import read_json
from batchsim.validation.operators import closed_loops, report
from batchsim.validation.points import POINT_COLUMNS, Points


@pytest.fixture(autouse=True)
def predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the package: one row, of which TTFT is told half and TPOT a tenth too long."""
    what: dict[str, Any] = dict.fromkeys(POINT_COLUMNS, 1) | {"framework": "vllm", "model": "someone/Else"}
    times = [{**what, "metric": "TTFT", "predicted_s": 1.5}, {**what, "metric": "TPOT", "predicted_s": 1.1}]
    points = Points(pd.DataFrame(times, columns=list(POINT_COLUMNS)), 2, Counter())
    monkeypatch.setattr(closed_loops, "predict_measured_loops", lambda table: points)
    monkeypatch.setattr(report, "package_version", lambda: "0.12.0")


def test_page_ranges_and_the_peer_s_numbers_are_written(tmp_path: Path) -> None:
    table, peers, errors = (tmp_path / name for name in ("table.csv", "peers.csv", "errors.json"))
    table.write_text("", encoding="utf-8")
    peers.write_text("row,metric,predicted_s\n1,TPOT,0.8\n", encoding="utf-8")

    result = CliRunner().invoke(
        main,
        [
            "fidelity-hardware",
            str(table),
            "-o",
            str(tmp_path),
            "--errors",
            str(errors),
            "--peers",
            str(peers),
        ],
    )

    assert result.exit_code == 0, result.output
    assert "+50.0%" in result.stdout
    told = read_json(errors)["aiconfigurator"]["ranges"]["vllm"]["errors"]
    assert (told["ttft"]["low"], told["ttft"]["high"]) == (0.5, 0.5)
    page = (tmp_path / "fidelity-hardware.md").read_text(encoding="utf-8")
    assert "| vllm | TPOT | 1 | +10.0% | 10.0% | 10.0% | -20.0% | 20.0% | 20.0% |" in page


def test_what_is_not_asked_for_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("", encoding="utf-8")

    result = CliRunner().invoke(
        main, ["fidelity-hardware", str(tmp_path / "table.csv"), "-o", str(tmp_path / "docs")]
    )

    assert result.exit_code == 0, result.output
    assert [path.name for path in (tmp_path / "docs").iterdir()] == ["fidelity-hardware.md"]
