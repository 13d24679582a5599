"""Our side's log has every iteration of a case."""

from tests.conformance import ours
from tests.conformance.workloads import make_case, request

NEWEST = "0.32.0"


def test_log_has_every_iteration_and_the_times_of_every_request() -> None:
    case = make_case("two", [request(0.0, 20, 2), request(0.0, 5, 1)], per_token_s=0.0, num_blocks=8)

    log = ours.run(case, NEWEST)

    assert log["rows"] == [[0.0, [(0, 20), (1, 5)], [], 5], [2.0**-7, [(0, 1)], [], 6]]
    assert log["first_token_s"] == [2.0**-7, 2.0**-7]
    assert log["finish_s"] == [2.0**-6, 2.0**-7]


def test_of_two_who_came_at_one_instant_the_later_gives_way_and_both_get_done() -> None:
    # Were it the one admitted first, as by equal times in vLLM, they would take turns for ever.
    case = make_case(
        "at-once",
        [request(0.0, 1, 1), request(0.0, 16, 5, priority=1), request(0.0, 13, 7, priority=1)],
        num_blocks=14,
        block_size=2,
        max_num_batched_tokens=5,
        max_num_seqs=4,
        long_prefill_token_threshold=3,
        policy="priority",
        scheduler_reserve_full_isl=False,
    )

    log = ours.run(case, NEWEST)

    assert {number for _, _, preempted, _ in log["rows"] for number in preempted} == {2}
    assert log["finish_s"] == sorted(log["finish_s"])


def test_decodes_that_stall_for_a_prompt_in_v0_are_not_in_the_log() -> None:
    case = make_case("two", [request(0.0, 20, 3), request(2.0**-8, 5, 1)], per_token_s=0.0, num_blocks=8)

    rows = ours.run(case, "0.6.6.post1")["rows"]

    assert [tokens for _, tokens, _, _ in rows] == [[(0, 20)], [(1, 5)], [(0, 1)], [(0, 1)]]
    assert [free_blocks for *_, free_blocks in rows] == [6, 5, 6, 6]
