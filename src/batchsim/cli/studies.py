"""``batchsim sweep``, ``query``, ``figures``: many runs, what is asked of them, and their pictures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchsim.cli.numbers import duration
from batchsim.cli.options import INPUT_FILE, OUTPUT_PATH, overrides, replication_options, stopping
from batchsim.cli.output import echo_json, echo_table, notice, plain, sweep_bars, warn
from batchsim.errors import BatchsimError, ConfigError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from batchsim.config import SweepConfig
    from batchsim.study.sweep import PlannedRun, SweepProgress, SweepState


#: Of a table that a terminal shows.
_MOST_COLUMNS = 16


@click.command()
@click.argument("experiments", nargs=-1, required=True, type=INPUT_FILE)
@click.option("-o", "--output-dir", type=OUTPUT_PATH, default=Path("results"), show_default=True)
@click.option("--jobs", type=int, default=1, show_default=True, help="Processes.")
@click.option(
    "--backend",
    type=click.Choice(["processes", "dask"]),
    default="processes",
    show_default=True,
    help="Processes of this machine, or a Dask cluster.",
)
@click.option("--scheduler", metavar="ADDRESS", help="Of a Dask cluster; without it, one of this machine.")
@click.option("--full", is_flag=True, help="The paper's grid instead of the small one.")
@click.option(
    "--shard", default="1/1", show_default=True, metavar="K/N", help="Every N-th run from the K-th on."
)
@replication_options
@click.option("--latency", metavar="FILE", help="latency.json for all runs, whatever the sweep files name.")
@click.option("--extrapolate", is_flag=True, help="Leave the calibrated range in all runs, counted.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of all runs, likewise."
)
@click.option("--overwrite", is_flag=True, help="Run again what is finished.")
@click.option("--dry-run", is_flag=True, help="Print the runs, and about how long they take; run none.")
def sweep(experiments: tuple[Path, ...], output_dir: Path, shard: str, **given: Any) -> None:
    """Run sweep files; what is finished is not run again."""
    from batchsim.study.plan import parse_shard, plan, read_sweep_file
    from batchsim.study.sweep import look, run_sweep
    from batchsim.study.sweeps.precision import run_sweep_until

    enough = stopping(given)
    options = {
        "full": given.pop("full"),
        "overrides": overrides(given),
    }
    num = None if enough is None else enough.num
    do = partial(run_sweep, replications=num)
    if enough is not None and enough.precision is not None:
        do = partial(run_sweep_until, stopping=enough)
    is_dry = given.pop("dry_run")
    place = {name: given.pop(name) for name in ("jobs", "backend", "scheduler", "overwrite")}
    part = parse_shard(shard)
    if len(experiments) > 1 or is_dry:  # a fault in the last is told before the first has run for an hour
        for path in experiments:
            planned = read_sweep_file(path, replications=num, **options)
            _check_figure(planned, plan(planned, path), path)
    if is_dry:
        seen = {"overwrite": place["overwrite"], "shard": part, "replications": num, **options}
        for path in experiments:
            _echo_plan(look(path, output_dir, **seen), place["jobs"])
        if enough is not None and enough.precision is not None:
            notice(
                f"these come first; points that are not precise enough then go on, to {enough.most} runs each"
            )
        return
    failed: list[BatchsimError] = []
    tasks: dict[str, TaskID] = {}
    with ExitStack() as shown:
        progress = sweep_bars()

        def show(state: SweepProgress) -> None:
            if not tasks:
                shown.enter_context(progress)
            if state.name not in tasks:
                tasks[state.name] = progress.add_task(plain(state.name), left="")
            is_told = state.remaining_s is not None and state.num_ended < state.num_runs
            left = f"{duration(state.remaining_s)} left" if is_told else ""
            progress.update(tasks[state.name], total=state.num_runs, completed=state.num_ended, left=left)
            if state.failure is not None:
                warn(state.failure)

        for path in experiments:
            try:
                do(
                    path,
                    output_dir,
                    shard=part,
                    **place,
                    on_progress=show,
                    on_notice=notice,
                    check_figure=_check_figure,
                    **options,
                )
            except BatchsimError as error:
                if len(experiments) == 1 or isinstance(error.__cause__, KeyboardInterrupt):
                    raise
                failed.append(error)
    for name in tasks:
        click.echo(f"written: {output_dir / name}", err=True)
    if failed:
        raise failed[0]


def _echo_plan(state: SweepState, jobs: int) -> None:
    """Print what would be run, with what tells the runs apart, and how long it may take."""
    told, to_do = state.estimate(), state.to_do
    total_s = sum(told.run_s.values()) / max(min(jobs, len(to_do)), 1)
    about = f"about {duration(total_s)} with {jobs} at once, {told.source}" if told.run_s else told.source
    click.echo(f"{state.sweep.name}: {len(state.runs)} runs, {len(state.finished)} of them finished")
    keys = list(state.runs[0].varied) if state.runs else []
    rows = [
        [
            run.run_id,
            run.case,
            *("-" if (value := run.varied[key]) is None else value for key in keys),
            "finished" if run.run_id in state.finished else duration(told.run_s.get(run.run_id)),
        ]
        for run in state.runs
    ]
    echo_table("", ["run", "case", *keys, "takes"], rows)
    for sentence in state.damaged:
        notice(sentence)
    click.echo(f"{len(to_do)} runs to do, {about}" if to_do else "nothing to do")


def _check_figure(sweep: SweepConfig, runs: Sequence[PlannedRun], path: Path) -> None:
    from batchsim.figures.plots import check_figure  # which takes a second to import

    check_figure(sweep, runs, path)


@click.command()
@click.argument("sql")
@click.argument("results_dir", type=OUTPUT_PATH, default=Path("results"))
@click.option("--csv", "as_csv", is_flag=True, help="Print a CSV table.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
def query(sql: str, results_dir: Path, as_csv: bool, as_json: bool) -> None:
    """Ask the table `runs` of a sweep, or of a folder of sweeps, in SQL (DuckDB's).

    For example: select policy, avg(e2e_mean_s) from runs group by policy. A name with dots stands in
    double quotes.
    """
    from batchsim.files.tables import csv_text
    from batchsim.results.dataset import query as ask

    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other")
    if len(sql.split()) < 2:
        raise click.UsageError(f"{sql!r} is no SQL; the query comes first, then the folder")
    answer = ask(sql, results_dir)
    if as_json:
        echo_json({"rows": [_plain_values(row) for row in answer.to_pylist()]})
    elif as_csv:
        click.echo(csv_text(answer.to_pandas()), nl=False)
    else:
        _echo_answer(answer.to_pydict())


def _plain_values(value: Any) -> Any:
    """As JSON has them: dates, decimals and the like are text."""
    if isinstance(value, dict):
        return {key: _plain_values(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain_values(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _echo_answer(columns: Mapping[str, Sequence[object]]) -> None:
    """Print a table; of a few runs with many columns, a line for each of these."""
    cells = {name: [_cell(value) for value in values] for name, values in columns.items()}
    num_rows = len(next(iter(cells.values())))
    if num_rows == 0:
        notice("no row answers the query")
    elif len(cells) <= _MOST_COLUMNS:
        echo_table("", list(cells), list(zip(*cells.values(), strict=True)))
    elif num_rows <= _MOST_COLUMNS // 2:
        echo_table("", ["", *map(str, range(1, num_rows + 1))], [[name, *one] for name, one in cells.items()])
    else:
        raise ConfigError(
            f"query: {num_rows} rows of {len(cells)} columns make no table to read; name fewer columns, or "
            "print --csv or --json"
        )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@click.command()
@click.argument("results_dir", type=OUTPUT_PATH)
@click.argument("names", nargs=-1)
@click.option(
    "--width", type=click.Choice(["one", "two"]), default="two", show_default=True, help="Columns of a paper."
)
def figures(results_dir: Path, names: tuple[str, ...], width: str) -> None:
    """Draw the figures of a sweep again (all, or those named), and a page that shows them.

    Of what `recommend` left in a folder, the Pareto fronts.
    """
    from batchsim.figures.draw import draw_figures
    from batchsim.figures.report import write_report
    from batchsim.figures.studies.pareto import PARETO, draw_fronts
    from batchsim.study.recommend import RECOMMENDATION

    if (results_dir / RECOMMENDATION).exists():
        if set(names) - {PARETO}:
            raise ConfigError(f"{results_dir}: of a recommendation there is the figure {PARETO} alone")
        for path in draw_fronts(results_dir, width):
            click.echo(str(path))
        return
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
