"""Sarathi-Serve, worked out by hand: decodes never stall, chunks take what they leave of 4 tokens.

An iteration takes 1 s, an eighth per prompt token and a quarter per decoding sequence; 8 blocks of 2 tokens.
"""

from tests.iteration.reference import Coefficients, Log, Sarathi, simulate
from tests.iteration.worlds import assert_iterations, assert_times, requests_of, run, times, worked_out

LATENCY = Coefficients(fixed_s=1.0, per_prefill_token_s=0.125, per_decode_seq_s=0.25)

TRACE = [
    (0.0, 5, 4),  # A
    (0.0, 3, 4),  # B
    (2.0, 4, 2),  # C
    (7.75, 9, 3),  # D
    (12.375, 1, 2),  # E
]

# 1: A takes the blocks of its whole prompt, and the whole budget.
# 4: A takes the last block, B needs one more: C, whose prompt is half done, gives its two back.
# 5: one block is free, C needs two.        7: D takes 5 blocks for a chunk of 3 tokens.
GOLDEN = Log(
    worked_out("""
   | start   | finish  | prefill | decode | blocks | preempted
1  | 0       | 1.5     | A4      |        | 3      |
2  | 1.5     | 3       | A1 B3   |        | 5      |
3  | 3       | 4.75    | C2      | A B    | 7      |
4  | 4.75    | 6.25    |         | A B    | 7      | C
5  | 6.25    | 7.75    |         | A B    | 7      |
6  | 7.75    | 9.25    | C4      |        | 2      |
7  | 9.25    | 10.875  | D3      | C      | 8      |
8  | 10.875  | 12.375  | D4      |        | 5      |
9  | 12.375  | 13.75   | D2 E1   |        | 6      |
10 | 13.75   | 15.25   |         | D E    | 6      |
11 | 15.25   | 16.5    |         | D      | 6      |
"""),
    times({"A": 3.0, "B": 3.0, "C": 9.25, "D": 13.75, "E": 13.75}),
    times({"A": 7.75, "B": 7.75, "C": 10.875, "D": 16.5, "E": 15.25}),
)


def test_sarathi_runs_the_iterations_worked_out_by_hand() -> None:
    records = run(
        requests_of(TRACE),
        LATENCY,
        {"preset": "sarathi", "batch_size": 3, "batching": {"max_num_batched_tokens": 4}},
        num_kv_blocks=8,
        block_size=2,
        exact_iterations=True,
    )

    assert_iterations(records, GOLDEN.rows)
    assert_times(records, GOLDEN)


def test_reference_runs_the_same_sarathi_iterations() -> None:
    log = simulate(Sarathi(budget=4), TRACE, num_blocks=8, block_size=2, max_num_seqs=3, latency=LATENCY)

    assert log == GOLDEN
