"""What holds in every run, whatever the policy, the load and the predictions."""

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchsim.metrics.summary import laws
from batchsim.records import ABANDONED, FINISHED, REFUSED, STATUSES, STRANDED, Records
from tests.invariants.worlds import (
    FULL,
    GREEDY,
    IMPATIENT,
    ON_GRID,
    PREDICTORS,
    QUEUES,
    SEVERAL_BINS,
    TIMERS,
    World,
    is_busy_throughout,
    output_tokens_swapped,
    policies,
    workloads,
    worlds,
)
from tests.sim.worlds import PLENTY

NEVER_ENDING = st.just(PLENTY)
PATIENT = st.none()


@settings(max_examples=60)
@given(worlds())
def test_every_request_ends_in_exactly_one_state(world: World) -> None:
    result = world.run()

    requests = result.requests
    has_run = requests["status"] == FINISHED
    assert len(requests) == len(world.requests)
    assert requests["status"].isin(STATUSES).all()
    assert (requests["batch_id"] >= 0).equals(has_run)
    assert requests["finish_s"].notna().equals(has_run)
    assert requests["scheduled_s"].notna().equals(has_run)
    if world.config["patience_s"] is None:
        assert not (requests["status"] == ABANDONED).any()
    if world.policy.get("batching", {}).get("leftovers") != "strand":
        assert not (requests["status"] == STRANDED).any()


@settings(max_examples=60)
@given(worlds())
def test_members_of_batches_are_the_finished_requests(world: World) -> None:
    result = world.run()

    members = result.requests.groupby("batch_id").size().drop(-1, errors="ignore")
    sizes = result.batches.set_index("batch_id")["batch_size"]
    assert members.to_dict() == sizes[sizes > 0].to_dict()


@settings(max_examples=60)
@given(worlds())
def test_times_of_a_request_are_in_order(world: World) -> None:
    result = world.run()

    ran = result.requests[result.requests["status"] == FINISHED]
    assert (ran["arrival_s"] <= ran["scheduled_s"]).all()
    assert (ran["scheduled_s"] <= ran["first_token_s"]).all()
    assert (ran["first_token_s"] <= ran["finish_s"]).all()


@settings(max_examples=60)
@given(worlds())
def test_batches_keep_to_the_limits_of_the_sizer_and_of_memory(world: World) -> None:
    result = world.run()

    batches = result.batches
    assert (batches["batch_size"] + batches["num_evicted"] <= batches["size_limit"]).all()
    assert (batches["size_limit"] >= 1).all()
    assert (batches["kv_tokens"] <= world.config["cluster"]["kv_capacity_tokens"]).all()


@settings(max_examples=60)
@given(worlds())
def test_memory_held_is_what_the_members_and_the_layout_say(world: World) -> None:
    result = world.run()

    held = {}
    for batch_id, members in result.requests[result.requests["batch_id"] >= 0].groupby("batch_id"):
        prompts, outputs = members["prompt_tokens"], members["output_tokens"]
        padded = len(members) * (prompts.max() + outputs.max())
        is_padded = world.config["cluster"]["kv_layout"] == "padded"
        held[batch_id] = padded if is_padded else prompts.sum() + outputs.sum()
    recorded = result.batches.set_index("batch_id")["kv_tokens"]
    assert recorded[recorded > 0].to_dict() == held


@settings(max_examples=60)
@given(worlds())
def test_batches_of_a_gpu_never_overlap(world: World) -> None:
    result = world.run()

    for _, batches in result.batches.sort_values(["start_s", "finish_s"]).groupby("gpu_id"):
        assert (batches["start_s"].to_numpy()[1:] >= batches["finish_s"].to_numpy()[:-1]).all()


@settings(max_examples=60)
@given(worlds())
def test_little_utilisation_and_flow_laws_hold(world: World) -> None:
    result = world.run()

    assert laws(result) == pytest.approx(
        {"little": 0, "utilisation": 0, "flow": 0, "overbooked": 0}, abs=1e-9
    )


@settings(max_examples=60)
@given(worlds())
def test_only_requests_that_memory_cannot_hold_alone_are_refused_each_for_a_reason(world: World) -> None:
    result = world.run()

    requests = result.requests
    refused = requests[requests["status"] == REFUSED]
    alone = requests["prompt_tokens"] + requests["output_tokens"]
    assert set(refused["request_id"]) == set(result.refusals)
    assert all("KV tokens" in reason for reason in result.refusals.values())
    assert (alone[refused.index] > world.config["cluster"]["kv_capacity_tokens"]).all()
    assert (alone[requests["status"] == FINISHED] <= world.config["cluster"]["kv_capacity_tokens"]).all()


