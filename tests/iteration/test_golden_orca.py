"""Orca, worked out by hand: whole prompts join the decodes, memory for 8 answer tokens is held throughout.

An iteration takes 1 s, an eighth per prompt token, a sixteenth per pair (half a prompt's square), a quarter
per decoding sequence and a 32nd per token that it attends to; 10 blocks of 4 tokens.
"""

from tests.iteration.reference import Coefficients, Log, Orca, simulate
from tests.iteration.worlds import assert_iterations, assert_times, requests_of, run, times, worked_out

LATENCY = Coefficients(1.0, 0.125, 0.0625, 0.25, 0.03125)

TRACE = [
    (0.0, 4, 3),  # A: 3 blocks
    (0.0, 8, 5),  # B: 4
    (0.0, 6, 1),  # C: 4
    (0.5, 33, 1),  # D: 11, more than there are
    (1.0, 1, 2),  # E: 3
    (14.0, 2, 5),  # F: 3
    (14.0, 2, 4),  # G: 3
    (14.0, 2, 1),  # H: 3
]

# 2: C does not fit, and E, which does, is behind it.    4: A's blocks are C's now; E does not fit.
# 6: F and G arrived at this boundary; three run, so H waits until E is done.
GOLDEN = Log(
    worked_out("""
   | start    | finish   | prefill | decode | blocks | preempted
1  | 0        | 5        | A4 B8   |        | 7      |
2  | 5        | 6.875    |         | A B    | 7      |
3  | 6.875    | 8.8125   |         | A B    | 7      |
4  | 8.8125   | 12.25    | C6      | B      | 8      |
5  | 12.25    | 14       | E1      | B      | 7      |
6  | 14       | 16.03125 | F2 G2   | E      | 9      |
7  | 16.03125 | 18.03125 | H2      | F G    | 9      |
8  | 18.03125 | 19.71875 |         | F G    | 6      |
9  | 19.71875 | 21.46875 |         | F G    | 6      |
10 | 21.46875 | 22.875   |         | F      | 3      |
"""),
    times({"A": 5.0, "B": 5.0, "C": 12.25, "E": 14.0, "F": 16.03125, "G": 16.03125, "H": 18.03125}),
    times({"A": 8.8125, "B": 14.0, "C": 12.25, "E": 16.03125, "F": 22.875, "G": 21.46875, "H": 18.03125}),
    refused=[3],
)


def test_orca_runs_the_iterations_worked_out_by_hand() -> None:
    records = run(
        requests_of(TRACE),
        LATENCY,
        {"preset": "orca", "batch_size": 3, "batching": {"max_tokens": 8}},
        num_kv_blocks=10,
        block_size=4,
        exact_iterations=True,
    )

    assert_iterations(records, GOLDEN.rows)
    assert_times(records, GOLDEN)


def test_reference_runs_the_same_orca_iterations() -> None:
    log = simulate(Orca(max_tokens=8), TRACE, num_blocks=10, block_size=4, max_num_seqs=3, latency=LATENCY)

    assert log == GOLDEN
