"""vLLM V1, worked out by hand: one token budget, blocks as chunks need them, prefixes found in the cache."""

import numpy as np
import pytest

from batchsim.workload.request import Workload
from tests.iteration.reference import Coefficients, Log, VllmV1, simulate
from tests.iteration.worlds import assert_iterations, assert_times, requests_of, run, times, worked_out

# An iteration takes 1 s, an eighth per prompt token and a quarter per decoding sequence. 7 blocks of 2
# tokens; 6 tokens an iteration, at most 4 of one prompt, of which the first chunk has to fit (before 0.19).
LATENCY = Coefficients(fixed_s=1.0, per_prefill_token_s=0.125, per_decode_seq_s=0.25)

TRACE = [
    (0.0, 5, 5),  # A
    (0.0, 7, 3),  # B
    (1.0, 2, 2),  # C
    (14.0, 6, 2),  # D
]

# 1: A is held to 4, B gets what is left.      2: C gets the last token of the budget, and the last block.
# 3: B's seventh token needs a block; C, admitted last, loses its one token. Nobody is admitted.
# 4: A needs a block: B goes, with a token generated, to the head of the queue, before C.
# 6: A needs a block: C goes. Then B needs two and is the last itself. B waits before C again.
# 7: B's 7 + 1 tokens from the beginning.      10: D arrived at this boundary; its prompt takes two chunks.
GOLDEN = Log(
    worked_out("""
   | start   | finish  | prefill | decode | blocks | preempted
1  | 0       | 1.75    | A4 B2   |        | 3      |
2  | 1.75    | 3.5     | A1 B4 C1|        | 7      |
3  | 3.5     | 4.875   | B1      | A      | 7      | C
4  | 4.875   | 6.125   |         | A      | 4      | B
5  | 6.125   | 8       | B4 C1   | A      | 7      |
6  | 8       | 9.25    |         | A      | 5      | C B
7  | 9.25    | 11      | B4 C2   |        | 3      |
8  | 11      | 12.75   | B4      | C      | 6      |
9  | 12.75   | 14      |         | B      | 5      |
10 | 14      | 15.5    | D4      |        | 2      |
11 | 15.5    | 16.75   | D2      |        | 3      |
12 | 16.75   | 18      |         | D      | 4      |
"""),
    times({"A": 3.5, "B": 4.875, "C": 11.0, "D": 16.75}),
    times({"A": 9.25, "B": 14.0, "C": 12.75, "D": 18.0}),
)


def test_v1_runs_the_iterations_worked_out_by_hand() -> None:
    records = run(
        requests_of(TRACE),
        LATENCY,
        {
            "preset": "vllm_v1",
            "batch_size": 4,
            "batching": {
                "max_num_batched_tokens": 6,
                "long_prefill_threshold": 4,
                "engine_version": "0.18.0",
            },
        },
        num_kv_blocks=7,
        block_size=2,
        exact_iterations=True,
    )

    assert_iterations(records, GOLDEN.rows)
    assert_times(records, GOLDEN)


def test_reference_runs_the_same_v1_iterations() -> None:
    rule = VllmV1(budget=6, long_prefill_threshold=4, checks_whole_prompt=False, spares_single=False)

    log = simulate(rule, TRACE, num_blocks=7, block_size=2, max_num_seqs=4, latency=LATENCY)

    assert log == GOLDEN


# An iteration takes 1 s, a sixteenth per prompt token and a quarter per decoding sequence. 10 blocks of 8
# tokens; 32 tokens an iteration. An id stands for 16 tokens, two blocks.
PREFIX_LATENCY = Coefficients(fixed_s=1.0, per_prefill_token_s=0.0625, per_decode_seq_s=0.25)

PREFIX_TRACE = [
    (0.0, 40, 3, [1, 2]),  # A
    (2.0, 48, 2, [1, 2, 3]),  # B
    (20.0, 32, 1, [1, 2]),  # C
    (22.0, 64, 1, [9, 8, 7, 6]),  # D
    (30.0, 48, 1, [1, 2, 3]),  # E
]

