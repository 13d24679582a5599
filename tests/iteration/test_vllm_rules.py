"""What vLLM's V1 scheduler does where others would do otherwise, each in a run of a few requests.

An iteration takes 2^-7 s and nothing else does, so that iteration k starts at k / 128 s; rows are arrival in
iterations, prompt tokens and answer tokens. Blocks hold 16 tokens. The numbers are those of vLLM's own
scheduler, driven with the same clock.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from batchsim.records import Records
from batchsim.workload.request import Workload
from tests.iteration.reference import Coefficients
from tests.iteration.worlds import Trace, requests_of, run_plainly

ITERATION_S = 2.0**-7


def serve(
    rows: Trace,
    num_blocks: int,
    batching: dict[str, Any],
    *,
    ids: Sequence[Sequence[int]] | None = None,
    priorities: Sequence[int] | None = None,
    sessions: Sequence[int] | None = None,
    policy: dict[str, Any] | None = None,
    **engine: Any,
) -> Records:
    """Run the requests one iteration at a time; with `ids`, of 16 tokens each, prompts are cached."""
    plain = requests_of([(arrival * ITERATION_S, prompt, answer) for arrival, prompt, answer in rows])
    extra = {} if priorities is None else {"priority": np.array(priorities)}
    if sessions is not None:
        extra["session_id"] = np.array(sessions)
    if ids is not None:
        extra["hash_ids_16"] = np.empty(len(rows), dtype=object)
        extra["hash_ids_16"][:] = ids
    requests = Workload(plain.request_id, plain.arrival_s, plain.prompt_tokens, plain.output_tokens, extra)
    return run_plainly(
        requests,
        Coefficients(fixed_s=ITERATION_S),
        {"preset": "vllm_v1", **(policy or {}), "batching": batching},
        num_blocks,
        is_exact=True,
        prefix_caching=ids is not None,
        **engine,
    )


def iterations(records: Records, column: str) -> list[int]:
    """A column of the iterations, one after the other; times as numbers of iterations."""
    values = records.iterations[column]
    return (values / ITERATION_S if column.endswith("_s") else values).astype(int).tolist()


def test_the_check_that_a_whole_prompt_fits_takes_the_chunk_alone() -> None:
    records = serve(
        [(0, 48, 19), (0.5, 320, 4)],
        24,
        {"max_num_batched_tokens": 17, "allocate": "prompt"},
        policy={"batch_size": 16},
    )

    assert records.requests["num_preemptions"].tolist() == [0, 0]
    assert len(records.iterations) == 26


def test_a_prompt_is_admitted_where_it_fits_beside_what_others_hold_by_now() -> None:
    records = serve([(0, 100, 2), (0, 100, 2)], 10, {"long_prefill_threshold": 16, "allocate": "prompt"})

    assert records.requests["scheduled_s"].tolist() == [0, 0]


@pytest.mark.parametrize(("version", "chunks"), [("0.31.0", [16, 16, 16]), ("0.32.0", [48])])
def test_since_0_32_a_prompt_that_is_alone_is_held_to_no_threshold(version: str, chunks: list[int]) -> None:
    records = serve([(0, 48, 1)], 10, {"long_prefill_threshold": 16, "engine_version": version})

    assert iterations(records, "prefill_tokens") == chunks


@pytest.mark.parametrize(("version", "cached_tokens"), [("0.23.0", 16), ("0.24.0", 32)])
def test_since_0_24_blocks_that_are_not_full_are_the_next_to_be_taken(
    version: str, cached_tokens: int
) -> None:
    # The first leaves two full blocks; the second, which takes the free ones, one that is not; the third one.
    rows = [(0, 32, 1), (10, 8, 1), (20, 8, 1), (30, 33, 1)]

    records = serve(rows, 3, {"engine_version": version}, ids=[[1, 2], [], [], [1, 2]])

    assert records.requests["cached_tokens"].tolist()[3] == cached_tokens


@pytest.mark.parametrize(("is_async", "cached_tokens"), [(False, 32), (True, 16)])
def test_blocks_of_one_that_ended_while_the_host_planned_come_too_late_for_those_that_decode(
    is_async: bool, cached_tokens: int
) -> None:
    # The first leaves two full blocks; two others were never used. As the second takes another block, that of
    # the third, which is not full, is the next to be taken if the host knows that the third has ended.
    rows = [(0, 32, 1), (10, 16, 3), (10, 1, 1), (20, 33, 1)]

    records = serve(rows, 4, {}, ids=[[1, 2], [3], [], [1, 2]], is_async=is_async)

    assert records.requests["cached_tokens"].tolist()[3] == cached_tokens


@pytest.mark.parametrize(("version", "num_admitted"), [("0.18.1", 2), ("0.19.0", 1), ("0.32.0", 1)])
def test_since_0_19_an_admission_needs_room_for_the_whole_prompt(version: str, num_admitted: int) -> None:
    records = serve(
        [(0, 100, 2), (0, 100, 2)],
        8,
        {"max_num_batched_tokens": 110, "engine_version": version},
        policy={"batch_size": 16},
    )

    assert (records.requests["scheduled_s"] == 0).sum() == num_admitted


def test_running_requests_take_their_blocks_before_prompts_are_looked_up() -> None:
    # Before 0.24, which puts the block that is not full of the one that ends at iteration 16 in front.
    version = {"engine_version": "0.19.1"}

    records = serve([(0, 16, 60), (0, 40, 17), (0, 40, 30)], 8, version, ids=[[1], [2, 3], [4, 5]])

    back = records.iterations[records.iterations["prefill_tokens"] > 0].iloc[1]
    assert back["start_s"] == 17 * ITERATION_S
    assert back["prefill_tokens"] == 40 + 8 + 1 - 16


def test_who_has_to_give_way_itself_ends_the_walk_and_those_behind_sit_out() -> None:
    records = serve(
        [(0, 1, 30), (0, 8, 20), (0.5, 1, 30)],
        3,
        {"preempt": "priority"},
        priorities=[0, 9, 0],
    )

    assert iterations(records, "decode_seqs")[8:11] == [3, 1, 2]
    assert records.preemptions["request_id"].tolist()[0] == 1
    assert records.preemptions["time_s"].tolist()[0] == 9 * ITERATION_S


def test_of_those_that_arrived_together_the_later_row_gives_way_so_that_the_first_gets_done() -> None:
    # Neither fits beside the other for long: were the one admitted first to give way, they would take turns
    # for ever.
    records = serve([(0, 33, 40), (0, 33, 40)], 6, {"preempt": "priority", "allocate": "chunk"})

    preempted = records.preemptions["request_id"]
    assert len(preempted) > 0
    assert set(preempted) == {1}
    assert records.requests["finish_s"].is_monotonic_increasing


def test_one_whose_last_token_is_under_way_gives_way_at_no_loss() -> None:
    records = serve([(0, 14, 30), (0, 1, 12), (0, 1, 3)], 3, {}, is_async=True)

    assert iterations(records, "num_preempted")[:5] == [0, 0, 0, 1, 0]
    assert iterations(records, "decode_seqs")[:5] == [0, 3, 3, 2, 2]
    assert records.requests["finish_s"].tolist() == [30 / 128, 12 / 128, 3 / 128]
    assert records.preemptions["lost_tokens"].tolist() == [0]
    assert records.requests["recomputed_tokens"].sum() == 0


def test_requests_that_end_together_give_their_blocks_back_in_running_order() -> None:
    # The second is admitted first, and its blocks are the first to be overwritten by the third.
    records = serve(
        [(0, 16, 2), (0, 16, 2), (10, 33, 1), (20, 17, 1)],
        4,
        {},
        ids=[[1], [2], [], [1]],
        priorities=[1, 0, 0, 0],
        policy={"queueing": {"kind": "HighestPriority"}},
    )

    assert records.requests["cached_tokens"].tolist() == [0, 0, 0, 16]


def test_a_prompt_that_is_cached_whole_leaves_a_second_copy_of_its_last_block() -> None:
    # The third overwrites two blocks that were never used and the older copy.
    rows = [(0, 32, 1), (10, 32, 1), (20, 48, 1), (30, 33, 1)]

    records = serve(rows, 5, {}, ids=[[1, 2], [1, 2], [], [1, 2]])

    assert records.requests["cached_tokens"].tolist() == [0, 16, 0, 32]


def test_an_iteration_that_preempts_all_is_planned_anew_with_all_that_is_known_by_then() -> None:
    rows = [(0, 1, 4), (1, 1, 1), (1, 2, 2), (2.5, 4, 1), (3.5, 1, 2), (6.5, 1, 1)]

    records = serve(
        rows,
        5,
        {"max_num_batched_tokens": 12, "allocate": "prompt", "engine_version": "0.19.1"},
        policy={"batch_size": 4},
        is_async=True,
        block_size=1,
    )

    assert iterations(records, "start_s")[7] == 7
    assert iterations(records, "prefill_tokens")[7] == 3
    assert sum(iterations(records, "num_preempted")) == len(records.preemptions) > 0


def test_what_was_decoded_as_the_host_planned_is_not_found_after_a_preemption() -> None:
    records = serve(
        [(0, 6, 4), (1, 7, 3)],
        5,
        {"max_num_batched_tokens": 11, "engine_version": "0.19.1"},
        policy={"batch_size": 4},
        ids=[[], []],
        is_async=True,
        block_size=4,
    )

    assert records.iterations["prefill_tokens"].iloc[-1] == 5


def test_chunk_of_one_that_gives_way_after_its_turn_is_found_though_it_was_never_computed() -> None:
    # The first gets its last but one chunk in iteration 2; then the second needs the eighth block.
    records = serve(
        [(0, 113, 1), (0.5, 16, 3)],
        8,
        {"max_num_batched_tokens": 48, "long_prefill_threshold": 32, "preempt": "priority"},
        ids=[[1, 2, 3, 4, 5, 6, 7], [8]],
        priorities=[9, 0],
        policy={"batch_size": 16, "queueing": {"kind": "HighestPriority"}},
    )

    assert iterations(records, "prefill_tokens") == [48, 48, 0, 0, 113 - 6 * 16]


def test_one_that_gives_way_after_its_turn_finds_what_was_decoded_as_the_host_planned() -> None:
    # In iteration 3, the first takes the last free block before the second, which needs one, too.
    records = serve(
        [(0, 14, 6), (0.5, 16, 3)],
        3,
        {"preempt": "priority"},
        ids=[[], [1]],
        priorities=[9, 0],
        policy={"queueing": {"kind": "HighestPriority"}},
        is_async=True,
    )

    assert records.preemptions["time_s"].tolist() == [3 * ITERATION_S]
    assert iterations(records, "prefill_tokens") == [14, 0, 16, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("answer_tokens", "is_async", "cached_tokens"), [(32, False, 32), (33, False, 48), (33, True, 48)]
)
def test_next_turn_finds_the_blocks_that_the_answer_has_filled(
    answer_tokens: int, is_async: bool, cached_tokens: int
) -> None:
    # the last token of an answer is never stored
    rows = [(0, 16, answer_tokens), (50, 80, 1)]

    records = serve(rows, 10, {}, ids=[[1], [1, 2, 3, 4, 5]], sessions=[0, 0], is_async=is_async)

    assert records.requests["cached_tokens"].tolist() == [0, cached_tokens]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(("arrival", "cached_tokens"), [(15, 16), (16, 32)])
def test_next_turn_finds_what_there_is_of_an_answer_under_way(
    is_async: bool, arrival: int, cached_tokens: int
) -> None:
    rows = [(0, 16, 40), (arrival, 80, 1)]

    records = serve(rows, 12, {}, ids=[[1], [1, 2, 3, 4, 5]], sessions=[0, 0], is_async=is_async)

    assert records.requests["cached_tokens"].tolist() == [0, cached_tokens]


def test_answer_that_is_preempted_finds_its_own_blocks_and_so_does_the_next_turn() -> None:
    # The first takes the block of the second that is not full, and leaves the two that are.
    rows = [(0, 15, 20), (0, 16, 30), (60, 64, 1)]

    records = serve(rows, 5, {}, ids=[[], [1], [1, 2, 3, 4]], sessions=[0, 1, 1])

    assert records.requests["num_preemptions"].tolist() == [0, 1, 0]
    assert [num for num in iterations(records, "prefill_tokens") if num] == [15 + 16, 2, 64 - 32]
