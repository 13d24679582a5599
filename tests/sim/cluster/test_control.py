"""Replicas that come, go and fail: as laws, over random worlds."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchsim.latency import LinearIterationLatency
from batchsim.metrics.summary import laws
from batchsim.records import FINISHED, has_status
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate
from batchsim.workload.request import Workload
from tests.policies.examples import srpt  # noqa: F401 -- found by name

#: No two passes take the same time.
UNEVEN = LinearIterationLatency(0.00973, 0.00107, 0.0, 0.00031, 0.000073)
PRESETS = ("vllm_v1", "vllm_v0", "vllm_v0_swap", "sarathi", "orca", "sjf", "multi_bin_continuous")
ROUTINGS = ("RoundRobin", "LeastLoaded", "PowerOfTwo", "SessionAffinity", "PrefixAffinity")
RULES: tuple[dict[str, Any], ...] = (
    {"kind": "TargetTracking", "target": 0.6, "scale_down_after_s": 0.7},
    {"kind": "TargetTracking", "metric": "queue_per_replica", "target": 2.0, "scale_down_after_s": 0.3},
    {"kind": "TargetTracking", "metric": "kv_use", "target": 0.4, "scale_down_after_s": 0.0},
    {"kind": "Thresholds", "up": 2.0, "down": 0.5, "cooldown_s": 0.2},
    {"kind": "Thresholds", "metric": "requests_per_replica", "up": 3.0, "down": 1.0, "cooldown_s": 0.0},
    {"kind": "Predictive", "requests_per_s": 5.0, "window_s": 0.7, "ahead_s": 0.2, "period_s": 1.0},
)


def autoscalers() -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda rule, **common: {**rule, **common},
        st.sampled_from(RULES),
        interval_s=st.sampled_from([0.0517, 0.333]),
        min_replicas=st.integers(0, 2),
        cold_start_s=st.sampled_from([0.0, 0.213, 1.07]),
        cold_start=st.sampled_from(["fixed", "exponential", "lognormal", "uniform"]),
    )


def failures() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "time_between_s": st.sampled_from([0.127, 0.53]),
            "time_between": st.sampled_from(["exponential", "lognormal"]),
            "repair_s": st.sampled_from([0.0, 0.0913, 0.71]),
            "at": st.just([[0.0371, 0], [0.211, 1]]),
            "on_failure": st.sampled_from(["resume", "retry", "lose"]),
            "max_retries": st.sampled_from([0, 2, 40]),
        }
    )


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, Any], Workload]:
    blocks = draw(st.integers(8, 20))
    preset = draw(st.sampled_from(PRESETS))
    policy: dict[str, Any] = {"preset": preset, "batch_size": draw(st.integers(1, 6))}
    policy["routing"] = {"kind": draw(st.sampled_from(ROUTINGS))}
    if preset == "orca":
        policy["batching"] = {"reserve": "predicted"}
    if preset == "multi_bin_continuous":
        policy["queueing"] = {"num_bins": 2, "boundaries": [6]}
    config: dict[str, Any] = {
        "policy": policy,
        "cluster": {"num_gpus": draw(st.integers(2, 3))},
        "engine": {
            "async_scheduling": draw(st.booleans()),
            "launch_s": 0.001,
            "block_size": 4,
            "num_kv_blocks": blocks,
            "prefix_caching": draw(st.booleans()),
            "frontend_s": draw(st.sampled_from([0.0, 0.013])),
        },
        "patience_s": draw(st.sampled_from([None, None, 0.31])),
        "seed": draw(st.integers(0, 5)),
    }
    which = draw(st.sampled_from(["autoscaler", "failures", "both"]))
    if which != "failures":
        config["autoscaler"] = draw(autoscalers())
    if which != "autoscaler":
        config["failures"] = draw(failures())
    if which == "failures" and draw(st.booleans()):
        policy["routing"] = {"kind": "Central"}
    rows = draw(
        st.lists(st.tuples(st.floats(0, 1), st.integers(1, 12), st.integers(1, 16)), min_size=1, max_size=14)
    )
    # The last comes when all is over, and needs nearly all blocks of a replica.
    rows = [*sorted(rows, key=lambda row: row[0]), (7.0, 3, 4 * blocks - 8)]
    frame = pd.DataFrame(rows, columns=["arrival_s", "output_tokens", "prompt_tokens"])
    families = np.random.default_rng(blocks).integers(0, 3, len(rows))
    frame["hash_ids_4"] = [
        [family * 1000 + position for position in range(tokens // 4)]
        for family, tokens in zip(families.tolist(), frame["prompt_tokens"], strict=True)
    ]
    if draw(st.booleans()):
        frame["session_id"] = families
    return config, Workload.from_frame(frame)


@settings(max_examples=60)
@given(worlds())
def test_each_ends_in_one_state_laws_hold_and_spans_are_exact(world: tuple[dict[str, Any], Workload]) -> None:
    config, requests = world

    spans = simulate(config, requests, latency=UNEVEN)

    ended = spans.requests
    assert spans.summary["num_finished"] + spans.summary["num_failed"] + spans.summary[
        "num_abandoned"
    ] == len(ended)
    finished = has_status(ended, FINISHED)
    assert ended.loc[finished, ["scheduled_s", "first_token_s", "finish_s"]].notna().all(axis=None)
    assert ended.loc[~finished, "finish_s"].isna().all()
    if config.get("failures", {}).get("on_failure") in (None, "resume") and config["patience_s"] is None:
        assert spans.summary["num_failed"] <= ("failures" in config) * len(ended)
    assert laws(spans.records) == pytest.approx(dict.fromkeys(laws(spans.records), 0.0), abs=1e-9)
    check_states(spans)
    exact = simulate(config, requests, latency=UNEVEN, overrides={"engine.exact_iterations": True})
    pd.testing.assert_frame_equal(ended, exact.requests, rtol=0, atol=1e-9)
    pd.testing.assert_frame_equal(spans.replica_states, exact.replica_states, rtol=0, atol=1e-9)
    pd.testing.assert_frame_equal(
        *(one.preemptions.sort_values(["gpu_id", "time_s"], kind="stable", ignore_index=True)
          for one in (spans, exact)),
        rtol=0, atol=1e-9,
    )  # fmt: skip
    again = simulate(config, requests, latency=UNEVEN)
    for name, table in spans.tables.items():
        pd.testing.assert_frame_equal(table, again.tables[name])


def check_states(result: SimulationResult) -> None:
    """Each replica is in one state at a time, and iterations run while it is on or drains."""
    states = result.replica_states
    for number, rows in states.groupby("gpu_id"):
        rows = rows.sort_values(["start_s", "end_s"], kind="stable")
        assert rows["start_s"].iloc[0] == 0.0
        assert np.array_equal(rows["start_s"].to_numpy()[1:], rows["end_s"].to_numpy()[:-1])
        up = rows[rows["state"].isin(["on", "draining"])]
        spans = result.iterations[result.iterations["gpu_id"] == number]
        index = np.searchsorted(up["start_s"], spans["start_s"], side="right") - 1
        assert (index >= 0).all()
        last_s = up["end_s"].to_numpy()
        # one that drains is the row after that in which it was on
        ends_s = np.where(
            (np.append(up["start_s"].to_numpy()[1:], np.inf) == last_s), np.append(last_s[1:], np.inf), last_s
        )
        assert (spans["finish_s"].to_numpy() <= ends_s[index] + 1e-9).all()
