"""``batchsim sweep``, ``figures``, ``fit``: many runs to pictures, measurements to a latency model."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import get_args

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from batchsim.cli.options import INPUT_FILE, OUTPUT_PATH
from batchsim.cli.output import STDERR, echo_json, echo_table, warn
from batchsim.errors import BatchsimError, ConfigError
from batchsim.latency.analytic import LENGTHS, Length
from batchsim.latency.fit import Family, FitReport
from batchsim.latency.fit import fit as fit_latency
from batchsim.latency.store import save_latency
from batchsim.latency.table import Calibration, read_calibration
from batchsim.sweep import SweepProgress, parse_shard, run_sweep


@click.command()
@click.argument("experiments", nargs=-1, required=True, type=INPUT_FILE)
@click.option("-o", "--output-dir", type=OUTPUT_PATH, default=Path("results"), show_default=True)
@click.option("--jobs", type=int, default=1, show_default=True, help="Processes.")
@click.option("--full", is_flag=True, help="The paper's grid instead of the small one.")
@click.option(
    "--shard", default="1/1", show_default=True, metavar="K/N", help="Every N-th run from the K-th on."
)
@click.option("--overwrite", is_flag=True, help="Run again what is finished.")
def sweep(
    experiments: tuple[Path, ...], output_dir: Path, jobs: int, full: bool, shard: str, overwrite: bool
) -> None:
    """Run sweep files; what is finished is not run again."""
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    failed: list[BatchsimError] = []
    with Progress(*columns, console=STDERR) as progress:
        for path in experiments:
            task = progress.add_task(path.stem, total=None)

            def show(state: SweepProgress, task: TaskID = task) -> None:
                progress.update(task, total=state.num_runs, completed=state.num_ended)
                if state.failure is not None:
                    warn(state.failure)

            try:
                run_sweep(
                    path,
                    output_dir,
                    jobs=jobs,
                    full=full,
                    overwrite=overwrite,
                    shard=parse_shard(shard),
                    on_progress=show,
                )
            except BatchsimError as error:
                if len(experiments) == 1 or isinstance(error.__cause__, KeyboardInterrupt):
                    raise
                failed.append(error)
    if failed:
        raise failed[0]


@click.command()
@click.argument("results_dir", type=OUTPUT_PATH)
@click.argument("names", nargs=-1)
def figures(results_dir: Path, names: tuple[str, ...]) -> None:
    """Draw the figures of a sweep again (all, or those named), and its report page."""
    # Loading the plotting libraries takes longer than many a run: only the commands that draw pay for it.
    from batchsim.figures.draw import draw_figures
    from batchsim.figures.report import write_report

    for path in draw_figures(results_dir, names or None):
        click.echo(str(path))
    click.echo(str(write_report(results_dir)))


@click.command()
@click.argument("calibration", type=INPUT_FILE)
@click.option("-o", "--output-file", type=OUTPUT_PATH, default=Path("latency.json"), show_default=True)
@click.option("--family", type=click.Choice(get_args(Family)), default="auto", show_default=True)
@click.option(
    "--length", type=click.Choice(LENGTHS), default="prompt+output", show_default=True, help="What L counts."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def fit(calibration: Path, output_file: Path, family: Family, length: Length, as_json: bool) -> None:
    """Fit a latency model to measurements: coefficients, R2, held-out error, a picture, latency.json."""
    from batchsim.figures.fit import plot_fit

    if output_file.resolve() == calibration.with_suffix(".json").resolve():
        raise ConfigError(
            f"{output_file}: is where the provenance of {calibration.name} lies; choose another name"
        )
    points = read_calibration(calibration)
    report = fit_latency(points, family, length)
    save_latency(report.model, output_file)
    picture = plot_fit(points, report, output_file.with_suffix(""))
    classic = _classic(points, report, length)
    if as_json:
        coefficients = {
            "coefficients": dict(report.coefficients),
            "classic": classic and dict(classic.coefficients),
        }
        echo_json({"family": report.family, **coefficients, **report.model.info.details})
        return
    echo_table(f"{report.family} fit of {points.name} ({points.provenance})", ("", "value"), _rows(report))
    if classic is not None:
        echo_table("For comparison, the classic form, not written", ("", "value"), _rows(classic))
    for sentence in report.warnings:
        warn(sentence)
    click.echo(f"written: {output_file}, {picture}", err=True)


def _classic(points: Calibration, report: FitReport, length: Length) -> FitReport | None:
    """``alpha, beta, gamma`` beside another family that was chosen, where the rows allow it."""
    if report.family == "affine":
        return None
    with suppress(ConfigError):
        return fit_latency(points, "affine", length)
    return None


def _rows(report: FitReport) -> list[tuple[str, str]]:
    """Coefficients under the names of their formula, and the errors."""
    rows = [(_SYMBOLS.get(name, name), f"{value:.6g}") for name, value in report.coefficients.items()]
    for quality in report.qualities:
        rows += [
            (f"{quality.kind} points", f"{quality.num_points}"),
            (f"{quality.kind} R2", f"{quality.r2:.6f}"),
            (f"{quality.kind} largest error", _share(quality.max_error)),
            (
                f"{quality.kind} held-out MAPE, one batch size left out",
                _share(quality.heldout_batch_size_mape),
            ),
            (f"{quality.kind} held-out MAPE, one length left out", _share(quality.heldout_length_mape)),
        ]
    return rows


def _share(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.2%}"


_SYMBOLS = {"alpha_s": "alpha (s)", "beta_s_per_token": "beta (s per token)", "gamma": "gamma"}
