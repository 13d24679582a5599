from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from batchsim.config import PredictorConfig
from batchsim.errors import ConfigError
from batchsim.workload.boundaries import equal_mass
from batchsim.workload.predictor import (
    PREDICTORS,
    PUBLISHED_CONFUSION,
    Predictor,
    make_predictor,
    prediction_quality,
)
from batchsim.workload.request import Workload

NO_BINS = np.empty(0)
#: A choice of parameters for each kind.
EXAMPLES: dict[str, dict[str, Any]] = {
    "oracle": {},
    "lognormal": {"sigma": 0.5},
    "neighbour_bin": {"error_probability": 0.2},
    "confusion": {"num_bins": 4},
    "prompt_regression": {},
    "constant": {"tokens": 100},
}


def predictor(kind: str, **parameters: Any) -> Predictor:
    return make_predictor(PredictorConfig(kind=kind, **parameters))


def requests(output_tokens: NDArray[np.int64], prompt_tokens: NDArray[np.int64] | int = 10) -> Workload:
    return Workload.from_frame(
        pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens})
    )


def one_in_each_bin(counts: list[int]) -> tuple[Workload, NDArray[np.float64]]:
    """So many requests in bin 0, 1, ...; bin ``i`` holds the lengths from ``10 i`` to ``10 i + 9``."""
    middles = 10 * np.arange(len(counts)) + 5
    return requests(np.repeat(middles, counts)), 10.0 * np.arange(1, len(counts))


def predicted_bins(model: Predictor, workload: Workload, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    tokens = model.predict(workload, workload, edges, np.random.default_rng(3))
    return np.searchsorted(edges, tokens, side="right")


def test_examples_cover_every_predictor() -> None:
    assert EXAMPLES.keys() == PREDICTORS.keys()


@pytest.mark.parametrize("kind", EXAMPLES)
def test_predictions_are_whole_tokens_and_the_same_for_the_same_seed(kind: str) -> None:
    lengths = np.random.default_rng(0).lognormal(3, 2, 2000).astype(int) + 1
    workload, training = requests(lengths), requests(lengths[:500])
    edges = equal_mass(lengths[:500], 4)

    first, again = (
        predictor(kind, **EXAMPLES[kind]).predict(workload, training, edges, np.random.default_rng(7))
        for _ in range(2)
    )

    assert first.dtype == np.int64
    assert first.shape == (2000,)
    assert first.min() >= 1
    assert np.array_equal(first, again)


def test_oracle_tells_the_truth() -> None:
    workload = requests(np.array([3, 1, 4]))

    predicted = predictor("oracle").predict(workload, workload, NO_BINS, np.random.default_rng(0))

    assert predicted.tolist() == [3, 1, 4]


def test_lognormal_errors_have_median_one_and_the_given_spread() -> None:
    workload = requests(np.full(40_000, 10_000))

    predicted = predictor("lognormal", sigma=0.3).predict(
        workload, workload, NO_BINS, np.random.default_rng(1)
    )

    logs = np.log(predicted / 10_000)
    assert np.median(logs) == pytest.approx(0, abs=4 * 1.2533 * 0.3 / 200)
    assert logs.std() == pytest.approx(0.3, abs=4 * 0.3 / np.sqrt(2 * 40_000))


@pytest.mark.parametrize("error_probability", [0.0, 0.1, 0.5])
def test_neighbour_bin_errs_at_the_given_rate_to_each_side(error_probability: float) -> None:
    num = 20_000
    workload, edges = one_in_each_bin([num] * 4)
    error = 4 * np.sqrt(error_probability * (1 - error_probability) / num)
    expected = error_probability * np.array([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]])
    expected += np.diag(1 - expected.sum(axis=1))

    bins = predicted_bins(predictor("neighbour_bin", error_probability=error_probability), workload, edges)

    rates = np.array([np.bincount(row, minlength=4) for row in bins.reshape(4, num)]) / num
    assert rates == pytest.approx(expected, abs=max(error, 1e-12) * np.sqrt(2))


