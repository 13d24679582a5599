"""vLLM V0, worked out by hand: prompts come alone and first, memory that runs out costs the latest arrival.

An iteration takes 1 s, an eighth per prompt token and a quarter per decoding sequence; 6 blocks of 2 tokens.
"""

import pytest

from tests.iteration.reference import Coefficients, Log, VllmV0, simulate
from tests.iteration.worlds import (
    assert_iterations,
    assert_times,
    requests_of,
    run,
    run_plainly,
    swap_rate,
    times,
    worked_out,
)

LATENCY = Coefficients(fixed_s=1.0, per_prefill_token_s=0.125, per_decode_seq_s=0.25)

TRACE = [
    (0.0, 4, 4),  # A
    (0.0, 3, 3),  # B
    (2.0, 2, 2),  # C
    (2.0, 10, 2),  # D: more than the token budget of 8, so it comes alone
    (3.0, 12, 3),  # E: would end with 14 tokens where 12 fit
    (11.0, 1, 3),  # F
    (20.0, 1, 1),  # G
]

# 2: A's fifth token needs a third block.      3: B and A stall; D would be over the budget.
# 4: B needs a block, C is the latest.         5: C's prompt and its token again. D does not fit.
# 8: F arrived at this boundary; D stalls.     9: D needs the sixth block.
RECOMPUTE = """
   | start   | finish  | prefill | decode | blocks | preempted
1  | 0       | 1.875   | A4 B3   |        | 4      |
2  | 1.875   | 3.375   |         | A B    | 5      |
3  | 3.375   | 4.625   | C2      |        | 6      |
4  | 4.625   | 6.125   |         | A B    | 6      | C
5  | 6.125   | 7.5     | C3      |        | 5      |
6  | 7.5     | 8.75    |         | A      | 4      |
7  | 8.75    | 11      | D10     |        | 5      |
8  | 11      | 12.125  | F1      |        | 6      |
9  | 12.125  | 13.375  |         | D      | 6      | F
10 | 13.375  | 14.625  | F2      |        | 1      |
11 | 14.625  | 15.875  |         | F      | 2      |
12 | 20      | 21.125  | G1      |        | 1      |
"""

# A block's way to the host and back takes 1 s.
# 4: half a second for C's block.    5: the other half; C comes back before D may start, and decodes at once.
# 7: F arrives too late to stall D.
SWAP = """
   | start   | finish  | prefill | decode | blocks | preempted
1  | 0       | 1.875   | A4 B3   |        | 4      |
2  | 1.875   | 3.375   |         | A B    | 5      |
3  | 3.375   | 4.625   | C2      |        | 6      |
4  | 4.625   | 6.625   |         | A B    | 6      | C
5  | 6.625   | 8.625   |         | A C    | 6      |
6  | 8.625   | 10.875  | D10     |        | 5      |
7  | 10.875  | 12.125  |         | D      | 6      |
8  | 12.125  | 13.25   | F1      |        | 1      |
9  | 13.25   | 14.5    |         | F      | 1      |
10 | 14.5    | 15.75   |         | F      | 2      |
11 | 20      | 21.125  | G1      |        | 1      |
"""

CASES = [
    pytest.param(
        "vllm_v0",
        None,
        Log(
            worked_out(RECOMPUTE),
            times({"A": 1.875, "B": 1.875, "C": 4.625, "D": 11.0, "F": 12.125, "G": 21.125}),
            times({"A": 8.75, "B": 6.125, "C": 7.5, "D": 13.375, "F": 15.875, "G": 21.125}),
            refused=[4],
        ),
        id="recompute",
    ),
    pytest.param(
        "vllm_v0_swap",
        1.0,
        Log(
            worked_out(SWAP),
            times({"A": 1.875, "B": 1.875, "C": 4.625, "D": 10.875, "F": 13.25, "G": 21.125}),
            times({"A": 8.625, "B": 6.625, "C": 8.625, "D": 12.125, "F": 15.75, "G": 21.125}),
            refused=[4],
        ),
        id="swap",
    ),
]


@pytest.mark.parametrize(("preset", "swap_s_per_block", "golden"), CASES)
def test_v0_runs_the_iterations_worked_out_by_hand(
    preset: str, swap_s_per_block: float | None, golden: Log
) -> None:
    swap = {"swap_bytes_per_s": swap_rate(swap_s_per_block, block_size=2)} if swap_s_per_block else {}

    records = run(
        requests_of(TRACE),
        LATENCY,
        {"preset": preset, "batch_size": 3, "batching": {"max_num_batched_tokens": 8}},
        num_kv_blocks=6,
        block_size=2,
        exact_iterations=True,
        **swap,
    )

    assert_iterations(records, golden.rows)
    assert_times(records, golden)


@pytest.mark.parametrize(("preset", "swap_s_per_block", "golden"), CASES)
def test_reference_runs_the_same_v0_iterations(
    preset: str, swap_s_per_block: float | None, golden: Log
) -> None:
    rule = VllmV0(budget=8, swap_s_per_block=swap_s_per_block)

    log = simulate(rule, TRACE, num_blocks=6, block_size=2, max_num_seqs=3, latency=LATENCY)

    assert log == golden


@pytest.mark.parametrize(
    ("prompts", "num_blocks", "num_preemptions"),
    [
        pytest.param([3, 3], 4, [0, 1], id="nobody takes a block, and none is free"),
        pytest.param([3, 3], 5, [0, 0], id="one is free"),
        pytest.param([4, 3], 5, [0, 1], id="the first takes the only one"),
        pytest.param([3, 4], 5, [0, 0], id="the last takes the only one"),
    ],
)
def test_v0_asks_for_a_free_block_for_each_that_decodes_as_its_turn_comes(
    prompts: list[int], num_blocks: int, num_preemptions: list[int]
) -> None:
    trace = [(0.0, prompt, 2) for prompt in prompts]

    records = run(requests_of(trace), LATENCY, {"preset": "vllm_v0"}, num_kv_blocks=num_blocks, block_size=2)

    assert records.requests["num_preemptions"].tolist() == num_preemptions


def test_one_decodes_only_if_a_block_is_free_in_its_turn_though_it_needs_none() -> None:
    # As vLLM 0.6.6: with two blocks in use and none free, it gives way and is computed again, each time.
    records = run_plainly(
        requests_of([(0.0, 20, 3)]), Coefficients(fixed_s=1.0), {"preset": "vllm_v0"}, 2, is_exact=True
    )

    assert records.iterations["prefill_tokens"].tolist() == [20, 21, 22]
    assert records.preemptions["time_s"].tolist() == [1.0, 2.0]
