"""Many runs from one file: do what is not finished in processes, keep what is, collect one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import pandas as pd

from batchsim.config import SweepConfig
from batchsim.errors import BatchsimError, ConfigError
from batchsim.study.plan import PlannedRun, parse_shard, plan, read_sweep_file, take_shard
from batchsim.study.processes import run_all
from batchsim.study.setup.hardware import hardware_notices
from batchsim.study.sweeps.dask_engine import LOCAL_WORKERS, run_on_dask
from batchsim.study.sweeps.estimate import Estimate, estimate, shares
from batchsim.study.sweeps.folder import SweepFolder
from batchsim.study.worker import Failure, Task

__all__ = ["PlannedRun", "SweepProgress", "parse_shard", "plan", "read_sweep_file", "run_sweep"]


class SweepProgress(NamedTuple):
    """How far a sweep is.

    Attributes
    ----------
    failure
        What went wrong with the run that ended last, if anything.
    remaining_s
        How long the rest takes if it goes on as so far; None before anything has ended.
    """

    name: str
    num_ended: int
    num_runs: int
    failure: str | None
    remaining_s: float | None = None


class SweepState(NamedTuple):
    """What there is to do of a sweep.

    Attributes
    ----------
    runs
        All of this shard.
    finished
        The directories of those that are finished.
    damaged
        Sentences on those that were, and are run again.
    """

    sweep: SweepConfig
    runs: Sequence[PlannedRun]
    finished: Mapping[str, Path]
    damaged: Sequence[str]

    @property
    def to_do(self) -> list[PlannedRun]:
        """Runs that are not finished."""
        return [run for run in self.runs if run.run_id not in self.finished]

    def estimate(self) -> Estimate:
        """Estimate how long they take; runs small ones where none is finished."""
        finished = [(run, self.finished[run.run_id]) for run in self.runs if run.run_id in self.finished]
        return estimate(self.to_do, finished)


def look(
    path: str | Path,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    shard: tuple[int, int] = (1, 1),
    **options: Any,
) -> SweepState:
    """See what `run_sweep` would do with these of its parameters; ``options`` are `read_sweep_file`'s."""
    sweep = read_sweep_file(path, **options)
    mine = {run.run_id: run for run in take_shard(plan(sweep, path), shard)}
    folder = SweepFolder(Path(output_dir) / sweep.name, sweep)
    damaged = [] if overwrite else folder.read(mine.values())
    finished = {run_id: folder.path / "runs" / run_id for run_id in folder.finished}
    return SweepState(sweep, list(mine.values()), finished, damaged)


