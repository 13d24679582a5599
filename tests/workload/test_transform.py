"""Cutting and pacing a workload."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from batchsim.errors import ConfigError
from batchsim.workload.request import Source, Workload
from batchsim.workload.transform import (
    even_out,
    filter_rows,
    peak_to_mean,
    resample,
    rescale_time,
    rescale_to_rate,
    split_at,
    split_training,
    window,
)


def workload(arrival_s: list[float]) -> Workload:
    num = len(arrival_s)
    return Workload(
        request_id=np.arange(num),
        arrival_s=np.array(arrival_s, dtype=float),
        prompt_tokens=np.arange(1, num + 1),
        output_tokens=np.ones(num, dtype=np.int64),
        extra={"model": np.array(["a", "b"] * num, dtype=object)[:num]},
        source=Source("t.csv"),
    )


def test_filter_keeps_matching_rows_at_their_times() -> None:
    kept = filter_rows(workload([0, 1, 2, 3]), model="b")

    assert kept.arrival_s.tolist() == [1, 3]
    assert kept.request_id.tolist() == [1, 3]


def test_filter_without_a_match_lists_what_is_there() -> None:
    with pytest.raises(
        ConfigError, match=r"model is 'c', but no request of t.csv has it; present are 'a', 'b'"
    ):
        filter_rows(workload([0, 1]), model="c")


def test_filter_needs_the_column() -> None:
    with pytest.raises(ConfigError, match=r"t.csv has no log_type column"):
        filter_rows(workload([0, 1]), log_type="API log")


def test_window_is_half_open_and_starts_at_zero() -> None:
    inside = window(workload([0, 1, 2, 3, 4]), 0.5, 3)

    assert inside.arrival_s.tolist() == [0.5, 1.5]


def test_empty_window_names_the_span() -> None:
    with pytest.raises(ConfigError, match=r"window \[7, 9\) s holds no request .* span 0 to 4 s"):
        window(workload([0, 4]), 7, 9)


def test_rescaling_time_by_two_halves_every_arrival() -> None:
    assert rescale_time(workload([0, 1, 4]), 2).arrival_s.tolist() == [0, 0.5, 2]


@pytest.mark.parametrize("factor", [0, -1, float("inf"), float("nan")])
def test_time_is_rescaled_by_positive_factors_only(factor: float) -> None:
    with pytest.raises(ConfigError, match="a number > 0"):
        rescale_time(workload([0, 1]), factor)


def test_rescaling_reaches_the_rate() -> None:
    assert rescale_to_rate(workload([0, 1, 4]), 8).mean_rate_per_s == pytest.approx(8)


@pytest.mark.parametrize("arrival_s", [[0.0], [3.0, 3.0]])
def test_one_instant_has_no_rate_to_rescale(arrival_s: list[float]) -> None:
    with pytest.raises(ConfigError, match="arrive at one instant"):
        rescale_to_rate(workload(arrival_s), 8)


def test_training_is_first_in_time_and_evaluation_starts_at_zero() -> None:
    training, evaluated = split_training(workload([0, 1, 2, 3, 5]), 0.4)

    assert training.request_id.tolist() == [0, 1]
    assert evaluated.request_id.tolist() == [2, 3, 4]
    assert evaluated.arrival_s.tolist() == [0, 1, 3]


def test_no_training_fraction_leaves_all_to_evaluate_as_they_are() -> None:
    training, evaluated = split_training(workload([2, 3]), 0)

    assert len(training) == 0
    assert evaluated.arrival_s.tolist() == [2, 3]


def test_a_small_fraction_is_at_least_one_request() -> None:
    assert len(split_training(workload([0, 1, 2]), 0.01)[0]) == 1


def test_something_must_be_left_to_evaluate() -> None:
    with pytest.raises(ConfigError, match="leaves none to evaluate"):
        split_training(workload([0]), 0.5)


def test_split_at_counts_requests() -> None:
    training, evaluated = split_at(workload([0, 1, 2]), 2)

    assert (len(training), len(evaluated)) == (2, 1)


DAY_S = 86_400.0

Arrivals = Callable[[np.random.Generator], NDArray[np.float64]]


def by_day(even_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn arrivals of a constant rate into those of 0.2 to 1.8 times as much over the day, on 10 days."""
    clock_s = np.linspace(0, 10 * DAY_S, 200_001)
    passed_s = clock_s - 0.8 * DAY_S / (2 * np.pi) * np.sin(2 * np.pi * clock_s / DAY_S)
    return np.interp(even_s, passed_s, clock_s)


def poisson(rng: np.random.Generator) -> NDArray[np.float64]:
    return np.sort(rng.uniform(0, 10 * DAY_S, 100_000))


def in_bursts(rng: np.random.Generator) -> NDArray[np.float64]:
    """Clusters of ten requests, spread over a quarter of a minute each."""
    starts_s = np.repeat(rng.uniform(0, 10 * DAY_S, 10_000), 10)
    return np.sort(starts_s + rng.exponential(15.0, 100_000)).clip(max=10 * DAY_S)


def dispersion(arrival_s: NDArray[np.float64], window_s: float) -> float:
    """Variance over mean of the counts in windows: 1 for a Poisson process, whatever the window."""
    num = int((arrival_s[-1] - arrival_s[0]) / window_s)
    counts, _ = np.histogram(arrival_s, num, (arrival_s[0], arrival_s[0] + num * window_s))
    return float(counts.var() / counts.mean())


