import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from batchsim.errors import ConfigError
from batchsim.latency.analytic import PhaseBatchLatency
from batchsim.latency.base import BatchShape, Domain
from batchsim.latency.fitting.fit import fit
from batchsim.latency.tables.table import TOKENS, Calibration

ALPHA_S, BETA_S, GAMMA = 0.05965, 0.005742, 0.3157
SIZES, LENGTHS = (1, 2, 4, 8, 16, 32), (128, 256, 512, 1024, 2048)


def calibration(rows: list[Mapping[str, Any]], provenance: Any = "synthetic") -> Calibration:
    frame = pd.DataFrame(rows).reindex(
        columns=["kind", "batch_size", *TOKENS, "max_seq_len", "mean_s", "std_s", "num_trials"]
    )
    return Calibration("grid.csv", frame, provenance, {}, True, "0" * 64, {}, ())


def batches(
    time_s: Callable[[int, int], float], sizes: tuple[int, ...] = SIZES, lengths: tuple[int, ...] = LENGTHS
) -> list[Mapping[str, Any]]:
    return [
        {"kind": "batch", "batch_size": size, "max_seq_len": length, "mean_s": time_s(size, length)}
        for size, length in itertools.product(sizes, lengths)
    ]


def affine_s(size: int, length: int) -> float:
    return ALPHA_S + BETA_S * length * (1 + GAMMA * (size - 1) / size)


def crowded_s(size: int, length: int) -> float:
    """What real batches do: never saturate."""
    return 0.02 + 0.001 * size + 0.0002 * length + 0.000005 * size * length


def phases(sizes: tuple[int, ...] = (1, 2, 4, 8)) -> list[Mapping[str, Any]]:
    return [
        {
            "kind": "prefill",
            "batch_size": size,
            "prompt_tokens": prompt,
            "mean_s": 0.01 + 1e-4 * size * prompt + 2e-8 * size * prompt**2,
        }
        for size, prompt in itertools.product(sizes, (64, 256, 1024, 2048))
    ] + [
        {
            "kind": "decode",
            "batch_size": size,
            "context_tokens": context,
            "mean_s": 0.02 + 0.003 * (size > 1) + 5e-4 * size + 1e-7 * size * context,
        }
        for size, context in itertools.product(sizes, (64, 1024, 4096))
    ]


def test_fit_recovers_the_coefficients_of_an_affine_grid() -> None:
    report = fit(calibration(batches(affine_s)), "affine")

    assert report.coefficients["alpha_s"] == pytest.approx(ALPHA_S, abs=1e-9)
    assert report.coefficients["beta_s_per_token"] == pytest.approx(BETA_S, abs=1e-9)
    assert report.coefficients["gamma"] == pytest.approx(GAMMA, abs=1e-9)
    assert report.r2 == pytest.approx(1, abs=1e-12)
    assert max(report.heldout_batch_size_mape, report.heldout_length_mape, report.max_error) < 1e-9
    assert report.num_points == 30
    assert report.warnings == ()


def test_fitted_model_knows_its_range_and_its_errors() -> None:
    report = fit(calibration(batches(affine_s), "measured"), "affine")

    assert report.model.domain == Domain(batch_size=(1, 32), length=(128, 2048))
    assert report.model.info.provenance == "measured"
    assert report.model.info.details["qualities"][0]["num_points"] == 30  # type: ignore[index]


def test_length_may_count_output_tokens_only() -> None:
    rows = [
        {
            "kind": "batch",
            "batch_size": size,
            "prompt_tokens": 7,
            "output_tokens": length,
            "mean_s": affine_s(size, length),
        }
        for size, length in itertools.product(SIZES, LENGTHS)
    ]

    output, both = (fit(calibration(rows), "affine", length) for length in ("output", "prompt+output"))

    assert output.coefficients["alpha_s"] == pytest.approx(ALPHA_S, abs=1e-9)
    assert output.model.domain == Domain(batch_size=(1, 32), output_tokens=(128, 2048))
    # Seven tokens more on each length move the intercept, for want of a way to tell them apart.
    assert both.coefficients["alpha_s"] < ALPHA_S - 7 * BETA_S / 2
    assert both.model.domain == Domain(batch_size=(1, 32), length=(135, 2055))


def test_held_out_error_is_that_of_a_fit_to_the_other_batch_sizes() -> None:
    rows = batches(crowded_s)

    report = fit(calibration(rows), "affine")

    errors = []
    for size in SIZES:
        others = fit(calibration([row for row in rows if row["batch_size"] != size]), "affine").model
        errors += [
            others.batch_time(BatchShape(size, length - 1, 1)).total_s / crowded_s(size, length) - 1
            for length in LENGTHS
        ]
    assert report.heldout_batch_size_mape == pytest.approx(np.mean(np.abs(errors)), rel=1e-9)
    assert report.qualities[0].largest_batch_bias == pytest.approx(np.mean(errors[-len(LENGTHS) :]), rel=1e-9)


def test_affine_form_that_saturates_wrongly_is_warned_of() -> None:
    report = fit(calibration(batches(crowded_s)), "affine")

    assert report.qualities[0].largest_batch_bias < -0.3
    assert any(
        "batches of 32, held out, are predicted" in warning and "too short" in warning
        for warning in report.warnings
    )


def test_auto_prefers_what_predicts_unseen_points_better() -> None:
    assert fit(calibration(batches(affine_s))).family == "affine"
    assert fit(calibration(batches(crowded_s))).family == "table"
    assert fit(calibration(phases())).family == "phase"


