"""Cutting and pacing a workload."""

import numpy as np
import pytest

from batchsim.errors import ConfigError
from batchsim.workload.request import Source, Workload
from batchsim.workload.transform import (
    filter_rows,
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
