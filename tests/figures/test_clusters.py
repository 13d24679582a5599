import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from batchsim.figures.clusters import (
    COLD_START,
    COST,
    HOST_GB,
    NUM_GPUS,
    PROMPT,
    TIER,
    TOTAL_RATE,
    autoscaling,
    disaggregation,
    fairness,
    kv_tiers,
)
from batchsim.figures.results import SweepResults
from batchsim.figures.schedulers import RATE
from tests.figures.swept import results


def title_of(figure: Figure) -> str:
    return " ".join(figure.texts[0].get_text().split())


def test_each_length_of_prompts_has_a_row_of_panels_and_a_part_of_the_title() -> None:
    swept = results(
        {PROMPT: [1024, 4096], RATE: [1.0, 2.0]},
        **{PROMPT: [1024, 1024, 4096, 4096] * 2, RATE: [1.0, 2.0] * 4},
        policy=["vllm_v1"] * 8,
        case=["together"] * 4 + ["1P1D"] * 4,
        slo_attainment=[1.0, 0.8, 1.0, 0.8, 1.0, 0.8, 1.0, 1.0],
        ttft_p99_s=[1.0] * 8,
        tpot_mean_s=[0.01] * 8,
    )

    figure, table = disaggregation(swept)

    assert [axes.get_title("left") for axes in figure.axes[::3]] == [
        "prompts of 1,024 tokens",
        "prompts of 4,096 tokens",
    ]
    assert len(table) == 8
    assert title_of(figure) == (
        "Load with 90 % within the limit, beside together: prompts of 1,024 tokens, nobody 5 % more; prompts "
        "of 4,096 tokens, 1P1D at least 1.3x"
    )


def test_host_memory_is_drawn_over_its_size_and_beside_none() -> None:
    tiers = [json.dumps([{"name": "host", "capacity_bytes": size}]) for size in (8e9, 16e9)]
    swept = results(
        {},
        policy=["vllm_v1"] * 5,
        case=["LRU", "LRU", "slow", "slow", "none"],
        **{TIER: [*tiers, *tiers, "[]"]},
        prefix_hit_rate=[0.5, 0.6, 0.5, 0.6, 0.1],
        ttft_mean_s=[0.2, 0.1, 0.5, 0.6, 0.4],
    )

    with pytest.warns(UserWarning, match="ttft_tier_mean_s"):
        figure, table = kv_tiers(swept)

    assert table[HOST_GB].tolist() == [8.0, 16.0, 8.0, 16.0]
    assert title_of(figure) == "TTFT mean with 16 GB of host memory, beside none: LRU 0.25x, slow 1.5x"
    assert [axes.lines[-1].get_ydata() for axes in figure.axes] == [[0.1, 0.1], [0.4, 0.4]]


def test_what_comes_and_goes_is_held_against_a_fleet_that_attains_as_much() -> None:
    swept = results(
        {},
        policy=["vllm_v1"] * 4,
        case=["fixed", "fixed", "rule", "rule"],
        **{NUM_GPUS: [1, 2, 4, 4], COLD_START: [60.0, 60.0, 10.0, 100.0], COST: [10.0, 20.0, 9.0, 12.0]},
        slo_attainment=[0.8, 0.9, 0.88, 0.85],
        ttft_p99_s=[1.0] * 4,
    )

    figure, table = autoscaling(swept)

    assert table["missed"].round(9).tolist() == [0.2, 0.1, 0.12, 0.15]
    # as much as 18 and 15 GPU hours of a fixed fleet
    assert title_of(figure) == (
        "Cost beside a fixed fleet that attains as much, with 10 to 100 s to start: rule 0.5x to 0.8x"
    )
    assert [text.get_text() for text in figure.axes[0].texts] == ["1 GPU", "2 GPUs", "10 s", "100 s"]


@dataclass(frozen=True, slots=True, eq=False)
class WithTenants(SweepResults):
    """Runs whose tables need not be on the disk."""

    def kept(self, what: str, run_id: str) -> pd.DataFrame:
        served = {"FIFO": [0.5, 0.5, 0.5], "FairShare": [0.4, 1.0, 0.8]}[run_id]
        tenants: dict[str, Any] = {
            "kind": ["tenant"] * 3 + ["slo_class"],
            "name": ["big", "small", "tiny", "chat"],
            "num_requests": [9, 2, 1, 12],
            "ttft_mean_s": [9.0, 1.0, 3.0, 7.0],
            "slo_attainment": [*served, 0.0],
            "service_tokens": [*(100 * share for share in served), 0.0],
            "demand_tokens": [100.0] * 4,
        }
        return pd.DataFrame(tenants)


def test_the_one_who_sends_most_stands_beside_the_mean_of_the_others() -> None:
    swept = results(
        {TOTAL_RATE: [4.0]},
        **{TOTAL_RATE: [4.0, 4.0]},
        policy=["vllm_v1"] * 2,
        case=["FIFO", "FairShare"],
        run_id=["FIFO", "FairShare"],
    )

    figure, table = fairness(WithTenants(Path(), swept.sweep, swept.runs))

    assert table["whose"].tolist() == ["FIFO, big", "FIFO, others", "FairShare, big", "FairShare, others"]
    assert table["ttft_mean_s"].tolist() == [9.0, 2.0, 9.0, 2.0]
    assert table["slo_attainment"].tolist() == pytest.approx([0.5, 0.5, 0.4, 0.9])
    assert table["served_share"].tolist() == pytest.approx([0.5, 0.5, 0.4, 0.9])
    assert title_of(figure) == (
        "Of the others' requests at 4 requests/s, within the limit: FIFO 50 %, FairShare 90 %"
    )
