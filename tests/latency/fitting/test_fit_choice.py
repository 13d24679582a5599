from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchsim.latency.base import BatchShape
from batchsim.latency.fitting.fit import compare_families, fit
from batchsim.latency.fitting.iterations import iteration_shapes
from batchsim.latency.fitting.regression import Quality
from batchsim.latency.linear import (
    IF_SEVERAL_TOKENS,
    LINEAR_COEFFICIENTS,
    PER_PREFILL_SEQ,
    LinearIterationLatency,
)
from batchsim.latency.tables.table import TOKENS, read_calibration
from tests.latency.fitting.test_fit import affine_s, batches, calibration, crowded_s, phases
from tests.latency.fitting.test_iterations import rows
from tests.latency.synthetic import LINEAR, kneed, trials, write_calibration

Row = Mapping[str, Any]


def whole(sizes: tuple[int, ...] = (1, 2, 4, 8), factor: float = 1.0) -> list[Row]:
    """Batches that take as long as `phases` say, or so much longer."""
    model = fit(calibration(phases()), "phase").model
    shapes = [(size, prompt, output) for size in sizes for prompt in (64, 512) for output in (5, 20, 90)]
    return [
        {
            "kind": "batch",
            "batch_size": size,
            "prompt_tokens": prompt,
            "output_tokens": output,
            "mean_s": factor * model.batch_time(BatchShape(size, prompt, output)).total_s,
        }
        for size, prompt, output in shapes
    ]


def batch_quality(report: Any) -> Quality:
    return next(quality for quality in report.qualities if quality.kind == "batch")


def test_families_that_do_not_see_whole_batches_are_checked_against_them() -> None:
    report = fit(calibration([*phases(), *whole(factor=1.25)]), "phase")

    quality = batch_quality(report)
    assert quality.is_unseen
    assert quality.max_error == pytest.approx(0.2, rel=1e-9)
    assert quality.heldout_length_mape == pytest.approx(0.2, rel=1e-9)
    assert report.num_points == len(phases())


def test_batch_size_held_out_is_held_out_of_all_points() -> None:
    # Only at 8 sequences do phases and batches alike take twice as long: nothing else tells of that.
    points = [
        {**row, "mean_s": 2 * row["mean_s"]} if row["batch_size"] == 8 else row
        for row in [*phases(), *whole()]
    ]

    quality = batch_quality(fit(calibration(points), "phase"))

    assert quality.largest_batch_bias == pytest.approx(-0.5, abs=1e-9)


def test_whole_batches_decide_where_there_are_any() -> None:
    exact, longer = (
        compare_families(calibration([*phases(), *whole(factor=factor)])) for factor in (1.0, 1.5)
    )

    assert exact.kinds == longer.kinds == ("batch",)
    assert exact.chosen.family == "phase"
    assert exact.scores["phase"] < 1e-9
    assert longer.scores["phase"] == pytest.approx(1 / 3, rel=1e-9)


def test_kinds_that_all_families_know_decide_where_there_are_no_whole_batches() -> None:
    comparison = compare_families(calibration(rows()))

    assert comparison.kinds == ("prefill", "decode")
    assert list(comparison.scores) == ["phase", "linear", "iteration_table"]
    assert list(comparison.reasons) == ["affine", "table"]
    assert comparison.reasons["affine"] == "no batch points; this family needs them"


def nearly_linear(kink_s: float) -> list[Row]:
    """Iterations of a linear engine, except that each decode of more than one sequence takes longer."""
    model = LinearIterationLatency(0.012, 3e-5, 2e-9, 2.2e-4, 1.5e-8)
    points = phases()
    shapes = iteration_shapes(calibration(points).points)
    return [
        {**row, "mean_s": model.iteration_s(shape) + kink_s * (shape.decode_seqs > 1)}
        for row, shape in zip(points, shapes, strict=True)
    ]


def test_family_that_does_for_both_worlds_is_taken_before_one_that_is_hardly_better() -> None:
    slight, strong = (compare_families(calibration(nearly_linear(kink_s))) for kink_s in (1e-4, 3e-3))

    assert slight.scores["phase"] < 1e-9 < 1e-3 < slight.scores["linear"] < 0.01
    assert slight.chosen.family == "linear"
    assert strong.scores["linear"] > 0.01
    assert strong.chosen.family == "phase"


