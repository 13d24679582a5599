import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from batchsim.errors import ConfigError
from batchsim.latency.base import Domain, IterationDomain, IterationShape
from batchsim.latency.families import as_iteration_latency
from batchsim.latency.fitting.fit import fit
from batchsim.latency.fitting.iterations import iteration_shapes
from batchsim.latency.linear import LinearIterationLatency
from batchsim.latency.tables.iteration_grid import TableIterationLatency
from tests.latency.fitting.test_fit import calibration, phases

TRUE = LinearIterationLatency(0.012, 3e-5, 2e-9, 2.2e-4, 1.5e-8, 3e-4)
STEPPED = replace(TRUE, if_several_tokens_s=2e-3)
Row = Mapping[str, Any]


def rows(
    sizes: tuple[int, ...] = (1, 2, 4, 8, 32),
    *,
    mixed: bool = True,
    engine: LinearIterationLatency = TRUE,
) -> list[Row]:
    shapes: list[tuple[str, int, int | None, int | None]] = [
        *(("prefill", size, prompt, None) for size, prompt in itertools.product((1, 2, 4), (128, 512, 2048))),
        *(("decode", size, None, context) for size, context in itertools.product(sizes, (64, 1024, 4096))),
        *(("mixed", size, 512, context) for size, context in itertools.product(sizes, (64, 1024)) if mixed),
    ]
    points = [
        dict(zip(("kind", "batch_size", "prompt_tokens", "context_tokens"), shape, strict=True))
        for shape in shapes
    ]
    times_s = map(engine.iteration_s, iteration_shapes(calibration(points).points))
    return [{**point, "mean_s": time_s} for point, time_s in zip(points, times_s, strict=True)]


def test_points_stand_for_whole_prompts_and_sums_of_contexts() -> None:
    points: list[Row] = [
        {"kind": "prefill", "batch_size": 4, "prompt_tokens": 10},
        {"kind": "decode", "batch_size": 4, "context_tokens": 100},
        {"kind": "mixed", "batch_size": 3, "prompt_tokens": 20, "context_tokens": 100},
    ]

    assert iteration_shapes(calibration(points).points) == [
        IterationShape(40, 0, 0, 4, 200.0),
        IterationShape(0, 4, 400),
        IterationShape(20, 3, 300, 1, 200.0),
    ]


def test_fit_recovers_the_coefficients_of_a_linear_engine() -> None:
    report = fit(calibration(rows(engine=STEPPED), "measured"), "linear")

    assert isinstance(report.model, LinearIterationLatency)
    assert report.coefficients == pytest.approx(
        {
            "fixed_s": 0.012,
            "per_prefill_token_s": 3e-5,
            "per_prefill_pair_s": 2e-9,
            "per_decode_seq_s": 2.2e-4,
            "per_context_token_s": 1.5e-8,
            "per_prefill_seq_s": 3e-4,
            "if_several_tokens_s": 2e-3,
        },
        rel=1e-9,
    )
    assert [quality.kind for quality in report.qualities] == ["prefill", "decode", "mixed"]
    assert report.r2 == pytest.approx(1, abs=1e-12)
    assert max(report.heldout_batch_size_mape, report.heldout_length_mape, report.max_error) < 1e-9
    assert report.warnings == ()
    assert report.model.info.provenance == "measured"


def test_what_several_tokens_cost_is_told_by_single_decodes_alone() -> None:
    report = fit(calibration(rows(sizes=(2, 4, 8), engine=STEPPED)), "linear")

    assert "if_several_tokens_s" not in report.coefficients
    assert report.coefficients["fixed_s"] == pytest.approx(0.012 + 2e-3)


def test_linear_fit_knows_the_range_of_batches_and_of_iterations() -> None:
    model = fit(calibration(rows()), "linear").model

    assert isinstance(model, LinearIterationLatency)
    assert model.domain == Domain(batch_size=(1, 4), prompt_tokens=(128, 2048), length=(64, 4098))
    assert model.iteration_domain == IterationDomain((0, 4 * 2048), (0, 32), (0, 32 * 4096))


def test_small_times_count_as_much_as_large_ones() -> None:
    # Twice the time at the shortest pass of all: least squares of seconds would hardly see it.
    points = rows()
    longer = [{**row, "mean_s": 2 * row["mean_s"]} if row["kind"] == "decode" else row for row in points]

    model = fit(calibration(longer), "linear").model

    shortest = as_iteration_latency(model).iteration_s(IterationShape(0, 1, 64))
    assert shortest / TRUE.iteration_s(IterationShape(0, 1, 64)) > 1.4


def test_coefficient_that_comes_out_negative_is_held_at_zero_and_told() -> None:
    shrinking = [
        {**row, "mean_s": 0.05 - 1e-5 * row["context_tokens"]} if row["kind"] == "decode" else row
        for row in rows(mixed=False)
    ]

    report = fit(calibration(shrinking), "linear")

    assert report.coefficients["per_context_token_s"] == 0
    assert "iterations: per_context_token_s comes out negative and was held at 0" in report.warnings


