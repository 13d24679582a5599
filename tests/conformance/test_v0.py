"""V0 is asked nothing that it refuses, and nothing that is not looked at."""

import pytest

from tests.conformance import v0
from tests.conformance.workloads import WORKLOADS, Case, make, make_case, most_tokens, request, small_world

CASES = [make(name, seed=0) for name in v0.WORKLOADS if name in WORKLOADS]
CASES += [small_world(seed) for seed in range(20)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_longest_request_fits_the_budget_and_the_blocks_that_admissions_may_take(case: Case) -> None:
    engine = v0.as_v0(case)["engine"]

    assert engine["max_num_batched_tokens"] >= most_tokens(case)
    usable_blocks = engine["num_blocks"] - int(0.01 * engine["num_blocks"])
    assert usable_blocks * engine["block_size"] >= most_tokens(case)


def test_limits_that_are_enough_stay_as_they_are() -> None:
    case = make_case("one", [request(0.0, 100, 30)], num_blocks=10, max_num_batched_tokens=130)

    assert v0.as_v0(case) == case


def test_what_is_not_looked_at_is_off() -> None:
    case = make_case(
        "one",
        [request(0.0, 1, 1)],
        policy="priority",
        enable_prefix_caching=True,
        long_prefill_token_threshold=8,
    )

    assert v0.as_v0(case) == make_case("one", [request(0.0, 1, 1)])
