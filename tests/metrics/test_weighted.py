import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from batchsim.metrics.weighted import Weighted


def test_a_value_counts_as_often_as_its_weight() -> None:
    sample = Weighted.of([3.0, 1.0, 2.0], [1, 4, 3])

    assert (sample.total, sample.sum, sample.mean, sample.max) == (8, 13.0, 13 / 8, 3.0)


def test_a_percentile_is_the_smallest_value_with_so_much_at_or_below_it() -> None:
    sample = Weighted.of([3.0, 1.0, 2.0], [1, 4, 3])

    assert sample.percentiles([0, 50, 50.1, 87.5, 87.6, 100]).tolist() == [1, 1, 2, 2, 3, 3]


def test_values_of_no_weight_are_left_out_even_if_unknown() -> None:
    sample = Weighted.of([5.0, math.nan, 9.0], [0.5, 0.0, 0.0])

    assert (sample.max, sample.mean) == (5.0, 5.0)


def test_nothing_has_no_statistics() -> None:
    nothing = Weighted.of([], [])

    assert nothing.total == 0
    assert all(map(math.isnan, (nothing.mean, nothing.max, *nothing.percentiles([50, 99]))))


def test_a_row_can_stand_for_a_progression_rising_or_falling() -> None:
    rising = Weighted.of([1.0, 10.0], [2, 1], growth=[0.5, 0.0], num=[4, 1])
    falling = Weighted.of([2.5, 10.0], [2, 1], growth=[-0.5, 0.0], num=[4, 1])

    for sample in (rising, falling):
        values, weights = sample.written_out()
        assert values.tolist() == [1.0, 1.5, 2.0, 2.5, 10.0]
        assert weights.tolist() == [2, 2, 2, 2, 1]
        assert (sample.total, sample.sum, sample.max) == (9, 24.0, 10.0)


def test_growth_below_rounding_is_none() -> None:
    noise = Weighted.of([0.1, 0.1], [1, 3], growth=[1e-20, -1e-20], num=[1000, 2000])

    assert noise.percentiles([1, 50, 99]).tolist() == [0.1, 0.1, 0.1]
    assert noise.total == 7000


rows = st.tuples(st.integers(-20, 20), st.integers(1, 9), st.integers(-3, 3), st.integers(1, 12))


@given(st.lists(rows, min_size=1, max_size=30))
def test_percentiles_are_those_of_the_values_written_out(given_rows: list[tuple[int, ...]]) -> None:
    first, weight, growth, num = np.array(given_rows).T
    percents = [0, 25, 50, 75, 100]  # their shares are exact

    sample = Weighted.of(first, weight, growth, num)

    one_by_one = np.concatenate(
        [np.repeat(a + d * np.arange(n), w) for a, w, d, n in zip(first, weight, growth, num, strict=True)]
    )
    expected = np.percentile(one_by_one, percents, method="inverted_cdf")
    assert sample.percentiles(percents).tolist() == expected.tolist()


def test_percentiles_of_many_long_progressions_are_those_written_out() -> None:
    rng = np.random.default_rng(3)
    sample = Weighted.of(
        rng.lognormal(-4, 0.3, 3000),
        rng.integers(1, 9, 3000),
        rng.choice([0.0, 1e-17, 1e-9, 1e-6, 1e-3], 3000) * rng.random(3000),
        rng.integers(1, 200, 3000),
    )

    values, weights = sample.written_out()
    weight_upto = np.cumsum(weights)
    for percent, found in zip((1, 50, 90, 99.9), sample.percentiles((1, 50, 90, 99.9)), strict=True):
        assert found == values[np.searchsorted(weight_upto, percent * sample.total / 100)]