def test_table_predicts_a_bilinear_grid_at_points_it_was_not_shown() -> None:
    report = fit(calibration(batches(crowded_s)), "table")

    assert report.heldout_batch_size_mape < 1e-9
    assert report.heldout_length_mape < 1e-9
    assert report.model.batch_time(BatchShape(10, 600, 100)).total_s == pytest.approx(crowded_s(10, 700))


def test_fit_recovers_the_coefficients_of_both_phases() -> None:
    report = fit(calibration(phases()), "phase")

    assert isinstance(report.model, PhaseBatchLatency)
    assert report.coefficients == pytest.approx(
        {
            "prefill_s": 0.01,
            "prefill_s_per_token": 1e-4,
            "prefill_s_per_token2": 2e-8,
            "decode_s": 0.02,
            "decode_s_if_batched": 0.003,
            "decode_s_per_seq": 5e-4,
            "decode_s_per_kv_token": 1e-7,
        },
        rel=1e-9,
    )
    assert report.r2 == pytest.approx(1, abs=1e-12)
    assert report.heldout_batch_size_mape < 1e-9
    assert report.model.domain == Domain(batch_size=(1, 8), prompt_tokens=(64, 2048), length=(64, 4098))


def test_phases_are_fitted_by_relative_errors() -> None:
    # Twice the time at the smallest prefill: least squares of seconds would hardly see it.
    first, *others = phases()
    longer = [{**first, "mean_s": 2 * first["mean_s"]}, *others]

    model = fit(calibration(longer), "phase").model

    assert model.batch_time(BatchShape(1, 64, 1)).first_token_s / first["mean_s"] > 1.2


def test_coefficient_that_comes_out_negative_is_held_at_zero_and_told() -> None:
    rows = batches(lambda size, length: -0.1 + 0.01 * length * (1 + 0.5 * (size - 1) / size))

    report = fit(calibration(rows), "affine")

    assert report.coefficients["alpha_s"] == 0
    assert "batch: alpha_s comes out negative and was held at 0" in report.warnings


def test_errors_that_cannot_be_known_are_called_unknown() -> None:
    report = fit(calibration(batches(affine_s, sizes=(1, 8), lengths=(128, 256))), "affine")

    assert math.isnan(report.heldout_batch_size_mape)
    assert "batch: too few points to hold out any batch size, so errors are unknown" in report.warnings
    assert report.model.info.details["qualities"][0]["heldout_length_mape"] is None  # type: ignore[index]


@pytest.mark.parametrize(
    ("rows", "family", "message"),
    [
        (
            batches(affine_s, sizes=(8,)),
            "affine",
            "all points have batch size 8; another one is needed to tell alpha_s",
        ),
        (batches(affine_s, lengths=(128,)), "affine", "all points have length 128; another one is needed"),
        (batches(affine_s, sizes=(8,), lengths=(128, 256)), "affine", "2 points are too few to tell alpha_s"),
        (batches(affine_s), "phase", "no prefill points"),
        (phases(), "affine", "no batch points"),
        (phases(sizes=(2, 4, 8)), "phase", "decode: more batch sizes, 1 among them"),
        (batches(affine_s)[1:], "table", "the grid lacks the point"),
        (batches(lambda size, length: 9.0 - 0.001 * length), "affine", "gamma has no meaning"),
        (phases()[:12], "auto", "allows no fit; affine: .*; phase: .*; table: .*; linear: no decode"),
        (
            batches(affine_s),
            "auto-iteration",
            "allows no fit; linear: no prefill points.*; iteration_table: ",
        ),
        (phases()[:1], "auto", "batch size 1 alone; at least two are needed"),
        (batches(affine_s, sizes=(8,)), "table", "batch size 8 alone; at least two are needed"),
        (batches(affine_s), "linear", "no prefill points"),
        (
            batches(affine_s),
            "quadratic",
            "latency family is 'quadratic'; known: affine, phase, table, linear, ",
        ),
    ],
)
def test_points_that_do_not_determine_a_model_are_refused(
    rows: list[Mapping[str, Any]], family: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(calibration(rows), family)


@pytest.mark.parametrize(
    ("drift", "clock", "clocks", "is_told"),
    [
        (0.89, "wall_s", ("wall_s", "cpu_s"), True),
        (0.02, "wall_s", ("wall_s", "cpu_s"), False),
        (0.89, "cpu_s", ("wall_s", "cpu_s"), False),
        (0.89, "wall_s", ("wall_s",), False),
        (0.89, "wall_s", ("wall_s", "cpu_s", "cuda_s"), False),  # the processor only launches what a GPU does
        ("much", "wall_s", ("wall_s", "cpu_s"), False),
    ],
)
def test_large_errors_on_a_processor_that_drifted_name_its_own_clock(
    drift: object, clock: Any, clocks: Any, is_told: bool
) -> None:
    points = replace(
        calibration(batches(crowded_s), "measured"), details={"drift": drift}, clock=clock, clocks=clocks
    )

    warnings = fit(points, "affine").warnings

    assert any("when a batch size is held out" in warning for warning in warnings)
    assert any("drifted by 89%" in warning and "--clock cpu_s" in warning for warning in warnings) == is_told


def test_a_good_fit_needs_no_other_clock() -> None:
    points = replace(calibration(batches(affine_s)), details={"drift": 0.89}, clocks=("wall_s", "cpu_s"))

    assert not any("--clock" in warning for warning in fit(points, "affine").warnings)