# 2: B finds the four blocks of A's first chunk and computes the other two.
# 3: both need a block for their next token. B leaves: 3 is unused. 4: A leaves: 2 is unused, then 1.
# 5: C finds 1 and 2, but of a prompt that is cached whole, the last block is computed again.
# 7: D's second half needs 4 blocks where 3 ids are cached beside it, in 6: 3 and 2 were unused longest.
# 8: E finds 1 only.
PREFIX_GOLDEN = worked_out("""
   | start   | finish  | prefill | decode | blocks | preempted
1  | 0       | 3       | A32     |        | 4      |
2  | 3       | 5.5     | A8 B16  |        | 7      |
3  | 5.5     | 7       |         | A B    | 9      |
4  | 7       | 8.25    |         | A      | 6      |
5  | 20      | 21.5    | C8      |        | 4      |
6  | 22      | 25      | D32     |        | 4      |
7  | 25      | 28      | D32     |        | 8      |
8  | 30      | 33      | E32     |        | 6      |
""")


def test_v1_finds_prefixes_in_the_cache_as_worked_out_by_hand() -> None:
    ids = np.empty(len(PREFIX_TRACE), dtype=object)
    ids[:] = [request[3] for request in PREFIX_TRACE]
    plain = requests_of([request[:3] for request in PREFIX_TRACE])
    requests = Workload(
        plain.request_id, plain.arrival_s, plain.prompt_tokens, plain.output_tokens, {"hash_ids_16": ids}
    )

    records = run(
        requests,
        PREFIX_LATENCY,
        {"preset": "vllm_v1", "batch_size": 4, "batching": {"max_num_batched_tokens": 32}},
        num_kv_blocks=10,
        block_size=8,
        prefix_caching=True,
        exact_iterations=True,
    )

    assert_iterations(records, PREFIX_GOLDEN)
    assert records.requests["cached_tokens"].tolist() == [0, 32, 24, 0, 16]
    assert records.requests["first_token_s"].tolist() == [5.5, 5.5, 21.5, 28.0, 33.0]
    assert records.requests["finish_s"].tolist() == [8.25, 7.0, 21.5, 28.0, 33.0]


@pytest.mark.parametrize(("block_size", "cached_tokens"), [(16, 48), (32, 32), (64, 0)])
def test_of_a_prompt_that_is_cached_whole_the_engine_computes_its_own_last_block_again(
    block_size: int, cached_tokens: int
) -> None:
    plain = requests_of([(0.0, 64, 1), (10.0, 64, 1)])
    ids = np.empty(2, dtype=object)
    ids[:] = [[7], [7]]
    requests = Workload(
        plain.request_id, plain.arrival_s, plain.prompt_tokens, plain.output_tokens, {"hash_ids_64": ids}
    )

    records = run(
        requests,
        Coefficients(per_prefill_token_s=0.0625),
        {"preset": "vllm_v1"},
        num_kv_blocks=256 // block_size,
        block_size=block_size,
        prefix_caching=True,
    )

    assert records.requests["cached_tokens"].tolist() == [0, cached_tokens]
    assert records.requests["first_token_s"].tolist() == [5.0, 11 + (64 - cached_tokens) / 16]


def test_preempted_request_finds_again_what_nobody_has_overwritten() -> None:
    # Blocks of 4. A and B hold 3 blocks each when A needs a fourth: B gives way, and A takes B's last one.
    # When A has ended, B's first 8 tokens, of prompt and answer, are still there; 4 are computed again.
    requests = requests_of([(0.0, 6, 11), (0.0, 6, 9)])

    def preempted(*, prefix_caching: bool) -> tuple[int, int]:
        records = run(
            requests,
            LATENCY,
            {"preset": "vllm_v1", "batch_size": 4, "batching": {"max_num_batched_tokens": 16}},
            num_kv_blocks=6,
            block_size=4,
            prefix_caching=prefix_caching,
        )
        last = records.iterations[records.iterations["prefill_tokens"] > 0].iloc[-1]
        return int(records.requests["recomputed_tokens"][1]), int(last["prefill_tokens"])

    assert preempted(prefix_caching=True) == (4, 5)  # and one token that was generated last
    assert preempted(prefix_caching=False) == (12, 13)
