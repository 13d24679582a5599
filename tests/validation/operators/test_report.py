from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from batchsim.files import read_json
from batchsim.validation.operators import report
from batchsim.validation.operators.report import family, write_operators_ranges, write_operators_report
from batchsim.validation.points import POINT_COLUMNS, Points

LLAMA, LLAMA_FP8, QWEN = "meta/Llama", "nvidia/Llama-FP8", "Qwen/Qwen"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "package_version", lambda: "0.12.0")


def measured(*rows: tuple[str, float]) -> Points:
    """Points of models; TTFT is predicted so many times as long, TPOT as measured."""
    what: dict[str, Any] = dict.fromkeys(POINT_COLUMNS, 1) | {
        "framework": "vllm",
        "gpu": "h100_sxm",
        "precision": "fp8",
    }
    table = [
        {**what, "row": row, "model": model, "metric": metric, "measured_s": 1.0, "predicted_s": predicted}
        for row, (model, factor) in enumerate(rows)
        for metric, predicted in (("TTFT", factor), ("TPOT", 1.0))
    ]
    return Points(pd.DataFrame(table, columns=list(POINT_COLUMNS)), len(rows), Counter())


def page_of(folder: Path, points: Points, peers: pd.DataFrame | None = None) -> str:
    return write_operators_report(points, folder, peers).read_text(encoding="utf-8")


def test_page_says_how_many_rows_of_a_model_the_others_tell_of(tmp_path: Path) -> None:
    points = measured((LLAMA, 1.5), (LLAMA, 0.9), (QWEN, 1.0), (QWEN, 1.2))

    page = page_of(tmp_path, points)

    assert "| vllm | TTFT | 4 | 2 | -10% to +50% | 100% | 50% |" in page
    assert (
        "| vllm | meta/Llama | h100_sxm | fp8 | 2 | +20.0% | 30.0% | 30.0% | 50% | +0% to +20% | 0% |" in page
    )
    assert "AIConfigurator: mean error" not in page


def test_a_model_is_left_out_in_all_its_precisions(tmp_path: Path) -> None:
    page = page_of(tmp_path, measured((LLAMA, 1.5), (LLAMA_FP8, 1.5), (QWEN, 1.0)))

    assert "| +50.0% | 50.0% | 50.0% | 0% | +0% to +0% | 0% |" in page


def test_peer_s_numbers_are_of_the_same_rows(tmp_path: Path) -> None:
    peers = pd.DataFrame({"row": [1, 7], "metric": ["TTFT", "TTFT"], "predicted_s": [3.0, 1.0]})

    page = page_of(tmp_path, measured((LLAMA, 1.5), (QWEN, 1.25)), peers)

    assert "| vllm | TTFT | 1 | +25.0% | 25.0% | 25.0% | +200.0% | 200.0% | 200.0% |" in page
    assert "| TTFT | vllm | Qwen/Qwen | h100_sxm | fp8 | 1 | +25.0% |" in page
    assert max(map(len, page.splitlines())) < 400


def test_ranges_are_by_engine_and_metric(tmp_path: Path) -> None:
    write_operators_ranges(measured((LLAMA, 1.5), (QWEN, 0.75)), tmp_path / "errors.json")

    told = read_json(tmp_path / "errors.json")["aiconfigurator"]
    assert told["ranges"]["vllm"]["num_groups"] == 2
    assert told["ranges"]["vllm"]["errors"]["ttft"] == {
        "low": -0.25, "high": 0.5, "held_out_coverage": 0.0,
    }  # fmt: skip
    assert set(told["ranges"]["vllm"]["errors"]) == {"ttft", "tpot", "e2e"}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen3-32B-FP8", "Qwen3-32B"),
        ("deepseek-ai/DeepSeek-R1", "DeepSeek-V3"),
        ("nvidia/DeepSeek-V3.1-NVFP4", "DeepSeek-V3"),
        ("openai/gpt-oss-120b", "gpt-oss-120b"),
    ],
)
def test_precisions_of_a_model_are_the_same_model(model: str, name: str) -> None:
    assert family(model) == name
