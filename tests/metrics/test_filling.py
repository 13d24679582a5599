import math

import numpy as np
import pytest

from batchsim.metrics.filling import fill
from batchsim.metrics.system import Window


def test_equal_answers_have_filled_the_system_after_the_time_of_one() -> None:
    filled = fill(np.arange(0.0, 400.0), np.full(400, 100.0))

    assert filled.fill_s == pytest.approx(95.0)
    assert filled.window == pytest.approx((95.0, 399.0))
    assert filled.service_mean_s == 100.0


def test_exponential_answers_take_three_times_their_mean() -> None:
    service_s = np.random.default_rng(0).exponential(100.0, 100_000)

    filled = fill(np.linspace(0.0, 10_000.0, 100_000), service_s)

    assert filled.fill_s == pytest.approx(100 * math.log(20), rel=0.03)


def test_requests_that_were_not_served_do_not_fill() -> None:
    service_s = np.where(np.arange(800) % 2, 100.0, np.nan)

    assert fill(np.arange(800.0), service_s).fill_s == pytest.approx(95.0)


def test_an_empty_system_is_nothing_unusual_where_few_are_in_service() -> None:
    assert fill(np.arange(1000.0), np.full(1000, 3.0)) == (0.0, 3.0, Window(0.0, 999.0))


@pytest.mark.parametrize(
    ("arrivals_s", "service_s"),
    [
        (np.arange(290.0), np.full(290, 100.0)),  # longer than a third of the arrivals
        (np.arange(199.0), np.full(199, 1.0)),
        (np.zeros(1000), np.full(1000, 1.0)),
        (np.zeros(0), np.zeros(0)),
    ],
)
def test_a_run_too_short_to_fill_has_no_window(arrivals_s: np.ndarray, service_s: np.ndarray) -> None:
    assert fill(arrivals_s, service_s).window is None
