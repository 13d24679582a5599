"""Multi-Bin Batching: saturated throughput, latency at low load, and what prediction errors cost.

Lengths are uniform on 1 to 20 s unless said otherwise, and a batch takes as long as its longest member.
"""

import numpy as np
import pytest

from batchsim.study.result import SimulationResult
from batchsim.workload.request import Workload
from tests.theory.worlds import (
    AS_LONG_AS_THE_LONGEST,
    TOKENS_PER_S,
    assert_agrees,
    checked_run,
    poisson_arrivals,
    replicate,
    requests_of,
    stays_s,
)


def equal_bins(num_bins: int, batch_size: int) -> dict[str, object]:
    """The paper's policy with bins of equal width; requests of the last unfilled batches stay unserved."""
    edges_s = np.linspace(1, 20, num_bins + 1)[1:-1]
    return {
        "preset": "multi_bin",
        "num_bins": num_bins,
        "batch_size": batch_size,
        "queueing": {"boundaries": (edges_s * TOKENS_PER_S).tolist()},
        "batching": {"leftovers": "strand"},
    }


def uniform_requests(num: int, seed: int) -> Workload:
    """All there at once."""
    return requests_of(np.zeros(num), np.random.default_rng(seed).uniform(1, 20, num))


def saturated_throughput_per_s(result: SimulationResult) -> float:
    finished = result.requests["finish_s"].dropna()
    return len(finished) / finished.max()


@pytest.mark.parametrize(
    ("batch_size", "num_bins", "throughput_per_s"),
    [
        (8, 1, 0.4472),
        (8, 4, 0.6479),
        (8, 32, 0.7455),
        (128, 1, 6.4475),
        (128, 2, 8.4342),
        (128, 3, 9.3996),
        (128, 4, 9.9703),
        (128, 5, 10.3472),
        (128, 8, 10.9692),
        (128, 32, 11.8603),
    ],
)
def test_saturated_throughput_is_that_of_the_theorem(
    batch_size: int, num_bins: int, throughput_per_s: float
) -> None:
    requests = uniform_requests(400 * batch_size if batch_size > 8 else 16_000, seed=num_bins)

    result = checked_run(requests, AS_LONG_AS_THE_LONGEST, equal_bins(num_bins, batch_size))

    # The mean of so many batch times has a standard error of 0.5 % (one bin of 8), else below 0.3 %.
    tolerance = 0.015 if (batch_size, num_bins) == (8, 1) else 0.01
    assert saturated_throughput_per_s(result) == pytest.approx(throughput_per_s, rel=tolerance)


@pytest.mark.parametrize(("num_bins", "throughput_per_s"), [(1, 0.4472), (4, 0.6479)])
def test_throughput_grows_in_proportion_to_the_number_of_gpus(num_bins: int, throughput_per_s: float) -> None:
    requests = uniform_requests(32_000, seed=1)

    result = checked_run(requests, AS_LONG_AS_THE_LONGEST, equal_bins(num_bins, 8), num_gpus=4)

    assert saturated_throughput_per_s(result) == pytest.approx(4 * throughput_per_s, rel=0.015)


@pytest.mark.parametrize(("shortfall_per_s", "num_bins"), [(2, 5), (3, 3)])
def test_bins_of_the_theorem_reach_a_target_that_one_bin_less_misses(
    shortfall_per_s: float, num_bins: int
) -> None:
    target_per_s = 128 / 10.5 - shortfall_per_s
    requests = uniform_requests(40_000, seed=2)

    enough, too_few = (
        saturated_throughput_per_s(checked_run(requests, AS_LONG_AS_THE_LONGEST, equal_bins(bins, 128)))
        for bins in (num_bins, num_bins - 1)
    )

    assert too_few < target_per_s < enough


def test_capacity_with_many_bins_is_12_19_and_not_the_12_3_in_print() -> None:
    requests = uniform_requests(100_000, seed=3)

    result = checked_run(requests, AS_LONG_AS_THE_LONGEST, equal_bins(128, 128))

    # 128 bins are 0.7 % short of the limit; the standard error of six batches a bin is 0.2 %.
    assert saturated_throughput_per_s(result) / (1 - 0.007) == pytest.approx(12.19, abs=0.08)


@pytest.mark.parametrize(("num_bins", "stay_s"), [(1, 35.728), (2, 46.926), (3, 61.243)])
def test_stay_with_enough_gpus_is_that_of_the_latency_lemma(num_bins: int, stay_s: float) -> None:
    def measure(rng: np.random.Generator) -> float:
        requests = requests_of(poisson_arrivals(rng, 4.0, 20_000), rng.uniform(1, 20, 20_000))
        result = checked_run(requests, AS_LONG_AS_THE_LONGEST, equal_bins(num_bins, 128), num_gpus=16)
        # Of the last thousand some are never served: not those that wait least, so they must not be counted.
        return float(stays_s(result)[:-1000].mean())

    replications = replicate(measure, 4, seed=4)

    assert_agrees(replications, stay_s, resolution=0.01)


@pytest.mark.parametrize(
    ("num_bins", "error_probability", "throughput_per_s"),
    [
        (2, 0.0, 8.43),
        (2, 0.05, 6.66),
        (2, 0.2, 6.47),
        (2, 0.5, 6.45),
        (4, 0.0, 9.98),
        (4, 0.05, 8.06),
        (4, 0.1, 7.93),
        (4, 0.3, 7.83),
        (8, 0.0, 10.96),
        (8, 0.05, 9.52),
        (8, 0.1, 9.41),
        (8, 0.5, 9.32),
    ],
)
def test_prediction_errors_cost_the_published_throughput(
    num_bins: int, error_probability: float, throughput_per_s: float
) -> None:
    requests = uniform_requests(48_000, seed=5)
    predictor = {"kind": "neighbour_bin", "error_probability": error_probability}

    result = checked_run(requests, AS_LONG_AS_THE_LONGEST, equal_bins(num_bins, 128), predictor=predictor)

    # Two digits in print (0.1 %), a standard error below 0.2 %, and the tail that is stranded here.
    assert saturated_throughput_per_s(result) == pytest.approx(throughput_per_s, rel=0.01)


@pytest.mark.parametrize(
    ("num_bins", "throughput_per_s"), [(1, 3.40), (2, 7.27), (3, 9.97), (4, 11.81), (5, 13.11)]
)
def test_exponential_lengths_reach_the_throughput_of_the_papers_edges(
    num_bins: int, throughput_per_s: float
) -> None:
    def measure(rng: np.random.Generator) -> float:
        # The first fifth is for fitting the edges; it is not served.
        requests = requests_of(np.zeros(20_000), rng.exponential(10, 20_000))
        policy = {
            "preset": "multi_bin",
            "num_bins": num_bins,
            "batch_size": 200,
            "queueing": {"boundaries": "exponential"},
            "batching": {"leftovers": "strand"},
        }
        result = checked_run(
            requests, AS_LONG_AS_THE_LONGEST, policy, workload={"training_fraction": 0.2}
        )  # fmt: skip
        # Bins weigh by their requests, not their batches: of a rare bin, what is stranded is a large part.
        batches = result.batches.assign(time_s=result.batches["finish_s"] - result.batches["start_s"])
        bins = np.searchsorted(result.summary["bin_edges"], result.requests["output_tokens"], side="right")
        return float(batches.groupby("bin")["time_s"].mean() @ np.bincount(bins) / len(bins))

    replications = replicate(measure, 8, seed=6)

    assert_agrees(replications, 200 / throughput_per_s, resolution=0.015)
