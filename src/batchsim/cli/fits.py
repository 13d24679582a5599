"""``batchsim fit``: measurements to a latency model, after a look at all families side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from batchsim.cli.options import INPUT_FILE, OUTPUT_PATH
from batchsim.cli.output import echo_json, echo_table, warn
from batchsim.errors import ConfigError
from batchsim.latency.choices import Clock, Family, TableLength

if TYPE_CHECKING:
    from batchsim.latency.fitting.fit import FamilyComparison
    from batchsim.latency.fitting.regression import Quality
    from batchsim.latency.fitting.report import FitReport
    from batchsim.latency.tables.table import Calibration


@click.command()
@click.argument("calibration", type=INPUT_FILE, required=False)
@click.option(
    "--vllm-log",
    type=INPUT_FILE,
    metavar="FILE",
    help="Instead of a calibration: the log of a vLLM server run with --enable-logging-iteration-details.",
)
@click.option("-o", "--output-file", type=OUTPUT_PATH, default=Path("latency.json"), show_default=True)
@click.option(
    "--family",
    type=click.Choice(get_args(Family)),
    default="auto",
    show_default=True,
    help="auto: best for whole batches; auto-iteration: best for policies that batch at every iteration.",
)
@click.option(
    "--length",
    type=click.Choice(get_args(TableLength)),
    default="prompt+output",
    show_default=True,
    help="What L counts; prompt,output: both, in a table.",
)
@click.option(
    "--clock",
    type=click.Choice(get_args(Clock)),
    default="wall_s",
    show_default=True,
    help="Time of raw trials to fit: by the wall, by device events, or of the processor alone.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def fit(
    calibration: Path | None,
    vllm_log: Path | None,
    output_file: Path,
    family: Family,
    length: TableLength,
    clock: Clock,
    as_json: bool,
) -> None:
    """Fit a latency model to measurements: all families compared, coefficients, a picture, latency.json.

    CALIBRATION is a table of `batchsim-calibrate`; a log tells a linear model of iterations.
    """
    if (calibration is None) == (vllm_log is None):
        raise ConfigError("a calibration or --vllm-log is needed; give one of the two")
    if vllm_log is not None:
        _fit_log(vllm_log, output_file, family, as_json)
    elif calibration is not None:
        _fit_calibration(calibration, output_file, family, length, clock, as_json)


def _fit_calibration(
    calibration: Path, output_file: Path, family: Family, length: TableLength, clock: Clock, as_json: bool
) -> None:
    from batchsim.figures.measured.fit import plot_fit
    from batchsim.files import check_file, resolved
    from batchsim.latency.fitting.fit import ITERATION_FAMILIES, compare_families
    from batchsim.latency.store import save_latency
    from batchsim.latency.tables.table import read_calibration

    if calibration.suffix == ".json":
        raise ConfigError(
            f"{calibration}: is no table; a calibration is a CSV file, with a JSON file of its name beside it"
        )
    check_file(output_file, inputs=[calibration])
    if resolved(output_file) == resolved(calibration.with_suffix(".json")):
        raise ConfigError(
            f"{output_file}: is where the provenance of {calibration.name} lies; choose another name"
        )
    points = read_calibration(calibration, clock)
    comparison = compare_families(points, family, length)
    chosen = comparison.chosen
    save_latency(chosen.model, output_file)
    picture = plot_fit(points, chosen, output_file.with_suffix(""))
    classic = next((one for one in comparison.reports if one.family == "affine" != chosen.family), None)
    if as_json:
        echo_json(_tree(comparison, classic))
    else:
        _echo_families(comparison, points)
        if chosen.coefficients:
            echo_table(f"{chosen.family}, 95 % intervals", ("", "value"), _coefficients(chosen))
        if classic is not None:
            echo_table("For comparison, the classic form, not written", ("", "value"), _coefficients(classic))
    for sentence in comparison.warnings:
        warn(sentence)
    if chosen.family not in ITERATION_FAMILIES:
        click.echo(
            f"Notice: {chosen.family} tells whole batches only; policies that batch at every iteration need "
            "--family auto-iteration",
            err=True,
        )
    click.echo(f"written: {output_file}, {picture}", err=True)


def _fit_log(log: Path, output_file: Path, family: Family, as_json: bool) -> None:
    from batchsim.files import check_file
    from batchsim.latency.fitting.logs import fit_log
    from batchsim.latency.fitting.vllm_log import read_vllm_log
    from batchsim.latency.store import save_latency

    if family not in ("auto", "auto-iteration", "linear"):
        raise ConfigError(f"--family {family}: a log tells a linear model of iterations alone; leave it out")
    check_file(output_file, inputs=[log])
    iterations = read_vllm_log(log)
    report = fit_log(iterations)
    save_latency(report.model, output_file)
    details: dict[str, Any] = report.model.info.details
    if as_json:
        echo_json({"family": "linear", "coefficients": dict(report.coefficients), **details})
    else:
        rows = [
            (quality.kind, *_quality_row(quality, _nan_if_none(details["noise"][quality.kind])))
            for quality in report.qualities
        ]
        echo_table(f"Fit of {log.name}: {len(iterations.passes):,} iterations", _LOG_COLUMNS, rows)
        echo_table("linear, 95 % intervals", ("", "value"), _coefficients(report))
        held_out = {name: _nan_if_none(error) for name, error in details["held_out_lines"].items()}
        click.echo(
            "Held-out lines, each eighth of the log predicted by the others: mean absolute error of single "
            f"lines {_share(held_out['mape'])}, error of their total time {_share(held_out['total_error'])}."
        )
    for sentence in report.warnings:
        warn(sentence)
    click.echo(f"written: {output_file}", err=True)


def _nan_if_none(value: float | None) -> float:
    return math.nan if value is None else value


def _tree(comparison: FamilyComparison, classic: FitReport | None) -> dict[str, Any]:
    chosen = comparison.chosen
    return {
        "family": chosen.family,
        "coefficients": dict(chosen.coefficients),
        "classic": classic and dict(classic.coefficients),
        "compared_by": list(comparison.kinds),
        "families": {
            report.family: [_known(asdict(quality)) for quality in report.qualities]
            for report in comparison.reports
        },
        "scores": _known(dict(comparison.scores)),
        "not_fitted": dict(comparison.reasons),
        **chosen.model.info.details,
        "warnings": list(comparison.warnings),
    }


def _echo_families(comparison: FamilyComparison, points: Calibration) -> None:
    columns = ("family", "score", "points", "", "noise", "R2", "largest error", *_HELD_OUT)
    rows = [row for report in comparison.reports for row in _rows(report, comparison, points)]
    clock = "" if points.clock == "wall_s" else f", {points.clock}"
    echo_table(f"Fits of {points.name} ({points.provenance}{clock})", columns, rows)
    kinds = ", ".join(comparison.kinds)
    click.echo(
        f"* chosen. Score: mean held-out MAPE, by batch size and by length, of {kinds} points. "
        "Unseen: the model was not fitted to these. Noise: what the points themselves are unsure by."
    )
    for name, reason in comparison.reasons.items():
        click.echo(f"{name} cannot be fitted: {reason}")


def _rows(report: FitReport, comparison: FamilyComparison, points: Calibration) -> Iterator[tuple[str, ...]]:
    mark = " *" if report is comparison.chosen else ""
    scores = comparison.scores
    score = _share(scores[report.family]) if report.family in scores else "not compared"
    head = (f"{report.family}{mark}", score)
    for quality in report.qualities:
        yield (
            *head,
            f"{quality.kind}{', unseen' if quality.is_unseen else ''}",
            *_quality_row(quality, points.noise_of(quality.kind)),
        )
        head = ("", "")


def _quality_row(quality: Quality, noise: float) -> tuple[str, ...]:
    bias = quality.largest_batch_bias
    return (
        f"{quality.num_points}",
        _share(noise),
        "unknown" if math.isnan(quality.r2) else f"{quality.r2:.4f}",
        _share(quality.max_error),
        _share(quality.heldout_batch_size_mape),
        _share(quality.heldout_length_mape),
        "unknown" if math.isnan(bias) else f"{bias:+.1%}",
    )


def _coefficients(report: FitReport) -> list[tuple[str, str]]:
    """Under the names of their formula, with the ends of their intervals."""
    rows = []
    for name, value in report.coefficients.items():
        interval = report.intervals.get(name)
        ends = f"  [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else "  [unknown]"
        rows.append((_SYMBOLS.get(name, name), f"{value:.6g}{ends}"))
    return rows


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in values.items()}


def _share(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.1%}"


_HELD_OUT = ("held-out MAPE, batch size", "held-out MAPE, length", "bias at largest batch")
_LOG_COLUMNS = ("iterations", "shapes", "noise", "R2", "largest error", *_HELD_OUT)
_SYMBOLS = {"alpha_s": "alpha (s)", "beta_s_per_token": "beta (s per token)", "gamma": "gamma"}
