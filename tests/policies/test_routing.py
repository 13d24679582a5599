"""Where the next request goes, by what the router knows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.errors import ConfigError
from batchsim.policies.base import Setting
from batchsim.policies.routing import (
    CacheAware,
    Central,
    LeastLoaded,
    LMetric,
    PowerOfTwo,
    PrefixAffinity,
    RoundRobin,
    SessionAffinity,
)
from tests.policies.worlds import View, Waiting

REQUEST = Waiting(0)
BY_LOAD = [LeastLoaded, PowerOfTwo, SessionAffinity, PrefixAffinity]


def of_session(session_id: int) -> Waiting:
    return Waiting(0, session_id=session_id)


def with_prefix(*ids: int) -> Waiting:
    return Waiting(0, prefix_ids=ids)


def test_round_robin_takes_replicas_in_turn_whatever_their_load() -> None:
    routing = RoundRobin()

    assert [routing.choose(REQUEST, [9, 0, 0]) for _ in range(4)] == [0, 1, 2, 0]


def test_least_loaded_takes_the_lowest_number_of_the_smallest() -> None:
    assert LeastLoaded().choose(REQUEST, [3, 1, 2, 1]) == 1


def test_power_of_two_never_takes_the_only_fullest_and_reaches_all_others() -> None:
    routing = PowerOfTwo()
    routing.prepare(Setting(1, rng=np.random.default_rng(0)))

    chosen = {routing.choose(REQUEST, [5, 1, 9, 5]) for _ in range(200)}

    assert chosen == {0, 1, 3}


def test_power_of_two_repeats_itself_for_the_same_stream() -> None:
    runs = []
    for _ in range(2):
        routing = PowerOfTwo()
        routing.prepare(Setting(1, rng=np.random.default_rng(3)))
        runs.append([routing.choose(REQUEST, [0] * 8) for _ in range(50)])

    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 4


def test_power_of_two_of_one_is_that_one() -> None:
    assert PowerOfTwo().choose(REQUEST, [7]) == 0


def test_round_robin_needs_no_loads() -> None:
    assert RoundRobin().load is None


@pytest.mark.parametrize("kind", BY_LOAD)
def test_all_others_look_at_requests_or_at_kv_blocks(kind: type) -> None:
    assert kind().load == "requests"
    assert kind(by="kv_blocks").load == "kv_blocks"
    with pytest.raises(ConfigError, match=r"by is 'kv_block'; did you mean kv_blocks\?"):
        kind(by="kv_block")


def test_a_session_stays_where_its_first_turn_went() -> None:
    routing = SessionAffinity()

    first = routing.choose(of_session(7), [3, 1, 2])
    later = routing.choose(of_session(7), [0, 9, 0])

    assert (first, later) == (1, 1)


def test_sessions_and_requests_without_one_begin_at_the_least_loaded() -> None:
    routing = SessionAffinity()
    routing.choose(REQUEST, [0, 1])

    chosen = [routing.choose(request, [1, 0]) for request in (REQUEST, of_session(0), of_session(1))]

    assert chosen == [1, 1, 1]


def test_a_prefix_goes_to_the_replica_that_got_most_of_it() -> None:
    routing = PrefixAffinity()
    routing.choose(with_prefix(1, 2), [0, 5, 5])
    routing.choose(with_prefix(1, 3), [1, 5, 5])
    routing.choose(with_prefix(4), [5, 5, 0])

    assert routing.choose(with_prefix(1, 2, 9), [5, 0, 0]) == 0
    assert routing.choose(with_prefix(4, 8), [0, 0, 5]) == 2
    assert routing.choose(with_prefix(6), [5, 0, 5]) == 1
    assert routing.choose(REQUEST, [5, 0, 5]) == 1


def test_the_last_replica_of_a_prefix_counts_and_the_longest_match() -> None:
    routing = PrefixAffinity(max_imbalance=0)
    routing.choose(with_prefix(1, 2), [0, 1])
    routing.choose(with_prefix(1, 3), [1, 0])

    assert routing.choose(with_prefix(1, 4), [0, 0]) == 1
    assert routing.choose(with_prefix(1, 2), [0, 0]) == 0


def test_a_prefix_moves_once_its_replica_is_too_far_ahead() -> None:
    routing = PrefixAffinity(max_imbalance=2)
    loads = ([0, 0], [2, 0], [3, 0], [0, 2])

    chosen = [routing.choose(with_prefix(1), load) for load in loads]

    assert chosen == [0, 0, 1, 1]


@pytest.mark.parametrize("value", [-1, float("nan")])
def test_an_imbalance_below_nothing_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"max_imbalance is .*; a number >= 0 is needed"):
        PrefixAffinity(max_imbalance=value)


@given(
    st.lists(
        st.tuples(
            st.integers(-1, 3),
            st.lists(st.integers(0, 9), max_size=4, unique=True),
            st.lists(st.integers(0, 20), min_size=3, max_size=3),
        )
    ),
    st.integers(0, 10),
)
def test_affinity_never_goes_beyond_the_imbalance_and_never_splits_a_session(
    arrivals: list[tuple[int, list[int], list[int]]], max_imbalance: int
) -> None:
    by_prefix, by_session = PrefixAffinity(max_imbalance=max_imbalance), SessionAffinity()
    replica_of: dict[int, int] = {}

    for session_id, ids, loads in arrivals:
        request = Waiting(0, session_id=session_id, prefix_ids=ids)
        assert loads[by_prefix.choose(request, loads)] <= min(loads) + max_imbalance
        chosen = by_session.choose(request, loads)
        assert chosen == (
            replica_of.setdefault(session_id, chosen) if session_id >= 0 else loads.index(min(loads))
        )


PROMPT = Waiting(0, prompt_tokens=100)


def test_cache_aware_adds_the_tokens_to_compute_and_those_in_use() -> None:
    # 16 tokens a block: 20 + 160 + 0, 100 + 0 + 48, 0 + 150 of others' prompts + 16
    views = [
        View(cached=80, kv_blocks=10),
        View(cached=0, kv_blocks=3),
        View(cached=100, prompt_tokens=150, kv_blocks=1),
    ]

    assert [CacheAware().score(PROMPT, view) for view in views] == [180, 148, 166]
    assert CacheAware().choose(PROMPT, views) == 1
    assert CacheAware(prefill_weight=3).choose(PROMPT, views) == 0
    assert CacheAware(prefill_weight=0).choose(PROMPT, views) == 2


def test_the_product_of_new_tokens_and_batch_size_decides() -> None:
    views = [View(cached=80, num_requests=5), View(cached=0, num_requests=0), View(cached=60, num_requests=3)]

    assert [LMetric().score(PROMPT, view) for view in views] == [120, 100, 160]
    assert LMetric().choose(PROMPT, views) == 1


def test_of_idle_replicas_the_best_cache_wins_and_of_equals_the_first() -> None:
    assert LMetric().choose(PROMPT, [View(), View(cached=16), View(cached=16)]) == 1


@pytest.mark.parametrize("kind", [*BY_LOAD, CacheAware, LMetric])
@pytest.mark.parametrize("age_s", [-1.0, float("nan"), float("inf")])
def test_what_is_seen_is_some_time_old(kind: type, age_s: float) -> None:
    assert kind(view_age_s=2.5).view_age_s == 2.5
    with pytest.raises(ConfigError, match=r"view_age_s is .*; a number >= 0 is needed"):
        kind(view_age_s=age_s)


def test_only_one_is_central() -> None:
    assert Central().is_central
    assert Central().choose(REQUEST, [4, 2, 2]) == 1
    assert not any(kind().is_central for kind in (RoundRobin, CacheAware, LMetric, *BY_LOAD))
    with pytest.raises(ConfigError, match="by is 'seats'"):
        Central(by="seats")  # type: ignore[arg-type]


def test_a_weight_is_no_less_than_nothing() -> None:
    with pytest.raises(ConfigError, match="prefill_weight is -1"):
        CacheAware(prefill_weight=-1)
