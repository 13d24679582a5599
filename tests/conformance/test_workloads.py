"""Workloads are the same for the same seed, exact in binary, and share the tokens that they say."""

import pytest

from tests.conformance.workloads import (
    WORKLOADS,
    Case,
    from_rows,
    make,
    make_case,
    most_tokens,
    prompt_ids,
    prompt_tokens,
    request,
    small_world,
    with_engine,
)

CASES = {name: make(name, seed=0) for name in WORKLOADS}
SMALL_WORLDS = [small_world(seed) for seed in range(50)]


def check_times(case: Case) -> None:
    """Times of arrival are in order, and sums with times of iterations are exact."""
    times_s = [one["arrival_s"] for one in case["requests"]]
    assert times_s == sorted(times_s)
    assert all(time_s * 2**20 % 1 == 0 for time_s in times_s)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_times_are_multiples_of_a_power_of_two_and_all_requests_fit(case: Case) -> None:
    engine = case["engine"]

    check_times(case)
    assert most_tokens(case) - 1 <= engine["num_blocks"] * engine["block_size"]
    assert engine["max_num_seqs"] <= engine["max_num_batched_tokens"]


def test_small_worlds_are_of_the_same_form() -> None:
    for case in SMALL_WORLDS:
        check_times(case)
        assert most_tokens(case) - 1 <= case["engine"]["num_blocks"] * case["engine"]["block_size"]


def test_same_seed_is_the_same_workload_and_another_seed_is_not() -> None:
    assert make("prefixes", seed=0) == CASES["prefixes"]
    assert make("prefixes", seed=1) != CASES["prefixes"]


def test_prompts_share_the_streams_they_begin_with_and_nothing_else() -> None:
    first, second = request(0.0, 2, 1, (7, 3)), request(0.0, 4, 1, (7, 5))

    ids, other_ids = prompt_ids(first, 0), prompt_ids(second, 1)

    assert ids[:3] == other_ids[:3]
    assert not set(ids[3:]) & set(other_ids)
    assert [prompt_tokens(first), prompt_tokens(second)] == [5, 9] == [len(ids), len(other_ids)]


def test_settings_of_the_engine_are_changed_in_a_copy() -> None:
    case = make_case("one", [request(0.0, 1, 1)])

    changed = with_engine(case, num_blocks=3)

    assert (case["engine"]["num_blocks"], changed["engine"]["num_blocks"]) == (8192, 3)


def test_trace_at_twice_the_speed_has_half_the_times_on_the_grid() -> None:
    case = from_rows("trace", [(0.0, 3, 2), (0.3, 5, 1)], speed=2.0)

    check_times(case)
    assert [one["arrival_s"] for one in case["requests"]] == pytest.approx([0.0, 0.15], abs=2**-20)
    assert [(prompt_tokens(one), one["output_tokens"]) for one in case["requests"]] == [(3, 2), (5, 1)]
