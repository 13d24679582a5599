import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from batchsim.errors import ConfigError
from batchsim.latency.base import BatchShape, IterationShape, LatencyInfo, decode_span_s
from batchsim.latency.tables.iteration_grid import TableIterationLatency

PREFILLS, SEQS, CONTEXTS = (0, 64, 512), (0, 1, 4, 16), (0, 100, 1000, 1500)
TIMES = np.random.default_rng(7).uniform(0.01, 0.05, (3, 4, 4))
TABLE = TableIterationLatency(
    PREFILLS, SEQS, CONTEXTS, tuple(TIMES.ravel().tolist()), info=LatencyInfo("grid")
)


def test_table_returns_what_was_measured() -> None:
    assert TABLE.iteration_s(IterationShape(64, 4, 4 * 1000)) == TIMES[1, 2, 2]
    assert TABLE.iteration_s(IterationShape(512, 0, 0)) == TIMES[2, 0, 0]
    assert TABLE.decode_line(16, 16 * 100).first_s == TIMES[0, 3, 1]


@given(st.integers(0, 512), st.integers(1, 16), st.integers(0, 1500))
def test_table_interpolates_as_scipy_does(prefill_tokens: int, decode_seqs: int, mean_context: int) -> None:
    oracle = RegularGridInterpolator((PREFILLS, SEQS, CONTEXTS), TIMES)

    time_s = TABLE.iteration_s(IterationShape(prefill_tokens, decode_seqs, decode_seqs * mean_context))

    expected_s = float(oracle((prefill_tokens, decode_seqs, mean_context))[()])
    assert time_s == pytest.approx(expected_s, rel=1e-12)


def test_pairs_and_prompts_cost_the_same_wherever_in_the_grid() -> None:
    table = replace(TABLE, pair_s=1e-6, prompt_s=1e-3)

    for prefill_tokens, decode_seqs, context_tokens in ((64, 0, 0), (100, 3, 900)):
        shape = IterationShape(prefill_tokens, decode_seqs, context_tokens, 2, 5000.0)
        assert table.iteration_s(shape) == pytest.approx(TABLE.iteration_s(shape) + 5e-3 + 2e-3, rel=1e-12)


def test_line_ends_with_the_iteration_at_the_next_point_of_the_grid() -> None:
    # Two sequences of 90 tokens reach the mean context of 100 in the eleventh iteration.
    first_s, growth_s, num_linear = TABLE.decode_line(2, 180)

    assert num_linear == 11
    assert first_s + 10 * growth_s == pytest.approx(TABLE.iteration_s(IterationShape(0, 2, 200)), rel=1e-12)


@given(st.integers(1, 400), st.integers(1, 40), st.integers(0, 30_000))
def test_span_by_lines_is_the_sum_of_its_iterations(
    num_iterations: int, decode_seqs: int, context_tokens: int
) -> None:
    times = 1.0 + np.add.outer(range(3), np.add.outer(range(4), [0, 1, 5, 6]))
    rising = TableIterationLatency(PREFILLS, SEQS, CONTEXTS, tuple(times.ravel().tolist()))

    span_s = decode_span_s(rising, num_iterations, decode_seqs, context_tokens)

    one_by_one_s = math.fsum(
        rising.iteration_s(IterationShape(0, decode_seqs, context_tokens + step * decode_seqs))
        for step in range(num_iterations)
    )
    assert span_s == pytest.approx(one_by_one_s, rel=1e-12)


def test_outer_cells_go_on_beyond_the_grid_without_end() -> None:
    linear = TableIterationLatency((0, 10), (0, 2), (0, 10, 20), (1.0, 1.5, 2.0) * 4)

    assert linear.decode_line(2, 50) == (pytest.approx(2.25), pytest.approx(0.05 * 2 / 2), math.inf)
    assert linear.iteration_s(IterationShape(99, 5, 5 * 40)) == pytest.approx(3.0)


def test_falling_line_ends_before_zero() -> None:
    falling = TableIterationLatency((0, 10), (0, 1), (0, 10), (1.0, 0.5) * 4)

    first_s, growth_s, num_linear = falling.decode_line(1, 12)

    assert first_s + (num_linear - 1) * growth_s > 0
    with pytest.raises(ConfigError, match="too far from the grid"):
        falling.decode_line(1, 21)
    with pytest.raises(ConfigError, match="0 prompt tokens, 1 decoding sequences and 21 context tokens"):
        falling.iteration_s(IterationShape(0, 1, 21))


def test_range_is_that_of_the_grid() -> None:
    table = TableIterationLatency((0, 64), (0, 4), (10, 100), (1.0,) * 8)

    assert table.is_bounded
    assert table.covers(IterationShape(64, 0, 0))
    assert table.covers(IterationShape(0, 3, 30))
    assert table.covers(IterationShape(0, 3, 300))
    assert not table.covers(IterationShape(0, 3, 29))
    assert not table.covers(IterationShape(0, 3, 301))
    assert not table.covers(IterationShape(65, 3, 30))
    assert not table.covers(IterationShape(0, 5, 50))


def test_padded_batch_takes_a_prefill_and_the_decodes_after_it() -> None:
    first_token_s, total_s = TABLE.batch_time(BatchShape(4, 16, 3))

    assert first_token_s == TIMES[1, 0, 0]
    steps_s = [TABLE.iteration_s(IterationShape(0, 4, tokens)) for tokens in (64, 68)]
    assert total_s - first_token_s == pytest.approx(sum(steps_s), rel=1e-12)


@pytest.mark.parametrize(
    ("axes", "times", "message"),
    [
        (((0, 64), (0, 4), (10, 100)), (1.0,) * 7, "grid_s holds 7 times; the axes ask for 8"),
        (((0,), (0, 4), (10, 100)), (1.0,) * 4, r"prefill_tokens of the table is \[0\]; two or more"),
        (((0, 64), (4, 0), (10, 100)), (1.0,) * 8, "decode_seqs of the table"),
        (((0, 64), (0, 4), (-1, 100)), (1.0,) * 8, "mean_context_tokens of the table"),
        (((0, 64), (0, 4), (10, 100)), (1.0,) * 7 + (0.0,), "a time in grid_s is 0.0"),
    ],
)
def test_table_that_makes_no_sense_is_refused(axes: Any, times: tuple[float, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TableIterationLatency(*axes, times)
