"""What holds at the iteration level whatever the policy, first of all: a span is its iterations."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from batchsim.config import load_config
from batchsim.latency.base import IterationLatency
from batchsim.latency.linear import LinearIterationLatency
from batchsim.latency.operators import Lag, OperatorTable, OperatorTableLatency
from batchsim.latency.passes import PassTableLatency
from batchsim.latency.tables.iteration_grid import TableIterationLatency
from batchsim.metrics.summary import laws
from batchsim.policies.continuous import StallFree
from batchsim.policies.parts.engine_versions import NEWEST
from batchsim.policies.presets import Preset, names_of
from batchsim.policies.queueing import Fifo
from batchsim.policies.routing import LeastLoaded
from batchsim.policies.sizing import FixedSize
from batchsim.policies.steps import Step
from batchsim.records import FINISHED, Records
from batchsim.sim.simulation import run_replicas
from batchsim.study.setup.cluster import central_policy, engines, prepare_policies, replicas
from batchsim.workload.request import Workload
from tests.policies.examples import fastserve, srpt  # noqa: F401 -- found by name

BLOCK_SIZES = st.sampled_from([1, 2, 4, 16])

#: Times are sums of eighths, and exact whatever their order: arrivals fall on iteration boundaries.
ON_GRID = LinearIterationLatency(0.25, 0.125, 0.0, 0.125, 0.0)
OFF_GRID = LinearIterationLatency(0.0231, 1.07e-3, 1.3e-5, 1.19e-3, 7.3e-5)
TABLE = TableIterationLatency(
    (0, 16, 64),
    (0, 1, 8, 32),
    (0, 16, 64, 200),
    tuple(
        0.01 + 0.001 * prefill + 0.002 * seqs**0.8 + 2e-5 * seqs * context**1.1
        for prefill in (0, 16, 64)
        for seqs in (0, 1, 8, 32)
        for context in (0, 16, 64, 200)
    ),
    pair_s=3e-7,
    prompt_s=1.1e-4,
)
#: Decodes of uneven contexts take longer: the engine keeps the longest.
UNEVEN = OperatorTableLatency(
    by_tokens=OperatorTable(((1, 64),), (0.01, 0.07)),
    by_sequences=OperatorTable(((1, 32),), (0.002, 0.005)),
    prefill=OperatorTable(((1, 64), (0, 64)), (0.001, 0.004, 0.01, 0.05)),
    decode=OperatorTable(((1, 32), (1, 8, 20, 60)), (0.001, 0.002, 0.006, 0.03, 0.004, 0.01, 0.05, 0.4)),
    mixed=OperatorTable(
        ((1, 64), (0, 64), (1, 32), (1, 60)), tuple(0.002 * (1 + step) for step in range(16))
    ),
    decode_lag=Lag((2, 16), (0.5, 0.25)),
    mixed_lag=Lag((4,), (0.75,)),
)
PASSES = PassTableLatency(
    by_tokens=OperatorTable(((1, 64),), (0.01, 0.07)),
    by_decodes=OperatorTable(((1, 4, 32),), (0.008, 0.03, 0.04)),
    prefill=OperatorTable(((1, 8), (1, 64), (0, 64)), tuple(0.001 * (1 + step) for step in range(8))),
    decode=OperatorTable(((1, 32), (1, 8, 20, 60)), (0.001, 0.002, 0.006, 0.03, 0.004, 0.01, 0.05, 0.4)),
)


@dataclass(frozen=True)
class World:
    requests: Workload
    predicted: np.ndarray
    config: dict[str, Any]
    latency: IterationLatency

    def run(self, *, is_exact: bool = False) -> Records:
        config = load_config(self.config, {"engine.exact_iterations": is_exact})
        cluster = replicas(config, self.latency)
        capacities = [replica.num_kv_blocks * config.engine.block_size for replica in cluster]
        given = [replica.policy for replica in cluster]
        policies = prepare_policies(config, given, capacities, self.requests)
        return run_replicas(
            self.requests,
            self.predicted,
            policies,
            engines(config, cluster),
            config.patience_s,
            central=central_policy(config, policies[0].routing, min(capacities), self.requests),
        )


def batching_of(draw: st.DrawFn, preset: str) -> dict[str, Any]:
    if preset == "orca":
        return {
            "max_tokens": draw(st.sampled_from([8, 40])),
            "reserve": draw(st.sampled_from(["max", "pow2", "predicted"])),
        }
    if preset in ("vllm_v0", "vllm_v0_swap", "dynamic_batching"):
        return {"max_num_batched_tokens": draw(st.sampled_from([16, 64]))}
    if preset == "sarathi":
        return {"max_num_batched_tokens": draw(st.sampled_from([16, 64]))}
    chunk = {"kind": "SloFeedback", "target_s": 0.05, "measure_iterations": 3, "max_batch_size": 64}
    return {
        "max_num_batched_tokens": draw(st.sampled_from([16, 64])),
        "long_prefill_threshold": draw(st.sampled_from([0, 7])),
        "engine_version": draw(st.sampled_from(["0.18.0", "0.19.0", NEWEST])),
        **draw(st.sampled_from([{}, {"allocate": "chunk"}, {"allocate": "prompt"}])),
        "preempt": draw(st.sampled_from(["last", "priority"])),
        **({"chunk": chunk} if draw(st.booleans()) else {}),
    }


@st.composite
def worlds(draw: st.DrawFn, presets: list[str] | None = None, *, is_plain: bool = False) -> World:
    preset = draw(st.sampled_from(presets or names_of(is_iteration_level=True)))
    policy: dict[str, Any] = {"preset": preset, "batching": batching_of(draw, preset)}
    if preset == "dynamic_batching":
        policy["sizing"] = {
            "MemoryAware": {"min_requests": 2, "max_batch_size": 16},
            "SloFeedback": {"target_s": 0.06, "measure_iterations": draw(st.integers(1, 9)), "alpha": 2},
        }
    else:
        policy["batch_size"] = draw(st.sampled_from([1, 3, 16]))
    if preset == "sjf":
        policy["queueing"] = {"promote_after_s": draw(st.sampled_from([0.5, 5.0]))}
    if preset == "multi_bin_continuous":
        policy["queueing"] = {"boundaries": [5, 10, 20], "turn": draw(st.integers(1, 3))}
    block_size = draw(BLOCK_SIZES)
    config = {
        "policy": policy,
        "workload": {"training_fraction": 0.0},
        "cluster": {"num_gpus": draw(st.sampled_from([1, 1, 3]))},
        "engine": {
            "block_size": block_size,
            "num_kv_blocks": draw(st.integers(90, 250)) // block_size,
            "prefix_caching": draw(st.booleans()),
            "launch_s": 0.0 if is_plain else draw(st.sampled_from([0.0, 0.0, 0.125])),
            "wake_s": 0.0 if is_plain else draw(st.sampled_from([0.0, 0.25])),
            "async_scheduling": False if is_plain else draw(st.booleans()),
            "swap_bytes_per_s": 1e9,
        },
        "latency": {"outside": "extrapolate"},
        "patience_s": None if is_plain else draw(st.sampled_from([None, None, 0.7])),
        "seed": draw(st.integers(0, 3)),
    }
    latency: IterationLatency = draw(st.sampled_from([ON_GRID, OFF_GRID, TABLE, UNEVEN, PASSES]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num = draw(st.integers(1, 40))
    gaps_s = rng.exponential(draw(st.sampled_from([0.01, 0.1, 0.5])), num)
    if latency is ON_GRID:
        gaps_s = np.round(gaps_s * 8) / 8
    prompt_tokens, output_tokens = rng.integers(1, 49, num), rng.integers(1, 41, num)
    frame = pd.DataFrame(
        {
            "arrival_s": np.cumsum(gaps_s),
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "priority": rng.integers(0, 3, num),
        }
    )
    families = rng.integers(0, 3, num)
    frame["prefix_ids"] = [
        [family * 1000 + position for position in range(tokens // 16)]
        for family, tokens in zip(families.tolist(), prompt_tokens.tolist(), strict=True)
    ]
    if draw(st.booleans()):
        frame["session_id"] = families  # a longer prompt repeats the answer before it
    predicted = np.maximum(1, (output_tokens * rng.lognormal(0, 0.5, num)).astype(np.int64))
    return World(Workload.from_frame(frame), predicted, config, latency)


@given(worlds())
def test_spans_give_what_single_iterations_give(world: World) -> None:
    spans, exact = world.run(), world.run(is_exact=True)

    pd.testing.assert_frame_equal(spans.requests, exact.requests, rtol=1e-9, atol=1e-9)
    for one, other in ((spans.preemptions, exact.preemptions), (spans.controllers, exact.controllers)):
        one, other = (
            table.sort_values(["gpu_id", "time_s"], kind="stable", ignore_index=True)
            for table in (one, other)
        )
        pd.testing.assert_frame_equal(one, other, rtol=1e-9, atol=1e-9)
    assert spans.iterations["num_iterations"].sum() == len(exact.iterations)
    for column in ("host_s", "prefill_tokens", "num_preempted"):
        assert np.isclose(spans.iterations[column].sum(), exact.iterations[column].sum(), rtol=1e-9)


@settings(max_examples=60)
@given(worlds(["sarathi"]), st.sampled_from(["srpt:srpt", "fastserve:fastserve", f"{__name__}:FICKLE"]))
def test_spans_give_what_single_iterations_give_where_a_rule_preempts_for_who_waits(
    world: World, preset: str
) -> None:
    batch_size = world.config["policy"]["batch_size"]
    queueing = {"promote_after_s": 0.7} if preset == "fastserve:fastserve" else {}
    policy = {"preset": preset, "batch_size": batch_size, "queueing": queueing}
    world = replace(world, config={**world.config, "policy": policy})

    spans, exact = world.run(), world.run(is_exact=True)

    pd.testing.assert_frame_equal(spans.requests, exact.requests, rtol=1e-9, atol=1e-9)
    assert len(spans.preemptions) == len(exact.preemptions)
    assert spans.iterations["num_iterations"].sum() == len(exact.iterations)


class Fickle(StallFree):
    """A rule that says nothing of when to ask it, and looks at what was generated."""

    def plan(self, step: Step) -> None:
        tired = [one for one in step.running if one.generated_tokens % 7 == 6]
        if tired and step.next_waiting():
            step.preempt(tired[-1])
        super().plan(step)


FICKLE = Preset(Fifo(), FixedSize(16), Fickle(), LeastLoaded())


def test_an_arrival_and_one_who_then_gives_up_both_cut_the_span_under_way() -> None:
    # The host learns of the second request, which arrives at 2.3 s, an iteration late; the first, which does
    # not fit beside the one that runs, gives up at 2.5 s: now the span has to end an iteration earlier.
    requests = Workload(np.arange(3), np.array([0.0, 0.5, 2.3]), np.array([10, 50, 50]), np.array([40, 5, 5]))
    config = {
        "policy": {"preset": "sjf", "batch_size": 2},
        "engine": {"block_size": 1, "num_kv_blocks": 60, "async_scheduling": True},
        "patience_s": 2.0,
    }

    spans = World(requests, np.array([40, 5, 6]), config, ON_GRID).run().iterations

    lasted_s = spans["num_iterations"] * spans["first_iteration_s"]  # all of a span alike on this grid
    assert (spans["finish_s"] - spans["start_s"]).tolist() == lasted_s.tolist()


def test_a_copy_that_another_uses_lets_the_head_fit_when_the_one_in_line_has_gone() -> None:
    """No blocks come back, but of those that the head would pin, fewer are its own."""
    ids = [[0, 1], [2000], [2000, 2001], [], [], [2000], [2000], [0, 1], [2000], []]
    requests = Workload(
        np.arange(10),
        np.array([0.875, 1.875, 1.875, 2.75, 3.75, 8.125, 8.125, 9.5, 15.75, 17.375]),
        np.array([46, 30, 37, 9, 1, 21, 19, 40, 20, 4]),
        np.array([12, 4, 25, 25, 35, 4, 35, 19, 35, 8]),
        extra={"prefix_ids": np.array(ids, dtype=object)},
    )
    config = {
        "policy": {
            "preset": "sjf",
            "batching": {
                "max_num_batched_tokens": 16,
                "long_prefill_threshold": 7,
                "engine_version": "0.19.0",
            },
            "batch_size": 16,
            "queueing": {"promote_after_s": 0.5},
        },
        "engine": {"block_size": 1, "num_kv_blocks": 136},
        "latency": {"outside": "extrapolate"},
    }
    predicted = np.array([15, 5, 24, 16, 20, 6, 37, 19, 22, 5])
    world = World(requests, predicted, config, LinearIterationLatency(0.25, 0.125, 0.0, 0.125, 0.0))

    spans, exact = world.run(), world.run(is_exact=True)

    pd.testing.assert_frame_equal(spans.requests, exact.requests)


@settings(max_examples=30)
@given(worlds())
def test_laws_hold(world: World) -> None:
    residuals = laws(world.run())

    assert all(abs(residual) < 1e-9 for residual in residuals.values()), residuals


@settings(max_examples=30)
@given(worlds())
def test_every_request_ends_and_blocks_never_run_over(world: World) -> None:
    records = world.run()

    requests = records.requests
    assert requests["status"].notna().all()
    finished = requests[requests["status"] == FINISHED]
    assert (finished["scheduled_s"] >= finished["arrival_s"]).all()
    assert (finished["first_token_s"] > finished["scheduled_s"]).all()
    assert (finished["decode_start_s"] >= finished["first_token_s"]).all()
    assert (finished["finish_s"] >= finished["decode_start_s"]).all()
    assert (records.iterations["kv_blocks"] <= records.kv_blocks[0]).all()
    assert (records.iterations["kv_blocks"] >= 0).all()


@settings(max_examples=30)
@given(worlds(["vllm_v1", "sjf", "sarathi"], is_plain=True))
def test_no_decode_sits_an_iteration_out_where_prompts_come_in_chunks(world: World) -> None:
    batching = world.config["policy"]["batching"]
    assume(batching.get("preempt") != "priority")  # where one gives way itself, those behind it do sit out

    records = world.run()

    # With every decode in every iteration, an answer of n tokens takes n - 1 iterations after its first.
    finished = records.requests[
        (records.requests["status"] == FINISHED) & (records.requests["num_preemptions"] == 0)
    ]
    for request in finished.to_dict("records"):
        spans = records.iterations[records.iterations["gpu_id"] == request["gpu_id"]]
        inside = (spans["start_s"] >= request["first_token_s"]) & (spans["finish_s"] <= request["finish_s"])
        assert spans.loc[inside, "num_iterations"].sum() == request["output_tokens"] - 1


@settings(max_examples=30)
@given(worlds(["vllm_v0", "vllm_v1", "sarathi", "orca"], is_plain=True))
def test_a_replica_never_idles_while_a_request_waits_for_it(world: World) -> None:
    records = world.run()

    finished = records.requests[records.requests["status"] == FINISHED]
    for gpu_id, served in finished.groupby("gpu_id"):
        spans = records.iterations[records.iterations["gpu_id"] == gpu_id]
        idle_from_s = spans["finish_s"].to_numpy()[:-1]
        idle_to_s = spans["start_s"].to_numpy()[1:]
        for start_s, end_s in zip(idle_from_s, idle_to_s, strict=True):
            if end_s > start_s + 1e-9:
                waiting = (served["arrival_s"] < end_s - 1e-9) & (served["scheduled_s"] >= end_s)
                assert not waiting.any()
