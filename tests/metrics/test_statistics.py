import math

import numpy as np
import pytest

from batchsim.metrics.statistics import (
    backlog_trend,
    batch_means_interval,
    falls_behind,
    mser5,
    paired_difference,
    request_seconds,
    t_interval,
)
from batchsim.metrics.system import Window
from tests.metrics.worlds import batch_table, poisson_queue, request_table


def whole_run(requests: object) -> Window:
    return Window(float(requests["arrival_s"].min()), float(requests["finish_s"].max()))  # type: ignore[index]


def autoregressive(num: int, correlation: float, rng: np.random.Generator) -> np.ndarray:
    """Values of mean 0 and variance 1, each correlated with the one before."""
    noise = rng.standard_normal(num) * math.sqrt(1 - correlation**2)
    values = np.empty(num)
    value = rng.standard_normal()
    for index in range(num):
        value = correlation * value + noise[index]
        values[index] = value
    return values


def test_mser5_cuts_a_ramp_and_keeps_the_plateau() -> None:
    values = np.concatenate([np.linspace(0, 50, 200), np.full(800, 50.0)])

    assert mser5(values) == 200


def test_mser5_minimises_the_standard_error_of_what_remains() -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal(5, 1, 130), rng.normal(0, 1, 870)])
    means = values.reshape(200, 5).mean(axis=1)

    cut = mser5(values)

    by_definition = [means[start:].var() / (200 - start) for start in range(101)]
    assert cut == 5 * int(np.argmin(by_definition))
    assert 125 <= cut <= 140


def test_mser5_cuts_nothing_where_no_steady_state_is_found() -> None:
    assert mser5(np.arange(1000.0)) == 0


@pytest.mark.parametrize("values", [[], [1.0] * 9, [0.1] * 1000])
def test_mser5_cuts_nothing_of_few_or_equal_values(values: list[float]) -> None:
    assert mser5(values) == 0


def test_t_interval_is_students() -> None:
    mean, half_width = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])

    assert mean == 3.0
    assert half_width == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    assert t_interval([1.0, 2.0, 3.0, 4.0, 5.0], confidence=0.9).half_width == pytest.approx(
        2.131847 * math.sqrt(0.5), rel=1e-6
    )


def test_few_values_have_no_interval() -> None:
    assert all(map(math.isnan, t_interval([])))
    assert all(map(math.isnan, batch_means_interval([])))
    assert t_interval([2.0]).mean == 2.0
    assert math.isnan(t_interval([2.0]).half_width)


def test_batch_means_keep_the_mean_of_all_values() -> None:
    values = np.arange(1037.0)

    assert batch_means_interval(values).mean == values.mean()


def test_batch_means_interval_covers_the_truth_as_often_as_it_says_where_plain_t_does_not() -> None:
    rng = np.random.default_rng(4)
    series = [autoregressive(2000, 0.9, rng) for _ in range(300)]

    def coverage(interval: object) -> float:
        return float(np.mean([abs(mean) <= half for mean, half in map(interval, series)]))  # type: ignore[call-overload]

    # 300 runs: sd 0.0126. Batches of 100 still correlate a little, which costs about one per cent.
    assert coverage(batch_means_interval) == pytest.approx(0.94, abs=4 * 0.0137)
    assert coverage(t_interval) < 0.6


def test_paired_difference_is_far_sharper_than_the_values_it_compares() -> None:
    rng = np.random.default_rng(5)
    shared = autoregressive(4000, 0.9, rng)
    first = shared + rng.normal(0.1, 0.1, 4000)

    mean, half_width = paired_difference(first, shared)

    assert mean == pytest.approx(0.1, abs=4 * 0.1 / math.sqrt(4000))
    assert half_width < 0.1 * batch_means_interval(first).half_width


def test_request_seconds_integrate_the_number_in_the_system() -> None:
    requests = request_table([0.0, 1.0], finish_s=[4.0, 3.0])

    assert request_seconds(requests, [0.0, 1.0, 2.0, 3.0, 4.0, 9.0]).tolist() == [0, 1, 3, 5, 6, 6]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("num_requests", [200, 2000, 20_000])
def test_a_stable_queue_is_not_called_saturated(num_requests: int, seed: int) -> None:
    requests = poisson_queue(0.9, num_requests, np.random.default_rng(seed)).requests

    assert not backlog_trend(requests, whole_run(requests)).is_saturated


@pytest.mark.parametrize("seed", range(10))
def test_a_long_overloaded_queue_is_called_saturated(seed: int) -> None:
    requests = poisson_queue(1.1, 20_000, np.random.default_rng(seed)).requests

    trend = backlog_trend(requests, whole_run(requests))

    assert trend.is_saturated
    # Gains 0.1 per second, with noise sqrt((1.1 + 1) T) over T s, of which a slope sees about 1.1, per T.
    duration_s = requests["arrival_s"].iloc[-1]
    assert trend.slope_per_s == pytest.approx(0.1, abs=4 * 1.1 * math.sqrt(2.1 / duration_s))


def test_a_short_overloaded_queue_is_nearly_always_called_saturated() -> None:
    runs = [poisson_queue(1.1, 2000, np.random.default_rng(seed)).requests for seed in range(40)]

    flagged = sum(backlog_trend(requests, whole_run(requests)).is_saturated for requests in runs)

    # Backlog gained: mean 190, sd 59; more than 5 % of 2000 in about 93 % of runs. 40 runs: 37.4, sd 1.6.
    assert flagged >= 32


def test_an_offline_batch_of_requests_is_not_called_saturated() -> None:
    requests = request_table(np.zeros(5000), finish_s=np.arange(1.0, 5001.0))

    trend = backlog_trend(requests, whole_run(requests))

    assert not trend.is_saturated
    assert math.isnan(trend.slope_per_s)


def test_a_constant_backlog_is_no_trend() -> None:
    arrival_s = np.arange(1000.0)
    requests = request_table(arrival_s, finish_s=arrival_s + 500)

    assert not backlog_trend(requests, Window(500.0, 999.0)).is_saturated


@pytest.mark.parametrize(
    ("gain_per_s", "first_burst", "is_behind"), [(0.0, 0, False), (0.0, 400, True), (0.2, 0, True)]
)
def test_a_run_that_never_rests_and_leaves_many_waiting_falls_behind(
    gain_per_s: float, first_burst: int, is_behind: bool
) -> None:
    arrival_s = np.concatenate([np.zeros(first_burst), np.arange(1.0, 1001.0)])
    finish_s = np.arange(1, len(arrival_s) + 1) * (1 + gain_per_s)
    requests = request_table(arrival_s, finish_s=finish_s)
    batches = batch_table(start_s=finish_s - (1 + gain_per_s), finish_s=finish_s)

    assert falls_behind(requests, batches, num_gpus=1) is is_behind


def test_a_cluster_that_rests_does_not_fall_behind_whatever_comes_last() -> None:
    arrival_s = np.concatenate([np.arange(0.0, 1000.0, 2.0), np.full(500, 1000.0)])
    finish_s = np.concatenate([np.arange(1.0, 1001.0, 2.0), np.arange(1001.0, 1501.0)])
    requests = request_table(arrival_s, finish_s=finish_s)
    batches = batch_table(start_s=finish_s - 1, finish_s=finish_s)

    assert not falls_behind(requests, batches, num_gpus=1)


def test_arrivals_a_rounding_error_apart_have_no_trend() -> None:
    requests = request_table([0.0, 5e-324, 1e-320], finish_s=[1.0, 2.0, 3.0])

    assert not backlog_trend(requests, Window(0.0, 1e-320)).is_saturated
