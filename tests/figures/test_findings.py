import math

import pandas as pd
import pytest

from batchsim.figures.findings import contrast, gain, within_slo, within_slo_in_each

RATE = "workload.request_rate"


def table(**columns: list[object]) -> pd.DataFrame:
    """Averages as figures make them; without intervals, and nothing saturated, if not said."""
    num = len(columns["policy"])
    metrics = [name for name in columns if name not in ("policy", RATE) and not name.startswith("num_")]
    rest = {f"{metric}_ci95": [math.nan] * num for metric in metrics if not metric.endswith("_ci95")}
    counts = {"num_saturated": [0] * num, "num_transient": [0] * num}
    return pd.DataFrame({**rest, **counts, **columns})[[*columns, *(rest | counts).keys() - columns.keys()]]


def of_attainment(first: list[float], second: list[float], num_saturated: list[int]) -> pd.DataFrame:
    return table(
        policy=["fifo"] * 3 + ["bins"] * 3,
        **{RATE: [1.0, 2.0, 3.0] * 2},
        slo_attainment=first + second,
        num_saturated=num_saturated,
    )


def test_the_load_within_the_slo_is_read_between_the_points() -> None:
    averages = of_attainment([1.0, 0.8, 0.2], [1.0, 1.0, 0.8], [0] * 6)

    title = within_slo("policy", RATE)(averages)

    # fifo crosses 90 % at 1.5, bins at 2.5
    assert title == "bins: 1.7x the load of fifo with 90 % within the limit"


def test_a_saturated_rate_is_not_reached_whatever_was_attained_there() -> None:
    averages = of_attainment([1.0, 1.0, 1.0], [1.0, 0.95, 0.85], [0, 1, 1, 0, 0, 0])

    title = within_slo("policy", RATE)(averages)

    assert title == (
        "bins: 2.5x the load of fifo with 90 % within the limit and no growing queue (fifo: growing)"
    )


def test_who_is_never_outside_reaches_at_least_the_last_point() -> None:
    averages = of_attainment([1.0, 0.8, 0.2], [1.0, 1.0, 1.0], [0] * 6)

    assert within_slo("policy", RATE)(averages).startswith("bins: at least 2x the load")


def test_where_nobody_attains_the_limit_the_title_says_so() -> None:
    averages = of_attainment([0.5] * 3, [0.7] * 3, [0] * 6)

    assert within_slo("policy", RATE)(averages) == "No policy keeps 90 % of the requests within the limit"


def test_best_and_worst_are_compared_at_the_end_of_the_axis() -> None:
    averages = table(
        policy=["a", "a", "b", "b"], **{RATE: [1.0, 2.0] * 2}, throughput_per_gpu_per_s=[1.0, 1.0, 1.0, 1.8]
    )

    title = contrast("policy", "throughput_per_gpu_per_s", RATE)(averages)

    assert title == "b: 1.8x the throughput of a at 2 requests/s"


def test_times_are_compared_where_no_run_is_saturated() -> None:
    averages = table(
        policy=["a", "a", "b", "b"],
        **{RATE: [1.0, 2.0] * 2},
        e2e_mean_s=[1.0, 9.0, 2.0, 90.0],
        num_saturated=[0, 0, 0, 1],
    )

    assert contrast("policy", "e2e_mean_s", RATE)(averages) == (
        "a: E2E mean lower than b by a factor of 2 at 1 requests/s"
    )


def test_a_difference_within_the_intervals_is_not_claimed() -> None:
    averages = table(policy=["a", "b"], e2e_mean_s=[1.0, 2.0], e2e_mean_s_ci95=[0.6, 0.6])

    assert contrast("policy", "e2e_mean_s")(averages) == "E2E mean: no difference beyond the intervals"


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ([1.0, 1.02], "E2E mean: all within 5 %"),
        ([0.0, 2.0], "E2E mean: a 0 s, b 2 s"),
        ([math.nan, 2.0], ""),
    ],
)
def test_what_is_no_ratio_is_said_in_other_words(values: list[object], title: str) -> None:
    averages = table(policy=["a", "b"], e2e_mean_s=values)

    assert contrast("policy", "e2e_mean_s")(averages) == title


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ([1.0, 2.0], "a: E2E mean grows 2x from 1 bin to 8 bins"),
        ([2.0, 1.0], "a: E2E mean falls 2x from 1 bin to 8 bins"),
        ([1.0, 1.01], "E2E mean: the same within 5 % from 1 bin to 8 bins"),
    ],
)
def test_a_change_along_the_axis_has_its_direction(values: list[object], title: str) -> None:
    averages = table(policy=["a", "a"], **{"policy.num_bins": [1, 8]}, e2e_mean_s=values)

    assert gain("policy", "policy.num_bins", "e2e_mean_s")(averages) == title


