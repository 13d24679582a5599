"""The folder of a sweep: which runs are finished, and the tables of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from batchsim._version import __version__
from batchsim.config import SweepConfig
from batchsim.errors import ConfigError
from batchsim.files import json_text, read_json, remove_dead_partials, resolved, write_whole
from batchsim.files.tables import csv_text
from batchsim.results.dataset import DATASET, write_dataset
from batchsim.results.particulars import particulars
from batchsim.results.store import read_summary, save_failure
from batchsim.study.aggregate import SEEDS, aggregated
from batchsim.study.plan import PlannedRun
from batchsim.study.worker import Failure, Task

if TYPE_CHECKING:
    import pyarrow as pa

Summaries = dict[str, dict[str, Any]]

#: The tables of a sweep, and which runs they are of.
_TABLES, _SIGNED = ("results.csv", DATASET, "aggregated.csv"), "tables.json"


#: Failures that the dataset tells in words, of as many as there are.
_MOST_FAILURES = 20


class SweepFolder:
    """What is there of a sweep: `sweep.json`, the runs, and the dataset and tables of them.

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
        """Write the tables of all runs that are finished, whoever did them, and return ``results.csv``'s.

        Those that are there of the same runs are left: to write them takes longer than to read the runs.
        Others may end at the same time and write as well: whoever writes last has seen the runs of all.
        """
        self._refuse_other(_object(self.path / "sweep.json"))  # that began at the same time
        self._read_missing(runs)
        while True:
            num_finished = len(self.finished)
            rows = _rows(runs, self.finished)
            results = _table(rows).assign(num_runs_planned=len(runs))
            described = self._described(runs)
            decided_by = [described, len(runs), [[row["run_id"], row["case"]] for row in rows]]
            signature = hashlib.sha256(json.dumps(decided_by).encode()).hexdigest()
            if not self._has_tables(signature):
                write_whole(self.path / "results.csv", csv_text(results))
                self._write_dataset(len(runs), rows, described)
                self._write_aggregated(runs, rows)
                self._sign_tables(signature)
            self._read_missing(runs)
            if len(self.finished) == num_finished:
                return results

    def points_alike(self, runs: Sequence[PlannedRun]) -> tuple[int, int]:
        """Count the points all of whose replications gave the same, and those that have several."""
        points: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for run in runs:
            if "replication" in run.varied and run.run_id in self.finished:
                point = (run.case, *(repr(run.varied[key]) for key in run.varied if key != "replication"))
                points.setdefault(point, []).append({**self.finished[run.run_id], "seed": None})
        several = [summaries for summaries in points.values() if len(summaries) > 1]
        return sum(all(one == summaries[0] for one in summaries) for summaries in several), len(several)

    def _described(self, runs: Sequence[PlannedRun]) -> dict[str, Any]:
        contents = {(Path(name).name, digest) for run in runs for name, digest in run.inputs.items()}
        failures = [
            {"run": str(run), "why": str(told["failure"])}
            for run in runs
            if run.run_id not in self.finished
            and "failure" in (told := _object(self._place(run) / "failure.json"))
        ]
        return {
            "is_full": self._is_full,
            "sweep": self._shown,
            "file": Path(self._file).name,
            "sha256": self._content,
            "inputs": sorted(contents),
            "num_runs_planned": len(runs),
            "num_failures": len(failures),
            "failures": failures[:_MOST_FAILURES],
        }

    def _write_dataset(
        self, num_planned: int, rows: Sequence[Mapping[str, Any]], described: Mapping[str, Any]
    ) -> None:
        planned = [{**row, "num_runs_planned": num_planned} for row in rows]
        beside = (self._particulars(self.path / "runs" / row["run_id"]) for row in rows)
        write_dataset(
            self.path / DATASET, self._sweep.name, planned, described, beside, with_tables=bool(self._tables)
        )

    def _particulars(self, folder: Path) -> pa.Table:
        try:
            return particulars(folder, with_tables=bool(self._tables))
        except ConfigError as error:
            raise ConfigError(f"{error}; remove the folder of the run, and run the sweep again") from error

    def _has_tables(self, signature: str) -> bool:
        """Whether the tables are whole, and those of the runs that a signature stands for."""
        signed = _object(self.path / _SIGNED)
        files = signed.get("files")
        if signed.get("runs") != signature or not (isinstance(files, dict) and files.keys() <= set(_TABLES)):
            return False
        with suppress(OSError):
            return self._hashes(files) == files
        return False

    def _sign_tables(self, signature: str) -> None:
        names = [name for name in _TABLES if (self.path / name).exists()]
        told = {"runs": signature, "files": self._hashes(names)}
        write_whole(self.path / _SIGNED, json_text(told))

    def _hashes(self, names: Iterable[str]) -> dict[str, str]:
        return {name: hashlib.sha256((self.path / name).read_bytes()).hexdigest() for name in names}

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
