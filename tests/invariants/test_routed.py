"""What holds for clusters whatever the router sees, how old that is, and who is let in."""

from dataclasses import replace
from typing import Any

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from batchsim.metrics.summary import laws
from batchsim.records import FINISHED, REFUSED, SHED
from batchsim.study.run import simulate
from tests.invariants.test_iteration_level import OFF_GRID, ON_GRID, World, worlds
from tests.sim.cluster.test_hand_over import UNEVEN
from tests.sim.cluster.test_hand_over import worlds as pools
from tests.sim.worlds import workload

LOADS = st.sampled_from(["requests", "kv_blocks"])
AGES = st.sampled_from([0.0, 0.0, 0.125, 0.317, 2.0])

ROUTINGS = st.one_of(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["LeastLoaded", "PowerOfTwo", "PrefixAffinity"]),
            "by": LOADS,
            "view_age_s": AGES,
        }
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("CacheAware"),
            "prefill_weight": st.sampled_from([0.3, 1.0, 20.0]),
            "view_age_s": AGES,
        }
    ),
    st.fixed_dictionaries({"kind": st.just("LMetric"), "view_age_s": AGES}),
    st.fixed_dictionaries({"kind": st.just("Central"), "by": LOADS}),
)
ADMISSIONS = st.one_of(
    st.just({}),
    st.just({"kind": "AdmitAll"}),
    st.integers(0, 5).map(lambda most: {"kind": "QueueLimit", "max_waiting": most}),
    st.sampled_from([0.103, 0.71]).map(lambda limit: {"kind": "PredictedTTFT", "limit_s": limit}),
)


@st.composite
def routed_worlds(
    draw: st.DrawFn,
    routings: st.SearchStrategy[dict[str, Any]] = ROUTINGS,
    admissions: st.SearchStrategy[dict[str, Any]] = ADMISSIONS,
) -> World:
    """Two or three replicas with a router before them."""
    world = draw(worlds())
    policy = {**world.config["policy"], "routing": draw(routings), "admission": draw(admissions)}
    cluster = {"num_gpus": draw(st.sampled_from([2, 3]))}
    if policy["routing"]["kind"] == "Central" and world.latency is ON_GRID:
        # Where two replicas end an iteration at one instant, who then comes first depends on their events.
        world = replace(world, latency=OFF_GRID)
    return replace(world, config={**world.config, "policy": policy, "cluster": cluster})


@settings(max_examples=200)
@given(routed_worlds())
def test_spans_give_what_single_iterations_give_whatever_the_router_sees(world: World) -> None:
    spans, exact = world.run(), world.run(is_exact=True)

    pd.testing.assert_frame_equal(spans.requests, exact.requests, rtol=1e-9, atol=1e-9)
    assert spans.iterations["num_iterations"].sum() == len(exact.iterations)


@settings(max_examples=60)
@given(routed_worlds())
def test_laws_hold_and_every_request_ends_once_in_one_state(world: World) -> None:
    records = world.run()

    residuals = laws(records)
    assert all(abs(residual) < 1e-9 for residual in residuals.values()), residuals
    requests = records.requests
    assert requests["status"].notna().all()
    assert set(records.refusals) == set(requests.loc[requests["status"] == REFUSED, "request_id"])
    assert (requests["finish_s"].notna() == (requests["status"] == FINISHED)).all()
    if world.config["policy"]["admission"].get("kind", "AdmitAll") == "AdmitAll":
        assert not any(reason.startswith(SHED) for reason in records.refusals.values())


@settings(max_examples=30)
@given(routed_worlds())
def test_to_look_changes_nothing_and_the_same_seed_gives_the_same(world: World) -> None:
    pd.testing.assert_frame_equal(world.run().requests, world.run().requests, check_exact=True)


@settings(max_examples=60)
@given(pools(), ROUTINGS, ADMISSIONS)
def test_pools_are_seen_alike_in_spans_and_single_iterations(
    pool: tuple[dict[str, Any], list[tuple[float, int, int]]],
    routing: dict[str, Any],
    admission: dict[str, Any],
) -> None:
    config, rows = pool
    config = {**config, "policy": {**config["policy"], "routing": routing, "admission": admission}}
    requests = workload(*(list(column) for column in zip(*rows, strict=True)))

    spans = simulate(config, requests, latency=UNEVEN)
    exact = simulate(config, requests, latency=UNEVEN, overrides={"engine.exact_iterations": True})

    pd.testing.assert_frame_equal(spans.requests, exact.requests, rtol=1e-9, atol=1e-9)
    assert all(abs(residual) < 1e-9 for residual in laws(spans.records).values())
    assert spans.requests["status"].isin([FINISHED, REFUSED]).all()
