"""Short JSON says the same as what it was made from."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.report.coding import LEAST_S, STEP, column, deltas, short, steps, thinned
from batchsim.results.sketches import PROBABILITIES


@pytest.mark.parametrize(
    ("value", "coded"),
    [
        (1.23456789, 1.23457),
        (np.float64(2.0), 2),
        (math.nan, None),
        (math.inf, None),
        (np.int64(7), 7),
        (np.bool_(True), True),
        ("text", "text"),
        (None, None),
        (pd.NA, None),
    ],
)
def test_a_value_is_short_json(value: object, coded: object) -> None:
    assert short(value) == coded
    assert type(short(value)) is type(coded)


def test_what_is_equal_stands_once() -> None:
    assert column(pd.Series([3.0, 3.0, 3.0])) == {"all": 3}
    assert column(pd.Series(["b", "a", "b"])) == {"of": ["b", "a"], "is": [0, 1, 0]}
    assert column(pd.Series([1.5, 2.5, math.nan])) == {"v": [1.5, 2.5, None]}


def test_true_is_not_one() -> None:
    mixed = column(pd.Series([True, 1, "1"], dtype=object))

    assert [(type(value), value) for value in mixed["of"]] == [(bool, True), (int, 1), (str, "1")]


@given(st.lists(st.floats(LEAST_S, 1e6), min_size=1, max_size=50).map(sorted))
def test_quantiles_come_back_to_half_a_step(values: list[float]) -> None:
    above = np.cumsum(steps(values))

    assert LEAST_S * np.exp(above * STEP) == pytest.approx(values, rel=0.51 * STEP)
    assert (np.diff(above) >= 0).all()


def test_zero_stays_zero() -> None:
    assert steps([0.0, 0.0, 1.0])[:2] == [0, 0]


def test_a_course_comes_back_to_half_a_unit() -> None:
    values = [0.0, 0.0104, 0.0101, 5.0]

    assert np.cumsum(deltas(values, 1e-3)) * 1e-3 == pytest.approx(values, abs=0.0005001)


@pytest.mark.parametrize("most", [2, 12, 96, 1000])
def test_thinned_quantiles_keep_both_ends(most: int) -> None:
    places = thinned(PROBABILITIES, most)

    assert places[0] == 0
    assert places[-1] == len(PROBABILITIES) - 1
    assert len(places) <= most
    assert places == sorted(set(places))
