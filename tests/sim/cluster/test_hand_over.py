"""Prompts on one replica, decodes on another: by hand, and as laws."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchsim.latency import LinearIterationLatency
from batchsim.metrics.summary import laws
from batchsim.records import FINISHED
from batchsim.specs import load_model
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate
from tests.sim.worlds import workload

#: Bytes of a token's KV of the default model: bandwidths are told in tokens.
TOKEN_BYTES = 28_672
#: 10 ms a pass, and 1 ms for each token of a prompt.
LATENCY = LinearIterationLatency(0.01, 0.001, 0.0, 0.0, 0.0)
#: No two passes take the same time.
UNEVEN = LinearIterationLatency(0.00973, 0.00107, 0.0, 0.00031, 0.000073)


def run(
    arrivals_s: list[float],
    outputs: list[int],
    prompts: list[int],
    *,
    transfer: dict[str, Any] | None = None,
    **config: Any,
) -> SimulationResult:
    """Two replicas, one of each kind, unless told otherwise."""
    given = {
        "policy": {"preset": "vllm_v1"},
        "cluster": {"num_gpus": 2, "num_prefill_replicas": 1},
        "kv_transfer": {"nic_bytes_per_s": 1000.0 * TOKEN_BYTES, **(transfer or {})},
        **config,
    }
    return simulate(given, workload(arrivals_s, outputs, prompts), latency=LATENCY)


def test_a_prompt_is_computed_sent_and_decoded() -> None:
    result = run([0.0], [3], [100])
    request, transfer = result.requests.iloc[0], result.transfers.iloc[0]
    assert request["first_token_s"] == pytest.approx(0.11)
    assert transfer["start_s"] == pytest.approx(0.11)
    assert transfer["finish_s"] == pytest.approx(0.21)  # 100 tokens at 1,000 a second
    assert request["finish_s"] == pytest.approx(0.23)  # two decodes of 10 ms
    assert request["gpu_id"] == 1
    assert result.summary["transfer_mean_s"] == pytest.approx(0.1)
    assert result.summary["transfer_wait_mean_s"] == 0.0
    assert result.summary["num_preemptions"] == 0
    assert result.summary["tpot_transfer_mean_s"] == pytest.approx(0.05)


def test_by_layer_only_the_last_is_sent_after_the_prompt() -> None:
    layers = load_model("qwen2.5-1.5b").num_layers
    fast = run([0.0], [3], [100], transfer={"overlap": "layers", "nic_bytes_per_s": 2000.0 * TOKEN_BYTES})
    assert fast.transfers["start_s"][0] == 0.0
    assert fast.transfers["finish_s"][0] == pytest.approx(0.11 + 0.05 / layers)
    slow = run([0.0], [3], [100], transfer={"overlap": "layers", "nic_bytes_per_s": 500.0 * TOKEN_BYTES})
    assert slow.transfers["finish_s"][0] == pytest.approx(0.2)  # the link is what takes longest
    assert slow.summary["transfer_mean_s"] == pytest.approx(0.09)


def test_who_decodes_must_have_room_before_anything_is_sent() -> None:
    """Two requests of 10 blocks each: the target has 12, so the second waits for the end of the first."""
    result = run(
        [0.0, 0.0],
        [21, 3],
        [150, 150],
        cluster={"num_gpus": 2, "num_prefill_replicas": 1, "kv_capacity_tokens": 12 * 16},
        policy={"preset": "vllm_v1", "batching": {"max_num_batched_tokens": 256}},
    )
    first, second = (result.transfers.set_index("request_id").loc[one] for one in (0, 1))
    assert second["ready_s"] < first["finish_s"] + 0.2
    assert second["start_s"] == pytest.approx(result.requests["finish_s"][0])
    assert result.summary["transfer_wait_mean_s"] > 0.0


def test_the_blocks_of_a_prompt_stay_taken_until_its_kv_is_there() -> None:
    """The source has room for one of the prompts: the second is begun when the first has been sent."""
    result = run(
        [0.0, 0.0],
        [3, 3],
        [150, 150],
        cluster={
            "replicas": [{"role": "prefill", "num_kv_blocks": 12}, {"role": "decode", "num_kv_blocks": 100}]
        },
    )
    sent_s = result.transfers.set_index("request_id")["finish_s"]
    assert result.requests["scheduled_s"][1] == pytest.approx(sent_s[0])


def test_a_pool_may_admit_by_predicted_kv() -> None:
    """Answers will have 5 blocks more: with room for both prompts, but not for both answers, one waits."""
    pool: list[dict[str, Any]] = [
        {"role": "prefill", "num_kv_blocks": 100},
        {"role": "decode", "num_kv_blocks": 25},
    ]
    greedy = run([0.0, 0.0], [80, 80], [150, 150], cluster={"replicas": pool})
    pool[1]["batching"] = {"kind": "ReserveWhole", "reserve": "predicted"}
    careful = run([0.0, 0.0], [80, 80], [150, 150], cluster={"replicas": pool})
    assert greedy.summary["num_preemptions"] > 0 == careful.summary["num_preemptions"]
    assert careful.transfers["start_s"][1] == pytest.approx(careful.requests["finish_s"].min())


def test_an_answer_of_one_token_is_not_handed_over() -> None:
    result = run([0.0, 0.0], [1, 2], [10, 10])
    assert result.transfers["request_id"].tolist() == [1]
    assert result.requests["gpu_id"].tolist() == [0, 1]


def test_what_no_decoder_can_hold_is_refused_before_its_prompt_is_computed() -> None:
    replicas = [{"role": "prefill", "num_kv_blocks": 100}, {"role": "decode", "num_kv_blocks": 4}]
    result = run([0.0, 0.1], [100, 3], [10, 10], cluster={"replicas": replicas})
    assert result.requests["status"].tolist() == ["refused", "finished"]
    assert result.iterations["prefill_tokens"].sum() == 10


def test_a_client_that_waits_is_told() -> None:
    result = run([0.0] * 6, [5] * 6, [10] * 6, clients={"kind": "closed_loop", "concurrency": 2})
    assert (result.requests["status"] == FINISHED).all()
    assert result.requests["arrival_s"].nunique() > 2


ROLES = (["prefill", "decode"], ["prefill", "prefill", "decode"], ["prefill", "both", "decode"])
PRESETS = ("vllm_v1", "vllm_v0", "sarathi", "orca", "sjf", "multi_bin_continuous")


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, Any], list[tuple[float, int, int]]]:
    """Any policy, roles, links, little memory.

    No transfer ends with an iteration, at an instant that rounding would part; for which prompts differ, too.
    """
    roles = draw(st.sampled_from(ROLES))
    blocks = draw(st.integers(8, 20))
    preset = draw(st.sampled_from(PRESETS))
    policy: dict[str, Any] = {"preset": preset, "batch_size": draw(st.integers(1, 6))}
    if preset == "orca":
        policy["batching"] = {"reserve": "predicted"}
    if preset == "multi_bin_continuous":
        policy["queueing"] = {"num_bins": 2, "boundaries": [6]}
    config = {
        "policy": policy,
        "pool": [{"role": role, "num_kv_blocks": blocks} for role in roles],
        "kv_transfer": {
            "nic_bytes_per_s": draw(st.sampled_from([103.7, 5013.9])) * TOKEN_BYTES,
            "fabric_bytes_per_s": draw(st.sampled_from([None, 211.3 * TOKEN_BYTES])),
            "max_transfers": draw(st.sampled_from([None, 1, 2])),
            "overlap": draw(st.sampled_from(["none", "layers"])),
            "latency_s": draw(st.sampled_from([0.0, 0.0041])),
        },
        "engine": {
            "async_scheduling": draw(st.booleans()),
            "launch_s": 0.001,
            "block_size": 4,
            "frontend_s": draw(st.sampled_from([0.0, 0.013])),
        },
    }
    rows = draw(
        st.lists(
            st.tuples(st.floats(0, 1), st.integers(1, 12), st.integers(1, 16)),
            min_size=1,
            max_size=14,
            unique_by=lambda row: row[2],
        )
    )
    rows = sorted(rows, key=lambda row: row[0])
    # The last comes when all is over, and needs nearly all blocks of every kind of replica.
    return config, [*rows, (1000.0, 3, 4 * blocks - 8)]


@settings(max_examples=60)
@given(worlds())
def test_laws_hold_blocks_come_back_and_spans_are_exact(
    world: tuple[dict[str, Any], list[tuple[float, int, int]]],
) -> None:
    config, rows = world
    arrivals_s, outputs, prompts = (list(column) for column in zip(*rows, strict=True))
    requests = workload(arrivals_s, outputs, prompts)
    spans = simulate(config, requests, latency=UNEVEN)
    assert (spans.requests["status"] == FINISHED).all()
    assert laws(spans.records) == pytest.approx(dict.fromkeys(laws(spans.records), 0.0), abs=1e-9)
    exact = simulate(config, requests, latency=UNEVEN, overrides={"engine.exact_iterations": True})
    for column in ("scheduled_s", "first_token_s", "decode_start_s", "finish_s"):
        np.testing.assert_allclose(spans.requests[column], exact.requests[column], rtol=0, atol=1e-9)
    moved = spans.transfers
    assert (moved["start_s"] >= moved["asked_s"]).all()
    assert (moved["finish_s"] >= moved[["start_s", "ready_s"]].max(axis=1)).all()
    handed = spans.requests[spans.requests["request_id"].isin(moved["request_id"])]
    assert (
        handed["gpu_id"]
        .isin([one for one, pool in enumerate(config["pool"]) if pool["role"] == "decode"])
        .all()
    )
