import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchsim.metrics.engine import (
    composition,
    computed_tokens,
    kv_share,
    kv_use,
    prefix_hit_rate,
    recomputed_share,
    running_sequences,
    token_throughput,
)
from batchsim.metrics.system import Window
from tests.metrics.engine_world import dice_run
from tests.metrics.worlds import engine_request_table, iteration_table

# Two replicas: a prefill and three decodes of two sequences on one, a mixed iteration on the other.
ITERATIONS = iteration_table(
    [0.0, 2.0, 8.0],
    [2.0, 5.0, 12.0],
    gpu_id=[0, 0, 1],
    num_iterations=[1, 3, 1],
    prefill_tokens=[10, 0, 8],
    decode_seqs=[0, 2, 4],
    num_running=[1, 2, 5],
    kv_blocks=[1, 3, 10],
)
WINDOW = Window(0.0, 10.0)


def test_running_sequences_are_weighed_by_time_and_idle_time_has_none() -> None:
    running = running_sequences(ITERATIONS, 2, WINDOW)

    sequences, seconds = running.written_out()
    assert sequences.tolist() == [0, 1, 2, 5]
    assert seconds.tolist() == [20 - 2 - 3 - 2, 2.0, 3.0, 2.0]
    assert running.mean == (2 * 1 + 3 * 2 + 2 * 5) / 20


@pytest.mark.parametrize("seed", range(6))
def test_tokens_count_when_they_come(seed: int) -> None:
    run = dice_run(seed, num_gpus=2, may_merge=False)
    tables = (run.records.requests, run.records.iterations, run.records.preemptions)
    times_s = np.concatenate(run.times_s)
    end_s = float(times_s.max())
    middle_s = float(np.median(run.records.iterations["finish_s"])) + 2.0**-20

    whole = token_throughput(*tables, Window(0.0, end_s))
    half = token_throughput(*tables, Window(0.0, middle_s))

    assert whole.output_tokens_per_s * end_s == pytest.approx(len(times_s))
    # Of an iteration under way on the other replica, its share.
    assert half.output_tokens_per_s * middle_s == pytest.approx(np.sum(times_s <= middle_s), abs=4)
    prompt_tokens = int(run.records.requests["prompt_tokens"].sum())
    assert whole.total_tokens_per_s * end_s == pytest.approx(len(times_s) + prompt_tokens)


def test_kv_use_is_a_share_of_each_replicas_own_blocks() -> None:
    assert kv_share(ITERATIONS, (4, 20)).tolist() == [0.25, 0.75, 0.5]
    assert kv_use(ITERATIONS, (4, 20), WINDOW) == (2 * 0.25 + 3 * 0.75 + 2 * 0.5) / 20


def test_computed_tokens_are_prompt_chunks_and_decodes() -> None:
    assert computed_tokens(ITERATIONS).tolist() == [10, 6, 12]


def test_the_recomputed_share_is_of_all_tokens_computed() -> None:
    requests = engine_request_table([0.0, 0.0], recomputed_tokens=[3, 4])

    assert recomputed_share(requests, ITERATIONS) == 7 / 28


def test_the_prefix_hit_rate_is_of_prompts_that_were_admitted() -> None:
    requests = engine_request_table(
        [0.0, 0.0, 0.0],
        prompt_tokens=[10, 30, 999],
        cached_tokens=[0, 16, 0],
        scheduled_s=[0.0, 1.0, np.nan],
    )

    assert prefix_hit_rate(requests) == 16 / 40
    assert math.isnan(prefix_hit_rate(requests[2:]))


def test_composition_spreads_a_span_over_its_time() -> None:
    bins = composition(ITERATIONS, 3)

    assert bins["start_s"].tolist() == [0.0, 4.0, 8.0]
    assert bins["end_s"].tolist() == [4.0, 8.0, 12.0]
    assert bins["prefill_tokens"].tolist() == [10, 0, 8]
    assert bins["iterations"].tolist() == pytest.approx([3, 1, 1])
    assert bins["decode_tokens"].tolist() == pytest.approx([4, 2, 4])
    assert bins["decode_seqs"].tolist() == pytest.approx([2 * 2 / 4, 2 * 1 / 4, 4])
    assert bins["busy"].tolist() == pytest.approx([1, 0.25, 1])


@settings(max_examples=15)
@given(seed=st.integers(0, 99), num_bins=st.integers(1, 9))
def test_composition_loses_nothing(seed: int, num_bins: int) -> None:
    iterations = dice_run(seed, num_gpus=2).records.iterations

    bins = composition(iterations, num_bins)

    assert bins["iterations"].sum() == pytest.approx(iterations["num_iterations"].sum())
    decode_tokens = (iterations["decode_seqs"] * iterations["num_iterations"]).sum()
    assert bins["decode_tokens"].sum() == pytest.approx(decode_tokens)
