import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.latency.base import BatchShape, IterationShape, decode_span_s
from batchsim.latency.lockstep import LockstepLatency
from tests.latency.test_operators import SHAPES, UNEVEN
from tests.latency.test_passes import MODEL

PASSES = LockstepLatency(MODEL, 2)
TWO = LockstepLatency(UNEVEN, 2)


def test_decodes_are_shared_out_evenly() -> None:
    both_s = TWO.iteration_s(IterationShape(0, 4, 4 * 32, longest_tokens=64))

    assert both_s == pytest.approx(UNEVEN.iteration_s(IterationShape(0, 2, 2 * 32, longest_tokens=64)))


def test_several_chunks_are_shared_out_too() -> None:
    both_s = TWO.iteration_s(IterationShape(8, 0, 0, 2, 16.0))

    assert both_s == pytest.approx(UNEVEN.iteration_s(IterationShape(4, 0, 0, 1, 8.0)))


def test_a_single_chunk_keeps_the_other_replica_waiting_but_experts_look_at_the_mean() -> None:
    both_s = TWO.iteration_s(IterationShape(4, 4, 4 * 32, 1, 8.0))

    alone_s = UNEVEN.iteration_s(IterationShape(4, 2, 2 * 32, 1, 8.0))
    assert alone_s - both_s == pytest.approx(UNEVEN.tokens_s(6) - UNEVEN.tokens_s(4))
    assert both_s < alone_s


@given(st.lists(SHAPES, min_size=1, max_size=9))
def test_many_shapes_at_once_take_what_each_takes(shapes: list[IterationShape]) -> None:
    assert TWO.iterations_s(shapes) == pytest.approx([TWO.iteration_s(shape) for shape in shapes], rel=1e-12)


@given(st.integers(1, 9), st.integers(0, 800), st.integers(0, 200))
def test_line_equals_the_iterations_along_it(decode_seqs: int, context_tokens: int, longer: int) -> None:
    longest = context_tokens // decode_seqs + longer
    first_s, growth_s, num_linear = TWO.decode_line(decode_seqs, context_tokens, longest)

    steps = range(int(min(num_linear, 50)))
    shapes = [
        IterationShape(0, decode_seqs, context_tokens + step * decode_seqs, longest_tokens=longest + step)
        for step in steps
    ]
    assert first_s + growth_s * np.array(steps) == pytest.approx(TWO.iterations_s(shapes), rel=1e-9)


def test_groups_of_a_table_of_passes_share_out_decodes_and_chunks() -> None:
    decodes_s = PASSES.iteration_s(IterationShape(0, 8, 8 * 48))
    # One chunk of 4 beside 4 decodes: attention of the fullest group, all else of 4 tokens and not of 6.
    mixed_s = PASSES.iteration_s(IterationShape(4, 4, 4 * 32, 1, 8.0))

    assert decodes_s == MODEL.iteration_s(IterationShape(0, 4, 4 * 48))
    fullest_s = MODEL.iteration_s(IterationShape(4, 2, 2 * 32, 1, 8.0))
    assert mixed_s == pytest.approx(fullest_s - MODEL.tokens_s(6) + MODEL.tokens_s(4))


@given(st.integers(1, 9), st.integers(0, 800), st.integers(1, 50))
def test_span_of_groups_is_the_sum_of_its_iterations(seqs: int, context: int, num: int) -> None:
    one_by_one = sum(PASSES.iteration_s(IterationShape(0, seqs, context + j * seqs)) for j in range(num))

    assert decode_span_s(PASSES, num, seqs, context) == pytest.approx(one_by_one, rel=1e-9)


def test_batch_is_its_passes() -> None:
    first_token_s, total_s = PASSES.batch_time(BatchShape(2, 4, 3))

    assert first_token_s == PASSES.iteration_s(IterationShape(8, 0, 0, 2, 16.0))
    assert total_s - first_token_s == pytest.approx(decode_span_s(PASSES, 2, 2, 8))
