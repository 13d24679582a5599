import numpy as np
import pandas as pd
import pytest

from batchsim.errors import ConfigError
from batchsim.latency.operators import OperatorTable
from batchsim.latency.uneven import lag_by_seqs, longest_over_mean, with_uneven_contexts


def test_requests_alike_that_yield_one_token_are_even() -> None:
    assert longest_over_mean([100, 100], [1, 1], [1, 2, 128]).tolist() == [1.0, 1.0, 1.0]


def test_longest_of_two_is_the_mean_over_all_pairs() -> None:
    # Half of the decodes have 100 tokens, half 300: of two, three pairs in four hold a long one.
    (one, two) = longest_over_mean([100, 300], [1, 1], [1, 2])

    assert one == 1.0
    assert two == pytest.approx((0.25 * 100 + 0.75 * 300) / 200)


def test_long_answers_are_met_more_often_than_short_ones() -> None:
    rng = np.random.default_rng(5)
    prompt, output = np.array([10, 400]), np.array([300, 20])
    contexts = np.concatenate([np.arange(10, 310), np.arange(400, 420)])
    draws = rng.choice(contexts, (20_000, 8))

    (ratio,) = longest_over_mean(prompt, output, [8])

    assert ratio == pytest.approx(draws.max(axis=1).mean() / contexts.mean(), rel=0.01)


def test_lengths_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="lengths are of 1 prompts and 2 outputs"):
        longest_over_mean([1], [1, 2], [1])


def test_lag_is_found_where_uneven_times_stand_between_both() -> None:
    skew = pd.DataFrame(
        {
            "n": [4, 4, 16],
            "t_mean_us": [10.0, 10.0, 10.0],
            "t_max_us": [20.0, 30.0, 40.0],
            "t_skew_us": [15.0, 20.0, 13.0],
        }
    )

    lag = lag_by_seqs(skew, np.array([1.0, 4.0, 10.0, 16.0, 64.0]))

    assert lag == pytest.approx([0.0, 0.5, 0.3, 0.1, 0.1])


def test_uneven_decodes_take_that_share_of_the_way_to_the_longest() -> None:
    even = OperatorTable(((1, 4), (16, 32)), (1.0, 2.0, 4.0, 8.0))

    uneven = with_uneven_contexts(even, np.array([0.0, 0.5]), np.array([1.0, 2.0]))

    assert uneven.axes == even.axes
    assert uneven.seconds == pytest.approx((1.0, 2.0, (4 + 8) / 2, (8 + 16) / 2))
