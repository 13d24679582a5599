from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.errors import ConfigError
from batchsim.workload.boundaries import (
    RULES,
    equal_mass,
    expected_batch_time,
    exponential_rule,
    fit_boundaries,
    optimal,
    uniform,
)

TIED_LENGTHS = st.lists(
    st.one_of(st.integers(1, 6), st.integers(1, 4000)), min_size=1, max_size=60
)  # small numbers come again and again


@given(lengths=TIED_LENGTHS, num_bins=st.integers(1, 8), batch_size=st.integers(1, 64))
def test_every_rule_gives_rising_edges_without_empty_bins_or_says_that_it_cannot(
    lengths: list[int], num_bins: int, batch_size: int
) -> None:
    for rule in RULES:
        try:
            edges = fit_boundaries(rule, lengths, num_bins, batch_size)
        except ConfigError:
            assert rule in ("uniform", "exponential") or len(set(lengths)) < num_bins
            continue

        bins = np.searchsorted(edges, lengths, side="right")
        assert edges.shape == (num_bins - 1,)
        assert np.all(np.diff(edges) > 0)
        assert set(bins) == set(range(num_bins))


@given(lengths=st.lists(st.integers(1, 9), min_size=3, max_size=30), batch_size=st.integers(2, 64))
def test_optimal_finds_the_best_of_all_splits(lengths: list[int], batch_size: int) -> None:
    distinct = sorted(set(lengths))
    if len(distinct) < 3:
        return

    edges = optimal(lengths, 3, batch_size)

    best = min(expected_batch_time(lengths, split, batch_size) for split in combinations(distinct[1:], 2))
    assert expected_batch_time(lengths, edges, batch_size) == pytest.approx(best)


@pytest.mark.parametrize("num_bins", [2, 4, 8, 16])
def test_equal_mass_is_never_better_than_optimal(num_bins: int) -> None:
    rng = np.random.default_rng(0)
    for lengths in (
        rng.lognormal(5, 1.2, 20_000).astype(int) + 1,
        rng.geometric(0.01, 20_000),
        rng.integers(1, 2000, 20_000),
    ):
        edges = optimal(lengths, num_bins, 16)

        assert expected_batch_time(lengths, edges, 16) <= expected_batch_time(
            lengths, equal_mass(lengths, num_bins), 16
        )


def test_expected_batch_time_is_that_of_simulated_batches() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.geometric(0.02, 500)
    whole_max, below_max, above_max = (
        rng.choice(some, size=(200_000, 4)).max(axis=1)
        for some in (lengths, lengths[lengths < 60], lengths[lengths >= 60])
    )
    share = np.mean(lengths < 60)

    whole = expected_batch_time(lengths, [], 4)
    split = expected_batch_time(lengths, [60], 4)

    error = 4 * whole_max.std() / np.sqrt(200_000)
    assert whole == pytest.approx(whole_max.mean(), abs=error)
    assert split == pytest.approx(share * below_max.mean() + (1 - share) * above_max.mean(), abs=error)


def test_equal_mass_halves_at_the_median() -> None:
    assert equal_mass([1, 2, 3, 4], 2).tolist() == [3.0]
    assert equal_mass(np.arange(1, 101), 4).tolist() == [26.0, 51.0, 76.0]


def test_equal_mass_moves_edges_off_a_length_that_most_requests_share() -> None:
    lengths = [5] * 90 + [6] * 5 + [7] * 3 + [8] * 2

    assert equal_mass(lengths, 4).tolist() == [6.0, 7.0, 8.0]
    assert equal_mass([1] * 2 + [2] * 3 + [5] * 90, 3).tolist() == [2.0, 5.0]


def test_uniform_has_equal_widths() -> None:
    assert uniform([1, 9, 3], 4).tolist() == [3.0, 5.0, 7.0]


def test_one_bin_has_no_edges() -> None:
    assert [fit_boundaries(rule, [3, 3, 3], 1, 8).shape for rule in RULES] == [(0,)] * len(RULES)


def test_optimal_resolves_a_rare_tail() -> None:
    lengths = np.concatenate([np.linspace(1, 2, 100_000), np.linspace(1000, 2000, 100)])

    edges = optimal(lengths, 3, 256)

    assert np.count_nonzero(edges >= 1000) == 2


@pytest.mark.parametrize(
    ("rule", "lengths", "num_bins", "batch_size", "says"),
    [
        ("equal_mas", [1, 2, 3], 2, 8, "did you mean equal_mass"),
        (
            "optimal",
            [7, 7, 8, 8],
            3,
            8,
            "3 bins need as many distinct training lengths, but the 4 given have 2",
        ),
        ("uniform", [1, 2, 3, 1000], 4, 8, "leave bin 2 of 4 without a training length"),
        ("equal_mass", [1, 2], 0, 8, "num_bins is 0"),
        ("exponential", [1, 2], 2, 0, "batch_size is 0"),
        ("exponential", [1, 2], 2, 1, "batch_size >= 2"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused_with_the_numbers(
    rule: str, lengths: list[int], num_bins: int, batch_size: int, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        fit_boundaries(rule, lengths, num_bins, batch_size)


def test_exponential_rule_is_the_lemma_worked_by_hand() -> None:
    harmonic = 1 + 1 / 2
    levels = [harmonic, 1 + np.log(harmonic)]

    assert exponential_rule(10.0, 3, 2) == pytest.approx(
        [10 * np.log(levels[1]), 10 * (np.log(levels[1]) + np.log(levels[0]))]
    )
