"""The loops of a replay against the simulator: fed with the same seconds, they do the same things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch

from batchsim.config import RunConfig, load_config
from batchsim.errors import ConfigError, PlanError
from batchsim.latency.base import IterationShape
from batchsim.latency.linear import LinearIterationLatency
from batchsim.policies.queueing import Fifo
from batchsim.streams import stream
from batchsim.study.run import simulate
from batchsim.workload.request import Workload
from batchsim_calibration.replaying.inbox import Log, Request
from batchsim_calibration.replaying.measured_run import tables_of
from batchsim_calibration.replaying.replay import Limits, replay, settle
from batchsim_calibration.replaying.step import NextIteration
from batchsim_calibration.serving.engine import Chunk, Engine

LATENCY = LinearIterationLatency(
    fixed_s=0.02,
    per_prefill_token_s=0.001,
    per_prefill_pair_s=1e-6,
    per_decode_seq_s=0.002,
    per_context_token_s=1e-5,
)
LIMITS = Limits(num_slots=8, max_tokens=160)
#: About two and a half requests' worth of KV: long answers outgrow it together.
TINY_CACHE = {"block_size": 4, "num_kv_blocks": 60}


class ModelledTime:
    """A clock that passes only when somebody waits or works."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s

    def sleep_until(self, time_s: float) -> None:
        self.time_s = max(self.time_s, time_s)


class ModelledEngine:
    """What an `Engine` does to its slots, without a model; its passes take as long as the latency says."""

    device = torch.device("cpu")
    vocab_size = 50

    def __init__(self, clock: ModelledTime, limits: Limits = LIMITS) -> None:
        self._clock = clock
        self.num_slots, self.max_tokens = limits.num_slots, limits.max_tokens
        self.lengths = [0] * limits.num_slots
        self.was_fed: list[list[int]] = [[] for _ in self.lengths]  # chunk by chunk

    def step(self, chunks: Sequence[Chunk], decode_slots: Sequence[int]) -> dict[int, int]:
        tokens = [len(chunk.token_ids) for chunk in chunks]
        pairs = sum(
            num * (self.lengths[chunk.slot] + num / 2) for chunk, num in zip(chunks, tokens, strict=True)
        )
        context_tokens = sum(self.lengths[slot] for slot in decode_slots)
        shape = IterationShape(sum(tokens), len(decode_slots), context_tokens, len(chunks), pairs)
        self._clock.time_s += LATENCY.iteration_s(shape)
        for chunk, num in zip(chunks, tokens, strict=True):
            self.lengths[chunk.slot] += num
            self.was_fed[chunk.slot] += chunk.token_ids.tolist()
        for slot in decode_slots:
            assert self.lengths[slot], "a slot without a prompt decodes"
            self.lengths[slot] += 1
        assert max(self.lengths) <= self.max_tokens
        return dict.fromkeys((*decode_slots, *(chunk.slot for chunk in chunks if chunk.completes)), 7)

    def clear(self, slot: int) -> None:
        self.lengths[slot] = 0
        self.was_fed[slot] = []


