import math
from collections.abc import Sequence

import pandas as pd
import pytest

from batchsim.errors import ConfigError
from batchsim.validation.comparison import (
    BAR,
    MAPE,
    TAIL_BAR,
    THROUGHPUT,
    Comparison,
    compare_requests,
    overall,
    relative_half_range,
    verdict,
)


def table(
    first_token_s: Sequence[float],
    finish_s: Sequence[float],
    arrival_s: Sequence[float] = (0.0, 1.0),
    output_tokens: Sequence[int] = (3, 5),
    request_id: Sequence[int] = (0, 1),
) -> pd.DataFrame:
    columns = {
        "request_id": request_id,
        "arrival_s": arrival_s,
        "first_token_s": first_token_s,
        "finish_s": finish_s,
        "output_tokens": output_tokens,
    }
    return pd.DataFrame(columns)


#: TTFT 1 and 1, TPOT 0.5 and 0.5, E2E 2 and 3 s; throughput 2 requests and 8 tokens in 4 s.
MEASURED = table([1.0, 2.0], [2.0, 4.0])


def row(comparison: Comparison, metric: str, statistic: str) -> pd.Series:
    errors = comparison.errors.set_index(["metric", "statistic"])
    return errors.loc[(metric, statistic)]


def test_errors_are_signed_and_relative_to_the_measured_value() -> None:
    predicted = table([0.5, 2.0], [2.0, 5.0])

    comparison = compare_requests([MEASURED], predicted)

    assert row(comparison, "ttft", "mean")[["measured", "predicted", "error"]].tolist() == [1.0, 0.75, -0.25]
    assert row(comparison, "e2e", "mean")[["measured", "predicted"]].tolist() == [2.5, 3.0]
    assert row(comparison, "e2e", "p50")["error"] == pytest.approx(0.2)
    # Half of the way from 2 to 3 (from 2 to 4) for P50, 0.9 of it for P90.
    assert row(comparison, "e2e", "p90")[["measured", "predicted"]].tolist() == pytest.approx([2.9, 3.8])
    assert comparison.num_requests == 2


def test_throughput_counts_from_first_arrival_to_last_finish() -> None:
    predicted = table([1.0, 2.0], [2.0, 5.0])

    comparison = compare_requests([MEASURED], predicted)

    assert row(comparison, THROUGHPUT, "requests")[["measured", "predicted"]].tolist() == [0.5, 0.4]
    assert row(comparison, THROUGHPUT, "output tokens")[["measured", "predicted"]].tolist() == [2.0, 1.6]
    assert row(comparison, THROUGHPUT, "requests")["error"] == pytest.approx(-0.2)


def test_mape_sees_errors_of_requests_that_cancel_in_the_mean() -> None:
    # TTFT 0.5 and 1.5 instead of 1 and 1.
    predicted = table([0.5, 2.5], [2.0, 4.0])

    comparison = compare_requests([MEASURED], predicted)

    assert row(comparison, "ttft", "mean")["error"] == 0
    assert row(comparison, "ttft", MAPE)["error"] == 0.5
    assert row(comparison, "ttft", MAPE)["verdict"] == "not judged"
    assert row(comparison, "e2e", MAPE)["error"] == 0


def test_clocks_with_another_zero_and_rows_in_another_order_change_nothing() -> None:
    later = table([1002.0, 1001.0], [1004.0, 1002.0], [1001.0, 1000.0], [5, 3], [1, 0])

    comparison = compare_requests([MEASURED], later)

    assert comparison.errors["error"].tolist() == pytest.approx([0.0] * len(comparison.errors))


def test_first_tokens_that_one_side_does_not_know_are_left_out() -> None:
    predicted = table([math.nan, math.nan], [2.0, 4.0])

    comparison = compare_requests([MEASURED], predicted)

    assert set(comparison.errors["metric"]) == {"e2e", THROUGHPUT}
    assert comparison.worst_time == ("E2E mean", 0.0)


