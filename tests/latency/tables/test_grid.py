import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from batchsim.errors import ConfigError
from batchsim.latency.base import BatchShape, Domain, LatencyInfo
from batchsim.latency.tables.grid import TableLatency, table_latency

SIZES, LENGTHS = (1, 2, 8), (10, 100, 1000)
TIMES = (1.0, 2.0, 9.0, 1.5, 2.5, 11.0, 4.0, 6.0, 30.0)
TABLE = TableLatency((SIZES, LENGTHS), TIMES, "prompt+output", LatencyInfo("grid"))


def points(rows: list[tuple[int, int, int, float]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["batch_size", "prompt_tokens", "output_tokens", "mean_s"])
    return frame.assign(max_seq_len=np.nan)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", LENGTHS)
def test_table_returns_what_was_measured(size: int, length: int) -> None:
    time = TABLE.batch_time(BatchShape(size, length - 5, 5))

    assert time.total_s == TIMES[SIZES.index(size) * 3 + LENGTHS.index(length)]
    assert math.isnan(time.first_token_s)


@given(st.integers(1, 8), st.integers(10, 1000))
def test_table_interpolates_as_scipy_does(size: int, length: int) -> None:
    oracle = RegularGridInterpolator((SIZES, LENGTHS), np.reshape(TIMES, (3, 3)))

    assert TABLE.interpolate((size, length)) == pytest.approx(float(oracle((size, length))), rel=1e-12)


@given(st.integers(1, 4), st.integers(10, 30), st.integers(5, 50))
def test_table_over_prompt_and_output_interpolates_as_scipy_does(size: int, prompt: int, output: int) -> None:
    axes = ((1, 4), (10, 20, 30), (5, 50))
    times = np.arange(1.0, 13.0) ** 1.5
    table = TableLatency(axes, tuple(times.tolist()), "prompt,output")
    oracle = RegularGridInterpolator(axes, times.reshape(2, 3, 2))

    total_s = table.batch_time(BatchShape(size, prompt, output)).total_s

    assert total_s == pytest.approx(float(oracle((size, prompt, output))), rel=1e-12)


def test_outer_cells_go_on_straight_beyond_the_grid() -> None:
    # From 2 to 8 in a batch the time at length 100 grows by 3.5 s, and so by 3.5 s more to 14.
    assert TABLE.batch_time(BatchShape(14, 60, 40)).total_s == pytest.approx(9.5)


def test_range_is_that_of_the_grid() -> None:
    assert TABLE.domain == Domain(batch_size=(1, 8), length=(10, 1000))
    assert TableLatency(((1, 2), (5, 9)), (1.0,) * 4, "output").domain == Domain((1, 2), output_tokens=(5, 9))
    assert TableLatency(((1,), (3,), (5, 9)), (1.0,) * 2, "prompt,output").domain == Domain(
        (1, 1), (3, 3), (5, 9)
    )


def test_extrapolation_below_zero_is_refused() -> None:
    steep = TableLatency(((1, 2), (100, 200)), (0.1, 5.1, 0.1, 5.1), "output")

    with pytest.raises(ConfigError, match="too far from the grid"):
        steep.batch_time(BatchShape(1, 1, 90))


def test_direction_with_a_single_value_cannot_be_left() -> None:
    table = TableLatency(((4,), (100, 200)), (1.0, 2.0), "output", LatencyInfo("one size"))

    with pytest.raises(ConfigError, match="one size: the table holds only 4 along one axis, not 5"):
        table.batch_time(BatchShape(5, 1, 150))


def test_points_in_any_order_fill_the_grid() -> None:
    rows = [(2, 10, 6, 4.0), (1, 10, 2, 1.0), (2, 10, 2, 2.0), (1, 10, 6, 3.0)]

    table = table_latency(points(rows), "output", LatencyInfo())

    assert table == TableLatency(((1, 2), (2, 6)), (1.0, 3.0, 2.0, 4.0), "output")


def test_gap_in_the_grid_is_named() -> None:
    with pytest.raises(ConfigError, match=r"lacks the point at batch size and prompt\+output \(2, 16\)"):
        table_latency(
            points([(1, 10, 2, 1.0), (1, 10, 6, 2.0), (2, 10, 2, 3.0)]), "prompt+output", LatencyInfo()
        )


def test_points_that_a_length_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"several points share batch size and output \(1, 2\)"):
        table_latency(points([(1, 10, 2, 1.0), (1, 20, 2, 2.0)]), "output", LatencyInfo())


@pytest.mark.parametrize(
    ("axes", "times", "message"),
    [
        (((1, 2), (5,)), (1.0,), "holds 1 times; the axes ask for 2"),
        (((2, 1), (5,)), (1.0, 2.0), "increasing whole numbers"),
        (((1, 2), ()), (), "increasing whole numbers"),
        (((1, 2),), (1.0, 2.0), "cannot have 1 axes"),
        (((1, 2), (5,)), (1.0, 0.0), "a time in total_s is 0.0"),
        (((1, 2), (5,)), (1.0, math.nan), "a time in total_s is nan"),
    ],
)
def test_table_that_makes_no_sense_is_refused(
    axes: tuple[tuple[int, ...], ...], times: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        TableLatency(axes, times, "output")
