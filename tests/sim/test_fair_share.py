"""Tenants who share replicas: the bound of VTC at every instant, weighted shares, spans that stay exact."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from batchsim.latency import LinearIterationLatency
from batchsim.metrics.summary import laws
from batchsim.metrics.tokens import token_times_s
from batchsim.records import FINISHED
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate
from batchsim.workload.request import Workload
from tests.sim.worlds import LinearLatency, workload

#: No two passes take the same time.
UNEVEN = LinearIterationLatency(0.00973, 0.00107, 0.0, 0.00031, 0.000073)

#: Arrival, prompt tokens, output tokens, tenant.
Row = tuple[float, int, int, str]


def of_tenants(rows: Sequence[Row]) -> Workload:
    arrivals_s, prompts, outputs, tenants = zip(*sorted(rows, key=lambda row: row[0]), strict=True)
    requests = workload(arrivals_s, outputs, prompts)
    return replace(requests, extra={"tenant": np.array(tenants, dtype=object)})


def run(rows: Sequence[Row], policy: Mapping[str, Any], **config: Any) -> SimulationResult:
    return simulate({"policy": policy, **config}, of_tenants(rows), latency=UNEVEN)


def fair(preset: str = "vllm_v1", **queueing: Any) -> dict[str, Any]:
    return {"preset": preset, "batch_size": 4, "queueing": {"kind": "FairShare", **queueing}}


def flood(tenant: str, num: int, at_s: float = 0.0, prompt: int = 10, output: int = 20) -> list[Row]:
    return [(at_s, prompt, output, tenant)] * num


# The bound


def widest_gaps(result: SimulationResult, weights: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """How far service over weight drifted apart between any two tenants while both had requests waiting.

    Read back from the log of a run of exact iterations: a prompt counts 1 a token when it is admitted, an
    answer 2 a token when that comes.
    """
    requests, iterations = result.requests, result.iterations
    boundaries_s = iterations["start_s"].to_numpy()
    instants_s = np.union1d(boundaries_s, iterations["finish_s"].to_numpy())
    service, intervals = {}, {}
    for tenant, own in requests.groupby("tenant"):
        admitted_s = own["scheduled_s"].to_numpy()
        times_s, tokens = [admitted_s], [own["prompt_tokens"].to_numpy()]
        for request_id in own["request_id"]:
            came_s = token_times_s(request_id, requests, iterations, result.preemptions)
            times_s.append(came_s)
            tokens.append(np.full(len(came_s), 2))
        all_s = np.concatenate(times_s)
        order = np.argsort(all_s, kind="stable")
        so_far = np.concatenate([[0], np.cumsum(np.concatenate(tokens)[order])])
        service[tenant] = so_far[np.searchsorted(all_s[order], instants_s, "right")] / weights.get(tenant, 1)
        queued_s = boundaries_s[np.searchsorted(boundaries_s, own["arrival_s"])]
        intervals[tenant] = (queued_s, admitted_s)
    widest = {}
    for pair in combinations(sorted(service), 2):
        both = np.logical_and.reduce([_waits(instants_s, *intervals[tenant]) for tenant in pair])
        difference = service[pair[0]] - service[pair[1]]
        runs = np.split(np.arange(len(both)), np.flatnonzero(np.diff(both)) + 1)
        widest[pair] = max((float(np.ptp(difference[rows])) for rows in runs if both[rows[0]]), default=0.0)
    return widest


def _waits(instants_s: NDArray[Any], start_s: NDArray[Any], end_s: NDArray[Any]) -> NDArray[np.bool_]:
    inside = (start_s[:, None] <= instants_s) & (instants_s < end_s[:, None])
    return np.asarray(inside.any(axis=0))


@st.composite
def backlogs(draw: st.DrawFn) -> tuple[dict[str, Any], list[Row], dict[str, float], float]:
    """Tenants who send many requests at a time, weights, and the most tokens that run together."""
    names = "abcd"[: draw(st.integers(2, 4))]
    rows: list[Row] = []
    for name in names:
        for _ in range(draw(st.integers(1, 3))):
            at_s, prompt = draw(st.floats(0, 3)), draw(st.integers(1, 12))
            outputs = draw(st.lists(st.integers(1, 24), min_size=2, max_size=12))
            rows += [(at_s, prompt, output, name) for output in outputs]
    weights = {name: draw(st.sampled_from([1, 2, 0.7, 3])) for name in names}
    blocks, seats = draw(st.integers(10, 40)), draw(st.integers(1, 6))
    if draw(st.booleans()):  # memory for whole answers: what runs together fits
        policy, most = {**fair("orca", weights=weights), "batching": {"reserve": "predicted"}}, 4.0 * blocks
    else:  # answers outgrow memory, and requests give way
        policy, most = fair(weights=weights), float(seats * max(row[1] + row[2] for row in rows))
    config = {
        "policy": {**policy, "batch_size": seats},
        "engine": {"num_kv_blocks": blocks, "block_size": 4, "exact_iterations": True},
    }
    return config, rows, weights, most


@settings(max_examples=40)
@given(backlogs())
def test_service_of_two_who_wait_never_drifts_apart_beyond_the_bound_of_vtc(
    world: tuple[dict[str, Any], list[Row], dict[str, float], float],
) -> None:
    config, rows, weights, most_tokens = world
    result = simulate(config, of_tenants(rows), latency=UNEVEN)

    bound = 2 * max(max(row[1] for row in rows), 2 * most_tokens) / min(weights.values())

    assert (result.requests["status"] == FINISHED).all()
    assert all(gap <= bound for gap in widest_gaps(result, weights).values())


def test_first_come_first_served_breaks_the_bound_that_fair_share_keeps() -> None:
    rows = flood("a", 60) + flood("b", 60, at_s=0.001)
    exact = {"exact_iterations": True}
    policies = {"Fifo": {"preset": "vllm_v1", "batch_size": 4}, "FairShare": fair()}
    gaps = {
        name: widest_gaps(run(rows, policy, engine=exact), {})["a", "b"] for name, policy in policies.items()
    }
    bound = 2 * 2 * 4 * (10 + 20)

    assert gaps["FairShare"] <= bound
    assert gaps["Fifo"] > 5 * bound


def test_service_converges_to_the_weights() -> None:
    rows = flood("light", 300) + flood("heavy", 300) + flood("other", 300)
    weights = {"light": 1, "heavy": 3, "other": 0.5}
    result = run(rows, fair(weights=weights))

    requests = result.requests
    last_of_all_s = requests.groupby("tenant")["scheduled_s"].max().min()
    finished = requests[requests["finish_s"] < last_of_all_s].groupby("tenant").size()

    assert finished["heavy"] / finished["light"] == pytest.approx(3, rel=0.03)
    assert finished["light"] / finished["other"] == pytest.approx(2, rel=0.05)


def test_who_sends_little_is_served_at_once_beside_one_who_floods() -> None:
    rows = flood("flood", 100) + [(0.5 * number, 10, 20, "light") for number in range(1, 9)]

    ttft_s = {}
    for name, policy in (("Fifo", {"preset": "vllm_v1", "batch_size": 4}), ("FairShare", fair())):
        light = run(rows, policy).requests.query("tenant == 'light'")
        ttft_s[name] = (light["first_token_s"] - light["arrival_s"]).max()

    assert ttft_s["FairShare"] < 0.5  # once one of four seats is free
    assert ttft_s["Fifo"] > 5


def test_who_was_away_has_saved_nothing_up() -> None:
    """A late tenant is lifted to those who wait: from then on the two share evenly."""
    rows = flood("early", 200) + flood("late", 100, at_s=5.0)
    requests = run(rows, fair()).requests

    late = requests.query("tenant == 'late'")
    both = requests.query("scheduled_s > 5.0")
    shared = both[both["scheduled_s"] < late["scheduled_s"].max()]
    counts = shared.groupby("tenant").size()

    assert abs(counts["early"] - counts["late"]) <= 4


def test_without_tenants_it_is_first_come_first_served() -> None:
    rows = [(0.05 * number, 5 + number % 7, 3 + number % 11, "") for number in range(40)]

    fifo, shared = (run(rows, policy).requests for policy in ({"preset": "vllm_v1", "batch_size": 4}, fair()))

    pd.testing.assert_frame_equal(fifo, shared)


# Spans


CLUSTERS: Sequence[dict[str, Any]] = (
    {},
    {"patience_s": 0.1713},
    {"cluster": {"num_gpus": 2}, "patience_s": 0.1713},
    {
        "cluster": {"num_gpus": 3, "num_prefill_replicas": 1},
        "kv_transfer": {"nic_bytes_per_s": 10_513.9 * 28_672, "overlap": "layers"},
    },
)
PRESETS = ("vllm_v1", "vllm_v0", "vllm_v0_swap", "sarathi", "orca")


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, Any], list[Row]]:
    """Any policy and engine, one or several replicas, little memory, weights, some who lose patience."""
    blocks = draw(st.integers(8, 20))
    preset = draw(st.sampled_from(PRESETS))
    policy = {
        **fair(
            preset,
            weights=draw(st.sampled_from([{}, {"a": 3}, {"b": 0.7, "c": 2}])),
            prompt_weight=draw(st.sampled_from([1, 0.3])),
            shared=draw(st.booleans()),
        ),
        "batch_size": draw(st.integers(1, 6)),
    }
    if preset == "orca":
        policy["batching"] = {"reserve": "predicted"}
    config = {
        "policy": policy,
        "engine": {
            "async_scheduling": draw(st.booleans()),
            "launch_s": 0.001,
            "block_size": 4,
            "num_kv_blocks": blocks,
            "frontend_s": draw(st.sampled_from([0.0, 0.013])),
        },
        **draw(st.sampled_from(CLUSTERS)),
    }
    rows = draw(
        st.lists(
            st.tuples(st.floats(0, 1), st.integers(1, 16), st.integers(1, 20), st.sampled_from("abc")),
            min_size=1,
            max_size=20,
        )
    )
    # The last comes when all is over, and needs nearly all blocks.
    return config, [*rows, (1000.0, 4 * blocks - 8, 3, "a")]


@settings(max_examples=60)
@given(worlds())
def test_laws_hold_blocks_come_back_and_spans_are_exact(world: tuple[dict[str, Any], list[Row]]) -> None:
    config, rows = world
    requests = of_tenants(rows)
    spans = simulate(config, requests, latency=UNEVEN)
    assert laws(spans.records) == pytest.approx(dict.fromkeys(laws(spans.records), 0.0), abs=1e-9)
    exact = simulate(config, requests, latency=UNEVEN, overrides={"engine.exact_iterations": True})
    assert spans.requests["status"].tolist() == exact.requests["status"].tolist()
    assert spans.requests["status"].iloc[-1] == FINISHED
    for column in ("scheduled_s", "first_token_s", "decode_start_s", "finish_s"):
        np.testing.assert_allclose(spans.requests[column], exact.requests[column], rtol=0, atol=1e-9)


def test_a_head_that_changes_within_a_span_is_let_in_as_soon_as_it_fits() -> None:
    """``b`` is next with a prompt that does not fit beside its own answer, until that has cost enough."""
    rows = [(0.0, 8, 60, "b"), (0.0, 30, 20, "c"), (0.05, 60, 2, "b"), (0.1, 4, 2, "c")]
    engine = {"num_kv_blocks": 20, "block_size": 4}
    spans, exact = (
        run(rows, fair(), engine={**engine, "exact_iterations": is_exact}).requests
        for is_exact in (False, True)
    )

    assert spans["finish_s"][1] < spans["scheduled_s"][3] < spans["finish_s"][0] <= spans["scheduled_s"][2]
    np.testing.assert_allclose(spans["scheduled_s"], exact["scheduled_s"], rtol=0, atol=1e-9)


# Several replicas


@pytest.mark.parametrize(("shared", "share_of_b"), [(False, 0.25), (True, 0.5)])
def test_replicas_may_count_together(shared: bool, share_of_b: float) -> None:
    """Only one of two replicas is sent ``b``: it heeds what ``a`` is served on the other, or does not."""
    rows = [(0.0, 10, 20, tenant) for _ in range(40) for tenant in "abaa"]
    policy = {**fair(shared=shared), "routing": {"kind": "RoundRobin"}}
    requests = run(rows, policy, cluster={"num_gpus": 2}).requests

    early = requests[requests["scheduled_s"] < requests.query("tenant == 'b'")["scheduled_s"].max()]

    assert np.mean(early["tenant"] == "b") == pytest.approx(share_of_b, abs=0.03)


def test_replicas_that_count_together_know_at_once_what_the_others_serve() -> None:
    rows = [(0.0, 10, 5 + 7 * (number % 5), tenant) for number in range(40) for tenant in "abaa"]
    policy = {**fair(shared=True), "routing": {"kind": "RoundRobin"}}
    asked, by_itself = (
        run(rows, policy, cluster={"num_gpus": 2}, engine={"exact_iterations": is_exact}).requests
        for is_exact in (True, False)
    )

    np.testing.assert_allclose(by_itself["finish_s"], asked["finish_s"], rtol=0, atol=1e-9)


# Batches that run to completion


def in_batches(rows: Sequence[Row], queueing: Mapping[str, Any], **config: Any) -> SimulationResult:
    given = {
        "policy": {"preset": "static_fifo", "batch_size": 4, "queueing": queueing},
        "cluster": {"num_gpus": 1, "kv_capacity_tokens": config.pop("kv_capacity_tokens", 10**6)},
        **config,
    }
    return simulate(given, of_tenants(rows), latency=LinearLatency(0.0123, 0.0011, 0.0107))


def test_batches_share_by_weight_too() -> None:
    rows = flood("a", 200) + flood("b", 200)
    requests = in_batches(rows, {"kind": "FairShare", "weights": {"a": 3}}).requests

    until_s = requests.groupby("tenant")["scheduled_s"].max().min()
    counts = requests[requests["scheduled_s"] < until_s].groupby("tenant").size()

    assert counts["a"] / counts["b"] == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("predictor", [{"kind": "oracle"}, {"kind": "constant", "tokens": 5}])
def test_answers_count_as_they_were_once_their_batch_has_ended(predictor: Any) -> None:
    """``a`` asks for answers three times as long: whatever was predicted, the two get as many tokens."""
    rows = flood("a", 200, output=30) + flood("b", 400, output=10)
    requests = in_batches(rows, {"kind": "FairShare", "prompt_weight": 0.001}, predictor=predictor).requests

    until_s = requests.groupby("tenant")["scheduled_s"].max().min()
    tokens = requests[requests["scheduled_s"] < until_s].groupby("tenant")["output_tokens"].sum()

    assert tokens["a"] / tokens["b"] == pytest.approx(1, rel=0.05)


def test_who_is_thrown_out_of_a_batch_has_been_served_nothing() -> None:
    rows = flood("a", 40, output=60) + flood("b", 40, output=60)
    result = in_batches(
        rows, {"kind": "FairShare"}, kv_capacity_tokens=150, predictor={"kind": "constant", "tokens": 5}
    )

    requests = result.requests
    assert requests["num_evictions"].sum() > 0
    assert (requests["status"] == FINISHED).all()
    half = requests[requests["finish_s"] <= requests["finish_s"].median()].groupby("tenant").size()
    assert half["a"] == pytest.approx(half["b"], abs=4)