@pytest.mark.parametrize(
    ("true_counts", "accuracy", "within_one"),
    [
        ((30580, 30384), 0.8615, 1.0),
        ((15417, 15163, 15187, 15197), 0.6297, 0.9591),
        ((7773, 7644, 7445, 7718, 7487, 7700, 7609, 7588), 0.4229, 0.7942),
    ],
)
def test_confusion_is_as_accurate_as_published(
    true_counts: tuple[int, ...], accuracy: float, within_one: float
) -> None:
    workload, edges = one_in_each_bin(list(true_counts))
    model = predictor("confusion", num_bins=len(true_counts))

    tokens = model.predict(workload, workload, edges, np.random.default_rng(5))
    quality = prediction_quality(workload.output_tokens, tokens, edges)

    error = 4 * np.sqrt(0.25 / len(workload)) + 5e-5
    assert quality["bin_accuracy"] == pytest.approx(accuracy, abs=error)
    assert quality["within_one_bin"] == pytest.approx(within_one, abs=error)


def test_confusion_takes_the_matrix_of_the_queue_unless_told() -> None:
    workload = requests(np.arange(1, 401) % 99 + 1)
    edges = np.array([50.0])

    predicted = predictor("confusion").predict(workload, workload, edges, np.random.default_rng(0))
    told = predictor("confusion", num_bins=2).predict(workload, workload, edges, np.random.default_rng(0))

    assert (predicted == told).all()
    assert 0.7 < np.mean((predicted >= 50) == (workload.output_tokens >= 50)) < 0.95


@pytest.mark.parametrize(
    ("num_bins", "accuracy", "within_one"), [(2, 0.8615, 1.0), (4, 0.6297, 0.9591), (8, 0.4229, 0.7942)]
)
def test_built_in_matrices_are_the_published_ones(num_bins: int, accuracy: float, within_one: float) -> None:
    matrix = np.array(PUBLISHED_CONFUSION[num_bins])

    off_by = np.abs(np.subtract.outer(np.arange(num_bins), np.arange(num_bins)))

    assert matrix[off_by == 0].sum() / matrix.sum() == pytest.approx(accuracy, abs=1e-4)
    assert matrix[off_by <= 1].sum() / matrix.sum() == pytest.approx(within_one, abs=1e-4)


def test_confusion_draws_from_the_row_of_the_true_bin() -> None:
    workload, edges = one_in_each_bin([1000, 1000, 1000])
    model = predictor("confusion", matrix=[[0, 0, 5], [0.25, 0, 0], [0, 2, 0]])

    bins = predicted_bins(model, workload, edges)

    assert bins.reshape(3, 1000).min(axis=1).tolist() == [2, 0, 1]
    assert bins.reshape(3, 1000).max(axis=1).tolist() == [2, 0, 1]


@pytest.mark.parametrize("kind", ["neighbour_bin", "confusion"])
def test_error_models_bring_their_own_bins_where_the_queue_has_none(kind: str) -> None:
    lengths = np.arange(1, 4001)
    workload = requests(lengths)

    predicted = predictor(kind, **EXAMPLES[kind]).predict(
        workload, workload, NO_BINS, np.random.default_rng(0)
    )

    # Four quarters of 1000 lengths each, told by their medians.
    assert np.unique(predicted).tolist() == [500, 1500, 2500, 3500]


def test_a_bin_without_training_lengths_is_told_by_its_least_length() -> None:
    workload = requests(np.array([5, 15, 25]))
    edges = np.array([9.5, 19.5])

    predicted = predictor("neighbour_bin", error_probability=0).predict(
        workload, requests(np.array([3, 4, 7])), edges, np.random.default_rng(0)
    )

    assert predicted.tolist() == [4, 10, 20]


def test_prompt_regression_finds_a_power_law_and_stays_within_what_it_saw() -> None:
    prompt = np.array([1, 4, 16, 64, 256])
    training = requests(10 * np.sqrt(prompt).astype(int), prompt)
    workload = requests(np.ones(3, dtype=int), np.array([4, 100, 10**6]))

    predicted = predictor("prompt_regression").predict(workload, training, NO_BINS, np.random.default_rng(0))

    assert predicted.tolist() == [20, 100, 160]


