import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from batchsim.errors import ConfigError
from batchsim.policies.base import Setting
from batchsim.policies.reports import BatchReport
from batchsim.policies.sizing import FixedSize, MemoryAware, SloFeedback, Smallest

REPORT = BatchReport(
    bin=0,
    batch_size=4,
    first_token_s=1.0,
    total_s=3.0,
    worst_e2e_s=9.0,
    output_tokens=5,
    total_tokens=[100] * 4,
)
#: Constant lengths leave no risk: capacity / 100 fit.
SETTING = Setting(
    1050,
    training_prompt_tokens=np.full(40, 60),
    training_output_tokens=np.full(40, 40),
    training_bins=np.zeros(40, dtype=np.int64),
    num_bins=2,
)


def prepared(sizer: Any, setting: Setting = SETTING) -> Any:
    sizer.prepare(setting)
    return sizer


def test_fixed_size_is_what_it_says() -> None:
    assert prepared(FixedSize(3)).batch_size(0) == 3


def test_memory_aware_learns_from_the_training_part() -> None:
    assert prepared(MemoryAware()).batch_size(0) == 10


def test_memory_aware_allows_its_maximum_until_enough_lengths_are_known() -> None:
    sizer = prepared(MemoryAware(max_batch_size=64, min_requests=8), Setting(1050))
    sizes = [sizer.batch_size(0)]

    for _ in range(2):
        sizer.observe(REPORT)
        sizes.append(sizer.batch_size(0))

    assert sizes == [64, 64, 10]


def test_memory_aware_per_bin_knows_only_the_lengths_of_the_bin() -> None:
    sizer = prepared(MemoryAware(max_batch_size=64, per_bin=True))

    assert (sizer.batch_size(0), sizer.batch_size(1)) == (10, 64)


def test_memory_aware_never_falls_below_what_runs_nor_below_one() -> None:
    sizer = prepared(MemoryAware(), replace(SETTING, kv_capacity_tokens=50))

    assert (sizer.batch_size(0), sizer.batch_size(0, num_decoding=7)) == (1, 7)


def test_slo_feedback_starts_in_the_middle_of_its_range() -> None:
    assert prepared(SloFeedback(min_batch_size=10, max_batch_size=20)).batch_size(0) == 15


@pytest.mark.parametrize(
    ("metric", "report", "measured_s"),
    [
        ("per_token", REPORT, (3.0 - 1.0) / 4),
        ("per_token", REPORT._replace(first_token_s=math.nan), 3.0 / 5),
        ("e2e", REPORT, 9.0),
    ],
)
def test_slo_feedback_measures_what_its_metric_says(
    metric: Any, report: BatchReport, measured_s: float
) -> None:
    (decision,) = prepared(SloFeedback(metric=metric)).observe(report)

    assert decision.measured == measured_s


def test_slo_feedback_learns_nothing_from_answers_of_one_token() -> None:
    sizer = prepared(SloFeedback())

    assert sizer.observe(REPORT._replace(output_tokens=1)) == ()


def test_slo_feedback_decides_by_the_mean_of_so_many_batches() -> None:
    sizer = prepared(SloFeedback(metric="e2e", measure_batches=2))

    first = sizer.observe(REPORT)
    (decision,) = sizer.observe(REPORT._replace(worst_e2e_s=11.0))

    assert first == ()
    assert decision.measured == 10.0


def test_slo_feedback_takes_its_target_from_itself_then_the_run_then_the_default() -> None:
    # Half a second between tokens: above its own limit, below the run's, above the default.
    run_has_slo = replace(SETTING, slo_tpot_s=1.0)
    sizers = [
        prepared(SloFeedback(target_s=0.1), run_has_slo),
        prepared(SloFeedback(), run_has_slo),
        prepared(SloFeedback()),
    ]

    decided = [sizer.observe(REPORT._replace(batch_size=128))[0].batch_size for sizer in sizers]

    assert decided == [64, 192, 64]


def test_slo_feedback_per_bin_keeps_bins_apart() -> None:
    sizer = prepared(SloFeedback(target_s=0.1, per_bin=True))

    (decision,) = sizer.observe(REPORT._replace(bin=1, batch_size=128))

    assert (sizer.batch_size(0), sizer.batch_size(1), decision.bin) == (128, 64, 1)


def test_slo_feedback_never_leaves_its_range() -> None:
    sizer = prepared(SloFeedback(target_s=0.1, min_batch_size=8, max_batch_size=32))
    sizes = []

    for total_s in [1000.0] * 20 + [1.0] * 20:
        sizer.observe(REPORT._replace(batch_size=sizer.batch_size(0), total_s=total_s))
        sizes.append(sizer.batch_size(0))

    assert min(sizes) >= 8
    assert max(sizes) <= 32


@pytest.mark.parametrize("most", [2, 8, 32, 256])
def test_slo_feedback_of_any_range_climbs_near_its_top_while_all_is_well(most: int) -> None:
    sizer = prepared(SloFeedback(target_s=0.1, max_batch_size=most))

    for _ in range(40):
        sizer.observe(REPORT._replace(batch_size=sizer.batch_size(0), total_s=1.0))

    assert sizer.batch_size(0) >= 0.75 * most - 1


def test_smallest_takes_the_smallest_and_lets_all_learn() -> None:
    sizer = prepared(Smallest((FixedSize(70), SloFeedback(target_s=0.1))))
    before = sizer.batch_size(0)

    decisions = sizer.observe(REPORT._replace(batch_size=128))

    assert (before, sizer.batch_size(0), sizer.max_batch_size) == (70, 64, 70)
    assert [decision.controller for decision in decisions] == ["slo_feedback"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedSize(0), "size is 0"),
        (lambda: FixedSize(2.0), r"size is 2\.0"),
        (lambda: FixedSize(True), "size is True"),
        (lambda: MemoryAware(overflow_probability=0), "overflow_probability is 0"),
        (lambda: MemoryAware(overflow_probability=0.6), r"overflow_probability is 0\.6"),
        (lambda: MemoryAware(rule="exact"), "rule is 'exact'"),
        (lambda: MemoryAware(refresh_every=0), "refresh_every is 0"),
        (lambda: SloFeedback(metric="ttft"), "metric is 'ttft'"),
        (lambda: SloFeedback(target_s=0.0), r"target_s is 0\.0"),
        (lambda: SloFeedback(tolerance=1.0), r"tolerance is 1\.0"),
        (lambda: SloFeedback(alpha=0), "alpha is 0"),
        (lambda: SloFeedback(delta=-1), "delta is -1"),
        (lambda: SloFeedback(min_batch_size=9, max_batch_size=8), "min_batch_size is 9"),
        (lambda: Smallest(()), "at least one sizer"),
    ],
)
def test_sizers_refuse_parameters_that_make_no_sense(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_size_that_no_table_can_hold_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"size is 9223372036854775808; a whole number >= 1 is needed, up to 2"
    ):
        FixedSize(2**63)
