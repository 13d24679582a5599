import math
from pathlib import Path

import pytest

from batchsim.latency.store import save_latency
from batchsim.validation.replays.page import judge, page_of
from batchsim.validation.replays.validate import validate
from tests.validation.replays.measured_worlds import engine, measure


@pytest.mark.parametrize(
    ("error", "spread", "verdict"),
    [
        (0.07, math.nan, "pass"),
        (-0.08, 0.01, "pass"),
        (0.2, 0.3, "within spread"),
        (-0.2, 0.1, "fail"),
        (0.2, math.nan, "fail"),
    ],
)
def test_a_mean_is_judged_by_the_bar_then_by_the_spread(error: float, spread: float, verdict: str) -> None:
    assert judge(error, spread) == verdict


def test_a_page_says_what_each_gate_found_and_shows_errors_beside_spreads(tmp_path: Path) -> None:
    for number in (1, 2):
        measure(tmp_path / "runs" / f"vllm_v1-{number}", "vllm_v1", trace=(20, 2.0), seed=number)
    save_latency(engine(), tmp_path / "latency.json")

    page = page_of(validate([tmp_path / "runs"], tmp_path / "latency.json"))

    assert "**In short**: logic passes in 2 of 2 runs;" in page
    for part in (
        "## Logic",
        "| vllm_v1-1 | pass |",
        "## Model",
        "### vllm_v1: 2 repeats",
        "| TTFT mean (ms) |",
    ):
        assert part in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    assert "nan" not in page
