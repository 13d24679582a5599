import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.errors import ConfigError
from batchsim.latency.base import BatchShape, IterationDomain, IterationShape, decode_span_s
from batchsim.latency.linear import LinearIterationLatency

LINEAR = LinearIterationLatency(0.5, 0.25, 0.125, 0.0625, 0.03125)


def test_iteration_takes_the_sum_of_its_parts() -> None:
    # Chunks of 4 after 8 tokens and of 2 from the start attend to 4 * 10 + 2 * 1 pairs.
    shape = IterationShape(6, 3, 20, 2, 42)

    assert LINEAR.iteration_s(shape) == 0.5 + 0.25 * 6 + 0.125 * 42 + 0.0625 * 3 + 0.03125 * 20


def test_prompt_may_cost_something_besides_its_tokens() -> None:
    latency = LinearIterationLatency(0.5, 0.25, 0.125, 0.0625, 0.03125, 2.0)

    more_s = latency.iteration_s(IterationShape(6, 3, 20, 2, 42)) - LINEAR.iteration_s(
        IterationShape(6, 3, 20, 2, 42)
    )

    assert more_s == 2 * 2.0
    assert latency.decode_line(4, 100) == LINEAR.decode_line(4, 100)


@pytest.mark.parametrize(
    ("shape", "counts"),
    [
        (IterationShape(0, 1, 20), 0),
        (IterationShape(1, 0, 0, 1, 0.5), 0),
        (IterationShape(0, 2, 40), 1),
        (IterationShape(1, 1, 20, 1, 0.5), 1),
        (IterationShape(6, 0, 0, 1, 18), 1),
    ],
)
def test_a_pass_of_several_tokens_may_cost_more_than_that_of_a_lone_one(
    shape: IterationShape, counts: int
) -> None:
    latency = replace(LINEAR, if_several_tokens_s=2.0)

    assert latency.iteration_s(shape) == LINEAR.iteration_s(shape) + 2.0 * counts
    if not shape.prefill_tokens:
        assert latency.decode_line(shape.decode_seqs, shape.context_tokens).first_s == latency.iteration_s(
            shape
        )


def test_all_decode_iterations_lie_on_one_line() -> None:
    assert LINEAR.decode_line(4, 100) == (0.5 + 0.25 + 3.125, 0.125, math.inf)


def test_published_law_of_decode_time_is_a_special_case() -> None:
    law = LinearIterationLatency(0.030, 0, 0, 0.00022, 0)

    assert law.decode_line(100, 12_345).first_s == pytest.approx(0.052)
    assert law.decode_line(100, 12_345).growth_s == 0


@given(st.integers(1, 300), st.integers(1, 512), st.integers(0, 10**6))
def test_span_by_lines_is_the_sum_of_its_iterations(
    num_iterations: int, decode_seqs: int, context_tokens: int
) -> None:
    latency = LinearIterationLatency(0.0071, 3.3e-5, 1.7e-9, 2.3e-4, 1.9e-8)

    span_s = decode_span_s(latency, num_iterations, decode_seqs, context_tokens)

    one_by_one_s = math.fsum(
        latency.iteration_s(IterationShape(0, decode_seqs, context_tokens + step * decode_seqs))
        for step in range(num_iterations)
    )
    assert span_s == pytest.approx(one_by_one_s, rel=1e-12)


def test_padded_batch_takes_a_prefill_and_the_decodes_after_it() -> None:
    first_token_s, total_s = LINEAR.batch_time(BatchShape(2, 4, 3))

    assert first_token_s == 0.5 + 0.25 * 8 + 0.125 * 2 * 8
    assert total_s - first_token_s == 2 * (0.5 + 0.125) + 0.03125 * (8 + 10)


def test_range_is_inclusive_and_only_where_it_is_given() -> None:
    bounded = LinearIterationLatency(
        1, 0, 0, 0, 0, iteration_domain=IterationDomain((0, 8), context_tokens=(0, 9))
    )

    assert bounded.is_bounded
    assert bounded.covers(IterationShape(8, 10**6, 9))
    assert not bounded.covers(IterationShape(9, 1, 9))
    assert not bounded.covers(IterationShape(0, 1, 10))
    assert not LINEAR.is_bounded
    assert LINEAR.covers(IterationShape(10**9, 10**9, 10**9))


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ((-1, 0, 0, 0, 0), "fixed_s is -1"),
        ((1, 0, math.nan, 0, 0), "per_prefill_pair_s is nan"),
        ((1, 0, 0, "2", 0), "per_decode_seq_s is '2'"),
        ((1, 0, 0, 0, 0, -2), "per_prefill_seq_s is -2"),
        ((0, 0, 0, 1, 0), "fixed_s and all prefill coefficients are 0"),
        ((0, 1, 0, 0, 0), "fixed_s and all decode coefficients are 0"),
    ],
)
def test_coefficients_that_make_no_sense_are_refused(coefficients: tuple[float, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LinearIterationLatency(*coefficients)