def test_prompt_regression_on_equal_prompts_gives_the_geometric_mean() -> None:
    training = requests(np.array([10, 1000]), 7)

    predicted = predictor("prompt_regression").predict(training, training, NO_BINS, np.random.default_rng(0))

    assert predicted.tolist() == [100, 100]


def test_only_fitted_predictors_need_training() -> None:
    needing = {kind for kind, parameters in EXAMPLES.items() if predictor(kind, **parameters).needs_training}

    assert needing == {"neighbour_bin", "confusion", "prompt_regression"}


@pytest.mark.parametrize(
    ("kind", "parameters", "says"),
    [
        ("orakle", {}, "predictor.kind is 'orakle'; did you mean oracle"),
        ("zzz", {}, "known: oracle, lognormal"),
        ("lognormal", {"sigm": 1}, "predictor.sigm is no parameter of lognormal; did you mean sigma"),
        ("oracle", {"sigma": 1}, "predictor.sigma is no parameter of oracle; there are none"),
        ("lognormal", {}, "predictor.sigma is missing"),
        ("lognormal", {"sigma": -0.1}, "predictor.sigma is -0.1; a number from 0 to 5"),
        ("lognormal", {"sigma": "big"}, "predictor.sigma is 'big'"),
        ("neighbour_bin", {"error_probability": 0.6}, "error_probability is 0.6; a number from 0 to 0.5"),
        ("neighbour_bin", {"error_probability": True}, "error_probability is True"),
        ("confusion", {"num_bins": 2, "matrix": [[1, 0], [0, 1]]}, "one of the two"),
        ("confusion", {"num_bins": 3}, "for 3 bins: a matrix is built in for 2, 4 and 8"),
        ("confusion", {"matrix": [[1, 0], [1]]}, "must be square"),
        ("confusion", {"matrix": [[1, 2, 3], [4, 5, 6]]}, "must be square"),
        ("confusion", {"matrix": [[1, 0], [0, 0]]}, r"row 2 is \[0.0, 0.0\]"),
        ("confusion", {"matrix": [[1, -1], [0, 1]]}, r"row 1 is \[1.0, -1.0\]"),
        ("constant", {"tokens": 0}, "predictor.tokens is 0; a whole number >= 1"),
        ("constant", {"tokens": 2.5}, "predictor.tokens is 2.5"),
    ],
)
def test_bad_settings_are_refused_with_what_would_do(
    kind: str, parameters: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        predictor(kind, **parameters)


def test_confusion_refuses_a_queue_with_another_number_of_bins() -> None:
    workload, edges = one_in_each_bin([5, 5, 5])

    with pytest.raises(ConfigError, match="confusion has 4 bins, but the queue has 3"):
        predictor("confusion", num_bins=4).predict(workload, workload, edges, np.random.default_rng(0))


def test_edges_with_no_whole_number_between_them_are_refused() -> None:
    workload = requests(np.array([1, 2, 3]))

    with pytest.raises(ConfigError, match="no whole number of tokens lies in bin 2"):
        predictor("neighbour_bin", error_probability=0.1).predict(
            workload, workload, np.array([2.1, 2.9]), np.random.default_rng(0)
        )


@pytest.mark.parametrize("kind", ["neighbour_bin", "confusion", "prompt_regression"])
def test_fitting_on_nothing_is_refused(kind: str) -> None:
    workload = requests(np.array([1, 2, 3]))

    with pytest.raises(ConfigError, match="training_fraction"):
        predictor(kind, **EXAMPLES[kind]).predict(
            workload, workload.take(slice(0, 0)), NO_BINS, np.random.default_rng(0)
        )


def test_quality_counts_bins_and_concordant_pairs() -> None:
    quality = prediction_quality([1, 12, 25, 38], [2, 25, 11, 9], [10, 20, 30])

    # Off by 0, 1, 1 and 3 bins; of six pairs three agree in order ((1, 12), (1, 25), (1, 38)).
    assert quality == {"bin_accuracy": 0.25, "within_one_bin": 0.75, "kendall_tau": pytest.approx(0)}


def test_quality_is_unknown_without_bins_and_without_order() -> None:
    assert prediction_quality([1, 2, 3], [5, 5, 5], []) == {
        "bin_accuracy": None,
        "within_one_bin": None,
        "kendall_tau": None,
    }