@pytest.mark.parametrize("make", [poisson, in_bursts])
@pytest.mark.parametrize("window_s", [1.0, 10.0, 60.0])
def test_evened_out_a_daily_rhythm_leaves_the_process_below_it(make: Arrivals, window_s: float) -> None:
    without = make(np.random.default_rng(1))
    given = workload(by_day(without).tolist())

    evened = even_out(given)

    assert dispersion(evened.arrival_s, window_s) == pytest.approx(dispersion(without, window_s), rel=0.05)
    assert evened.mean_rate_per_s == pytest.approx(given.mean_rate_per_s)
    assert dispersion(given.arrival_s, 3600) > 50
    assert dispersion(evened.arrival_s, 3600) < 1.05 * dispersion(without, 3600)


def test_after_evening_out_every_hour_has_the_mean_rate() -> None:
    evened = even_out(workload(by_day(poisson(np.random.default_rng(2))).tolist())).arrival_s

    counts, _ = np.histogram(evened, 60, (evened[0], evened[-1]))

    assert abs(counts / counts.mean() - 1).max() < 0.05


@pytest.mark.parametrize(
    "gaps",
    [
        lambda rng: rng.exponential(4.0, 20_000),
        lambda rng: rng.gamma(0.25, 16.0, 20_000),
        lambda rng: [4.0] * 20_000,
    ],
)
def test_a_stationary_process_keeps_its_clock(gaps: Callable[[np.random.Generator], object]) -> None:
    for seed in range(5):
        given = workload(np.cumsum(gaps(np.random.default_rng(seed))).tolist())

        assert even_out(given) is given


def test_evening_out_keeps_order_ties_and_requests() -> None:
    rhythm = by_day(np.round(in_bursts(np.random.default_rng(3)), 1))

    evened = even_out(workload(rhythm.tolist()))

    assert (np.diff(evened.arrival_s) >= 0).all()
    assert (np.diff(evened.arrival_s)[np.diff(rhythm) == 0] == 0).all()
    assert evened.arrival_s[0] == rhythm[0]
    assert len(evened) == len(rhythm)


@pytest.mark.parametrize("arrival_s", [[0.0], [3.0, 3.0], [0.0, 10.0], [0.0, 1e9]])
def test_few_requests_have_no_rhythm(arrival_s: list[float]) -> None:
    given = workload(arrival_s)

    assert even_out(given) is given


def test_the_busiest_hour_of_a_day_is_told() -> None:
    peak = peak_to_mean(workload(by_day(poisson(np.random.default_rng(4))).tolist()))

    assert peak == pytest.approx(1.8, abs=0.15)


def trace(num: int = 400, **extra: list[object]) -> Workload:
    frame = {"arrival_s": np.arange(num) * 2.0, "prompt_tokens": np.arange(1, num + 1), "output_tokens": 1}
    return Workload.from_frame(pd.DataFrame({**frame, **extra}))


def test_resampled_blocks_keep_what_is_within_them() -> None:
    made = resample(trace(), 40.0, np.random.default_rng(1))

    assert np.diff(made.arrival_s).min() >= 0
    assert made.arrival_s[-1] < 800
    assert abs(len(made) - 400) <= 20  # a block has 20 requests
    jumps = np.flatnonzero(np.diff(made.prompt_tokens) % 400 != 1)
    assert len(jumps) <= 20
    assert np.isclose(np.diff(made.arrival_s)[np.setdiff1d(np.arange(len(made) - 1), jumps)], 2.0).all()
    assert made.request_id.tolist() == list(range(len(made)))
    assert "blocks of 40 s from random places" in made.source.notices[-1]


def test_resampling_favours_no_request() -> None:
    rng, counts = np.random.default_rng(2), np.zeros(401)
    for _ in range(400):
        counts += np.bincount(resample(trace(), 100.0, rng).prompt_tokens, minlength=401)

    assert 0.8 * 400 < counts[1:].min() <= counts[1:].max() < 1.2 * 400


def test_resampling_makes_as_many_requests_as_are_asked_for() -> None:
    few, many = (resample(trace(), 40.0, np.random.default_rng(3), num) for num in (50, 1000))

    assert (len(few), len(many)) == (50, 1000)
    assert few.prompt_tokens.tolist() == many.prompt_tokens[:50].tolist()


def test_a_session_ends_with_its_block() -> None:
    made = resample(trace(session_id=["a"] * 399 + [None]), 200.0, np.random.default_rng(4))

    block = (made.arrival_s // 200).astype(int)
    sessions = [one for one in made.extra["session_id"] if isinstance(one, str)]
    assert len(set(sessions)) == len(set(block))
    assert set(sessions) == {f"{number}:a" for number in block}


@pytest.mark.parametrize(
    ("extra", "block_s", "message"),
    [
        ({}, 500.0, "resample_s is 500, but the requests of in memory come within 798 s; at most half"),
        ({"hash_ids": [[1]] * 400}, 10.0, r"has prefix ids \(hash_ids\): a copy would find"),
    ],
)
def test_what_cannot_be_resampled_is_refused(
    extra: dict[str, list[object]], block_s: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resample(trace(**extra), block_s, np.random.default_rng(5))
