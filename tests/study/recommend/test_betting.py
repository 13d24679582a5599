from itertools import permutations

import numpy as np
import pytest

from batchsim.metrics.statistics import t_interval
from batchsim.study.recommend.betting import fewest, is_above, is_below


def test_values_that_are_all_1_make_sure_after_as_many_as_is_said() -> None:
    num = fewest(0.9, 0.01)

    assert is_above(np.ones(num), 0.9, 0.01)
    assert not is_above(np.ones(num - 1), 0.9, 0.01)


def test_what_is_far_below_is_known_from_a_few() -> None:
    assert is_below([0.1, 0.2, 0.1, 0.15], 0.9, 0.01)
    assert not is_above([0.1, 0.2, 0.1, 0.15], 0.9, 0.01)


def test_a_mean_at_the_threshold_is_rarely_taken_for_another() -> None:
    """A tenth of the replications is lost: the first few show nothing of it, which misleads Student's t."""
    rng = np.random.default_rng(1)
    above = below = above_by_t = 0
    for _ in range(400):
        values = np.where(rng.random(200) < 0.1, 0.0, 1.0)
        above += is_above(values, 0.9, 0.05)
        below += is_below(values, 0.9, 0.05)
        above_by_t += any(t_interval(values[:num], 0.99).low >= 0.9 for num in (3, 6, 12, 24, 48, 96))

    assert above <= 0.05 * 400 + 10
    assert below <= 0.05 * 400 + 10
    assert above_by_t > 0.5 * 400


def test_what_is_sure_stays_sure() -> None:
    sure = np.ones(fewest(0.9, 0.01))

    assert is_above([*sure, *np.zeros(40)], 0.9, 0.01)


@pytest.mark.parametrize("error", [0.4, 0.2])
@pytest.mark.parametrize(
    "everything", [(1, 1, 1, 1, 0, 0), (1, 0.9, 0.9, 0.8, 0.2, 0), (1, 1, 1, 0.5, 0.5, 0.5)]
)
def test_no_order_of_drawing_misleads_more_often_than_is_said(
    everything: tuple[float, ...], error: float
) -> None:
    """All orders in which a small population can be drawn, each to its end but one."""
    orders = [np.array(order[:-1]) for order in permutations(everything)]
    mean = sum(everything) / len(everything)

    above = sum(is_above(order, mean + 1e-6, error, len(everything)) for order in orders)
    below = sum(is_below(order, mean - 1e-6, error, len(everything)) for order in orders)

    assert above <= error * len(orders)
    assert below <= error * len(orders)


@pytest.mark.parametrize("order", [(1, 1, 0, 0), (0, 0, 1, 1), (0, 1, 0, 1), (1, 0, 1, 0)])
def test_a_population_at_the_threshold_is_above_it_in_whatever_order_it_comes(order: tuple[int, ...]) -> None:
    assert is_above(order, 0.5, 1e-9, population=4)
    assert not any(is_below(order[:num], 0.5, 1e-9, population=4) for num in range(1, 5))


def test_a_mean_apart_from_the_threshold_is_found() -> None:
    rng = np.random.default_rng(2)
    values = rng.beta(90, 10, 300)

    assert is_above(values, 0.85, 0.01)
    assert is_below(values, 0.95, 0.01)


def test_all_of_a_population_leave_no_doubt() -> None:
    values = [0.9, 0.91, 0.89, 0.92]

    assert is_above(values, 0.9, 1e-9, population=4)
    assert not is_above(values[:3], 0.92, 1e-9, population=4)
    assert is_below(values, 0.92, 1e-9, population=4)


def test_what_is_left_cannot_pull_the_mean_down() -> None:
    assert is_above(np.ones(9), 0.9, 1e-9, population=10)
    assert not is_above(np.ones(8), 0.9, 1e-9, population=10)


def test_drawing_from_a_population_is_as_rarely_wrong() -> None:
    rng = np.random.default_rng(3)
    everything = np.r_[np.ones(89), np.zeros(11)]  # a mean of 0.89

    wrong = sum(is_above(rng.permutation(everything)[:90], 0.9, 0.05, 100) for _ in range(400))

    assert wrong <= 0.05 * 400 + 10


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
def test_more_is_needed_for_a_higher_threshold(threshold: float) -> None:
    assert fewest(threshold, 0.01) > fewest(threshold - 0.1, 0.01)
