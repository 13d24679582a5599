"""Runs with drafts, from a file of settings to a directory of results."""

from pathlib import Path

import pandas as pd
import pytest

from batchsim.errors import ConfigError
from batchsim.latency import LinearIterationLatency
from batchsim.latency.store import save_latency
from batchsim.results.store import load_run
from batchsim.study.run import simulate
from tests.sim.worlds import workload

LATENCY = LinearIterationLatency(0.01, 0.001, 0.0, 0.0003, 0.00001)

SETTINGS = """
[policy]
preset = "vllm_v1"

[engine]
num_kv_blocks = 1000

[engine.speculation]
num_speculative_tokens = 2
acceptance = 0.5
draft_latency_file = "draft.json"
"""


def test_a_draft_model_lies_beside_its_settings_and_takes_its_time(tmp_path: Path) -> None:
    save_latency(LinearIterationLatency(0.004, 0.0, 0.0, 0.0, 0.0), tmp_path / "draft.json")
    settings = tmp_path / "run.toml"
    settings.write_text(SETTINGS, encoding="utf-8")
    overrides = {"engine.speculation.draft_latency_file": None}

    drafted = simulate(settings, workload([0.0], 30, 10), latency=LATENCY)
    free = simulate(settings, workload([0.0], 30, 10), latency=LATENCY, overrides=overrides)

    steps = len(drafted.decode_steps)
    assert len(free.decode_steps) == steps
    later_s = drafted.requests["finish_s"] - free.requests["finish_s"]
    assert later_s.item() == pytest.approx(steps * 2 * 0.004)
    assert str(tmp_path / "draft.json") in drafted.config.files


def test_steps_are_saved_and_read_back(tmp_path: Path) -> None:
    drafts = {"num_speculative_tokens": 3, "acceptance": 0.7}
    config = {"policy": {"preset": "vllm_v1"}, "engine": {"speculation": drafts}}
    result = simulate(config, workload([0.0, 0.1], 30, 10), latency=LATENCY)

    _, summary, tables = load_run(result.save(tmp_path / "run"))

    pd.testing.assert_frame_equal(tables["decode_steps"], result.decode_steps)
    pd.testing.assert_frame_equal(tables["iterations"], result.iterations)
    assert summary["draft_acceptance_rate"] == pytest.approx(
        result.decode_steps["accepted"].sum() / result.decode_steps["drafted"].sum()
    )
    assert summary["expected_error"].endswith("no published point of speculative decoding was predicted")


def test_without_drafts_there_is_neither_table_nor_column(tmp_path: Path) -> None:
    result = simulate({"policy": {"preset": "vllm_v1"}}, workload([0.0], 30, 10), latency=LATENCY)

    assert "decode_steps" not in result.tables
    assert "decode_tokens" not in result.iterations
    assert "draft_acceptance_rate" not in result.summary


def test_batches_that_run_to_completion_have_no_drafts() -> None:
    drafts = {"num_speculative_tokens": 3, "acceptance": 0.7}

    with pytest.raises(
        ConfigError, match=r"static_fifo runs batches to completion.* engine.speculation needs"
    ):
        simulate({"engine": {"speculation": drafts}}, workload([0.0], 30, 10))
