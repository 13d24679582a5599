import numpy as np
import pytest
from scipy import stats

from batchsim.ranks import kendall_tau, p_of_no_rise


@pytest.mark.parametrize("num_distinct", [2, 5, 1000])
@pytest.mark.parametrize("num", [2, 3, 64, 1025])
def test_tau_is_that_of_scipy_to_the_last_digit(num: int, num_distinct: int) -> None:
    rng = np.random.default_rng(num + num_distinct)
    for _ in range(5):
        first = rng.integers(0, num_distinct, num)
        second = first + rng.integers(0, num_distinct, num)
        first[:2], second[:2] = (0, 1), (1, 0)  # never constant

        assert kendall_tau(first, second) == stats.kendalltau(first, second).statistic


@pytest.mark.parametrize("has_ties", [False, True])
def test_chance_of_a_rise_is_that_of_scipy(has_ties: bool) -> None:
    rng = np.random.default_rng(3)
    for slope in (-0.5, 0.0, 0.1, 0.5, 5.0):
        values = rng.normal(size=20) + slope * np.arange(20)
        values = np.round(values) if has_ties else values
        expected = stats.kendalltau(np.arange(20), values, alternative="greater").pvalue

        assert p_of_no_rise(values) == pytest.approx(expected, rel=1e-12)