def test_family_that_is_asked_for_is_chosen() -> None:
    comparison = compare_families(calibration(nearly_linear(1e-4)), "phase")

    assert comparison.chosen.family == "phase"
    assert len(comparison.reports) == 3


def test_iterations_decide_for_policies_that_batch_at_every_iteration(tmp_path: Path) -> None:
    straight, bent = (
        compare_families(
            read_calibration(write_calibration(tmp_path / f"{name}.csv", engine)), "auto-iteration"
        )
        for name, engine in (("straight", LINEAR.iteration_s), ("bent", kneed))
    )

    assert straight.kinds == bent.kinds == ("prefill", "decode", "mixed")
    assert straight.chosen.family == "linear"
    assert bent.chosen.family == "iteration_table"


def test_classic_form_that_saturates_is_told_of_though_another_is_chosen() -> None:
    comparison = compare_families(calibration(batches(crowded_s)))

    assert comparison.chosen.family == "table"
    (sentence,) = [warning for warning in comparison.warnings if "saturates" in warning]
    assert sentence.startswith(
        "the affine form (alpha, beta, gamma) saturates in the batch size: batches of 32"
    )
    assert compare_families(calibration(batches(affine_s))).warnings == ()


def test_family_with_unknown_errors_comes_after_those_with_known_ones() -> None:
    # Of two batch sizes neither can be held out of a table, whose error at lengths is the smaller one.
    longer = [row for row in whole((1, 8), factor=1.5) if row["prompt_tokens"] == 64]

    comparison = compare_families(calibration([*phases(), *longer]))

    table = next(report for report in comparison.reports if report.family == "table")
    assert np.isnan(table.heldout_batch_size_mape)
    assert comparison.scores["table"] < comparison.scores["phase"]
    assert comparison.chosen.family not in ("affine", "table")


def test_exact_points_leave_no_doubt_about_coefficients() -> None:
    report = fit(calibration(rows()), "linear")

    assert report.intervals.keys() == report.coefficients.keys()
    for name, value in report.coefficients.items():
        assert report.intervals[name] == pytest.approx((value, value), rel=1e-6)
    assert report.model.info.details["intervals_95"] == {
        name: list(ends) for name, ends in report.intervals.items()
    }


def test_points_as_few_as_coefficients_tell_no_interval() -> None:
    report = fit(calibration(batches(affine_s, sizes=(1, 8), lengths=(128, 256))[:3]), "affine")

    assert report.intervals == {}


def test_interval_of_gamma_is_that_of_the_ratio() -> None:
    noise = np.random.default_rng(1).normal(0, 0.01, 30)
    points = [
        {**row, "mean_s": row["mean_s"] * (1 + error)}
        for row, error in zip(batches(affine_s), noise, strict=True)
    ]

    low, high = fit(calibration(points), "affine").intervals["gamma"]

    assert low < 0.3157 < high
    assert high - low < 0.1


def test_intervals_of_noisy_calibrations_hold_the_truth_as_often_as_they_should() -> None:
    # 95 % is nominal; resampled points are fewer and less varied than new ones, which narrows intervals.
    num_seeds = 40
    hits = dict.fromkeys((*LINEAR_COEFFICIENTS, PER_PREFILL_SEQ, IF_SEVERAL_TOKENS), 0)
    widths = []

    for seed in range(num_seeds):
        frame = trials(LINEAR.iteration_s, seed, ("prefill", "decode", "mixed"))
        means = frame.groupby(["kind", "batch_size", *TOKENS], dropna=False)["wall_s"].mean().rename("mean_s")
        intervals = fit(calibration(means.reset_index().to_dict("records")), "linear").intervals
        for name, (low, high) in intervals.items():
            hits[name] += low <= getattr(LINEAR, name) <= high
        low, high = intervals["fixed_s"]
        widths.append((high - low) / LINEAR.fixed_s)

    assert min(hits.values()) >= 0.8 * num_seeds
    assert sum(hits.values()) >= 0.85 * num_seeds * len(hits)
    assert np.median(widths) < 0.1
