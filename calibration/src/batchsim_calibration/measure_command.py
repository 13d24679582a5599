"""``batchsim-calibrate measure``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from batchsim_calibration.measuring.grid import Profile
from batchsim_calibration.measuring.measure import MeasureSettings
from batchsim_calibration.measuring.measure import measure as measure_calibration
from batchsim_calibration.measuring.outcome import Outcome
from batchsim_calibration.measuring.protocol import OnProgress

STDERR = Console(stderr=True)


_GRID_OPTIONS = (
    click.option(
        "--full", "profile", flag_value="full", default="full", help="The whole grid (the default)."
    ),
    click.option("--quick", "profile", flag_value="quick", help="A small grid, about five minutes."),
    click.option("--smoke", "profile", flag_value="smoke", help="A handful of points, to try things out."),
    click.option(
        "--trials", "num_trials", type=click.IntRange(min=1), metavar="N", help="Trials of each point."
    ),
    click.option(
        "--budget",
        "budget_s",
        type=click.FloatRange(min=0, min_open=True),
        metavar="S",
        help="Repeat nothing after so many seconds.  [default: 240 with --quick on a CPU, else no limit]",
    ),
    click.option("--max-batch-size", type=click.IntRange(min=2), metavar="B", help="Where the grid ends."),
    click.option("--max-tokens", type=click.IntRange(min=2), metavar="N", help="Longest context and prompt."),
)


def grid_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what says which grid is measured, and how often."""
    for option in reversed(_GRID_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.option(
    "--model",
    metavar="NAME",
    help="A shipped shape, or a Hugging Face model by name or path.  [default: by device]",
)
@click.option("--random-weights", is_flag=True, help="Build the model from its configuration alone.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option(
    "--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), help="[default: bf16 on CUDA, else fp32]"
)
@click.option("--attention", type=click.Choice(["sdpa", "eager"]), default="sdpa", show_default=True)
@grid_options
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the order of points, and of random weights."
)
@click.option("--name", metavar="STEM", help="Name of the table.  [default: model_device_dtype]")
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    show_default="here",
)
@click.option("--overwrite", is_flag=True, help="Replace a table that is there.")
@click.pass_context
def measure(
    ctx: click.Context, /, output_dir: Path, name: str | None, overwrite: bool, profile: Profile, **given: Any
) -> None:
    """Measure a calibration table, with its provenance beside it.

    An interrupted run goes on where it stopped when the same command is given again.
    """
    settings = MeasureSettings(profile=profile, **given)
    try:
        with progress() as on_progress:
            path, outcome = measure_calibration(
                settings,
                output_dir,
                name=name,
                overwrite=overwrite,
                say=say,
                on_progress=on_progress,
            )
    except KeyboardInterrupt:
        click.echo(
            f"Interrupted: what was measured so far is kept in {output_dir} (*.csv.partial); "
            "the same command goes on from there",
            err=True,
        )
        ctx.exit(1)
    tell_outcome(outcome)
    click.echo(str(path))


def say(sentence: str) -> None:
    """Print a sentence on stderr, as it is."""
    STDERR.print(sentence, markup=False, highlight=False, soft_wrap=True)


def tell_outcome(outcome: Outcome) -> None:
    """Say how steady the machine was."""
    for sentence in outcome.warnings():
        STDERR.print(f"[bold yellow]Warning:[/] {escape(sentence)}", highlight=False, soft_wrap=True)
    rows = ", ".join(f"{count} {status}" for status, count in outcome.rows_by_status.items())
    click.echo(
        f"{outcome.num_points} points, {rows}; spread {_share(outcome.median_spread)} "
        f"(median interquartile range), drift {_share(outcome.drift)}; {outcome.taken_s:.0f} s",
        err=True,
    )


def _share(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.1%}"


@contextmanager
def progress() -> Iterator[OnProgress]:
    """Show bars on a terminal; elsewhere, as in a log, a line for each tenth."""
    if not STDERR.is_terminal:
        told: dict[str, int] = {}

        def tell(what: str, done: float, total: float) -> None:
            tenths = int(10 * done / total) if total > 0 else 0
            if tenths > told.get(what, -1):
                told[what] = tenths
                STDERR.print(f"{what}: {10 * tenths} %", highlight=False)

        yield tell
        return
    columns = (TextColumn("{task.description:12}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=STDERR) as progress:
        bars: dict[str, Any] = {}

        def on_progress(what: str, done: float, total: float) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done, total=total)

        yield on_progress
