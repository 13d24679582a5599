"""What holds where sequences decode several tokens at once, whatever the policy."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchsim.config import load_config
from batchsim.latency import LinearIterationLatency
from batchsim.metrics.summary import laws
from batchsim.metrics.tokens import token_times_s
from batchsim.policies.presets import names_of
from batchsim.records import FINISHED, Records
from batchsim.sim.simulation import run_replicas
from batchsim.sim.speculation.acceptance import Speculation
from batchsim.study.run import simulate
from batchsim.study.setup.cluster import engines, prepare_policies, replicas
from tests.invariants.test_iteration_level import World, worlds
from tests.sim.worlds import workload

FOREIGN = ("srpt:srpt", "fastserve:fastserve", "tests.invariants.test_iteration_level:FICKLE")

ACCEPTANCE = st.sampled_from([0.0, 0.3, 0.75, 1.0])


def with_drafts(world: World, num: int, acceptance: float) -> World:
    """The same world, in which every sequence has drafts."""
    drafts = {"num_speculative_tokens": num, "acceptance": acceptance, "draft_ratio": 0.07, "draft_s": 1e-4}
    engine = {**world.config["engine"], "speculation": drafts}
    return replace(world, config={**world.config, "engine": engine})


def with_no_drafts(world: World) -> Records:
    """Step as with drafts, without one."""
    config = load_config(world.config)
    cluster = replicas(config, world.latency)
    capacities = [replica.num_kv_blocks * config.engine.block_size for replica in cluster]
    policies = prepare_policies(config, [replica.policy for replica in cluster], capacities, world.requests)
    stepping = [replace(one, speculation=Speculation(0, ())) for one in engines(config, cluster)]
    return run_replicas(world.requests, world.predicted, policies, stepping, config.patience_s)


@settings(max_examples=40)
@given(worlds() | worlds(["sarathi"]), st.sampled_from([None, None, *FOREIGN]))
def test_steps_without_drafts_are_iterations(world: World, preset: str | None) -> None:
    if preset is not None and world.config["policy"]["preset"] == "sarathi":
        queueing = {"promote_after_s": 0.7} if preset == "fastserve:fastserve" else {}
        policy = {"preset": preset, "batch_size": world.config["policy"]["batch_size"], "queueing": queueing}
        world = replace(world, config={**world.config, "policy": policy})

    plain, steps = world.run(is_exact=True), with_no_drafts(world)

    pd.testing.assert_frame_equal(steps.requests, plain.requests, rtol=1e-9, atol=1e-9)
    pd.testing.assert_frame_equal(steps.preemptions, plain.preemptions, rtol=1e-9, atol=1e-9)
    pd.testing.assert_frame_equal(
        steps.iterations.drop(columns="decode_tokens", errors="ignore"),
        plain.iterations,
        rtol=1e-9,
        atol=1e-9,
    )


@settings(max_examples=30)
@given(worlds(), st.integers(1, 6), ACCEPTANCE)
def test_laws_hold_and_every_token_comes_once(world: World, num: int, acceptance: float) -> None:
    records = with_drafts(world, num, acceptance).run()

    residuals = laws(records)
    assert all(abs(residual) < 1e-9 for residual in residuals.values()), residuals
    finished = records.requests[records.requests["status"] == FINISHED]
    tables = (records.requests, records.iterations, records.preemptions, records.decode_steps)
    for request in finished.to_dict("records"):
        times_s = token_times_s(request["request_id"], *tables)
        assert len(times_s) == request["output_tokens"]
        assert times_s[0] == pytest.approx(request["first_token_s"])
        assert times_s[-1] == pytest.approx(request["finish_s"])
    assert (records.iterations["kv_blocks"] <= records.kv_blocks[0]).all()


@settings(max_examples=15)
@given(worlds(), st.integers(1, 6), ACCEPTANCE)
def test_the_same_seed_gives_the_same_run(world: World, num: int, acceptance: float) -> None:
    world = with_drafts(world, num, acceptance)
    one, other, exact = world.run(), world.run(), world.run(is_exact=True)
    for again in (other, exact):
        for name in ("requests", "iterations", "preemptions", "decode_steps"):
            pd.testing.assert_frame_equal(getattr(one, name), getattr(again, name))


LATENCY = LinearIterationLatency(0.00973, 0.00107, 0.0, 0.00031, 0.000073)


ROUTINGS = (
    {},
    {"kind": "LeastLoaded", "by": "kv_blocks"},
    {"kind": "CacheAware", "view_age_s": 0.0531},
    {"kind": "Central"},
)


@st.composite
def pools(draw: st.DrawFn) -> tuple[dict[str, Any], list[tuple[float, int, int]]]:
    """Any policy and roles, little memory; the last request comes when all is over, and needs nearly all."""
    roles = draw(
        st.sampled_from([["both"], ["both", "both"], ["prefill", "decode"], ["prefill", "both", "decode"]])
    )
    blocks, preset = draw(st.integers(8, 20)), draw(st.sampled_from(names_of(is_iteration_level=True)))
    policy: dict[str, Any] = {"preset": preset, "batch_size": draw(st.integers(1, 6))}
    if preset == "orca":
        policy["batching"] = {"reserve": "predicted"}
    if preset == "multi_bin_continuous":
        policy["queueing"] = {"num_bins": 2, "boundaries": [6]}
    if preset == "dynamic_batching":
        policy = {"preset": preset, "sizing": {"SloFeedback": {"target_s": 0.06}}}
    if roles == ["both", "both"]:
        policy["routing"] = draw(st.sampled_from(ROUTINGS))
    config = {
        "policy": policy,
        "pool": [{"role": role, "num_kv_blocks": blocks} for role in roles],
        "engine": {
            "async_scheduling": draw(st.booleans()),
            "launch_s": 0.001,
            "block_size": 4,
            "speculation": {
                "num_speculative_tokens": draw(st.integers(1, 9)),
                "acceptance": draw(ACCEPTANCE),
                "draft_ratio": 0.07,
            },
        },
    }
    row = st.tuples(st.floats(0, 1), st.integers(1, 12), st.integers(1, 16))
    rows = sorted(draw(st.lists(row, min_size=1, max_size=14)), key=lambda one: one[0])
    return config, [*rows, (1000.0, 8, 4 * blocks - 13)]


@settings(max_examples=40)
@given(pools())
def test_blocks_come_back(world: tuple[dict[str, Any], list[tuple[float, int, int]]]) -> None:
    config, rows = world
    arrivals_s, outputs, prompts = (list(column) for column in zip(*rows, strict=True))

    result = simulate(config, workload(arrivals_s, outputs, prompts), latency=LATENCY)

    assert (result.requests["status"] == FINISHED).all()
    assert laws(result.records) == pytest.approx(dict.fromkeys(laws(result.records), 0.0), abs=1e-9)


@settings(max_examples=20)
@given(worlds(["vllm_v1", "sarathi", "vllm_v0"]), st.integers(1, 5), ACCEPTANCE)
def test_an_answer_takes_the_same_steps_whatever_runs_beside_it(
    world: World, num: int, acceptance: float
) -> None:
    world = with_drafts(world, num, acceptance)
    alone = replace(world, config={**world.config, "policy": {"preset": "vllm_v1", "batch_size": 1}})

    one, other = world.run(), alone.run()

    # A prompt computed again gives a token by itself, and whoever is refused or gives up has no answer.
    preempted = one.preemptions["request_id"].to_list() + other.preemptions["request_id"].to_list()
    steps = [
        records.decode_steps[~records.decode_steps["request_id"].isin(preempted)] for records in (one, other)
    ]
    both = np.intersect1d(*(table["request_id"] for table in steps))
    first, second = (table[table["request_id"].isin(both)].reset_index(drop=True) for table in steps)
    pd.testing.assert_frame_equal(first, second)