@settings(max_examples=60)
@given(worlds(policies(queues=st.just({"kind": "Fifo"}) | SEVERAL_BINS), NEVER_ENDING))
def test_requests_of_a_bin_are_scheduled_in_order_of_arrival(world: World) -> None:
    result = world.run()

    # A replica's queue has bins of its own.
    ran = result.requests[result.requests["status"] == FINISHED]
    lines = ["bin", "gpu_id"] if "routing" in world.policy else ["bin"]
    assert all(line["scheduled_s"].is_monotonic_increasing for _, line in ran.groupby(lines))


@settings(max_examples=60)
@given(worlds(policies(rules=GREEDY)))
def test_greedy_never_leaves_a_gpu_idle_while_a_request_waits(world: World) -> None:
    result = world.run()

    is_routed = "routing" in world.policy and world.config["cluster"]["num_gpus"] > 1
    waited = result.requests[
        (result.requests["status"] == FINISHED) & (result.requests["num_evictions"] == 0)
    ]
    for request in waited.itertuples():
        for gpu_id in [request.gpu_id] if is_routed else range(world.config["cluster"]["num_gpus"]):
            # An arrival is at its time, or at the next number after it: delays are added to the clock.
            waited_from_s = np.nextafter(request.arrival_s, np.inf)
            assert is_busy_throughout(result, gpu_id, waited_from_s, request.scheduled_s)


@settings(max_examples=60)
@given(worlds(policies(rules=TIMERS)))
def test_timer_lets_no_request_wait_longer_than_its_limit_while_a_gpu_is_idle(world: World) -> None:
    result = world.run()

    is_routed = "routing" in world.policy and world.config["cluster"]["num_gpus"] > 1
    limit_s = world.policy["batching"]["max_wait_s"]
    waited = result.requests[
        (result.requests["status"] == FINISHED) & (result.requests["num_evictions"] == 0)
    ]
    for request in waited.itertuples():
        due_s = request.arrival_s + limit_s
        for gpu_id in [request.gpu_id] if is_routed else range(world.config["cluster"]["num_gpus"]):
            assert is_busy_throughout(result, gpu_id, due_s, request.scheduled_s)


@settings(max_examples=60)
@given(worlds(policies(rules=FULL), NEVER_ENDING, PATIENT))
def test_full_batch_rule_launches_short_batches_only_as_flushes(world: World) -> None:
    result = world.run()

    batches = result.batches
    is_short = batches["batch_size"] < batches["size_limit"]
    assert (batches["is_flush"] | ~is_short).all()
    assert (batches.loc[batches["is_flush"], "start_s"] >= world.requests.arrival_s[-1]).all()


@settings(max_examples=60)
@given(worlds(patience=IMPATIENT))
def test_no_request_is_launched_after_its_patience_has_run_out(world: World) -> None:
    result = world.run()

    ran = result.requests[(result.requests["status"] == FINISHED) & (result.requests["num_evictions"] == 0)]
    assert ((ran["scheduled_s"] - ran["arrival_s"]) <= world.config["patience_s"] + 1e-9).all()


@settings(max_examples=15)
@given(worlds(requests=workloads(ON_GRID)))
def test_same_seed_gives_the_same_bytes(world: World) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [world.run_and_summarise().save(Path(folder) / name) for name in ("first", "second")]

        tables = [{file.name: file.read_bytes() for file in path.glob("*.parquet")} for path in paths]

    names = ("requests", "batches", "controllers", "sketches")
    assert set(tables[0]) == {f"{name}.parquet" for name in names}
    assert tables[0] == tables[1]


@settings(max_examples=60)
@given(worlds(capacities=NEVER_ENDING, patience=PATIENT), st.data())
def test_first_batches_do_not_depend_on_true_lengths(world: World, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(world.requests))))
    config = {**world.config, "predictor": {"kind": "constant", "tokens": 8}}
    swapped = output_tokens_swapped(world.requests, order)

    results = [
        World(requests, world.latency, world.policy, config).run() for requests in (world.requests, swapped)
    ]

    first_launches = [_launched_before_any_batch_ended(result) for result in results]
    until_s = min(until_s for until_s, _ in first_launches)
    early = [[launch for launch in launches if launch[0] < until_s] for _, launches in first_launches]
    assert early[0] == early[1]


def _launched_before_any_batch_ended(result: Records) -> tuple[float, list[tuple[float, int, int]]]:
    """When the first batch ended, and every launch as time, GPU and request."""
    ends_s = result.batches["finish_s"]
    ran = result.requests[result.requests["status"] == FINISHED]
    launches = list(zip(ran["scheduled_s"], ran["gpu_id"], ran["request_id"], strict=True))
    return ends_s.min() if len(ends_s) else math.inf, launches


@settings(max_examples=60)
@given(worlds(policies(queues=QUEUES), NEVER_ENDING, PATIENT), PREDICTORS)
def test_with_enough_memory_nothing_is_evicted_or_refused(world: World, predictor: dict[str, object]) -> None:
    result = World(
        world.requests, world.latency, world.policy, {**world.config, "predictor": predictor}
    ).run()

    assert not (result.requests["status"] == REFUSED).any()
    assert not np.any(result.requests["num_evictions"])
