"""Little's law: a time average is the rate of arrivals times the mean of what each request adds to it."""

from math import ceil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchsim.latency.linear import LinearIterationLatency
from batchsim.metrics.tokens import token_times_s
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate
from tests.sim.worlds import LinearLatency, workload

BLOCK_TOKENS = 4
ITERATION = LinearIterationLatency(
    fixed_s=0.1,
    per_prefill_token_s=0.0,
    per_prefill_pair_s=0.0,
    per_decode_seq_s=0.01,
    per_context_token_s=0.0,
)
PRESETS = ("static_fifo", "vllm_v1")


@st.composite
def requests(draw: st.DrawFn) -> Any:
    num = draw(st.integers(1, 12))
    arrival_s = np.sort(draw(st.lists(st.floats(0, 3), min_size=num, max_size=num)))
    tokens = draw(st.lists(st.integers(1, 12), min_size=num, max_size=num))
    return workload(arrival_s, tokens)


def added_s(result: SimulationResult, start: str, end: str) -> float:
    """Summed over requests: seconds from one time of theirs to another."""
    return float((result.requests[end] - result.requests[start]).sum())


def run_s(result: SimulationResult) -> float:
    """Replica seconds of the run, which is too short for any window but the whole."""
    assert result.summary["window"] == "whole run"
    return float(result.summary["makespan_s"]) * int(result.summary["num_gpus"])


@given(
    requests(),
    st.sampled_from([0.3, 1.0, None]),
    st.integers(1, 2),
    st.sampled_from(PRESETS),
)
@settings(max_examples=40)
def test_waiting(sent: Any, patience_s: float | None, num_gpus: int, preset: str) -> None:
    config = {
        "policy": {"preset": preset, "batch_size": 2},
        "cluster": {"num_gpus": num_gpus},
        "patience_s": patience_s,
    }
    latency = ITERATION if preset == "vllm_v1" else LinearLatency(per_token_s=0.2)

    result = simulate(config, sent, latency=latency)

    ended = result.requests
    until_s = ended["scheduled_s"].fillna(ended.get("left_s", np.nan))
    end_s = result.summary["window_end_s"]
    waited_s = float((until_s.clip(upper=end_s) - ended["arrival_s"]).clip(lower=0).sum())
    assert result.summary["waiting_mean"] * run_s(result) == pytest.approx(waited_s)


@given(requests(), st.integers(1, 2), st.booleans())
@settings(max_examples=40)
def test_running_and_blocks(sent: Any, num_gpus: int, is_exact: bool) -> None:
    config = {
        "policy": {"preset": "vllm_v1", "batch_size": 3},
        "cluster": {"num_gpus": num_gpus},
        "engine": {"block_size": BLOCK_TOKENS, "num_kv_blocks": 1000, "exact_iterations": is_exact},
    }

    result = simulate(config, sent, latency=ITERATION)

    assert result.summary["running_mean"] * run_s(result) == pytest.approx(
        added_s(result, "scheduled_s", "finish_s")
    )
    held = sum(block_s(result, row) for row in range(len(result.requests)))
    mean_blocks = result.summary["kv_use_mean"] * 1000 * run_s(result)
    if is_exact:
        assert mean_blocks == pytest.approx(held)
    else:
        assert mean_blocks >= held * (1 - 1e-9)  # a span counts with what it holds at its end


def block_s(result: SimulationResult, row: int) -> float:
    """Blocks times seconds of one request: those of its prompt, then one token more in each iteration."""
    request = result.requests.iloc[row]
    tables = (result.requests, result.iterations, result.preemptions)
    times_s = np.concatenate([[request["scheduled_s"]], token_times_s(int(request["request_id"]), *tables)])
    blocks = [ceil((request["prompt_tokens"] + index) / BLOCK_TOKENS) for index in range(len(times_s) - 1)]
    return float(np.diff(times_s) @ blocks)