def run_both(given: Mapping[str, Any], requests: Workload) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Tables of the replay and of the simulator."""
    config = settle(load_config(given), requests.take(slice(0, 60)), LIMITS)
    log = replay_in_modelled_time(config, requests)
    is_iteration_level = bool(log.iterations)
    replayed = tables_of(log, requests, is_iteration_level=is_iteration_level)
    return replayed, dict(simulate(config, requests, latency=LATENCY).tables)


def replay_in_modelled_time(config: RunConfig, requests: Workload) -> Log:
    clock = ModelledTime()
    engine = ModelledEngine(clock)
    log = replay(cast("Engine", engine), config, requests, clock)
    assert engine.lengths == [0] * engine.num_slots
    return log


def bursty(num: int = 120, rate_per_s: float = 6.0, seed: int = 3) -> Workload:
    """Bursts and pauses, so that the engine is both overrun and idle."""
    rng = stream(seed, "test")
    gaps_s = rng.gamma(0.3, 1 / (0.3 * rate_per_s), num)
    return Workload(
        request_id=np.arange(num),
        arrival_s=np.cumsum(gaps_s) - gaps_s[0],
        prompt_tokens=rng.integers(1, 90, num),
        output_tokens=rng.integers(1, 60, num),
    )


def assert_same(replayed: Mapping[str, pd.DataFrame], simulated: Mapping[str, pd.DataFrame]) -> None:
    assert list(replayed) == list(simulated)
    for name, table in simulated.items():
        mine = replayed[name]
        if name == "controllers" and "batches" in simulated:
            # The simulator stops with the last request, before its scheduler learns from the last batch.
            assert len(mine) - len(table) in (0, 1)
            mine = mine.iloc[: len(table)]
        pd.testing.assert_frame_equal(mine, table, rtol=1e-9, atol=1e-9, check_categorical=False)


@pytest.mark.parametrize(
    ("preset", "batching"),
    [
        ("vllm_v1", {"max_num_batched_tokens": 48}),
        ("vllm_v1", {"max_num_batched_tokens": 48, "long_prefill_threshold": 16, "allocate": "prompt"}),
        ("vllm_v0", {"max_num_batched_tokens": 100, "watermark": 0.05}),
        ("sarathi", {"max_num_batched_tokens": 48}),
        ("orca", {"max_tokens": 100}),
        ("orca", {"reserve": "predicted"}),
        ("sjf", {"max_num_batched_tokens": 48}),
        ("multi_bin_continuous", {"max_num_batched_tokens": 48}),
        ("dynamic_batching", {}),
    ],
)
def test_iterations_are_those_of_the_simulator(preset: str, batching: dict[str, Any]) -> None:
    given = {
        "policy": {"preset": preset, "batching": batching},
        "engine": TINY_CACHE,
        "slo": {"tpot_ms": 40.0},
        "predictor": {"kind": "lognormal", "sigma": 0.6},
    }

    replayed, simulated = run_both(given, bursty())

    assert len(simulated["iterations"]) > 500
    assert (simulated["requests"]["status"] == "finished").mean() > 0.9
    assert_same(replayed, simulated)


@pytest.mark.parametrize("preset", ["vllm_v1", "vllm_v0", "sarathi", "sjf"])
def test_what_is_preempted_is_computed_again_as_in_the_simulator(preset: str) -> None:
    given = {"policy": {"preset": preset}, "engine": TINY_CACHE}

    replayed, simulated = run_both(given, bursty())

    assert len(replayed["preemptions"]) > 20
    assert_same(replayed, simulated)


@pytest.mark.parametrize(
    ("preset", "batching"),
    [
        ("static_fifo", {}),
        ("static_fifo", {"kind": "Timer", "max_wait_s": 0.5}),
        ("multi_bin", {}),
        ("multi_bin", {"leftovers": "strand"}),
        ("multi_bin_dynamic", {}),
        ("dynamic_no_bins", {}),
    ],
)
@pytest.mark.parametrize("layout", ["padded", "paged"])
def test_batches_are_those_of_the_simulator(preset: str, batching: dict[str, Any], layout: str) -> None:
    given = {
        "policy": {"preset": preset, "batching": batching},
        "cluster": {"kv_layout": layout, "kv_capacity_tokens": 500},
        "slo": {"tpot_ms": 40.0},
        "predictor": {"kind": "lognormal", "sigma": 0.6},
    }

    replayed, simulated = run_both(given, bursty())

    assert len(simulated["batches"]) > 15
    assert_same(replayed, simulated)


def test_members_that_outgrow_memory_come_back_as_in_the_simulator() -> None:
    given = {
        "policy": {"preset": "static_fifo"},
        "cluster": {"kv_capacity_tokens": 140},
        "predictor": {"kind": "constant", "tokens": 5},
    }

    replayed, simulated = run_both(given, bursty())

    assert (replayed["requests"]["num_evictions"] > 0).sum() > 5
    assert (replayed["requests"]["status"] == "refused").any()
    assert_same(replayed, simulated)


def test_a_controller_decides_as_in_the_simulator() -> None:
    given = {"policy": {"preset": "dynamic_batching"}, "engine": TINY_CACHE, "slo": {"tpot_ms": 50.0}}

    replayed, simulated = run_both(given, bursty())

    assert replayed["controllers"]["batch_size"].nunique() > 3
    assert_same(replayed, simulated)


def test_a_preempted_request_is_fed_its_prompt_and_its_answer_so_far() -> None:
    clock = ModelledTime()
    engine = ModelledEngine(clock)
    fed: list[int] = []
    clear = engine.clear
    engine.clear = lambda slot: (fed.append(len(engine.was_fed[slot])), clear(slot))  # type: ignore[assignment,func-returns-value]
    requests = bursty(2).with_arrivals(np.zeros(2))
    requests.prompt_tokens[:] = 20
    requests.output_tokens[:] = 12
    config = settle(
        load_config({"policy": {"preset": "vllm_v1"}, "engine": {"block_size": 4, "num_kv_blocks": 12}}),
        requests,
        LIMITS,
    )

    log = replay(cast("Engine", engine), config, requests, clock)

    # Both hold 20 tokens in 5 of 12 blocks, take a sixth for the 21st; at the 25th the second gives way.
    assert [request.num_preemptions for request in log.requests] == [0, 1]
    # After the slots cleared at the start: what the second was fed, the first, and the second again.
    assert fed[LIMITS.num_slots :] == [20, 20, 25]


def test_a_request_that_does_not_fit_its_slot_is_refused_before_the_start() -> None:
    requests = bursty(1)
    requests.prompt_tokens[:], requests.output_tokens[:] = 100, 62
    config = settle(load_config({"policy": {"preset": "vllm_v1"}}), requests, LIMITS)

    with pytest.raises(ConfigError, match="request 0 comes to hold 161 tokens; the engine was made for 160"):
        replay_in_modelled_time(config, requests)


def test_a_batch_that_does_not_fit_its_slots_is_refused_before_the_start() -> None:
    requests = bursty(2)
    requests.prompt_tokens[:], requests.output_tokens[:] = (100, 5), (5, 62)
    config = settle(load_config({"policy": {"preset": "static_fifo"}}), requests, LIMITS)

    with pytest.raises(ConfigError, match="holds 161 tokens a row; the engine was made for 160"):
        replay_in_modelled_time(config, requests)


def test_a_request_too_long_for_the_kv_cache_is_refused_as_in_the_simulator() -> None:
    given = {"policy": {"preset": "vllm_v1"}, "engine": {"block_size": 4, "num_kv_blocks": 20}}

    replayed, simulated = run_both(given, bursty())

    assert 5 < (replayed["requests"]["status"] == "refused").sum() < 100
    assert_same(replayed, simulated)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"cluster": {"num_gpus": 2}}, "cluster.num_gpus = 2"),
        ({"engine": {"prefix_caching": True}}, "engine.prefix_caching = true"),
        ({"policy": {"preset": "vllm_v0_swap"}}, "preemption by swapping"),
        ({"patience_s": 3.0}, "patience_s = 3.0"),
    ],
)
def test_what_a_replay_cannot_do_is_refused(given: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=f"{what}: a replay runs one engine"):
        settle(load_config(given), bursty(), LIMITS)


def test_settled_configurations_have_the_fitted_edges_and_the_limits_of_the_engine() -> None:
    training = bursty(100)

    config = settle(load_config({"policy": {"preset": "multi_bin", "num_bins": 2}}), training, LIMITS)

    assert config.policy.queueing["boundaries"] == [float(np.median(training.output_tokens))]
    assert config.policy.batch_size == 8
    assert config.cluster.kv_capacity_tokens == 8 * 160
    assert settle(config, training.take(slice(0, 0)), LIMITS) == config


class TestRuleIsHeldToWhatFits:
    def step(self) -> NextIteration:
        queue = Fifo()
        step = NextIteration(queue, num_blocks=4, block_size=4)
        for number in range(2):
            queue.push(Request(number, 0.0, prompt_tokens=12, predicted_output_tokens=1))
        step.begin(0.0)
        step.max_running = 1
        return step

    def test_only_the_head_of_the_queue_is_admitted(self) -> None:
        step = self.step()
        step.next_waiting()
        stranger = Request(9, 0.0, prompt_tokens=1, predicted_output_tokens=1)

        with pytest.raises(PlanError, match="request 9 was admitted, but it is not the next"):
            step.admit(stranger, 1)

    def test_no_more_run_than_the_sizer_allows(self) -> None:
        step = self.step()
        first = step.next_waiting()
        assert first is not None
        assert step.admit(first, 4)
        second = step.next_waiting()
        assert second is not None

        with pytest.raises(PlanError, match="beside 1 running ones; 1 may run"):
            step.admit(second, 4)

    def test_a_chunk_is_no_longer_than_what_remains(self) -> None:
        step = self.step()
        first = step.next_waiting()
        assert first is not None

        with pytest.raises(PlanError, match="a chunk of 13 tokens; one chunk an iteration of 1 to 12"):
            step.admit(first, 13)

    def test_an_admission_that_leaves_too_few_blocks_changes_nothing(self) -> None:
        step = self.step()
        first = step.next_waiting()
        assert first is not None

        is_admitted = step.admit(first, 12, keep_free_blocks=2)

        assert not is_admitted
        assert (step.free_blocks, step.num_running, step.num_waiting) == (4, 0, 2)