def run_sweep(
    path: str | Path,
    output_dir: str | Path,
    *,
    jobs: int = 1,
    backend: Literal["processes", "dask"] = "processes",
    scheduler: str | None = None,
    full: bool = False,
    overwrite: bool = False,
    shard: tuple[int, int] = (1, 1),
    overrides: Mapping[str, Any] | None = None,
    replications: int | None = None,
    counts: Mapping[str, int] = MappingProxyType({}),
    check_figure: Callable[[SweepConfig, Sequence[PlannedRun], Path], None] | None = None,
    on_progress: Callable[[SweepProgress], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Run what is not yet finished of a sweep and collect all that is.

    Each run is saved as soon as it ends, as ``output_dir/<name>/runs/<run id>``, or ``failure.json`` there
    says why there is none. In ``output_dir/<name>``, ``results.csv`` and ``dataset.parquet`` get a row for
    each finished run, what was varied, its summary and ``num_runs_planned``, how many rows it will have;
    ``sweep.json`` tells what the sweep was. What is finished is run again if any file, policy or code that
    decides it has changed, or if its files are no longer whole.

    Parameters
    ----------
    jobs
        Processes; with ``dask``, workers of a cluster of this machine: two where this is 1.
    backend
        Where the runs are done: in processes of this machine, or on a Dask cluster (docs/cluster.md).
    scheduler
        Address of a Dask cluster's scheduler, or the file it wrote; None: a cluster of this machine.
    overwrite
        Run again what is finished; take the folder over from another sweep file of the same name.
    shard
        ``(k, n)``: only every n-th run from the k-th on, for n machines that share the folder; then
        ``results.csv`` holds what all of them have finished so far.
    overrides, replications
        As for `read_sweep_file`.
    counts
        As for `plan`.
    check_figure
        Called before the first run with the sweep, all its runs and the file, to refuse a figure that they
        cannot make (`figures.plots.check_figure`); not called where all is finished.
    on_progress
        Called at the start and whenever a run ends.
    on_notice
        Called with a sentence on what has changed or is no longer whole, on the hardware and the latency
        models, and on what is not yet there.

    Raises
    ------
    ConfigError
        For a sweep that cannot be planned, or whose name another one has taken; nothing was run.
    BatchsimError
        If runs failed (the others are finished and collected), or the sweep was interrupted.
    """
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}; a whole number >= 1 is needed")
    if scheduler is not None and backend != "dask":
        raise ConfigError(f"scheduler {scheduler} is of the backend dask, not of {backend}")
    sweep = read_sweep_file(path, full=full, overrides=overrides, replications=replications)
    runs = plan(sweep, path, counts)
    mine = {run.run_id: run for run in take_shard(runs, shard)}
    folder = SweepFolder(Path(output_dir) / sweep.name, sweep)
    damaged = [] if overwrite else folder.read(mine.values())
    to_do = [run for run in mine.values() if run.run_id not in folder.finished]
    if to_do and check_figure is not None:
        check_figure(sweep, runs, Path(path))
    before = folder.claim(Path(path), runs, full=full, overwrite=overwrite)

    course = _Course(sweep.name, len(mine), to_do, on_progress)

    def say(sentence: str) -> None:
        if on_notice is not None:
            on_notice(f"{sweep.name}: {sentence}")

    assumed = hardware_notices(run.config for run in mine.values())
    for notice in [*damaged, *folder.changes(before, to_do), *assumed]:
        say(notice)
    course.tell()

    def engine(tasks: Sequence[Task]) -> Iterator[tuple[Task, Failure | None]]:
        if backend == "dask":
            return run_on_dask(tasks, scheduler, jobs if jobs > 1 else LOCAL_WORKERS, say)
        return run_all(tasks, jobs)

    try:
        for run, failure in folder.run(to_do, engine):
            course.go_on(run, failure)
    except KeyboardInterrupt as error:
        with suppress(BatchsimError):  # what is there can be drawn
            if folder.finished or course.num_saved:
                folder.collect(runs)
        raise BatchsimError(
            f"{sweep.name}: interrupted; {course.num_saved} of {len(mine)} runs are saved in "
            f"{folder.path}, the same command does the rest"
        ) from error
    try:
        results = folder.collect(runs)
    except ConfigError as error:
        if not isinstance(error.__cause__, OSError):  # but a full disk, say
            raise
        raise BatchsimError(
            f"{sweep.name}: {error}; {course.num_saved} of {len(mine)} runs are saved, the same command does "
            "the rest"
        ) from error
    num_alike, num_points = folder.points_alike(runs)
    if num_alike:
        say(
            f"the replications of {num_alike} of {num_points} points do not differ: nothing random bears on "
            "them"
        )
    if course.failures:
        raise BatchsimError(
            f"{sweep.name}: {len(course.failures)} of {len(mine)} runs failed, the others are in "
            f"{folder.path}; the first: {course.failures[0]}"
        )
    if len(results) < len(runs):
        say(f"{len(results)} of {len(runs)} runs are finished")
    return results


class _Course:
    """How far a sweep is, told whenever a run ends.

    Attributes
    ----------
    failures
        A sentence for each run that failed.
    """

    def __init__(
        self,
        name: str,
        num_runs: int,
        to_do: Sequence[PlannedRun],
        on_progress: Callable[[SweepProgress], None] | None,
    ) -> None:
        self.failures: list[str] = []
        self._name, self._num_runs, self._on_progress = name, num_runs, on_progress
        self._num_ended = num_runs - len(to_do)
        self._shares, self._done, self._start_s = shares(to_do), 0.0, time.monotonic()

    @property
    def num_saved(self) -> int:
        """Runs that are finished, now or before."""
        return self._num_ended - len(self.failures)

    def go_on(self, run: PlannedRun, failure: Failure | None) -> None:
        """Count a run that has ended, and tell."""
        self._num_ended += 1
        self._done += self._shares[run.run_id]
        if failure is not None:
            self.failures.append(f"{run}: {failure.sentence}")
        self.tell(None if failure is None else self.failures[-1])

    def tell(self, failure: str | None = None) -> None:
        """Say how far it is."""
        if self._on_progress is None:
            return
        elapsed_s, done = time.monotonic() - self._start_s, self._done
        remaining_s = elapsed_s * max(1 - done, 0.0) / done if done > 0 else None
        self._on_progress(SweepProgress(self._name, self._num_ended, self._num_runs, failure, remaining_s))
