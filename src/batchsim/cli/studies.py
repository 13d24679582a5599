"""``batchsim sweep``, ``figures``: many runs, and their pictures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchsim.cli.options import INPUT_FILE, OUTPUT_PATH, overrides
from batchsim.cli.output import notice, plain, stderr, warn
from batchsim.errors import BatchsimError

if TYPE_CHECKING:
    from batchsim.config import SweepConfig
    from batchsim.study.sweep import PlannedRun, SweepProgress


@click.command()
@click.argument("experiments", nargs=-1, required=True, type=INPUT_FILE)
@click.option("-o", "--output-dir", type=OUTPUT_PATH, default=Path("results"), show_default=True)
@click.option("--jobs", type=int, default=1, show_default=True, help="Processes.")
@click.option("--full", is_flag=True, help="The paper's grid instead of the small one.")
@click.option(
    "--shard", default="1/1", show_default=True, metavar="K/N", help="Every N-th run from the K-th on."
)
@click.option("--latency", metavar="FILE", help="latency.json for all runs, whatever the sweep files name.")
@click.option("--extrapolate", is_flag=True, help="Leave the calibrated range in all runs, counted.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of all runs, likewise."
)
@click.option("--overwrite", is_flag=True, help="Run again what is finished.")
def sweep(
    experiments: tuple[Path, ...], output_dir: Path, jobs: int, shard: str, overwrite: bool, **given: Any
) -> None:
    """Run sweep files; what is finished is not run again."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from batchsim.study.plan import parse_shard, plan, read_sweep_file
    from batchsim.study.sweep import run_sweep

    options = {"full": given.pop("full"), "overrides": overrides(given)}
    part = parse_shard(shard)
    if len(experiments) > 1:  # a fault in the last is told before the first has run for an hour
        for path in experiments:
            planned = read_sweep_file(path, **options)
            _check_figure(planned, plan(planned, path), path)
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    failed: list[BatchsimError] = []
    progress, tasks = Progress(*columns, console=stderr()), dict[str, TaskID]()
    with ExitStack() as shown:

        def show(state: SweepProgress) -> None:
            if not tasks:
                shown.enter_context(progress)
            if state.name not in tasks:
                tasks[state.name] = progress.add_task(plain(state.name))
            progress.update(tasks[state.name], total=state.num_runs, completed=state.num_ended)
            if state.failure is not None:
                warn(state.failure)

        for path in experiments:
            try:
                run_sweep(
                    path,
                    output_dir,
                    jobs=jobs,
                    overwrite=overwrite,
                    shard=part,
                    on_progress=show,
                    on_notice=notice,
                    check_figure=_check_figure,
                    **options,
                )
            except BatchsimError as error:
                if len(experiments) == 1 or isinstance(error.__cause__, KeyboardInterrupt):
                    raise
                failed.append(error)
    if failed:
        raise failed[0]


def _check_figure(sweep: SweepConfig, runs: Sequence[PlannedRun], path: Path) -> None:
    from batchsim.figures.plots import check_figure  # which takes a second to import

    check_figure(sweep, runs, path)


@click.command()
@click.argument("results_dir", type=OUTPUT_PATH)
@click.argument("names", nargs=-1)
@click.option(
    "--width", type=click.Choice(["one", "two"]), default="two", show_default=True, help="Columns of a paper."
)
def figures(results_dir: Path, names: tuple[str, ...], width: str) -> None:
    """Draw the figures of a sweep again (all, or those named), and its report page."""
    from batchsim.figures.draw import draw_figures
    from batchsim.figures.report import write_report

    faults: list[BatchsimError] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for path in draw_figures(results_dir, names or None, width=width, on_fault=faults.append):
            click.echo(str(path))
        click.echo(str(write_report(results_dir)))
    for sentence in dict.fromkeys(str(warning.message) for warning in caught):
        warn(sentence)
    for fault in faults[1:]:
        warn(str(fault))
    if faults:
        raise faults[0]