def test_the_best_is_compared_with_the_next_best_and_those_whose_queue_grows_are_named() -> None:
    averages = table(
        policy=["low"] * 3 + ["middle"] * 3 + ["controller"] * 3,
        **{RATE: [1.0, 2.0, 3.0] * 3},
        slo_attainment=[1.0, 1.0, 1.0, 1.0, 0.9, 0.1, 1.0, 1.0, 0.8],
        num_saturated=[0, 1, 1] + [0] * 6,
    )

    title = within_slo("policy", RATE)(averages)

    assert title.startswith("controller: 1.2x the load of middle, the next best, and 2.5x that of low,")
    assert title.endswith("and no growing queue (low: growing)")


def test_no_throughput_is_claimed_of_runs_too_short_to_tell() -> None:
    averages = table(
        policy=["a", "a", "b", "b"],
        **{RATE: [1.0, 2.0] * 2},
        throughput_per_gpu_per_s=[1.0, 1.0, 1.5, 9.0],
        num_transient=[0, 0, 0, 1],
    )

    title = contrast("policy", "throughput_per_gpu_per_s", RATE)(averages)

    assert title == "b: 1.5x the throughput of a at 1 requests/s"


@pytest.mark.parametrize(
    ("first", "second", "num_transient", "title"),
    [
        # fifo crosses 90 % at 1.5; what bins does beyond 2 is not told
        ([1.0, 0.8, 0.2], [1.0, 1.0, 0.95], [0, 0, 0, 0, 0, 1], "bins: at least 1.3x the load of fifo with"),
        # bins may reach as far as fifo, or further
        ([1.0, 1.0, 0.8], [1.0, 0.95, 0.92], [0, 0, 0, 0, 1, 1], "fifo: 2.5 requests/s with 90 % within the"),
        ([1.0, 1.0, 0.8], [1.0, 0.95, 0.92], [0, 0, 0, 0, 0, 1], "fifo: 2.5 requests/s with 90 % within the"),
        # a rate at which too few are within the limit is none that is reached
        ([1.0, 0.8, 0.2], [1.0, 1.0, 0.8], [0, 0, 0, 0, 0, 1], "bins: 1.7x the load of fifo with 90 %"),
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0, 0, 0, 0, 0, 1], "fifo: at least 3 requests/s with 90 %"),
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0, 0, 1, 0, 0, 1], "All: at least 2 requests/s with 90 %"),
        ([1.0, 1.0, 1.0], [0.5, 0.5, 0.5], [1, 0, 0, 0, 0, 0], ""),
    ],
)
def test_no_load_is_reached_in_a_run_that_is_too_short_to_tell(
    first: list[float], second: list[float], num_transient: list[object], title: str
) -> None:
    averages = of_attainment(first, second, [0] * 6).assign(num_transient=num_transient)

    found = within_slo("policy", RATE)(averages)

    assert found.startswith(title)
    assert bool(found) == bool(title)
    assert ("(bins: too short to tell)" in found) == (found.startswith("fifo"))


def test_no_change_along_the_axis_is_claimed_of_whom_an_end_does_not_tell() -> None:
    averages = table(
        policy=["a", "a", "b", "b"],
        **{"policy.num_bins": [1, 8] * 2},
        throughput_per_gpu_per_s=[1.0, 9.0, 1.0, 2.0],
        num_transient=[1, 0, 0, 0],
    )

    title = gain("policy", "policy.num_bins", "throughput_per_gpu_per_s")(averages)

    assert title == "b: throughput grows 2x from 1 bin to 8 bins"


def test_each_row_of_panels_has_its_best_and_those_near_it_beside_the_first() -> None:
    length = "workload.generator.prompt.mean"
    averages = table(
        **{length: [100] * 6 + [200] * 6, RATE: [1.0, 2.0] * 6},
        policy=["fifo"] * 2 + ["bins"] * 2 + ["more"] * 2 + ["fifo"] * 2 + ["bins"] * 2 + ["more"] * 2,
        slo_attainment=[1.0, 0.8, 1.0, 1.0, 1.0, 0.91, 1.0, 0.5, 1.0, 0.5, 0.2, 0.2],
    )[[length, "policy", RATE, "slo_attainment", "num_saturated", "num_transient"]]

    title = within_slo_in_each("policy", RATE)(averages)

    assert title == (
        "Load with 90 % within the limit, beside fifo: prompts of 100 tokens, bins and more at least 1.3x; "
        "prompts of 200 tokens, nobody 5 % more"
    )


def test_a_baseline_that_never_attains_leaves_a_row_unsaid() -> None:
    averages = of_attainment([0.5, 0.5, 0.5], [1.0, 1.0, 0.8], [0] * 6)

    assert within_slo_in_each("policy", RATE)(averages) == ""
