"""Many runs from one file: do what is not finished in processes, keep what is, collect one table."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from batchsim._version import __version__
from batchsim.config import SweepConfig
from batchsim.errors import BatchsimError, ConfigError
from batchsim.files import json_text, read_json, remove_dead_partials, resolved, write_whole
from batchsim.files.tables import csv_text
from batchsim.results.dataset import DATASET, write_dataset
from batchsim.results.store import read_summary, save_failure
from batchsim.study.aggregate import SEEDS, aggregated
from batchsim.study.plan import PlannedRun, parse_shard, plan, read_sweep_file, take_shard
from batchsim.study.processes import run_all
from batchsim.study.setup.hardware import hardware_notices
from batchsim.study.sweeps.dask_engine import LOCAL_WORKERS, run_on_dask
from batchsim.study.sweeps.estimate import Estimate, estimate, shares
from batchsim.study.worker import Failure, Task

__all__ = ["PlannedRun", "SweepProgress", "parse_shard", "plan", "read_sweep_file", "run_sweep"]

Summaries = dict[str, dict[str, Any]]


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
    folder = _Folder(Path(output_dir) / sweep.name, sweep)
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
    folder = _Folder(Path(output_dir) / sweep.name, sweep)
    damaged = [] if overwrite else folder.read(mine.values())
    to_do = [run for run in mine.values() if run.run_id not in folder.finished]
    if to_do and check_figure is not None:
        check_figure(sweep, runs, Path(path))
    before = folder.claim(Path(path), runs, full=full, overwrite=overwrite)

    failures: list[str] = []
    num_ended = len(mine) - len(to_do)

    share, start_s, done = shares(to_do), time.monotonic(), 0.0

    def report(failure: str | None = None) -> None:
        elapsed_s = time.monotonic() - start_s
        remaining_s = elapsed_s * max(1 - done, 0.0) / done if done > 0 else None
        if on_progress is not None:
            on_progress(SweepProgress(sweep.name, num_ended, len(mine), failure, remaining_s))

    def say(sentence: str) -> None:
        if on_notice is not None:
            on_notice(f"{sweep.name}: {sentence}")

    assumed = hardware_notices(run.config for run in mine.values())
    for notice in [*damaged, *folder.changes(before, to_do), *assumed]:
        say(notice)
    report()

    def engine(tasks: Sequence[Task]) -> Iterator[tuple[Task, Failure | None]]:
        if backend == "dask":
            return run_on_dask(tasks, scheduler, jobs if jobs > 1 else LOCAL_WORKERS, say)
        return run_all(tasks, jobs)

    try:
        for run, failure in folder.run(to_do, engine):
            num_ended, done = num_ended + 1, done + share[run.run_id]
            failures += [] if failure is None else [f"{run}: {failure.sentence}"]
            report(None if failure is None else failures[-1])
    except KeyboardInterrupt as error:
        with suppress(BatchsimError):  # what is there can be drawn
            if folder.finished or num_ended > len(failures):
                folder.collect(runs)
        raise BatchsimError(
            f"{sweep.name}: interrupted; {num_ended - len(failures)} of {len(mine)} runs are saved in "
            f"{folder.path}, the same command does the rest"
        ) from error
    results = folder.collect(runs)
    if failures:
        raise BatchsimError(
            f"{sweep.name}: {len(failures)} of {len(mine)} runs failed, the others are in {folder.path}; "
            f"the first: {failures[0]}"
        )
    if len(results) < len(runs):
        say(f"{len(results)} of {len(runs)} runs are finished")
    return results


class _Folder:
    """What is there of a sweep: `sweep.json`, `results.csv`, and the runs.

    Attributes
    ----------
    finished
        Summaries of the runs that are known to be whole, by run id.
    """

    def __init__(self, path: Path, sweep: SweepConfig) -> None:
        self.path = path
        self.finished: Summaries = {}
        self._sweep = sweep
        self._tables = ["requests"] if sweep.save == "tables" else []
        self._shown = sweep.model_dump(mode="json")
        self._is_full = False
        self._file = self._content = ""

    def claim(
        self, file: Path, runs: Sequence[PlannedRun], *, full: bool, overwrite: bool
    ) -> Mapping[str, Any]:
        """Write ``sweep.json``; return what was in it, of this sweep's last time."""
        self._file = str(resolved(file))
        self._content = hashlib.sha256(file.read_bytes()).hexdigest()
        self._is_full = full
        before = _object(self.path / "sweep.json")
        if not overwrite:
            self._refuse_other(before)
        for folder in (self.path.parent, self.path, self.path / "runs"):
            remove_dead_partials(folder)
        shown = {
            "batchsim": __version__,
            "is_full": full,
            "sweep": self._shown,
            "file": self._file,
            "sha256": self._content,
            "inputs": {name: digest for run in runs for name, digest in run.inputs.items()},
            "runs": {run.key: run.run_id for run in runs},
        }
        write_whole(self.path / "sweep.json", json_text(shown))
        return before

    def read(self, runs: Iterable[PlannedRun]) -> list[str]:
        """Look which of the runs are finished; say which were, but are no longer whole."""
        damaged = []
        for run in runs:
            try:
                summary = read_summary(self._place(run), self._tables)
            except ConfigError as error:
                damaged.append(f"{error}: the run is run again")
                continue
            if summary is not None:
                self.finished[run.run_id] = summary
        return damaged

    def changes(self, before: Mapping[str, Any], to_do: Iterable[PlannedRun]) -> list[str]:
        """Say what has changed since the last time, if finished runs have to be run again for it."""
        names, ids = before.get("inputs"), before.get("runs")
        if not (isinstance(names, dict) and isinstance(ids, dict)):
            return []
        again = [
            run
            for run in to_do
            if ids.get(run.key, run.run_id) != run.run_id
            and (self.path / "runs" / str(ids[run.key]) / "manifest.json").exists()
        ]
        changed = {name for run in again for name, digest in run.inputs.items() if names.get(name) != digest}
        shown = ", ".join(sorted(Path(name).name for name in changed))
        return [f"{shown} changed: {len(again)} runs are run again"] if again else []

    def run(
        self,
        runs: Sequence[PlannedRun],
        engine: Callable[[Sequence[Task]], Iterator[tuple[Task, Failure | None]]],
    ) -> Iterator[tuple[PlannedRun, Failure | None]]:
        """Do these runs; each is saved, or why it failed."""
        tasks = [Task(run, self._place(run), bool(self._tables)) for run in runs]
        try:
            for task, failure in engine(tasks):
                if failure is not None:
                    self._save_failure(task, failure)
                yield task.run, failure
        finally:
            remove_dead_partials(self.path / "runs")

    def collect(self, runs: Sequence[PlannedRun]) -> pd.DataFrame:
        """Write both tables of all runs that are finished, whoever did them, and return ``results.csv``'s.

        Others may end at the same time and write as well: whoever writes last has seen the runs of all.
        """
        self._refuse_other(_object(self.path / "sweep.json"))  # that began at the same time
        self._read_missing(runs)
        while True:
            num_finished = len(self.finished)
            rows = _rows(runs, self.finished)
            results = _table(rows).assign(num_runs_planned=len(runs))
            write_whole(self.path / "results.csv", csv_text(results))
            self._write_dataset(runs, rows)
            self._write_aggregated(runs, rows)
            self._read_missing(runs)
            if len(self.finished) == num_finished:
                return results

    def _write_dataset(self, runs: Sequence[PlannedRun], rows: Sequence[Mapping[str, Any]]) -> None:
        contents = {(Path(name).name, digest) for run in runs for name, digest in run.inputs.items()}
        described = {"is_full": self._is_full, "sweep": self._shown, "inputs": sorted(contents)}
        planned = {"num_runs_planned": len(runs)}
        write_dataset(self.path / DATASET, self._sweep.name, [{**row, **planned} for row in rows], described)

    def _write_aggregated(self, runs: Sequence[PlannedRun], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a row per point where runs differ in the seed alone; no table of another time stays."""
        file = self.path / "aggregated.csv"
        varied = runs[0].varied
        by = [key for key in ("case", *varied) if key not in SEEDS]
        if varied.keys().isdisjoint(SEEDS):
            file.unlink(missing_ok=True)
        else:
            write_whole(file, csv_text(_table(aggregated(rows, by))))

    def _refuse_other(self, described: Mapping[str, Any]) -> None:
        """Leave the table of another sweep alone; ours may be edited, or lie elsewhere on other machines."""
        if described.get("file") in (None, self._file) or described.get("sha256") == self._content:
            return
        raise ConfigError(
            f"{self.path}: holds the results of {described['file']}, which has the same name as "
            f"{self._file}; give one of them another name or output folder, or replace them with --overwrite"
        )

    def _read_missing(self, runs: Iterable[PlannedRun]) -> None:
        self.read([run for run in runs if run.run_id not in self.finished])

    def _save_failure(self, task: Task, failure: Failure) -> None:
        told = {
            "failure": failure.sentence,
            "varied": dict(task.run.varied),
            "config": task.run.config.model_dump(mode="json"),
            "traceback": failure.traceback,
        }
        with suppress(ConfigError):  # where nothing can be written, the run itself has said so
            save_failure(task.directory, told)

    def _place(self, run: PlannedRun) -> Path:
        return self.path / "runs" / run.run_id


def _rows(runs: Sequence[PlannedRun], summaries: Summaries) -> list[dict[str, Any]]:
    return [
        {"run_id": run.run_id, "case": run.case, **run.varied, **summaries[run.run_id]}
        for run in runs
        if run.run_id in summaries
    ]


def _table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    results = pd.DataFrame(rows)
    mixed = results.columns[results.dtypes == np.dtype(object)]
    nested = [name for name in mixed if results[name].map(lambda value: isinstance(value, list | dict)).any()]
    for name in nested:
        results[name] = results[name].map(partial(json.dumps, allow_nan=False))
    return results


def _object(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none, or none that can be read."""
    with suppress(ConfigError):
        tree = read_json(file)
        return tree if isinstance(tree, dict) else {}
    return {}