def test_calibration_without_mixed_points_is_warned_of() -> None:
    points = calibration(rows(mixed=False))

    assert "no mixed points" in fit(points, "linear").warnings[0]
    assert (
        fit(points, "iteration_table").warnings[0].startswith("mixed points tell 0% of the grid's iterations")
    )


def test_table_predicts_linear_decodes_at_points_it_was_not_shown() -> None:
    report = fit(calibration(rows()), "iteration_table")

    decode = next(quality for quality in report.qualities if quality.kind == "decode")
    assert decode.largest_batch_bias == pytest.approx(0, abs=1e-9)
    assert decode.heldout_batch_size_mape < 0.005  # batch size 1, left out, leans on the pass of no tokens
    assert decode.heldout_length_mape < 1e-9
    assert report.model.domain == Domain(batch_size=(1, 4), prompt_tokens=(128, 2048), length=(64, 4098))


def test_table_meets_every_decode_and_mixed_point() -> None:
    points = calibration(rows())

    model = fit(points, "iteration_table").model

    assert isinstance(model, TableIterationLatency)
    for shape in iteration_shapes(points.points):
        if shape.decode_seqs:
            assert model.iteration_s(shape) == pytest.approx(TRUE.iteration_s(shape), rel=1e-12)


def test_prompts_cost_nothing_besides_their_tokens_where_one_batch_size_cannot_tell() -> None:
    alone = [row for row in rows() if row["kind"] != "prefill" or row["batch_size"] == 1]

    report = fit(calibration(alone), "linear")

    assert "per_prefill_seq_s" not in report.coefficients
    assert isinstance(report.model, LinearIterationLatency)
    assert report.model.per_prefill_seq_s == 0


def test_negative_cost_of_a_prompt_is_held_at_zero_and_told() -> None:
    cheaper = [
        {**row, "mean_s": row["mean_s"] - 1e-3 * row["batch_size"]} if row["kind"] == "prefill" else row
        for row in rows()
    ]

    report = fit(calibration(cheaper), "linear")

    assert report.coefficients["per_prefill_seq_s"] == 0
    assert "iterations: per_prefill_seq_s comes out negative and was held at 0" in report.warnings


def test_table_tells_how_far_prefills_of_equally_many_tokens_differ() -> None:
    # Two prompts of 256 take longer than one of 512 and than four of 128: neither pairs nor prompts tell why.
    shapes = [(1, 128, 0.01), (1, 512, 0.02), (2, 256, 0.03), (4, 128, 0.02)]
    prefills = [
        {"kind": "prefill", "batch_size": size, "prompt_tokens": prompt, "mean_s": time_s}
        for size, prompt, time_s in shapes
    ]

    report = fit(calibration([*prefills, *rows(mixed=False)[9:]]), "iteration_table")

    assert report.warnings[0].startswith(
        "prefills of equally many tokens, from one prompt or several, take up to 22% more or less"
    )


def test_mixed_points_off_the_grid_are_counted() -> None:
    odd: Row = {"kind": "mixed", "batch_size": 3, "prompt_tokens": 100, "context_tokens": 64, "mean_s": 0.02}

    report = fit(calibration([*rows(), odd]), "iteration_table")

    assert any(warning.startswith("1 mixed points are not used") for warning in report.warnings)


@pytest.mark.parametrize(
    ("points", "family", "message"),
    [
        (rows()[:9], "linear", "no decode points; this family needs them"),
        (rows()[9:], "iteration_table", "no prefill points; this family needs them"),
        (rows(mixed=False)[:-1], "iteration_table", "lacks the decode point"),
        (rows(sizes=(16, 32)), "linear", "no range of batch sizes in common"),
        ([row for row in phases() if row.get("prompt_tokens", 64) == 64], "linear", "iterations: more batch"),
    ],
)
def test_points_that_do_not_determine_a_model_are_refused(
    points: list[Row], family: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(calibration(points), family)


def deep() -> list[Row]:
    chunks = [
        {"kind": "chunk", "batch_size": 1, "prompt_tokens": tokens, "context_tokens": before}
        for tokens, before in itertools.product((128, 512), (1024, 4096))
    ]
    times_s = map(TRUE.iteration_s, iteration_shapes(calibration(chunks).points))
    return [{**chunk, "mean_s": time_s} for chunk, time_s in zip(chunks, times_s, strict=True)]


def test_a_chunk_attends_to_all_that_lies_before_it() -> None:
    (shape,) = iteration_shapes(calibration(deep()[:1]).points)

    assert shape == IterationShape(128, 0, 0, 1, 128 * (1024 + 64))


def test_chunks_are_fitted_by_a_linear_model_and_tell_a_table_what_pairs_cost() -> None:
    points = calibration([*rows(), *deep()])

    for family in ("linear", "iteration_table"):
        report = fit(points, family)

        assert next(one.max_error for one in report.qualities if one.kind == "chunk") < 1e-6
