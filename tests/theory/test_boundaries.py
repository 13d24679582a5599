"""Edges of bins against what is known in closed form or was optimised numerically for named laws.

Samples are evenly spaced quantiles, so there is no sampling noise: what is left is the rounding of the tables
(0.005) and the missing tail beyond the last quantile, which costs a batch of 200 about 0.003 at this size.
"""

import numpy as np
import pytest
from numpy.typing import NDArray

from batchsim.workload.boundaries import equal_mass, expected_batch_time, exponential_rule, optimal, uniform

NUM_SAMPLES = 400_000
LEVELS = (np.arange(NUM_SAMPLES) + 0.5) / NUM_SAMPLES
EXPONENTIAL = -10 * np.log1p(-LEVELS)
UNIFORM = 1 + 19 * LEVELS
#: (batch size, bins): expected batch times with equal mass, the paper's edges, the optimum; mean length 10.
BATCH_TIMES = {
    (8, 2): (20.01, 18.95, 18.65),
    (8, 4): (15.70, 14.36, 14.24),
    (8, 8): (13.19, 12.10, 12.06),
    (200, 2): (36.30, 27.52, 27.51),
    (200, 4): (24.06, 16.94, 16.94),
    (200, 8): (17.47, 13.00, 13.00),
}
OPTIMAL_MASSES = {
    (8, 2): (0.731, 0.269),
    (8, 4): (0.441, 0.309, 0.183, 0.067),
    (8, 8): (0.239, 0.206, 0.173, 0.140, 0.107, 0.075, 0.044, 0.016),
    (200, 2): (0.835, 0.165),
    (200, 4): (0.505, 0.317, 0.148, 0.029),
    (200, 8): (0.262, 0.221, 0.180, 0.139, 0.100, 0.063, 0.029, 0.006),
}


def masses(sample: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.bincount(np.searchsorted(edges, sample, side="right")) / len(sample)


@pytest.mark.parametrize(("batch_size", "num_bins"), BATCH_TIMES)
def test_batch_times_of_exponential_lengths_match_the_published_table(batch_size: int, num_bins: int) -> None:
    all_edges = (
        equal_mass(EXPONENTIAL, num_bins),
        exponential_rule(10.0, num_bins, batch_size),
        optimal(EXPONENTIAL, num_bins, batch_size),
    )

    times = [expected_batch_time(EXPONENTIAL, edges, batch_size) for edges in all_edges]

    assert times == pytest.approx(BATCH_TIMES[batch_size, num_bins], abs=0.01)


@pytest.mark.parametrize(("batch_size", "num_bins"), OPTIMAL_MASSES)
def test_optimal_bins_of_exponential_lengths_get_rarer_upwards_as_in_the_table(
    batch_size: int, num_bins: int
) -> None:
    edges = optimal(EXPONENTIAL, num_bins, batch_size)

    # Both edges of a bin move on a grid whose cells hold up to 1/400 of the sample, and the optimum is flat.
    assert masses(EXPONENTIAL, edges) == pytest.approx(OPTIMAL_MASSES[batch_size, num_bins], abs=0.005)


@pytest.mark.parametrize("num_bins", [2, 3, 5, 8])
@pytest.mark.parametrize("batch_size", [2, 8, 128])
def test_optimal_bins_of_uniform_lengths_have_equal_width(batch_size: int, num_bins: int) -> None:
    edges = optimal(UNIFORM, num_bins, batch_size)

    # Within two cells of the grid, and the objective (which is flat for large batches) within 0.01 %.
    assert edges == pytest.approx(1 + 19 * np.arange(1, num_bins) / num_bins, abs=2 * 19 / 400)
    assert expected_batch_time(UNIFORM, edges, batch_size) == pytest.approx(
        expected_batch_time(UNIFORM, uniform(UNIFORM, num_bins), batch_size), rel=1e-4
    )


@pytest.mark.parametrize("batch_size", [8, 128])
@pytest.mark.parametrize("num_bins", [1, 4, 32])
def test_uniform_lengths_take_the_batch_time_of_the_throughput_theorem(
    batch_size: int, num_bins: int
) -> None:
    edges = uniform(UNIFORM, num_bins)

    mean_s = expected_batch_time(UNIFORM, edges, batch_size)

    spread = 19 / 2 * (batch_size - 1) / (batch_size + 1)
    assert mean_s == pytest.approx(10.5 + spread / num_bins, abs=1e-3)


@pytest.mark.parametrize("batch_size", [2, 8, 200])
@pytest.mark.parametrize("num_bins", [1, 2, 3, 4, 5])
def test_exponential_rule_keeps_the_papers_bound(batch_size: int, num_bins: int) -> None:
    bound = sum(1 / draw for draw in range(1, batch_size + 1))
    for _ in range(num_bins - 1):
        bound = 1 + np.log(bound)

    mean_s = expected_batch_time(EXPONENTIAL, exponential_rule(10.0, num_bins, batch_size), batch_size)

    assert mean_s <= 10 * bound
    assert mean_s == pytest.approx(10 * bound, rel=0.07)


def test_exponential_rule_reproduces_the_published_throughputs_of_figure_9() -> None:
    throughputs = [
        200 / expected_batch_time(EXPONENTIAL, exponential_rule(10.0, num_bins, 200), 200)
        for num_bins in range(1, 6)
    ]

    assert throughputs == pytest.approx([3.40, 7.27, 9.97, 11.81, 13.11], abs=0.006)