def test_one_token_answers_have_no_tpot() -> None:
    measured = table([1.0, 2.0], [1.0, 4.0], output_tokens=[1, 5])
    predicted = table([1.0, 2.0], [1.0, 6.0], output_tokens=[1, 5])

    comparison = compare_requests([measured], predicted)

    assert row(comparison, "tpot", "mean")[["measured", "predicted"]].tolist() == [0.5, 1.0]


def test_requests_that_one_side_alone_finished_are_named_and_left_out_of_the_times() -> None:
    measured = table([1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [0.0, 1.0, 2.0], [3, 5, 7], [0, 1, 2])
    predicted = table(
        [1.0, math.nan, 3.0, 9.0],
        [2.0, math.nan, 5.0, 9.5],
        [0.0, 1.0, 2.0, 2.0],
        [3, 5, 7, 2],
        [0, 1, 2, 9],
    )

    comparison = compare_requests([measured], predicted)

    assert comparison.only_measured == (1,)
    assert comparison.only_predicted == (9,)
    assert comparison.num_unpaired == comparison.num_requests == 2
    assert row(comparison, "ttft", "mean")["measured"] == 1.0


def test_repeats_are_averaged_and_their_spread_is_half_their_range() -> None:
    slower = table([1.0, 2.0], [2.2, 4.3])  # E2E 2.2 and 3.3: mean 2.75 beside 2.5

    comparison = compare_requests([MEASURED, slower], MEASURED)

    assert row(comparison, "e2e", "mean")["measured"] == pytest.approx(2.625)
    assert row(comparison, "e2e", "mean")["predicted"] == 2.5
    assert row(comparison, "e2e", "mean")["error"] == pytest.approx(2.5 / 2.625 - 1)
    assert row(comparison, "e2e", "mean")["spread"] == pytest.approx(0.125 / 2.625)
    assert row(comparison, "ttft", "mean")["spread"] == 0


def test_a_single_run_is_never_judged() -> None:
    comparison = compare_requests([MEASURED], MEASURED)

    judged = comparison.errors[comparison.errors["bar"].notna()]
    assert set(judged["verdict"]) == {"inconclusive"}
    assert judged["spread"].isna().all()


@pytest.mark.parametrize(
    ("statistic", "bar"), [("mean", BAR), ("p50", BAR), ("p90", TAIL_BAR), ("p99", TAIL_BAR)]
)
def test_tails_have_the_wider_bar(statistic: str, bar: float) -> None:
    assert row(compare_requests([MEASURED], MEASURED), "e2e", statistic)["bar"] == bar


@pytest.mark.parametrize(
    ("error", "spread", "expected"),
    [
        (0.05, 0.0, "pass"),
        (-0.05, 0.049, "pass"),
        (0.0501, 0.0, "fail"),
        (-0.2, 0.049, "fail"),
        (0.0, 0.05, "inconclusive"),
        (0.9, 0.3, "inconclusive"),
        (0.0, math.nan, "inconclusive"),
    ],
)
def test_an_error_is_judged_only_where_repeats_vary_by_less_than_the_bar(
    error: float, spread: float, expected: str
) -> None:
    assert verdict(error, spread, 0.05) == expected


def test_the_gravest_verdict_stands_for_all() -> None:
    assert overall(["pass", "inconclusive", "fail"]) == "fail"
    assert overall(["pass", "inconclusive"]) == "inconclusive"
    assert overall(["pass", "pass"]) == "pass"
    assert overall([]) == "not judged"


def test_half_range_is_relative_to_the_mean() -> None:
    assert relative_half_range([9.0, 10.0, 11.0]) == 0.1
    assert math.isnan(relative_half_range([3.0]))


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (MEASURED.drop(columns="first_token_s"), "predicted requests have no column first_token_s"),
        (pd.concat([MEASURED, MEASURED]), "request 0 stands more than once among the predicted"),
        (MEASURED.assign(output_tokens=[3, 6]), "request 1 has 5 output tokens in the measured run and 6 in"),
        (MEASURED.assign(arrival_s=[0.0, 0.9]), "within 1 s in the measured run and 0.9 s"),
        (MEASURED.assign(request_id=[7, 8]), "no request was finished on both sides"),
    ],
)
def test_runs_of_other_requests_are_refused(predicted: pd.DataFrame, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare_requests([MEASURED], predicted)
