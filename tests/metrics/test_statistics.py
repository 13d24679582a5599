import math

import numpy as np
import pytest

from batchsim.metrics.statistics import (
    batch_means_interval,
    bounds,
    ci95_keys,
    mser5,
    paired_difference,
    t_interval,
    t_test,
)
from batchsim.study.run import simulate
from tests.trust.interval_table import coverages


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
    interval = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])

    assert interval.mean == 3.0
    assert interval.high - 3.0 == pytest.approx(3.0 - interval.low)
    assert interval.half_width == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
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
    series = [autoregressive(10_000, 0.9, rng) for _ in range(100)]

    def coverage(interval: object) -> float:
        return float(np.mean([low <= 0 <= high for _, low, high in map(interval, series)]))  # type: ignore[call-overload]

    assert coverage(batch_means_interval) == pytest.approx(0.95, abs=2 * 0.022)
    assert coverage(t_interval) < 0.6


@pytest.mark.parametrize(("num", "correlation"), [(95, 0.0), (2000, 0.99), (10_000, 0.9999)])
def test_a_series_too_short_for_its_memory_has_no_interval(num: int, correlation: float) -> None:
    values = autoregressive(num, correlation, np.random.default_rng(0))

    interval = batch_means_interval(values)

    assert interval.mean == values.mean()
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_the_interval_of_times_is_never_negative_and_symmetric_for_their_inverse() -> None:
    times = np.exp(autoregressive(10_000, 0.9, np.random.default_rng(0)))

    mean, low, high = batch_means_interval(times)

    assert 0 < low < mean < high
    assert 1 / low - 1 / mean == pytest.approx(1 / mean - 1 / high)


def test_equal_values_are_sure() -> None:
    assert batch_means_interval(np.full(500, 2.0)) == (2.0, 2.0, 2.0)
    assert paired_difference(np.full(500, 3.0), np.full(500, 2.0)) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("rho", [0.5, 0.8, 0.9])
def test_intervals_of_a_queue_hold(rho: float) -> None:
    counts = coverages(rho, 10_000, num_seeds=50)

    for count in counts:
        assert count.num_intervals >= 35
        assert count.num_held >= 0.85 * count.num_intervals


def test_a_run_too_short_for_the_memory_of_its_queue_has_no_interval() -> None:
    for count in coverages(0.8, 2000, num_seeds=50):
        assert count.num_intervals == 0


def test_paired_difference_is_far_sharper_than_the_values_it_compares() -> None:
    rng = np.random.default_rng(5)
    shared = autoregressive(12_000, 0.9, rng)
    first = shared + rng.normal(0.1, 0.1, 12_000)

    difference = paired_difference(first, shared)

    assert difference.mean == pytest.approx(0.1, abs=4 * 0.1 / math.sqrt(12_000))
    assert difference.half_width < 0.1 * batch_means_interval(first).half_width


@pytest.mark.parametrize(
    ("key", "low"),
    [
        ("e2e_mean_s", "e2e_mean_ci95_low_s"),
        ("request_throughput_per_s", "request_throughput_ci95_low_per_s"),
        ("output_throughput_tokens_per_s", "output_throughput_ci95_low_tokens_per_s"),
        ("usd_per_million_output_tokens", "usd_per_million_output_tokens_ci95_low"),
        ("slo_attainment", "slo_attainment_ci95_low"),
    ],
)
def test_ends_of_an_interval_keep_the_unit_last(key: str, low: str) -> None:
    assert ci95_keys(key) == (low, low.replace("low", "high"))


def test_differences_that_are_all_the_same_have_no_test() -> None:
    interval, p_value = t_test([0.5, 0.5, 0.5])

    assert interval.mean == 0.5
    assert math.isnan(interval.half_width)
    assert math.isnan(p_value)


@pytest.mark.parametrize("preset", ["multi_bin", "vllm_v1"])
def test_every_number_of_a_run_lies_within_its_bounds(preset: str) -> None:
    lengths = {"kind": "uniform", "low": 1, "high": 300}
    generator = {"kind": "poisson", "rate_per_s": 5.0, "prompt": lengths, "output": lengths}
    config = {
        "policy": {"preset": preset},
        "workload": {"num_requests": 200, "generator": generator, "tenants": [{"name": "a"}, {"name": "b"}]},
        "predictor": {"kind": "lognormal", "sigma": 3.0},
        "slo": {"ttft_ms": 500, "e2e_ms": 2000},
        "cost": {"usd_per_gpu_hour": 1.0},
    }

    summary = simulate(config).summary

    numbers = {
        key: value
        for key, value in summary.items()
        if isinstance(value, int | float) and not key.startswith("expected_error")
    }
    assert len(numbers) > 60
    assert {
        key: value for key, value in numbers.items() if not bounds(key)[0] <= value <= bounds(key)[1]
    } == {}


def test_what_may_be_negative_is_not_cut() -> None:
    assert bounds("kendall_tau") == (-1, 1)
    assert bounds("waiting_growth_per_s") == (-math.inf, math.inf)
    assert bounds("e2e_p99_s") == (0, math.inf)
    assert bounds("busy_fraction") == bounds("prefix_hit_rate") == bounds("slo_attainment_ttft") == (0, 1)
