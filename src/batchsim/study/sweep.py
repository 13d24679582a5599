"""Many runs from one file: plan the grid, run it in processes, keep what is finished, collect one table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from joblib import Parallel, delayed, parallel_config

from batchsim._version import __version__
from batchsim.config import RunConfig, SweepConfig, flat, read_toml, set_dotted, validate
from batchsim.errors import BatchsimError, ConfigError
from batchsim.files import write_whole
from batchsim.policies import presets
from batchsim.results.store import run_id, save_run
from batchsim.study.run import simulate, training_fraction
from batchsim.workload.load import embedded_trace
from batchsim.workload.predictor import make_predictor

#: Settings that name a file.
_FILE_KEYS = ("workload.trace", "latency.file")


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a sweep.

    Attributes
    ----------
    run_id
        The same for the same configuration, version and content of the files it names, wherever these lie.
    case
        Label of the case; empty where the sweep has none.
    varied
        Dotted keys that the sweep varies, with the values of this run.
    """

    run_id: str
    config: RunConfig
    case: str
    varied: Mapping[str, Any]

    def __str__(self) -> str:
        shown = [self.case] if self.case else []
        return ", ".join(
            shown + [f"{key}={value}" for key, value in self.varied.items() if value is not None]
        )


class SweepProgress(NamedTuple):
    """How far a sweep is; ``failure`` says what went wrong with the run that ended last, if anything."""

    name: str
    num_ended: int
    num_runs: int
    failure: str | None


def load_sweep(path: str | Path, *, full: bool = False) -> SweepConfig:
    """Read a sweep file; with ``full``, the entries of its ``full`` table win.

    A file that it names is sought in the sweep file's own folder, then in the current one.
    """
    path = Path(path)
    sweep = validate(SweepConfig, read_toml(path), str(path))
    base, grid = flat(sweep.base), dict(sweep.grid)
    if full:
        base |= flat(sweep.full.base)
        grid |= sweep.full.grid
    cases = [flat(case) for case in sweep.cases]
    for settings in (base, *cases):
        for key in settings.keys() & set(_FILE_KEYS):
            settings[key] = _beside(path, settings[key])
    for key in grid.keys() & set(_FILE_KEYS):
        grid[key] = [_beside(path, name) for name in grid[key]]
    return sweep.model_copy(update={"base": base, "grid": grid, "cases": cases})


def plan(sweep: SweepConfig, where: str | Path = "sweep") -> list[PlannedRun]:
    """List the runs, in the order of the file: cases outermost, the last key of the grid innermost.

    Raises
    ------
    ConfigError
        For a setting that no run can have, a key set by both a case and the grid, or policies and predictors
        that would meet different requests; ``where`` begins the sentence.
    """
    cases = [dict(case) for case in sweep.cases]
    labels = [str(case.pop("label", "")) for case in cases]
    varied = list(dict.fromkeys([key for case in cases for key in case] + list(sweep.grid)))
    content_hash = cache(_sha256)
    runs = []
    for case, label in zip(cases, labels, strict=True):
        if both := case.keys() & sweep.grid.keys():
            raise ConfigError(
                f"{where}: {min(both)} is set by a case and by the grid; one of them has to leave it"
            )
        for values in product(*sweep.grid.values()):
            chosen = {**case, **dict(zip(sweep.grid, values, strict=True))}
            config = _configure({**flat(sweep.base), **chosen}, where)
            shown = flat(config.model_dump(mode="json"))
            used = {key: chosen.get(key, shown.get(key)) for key in varied}
            runs.append(PlannedRun(_identify(config, content_hash), config, label, used))
    _check_same_requests(runs, where)
    return runs


def run_sweep(
    path: str | Path,
    output_dir: str | Path,
    *,
    jobs: int = 1,
    full: bool = False,
    overwrite: bool = False,
    shard: tuple[int, int] = (1, 1),
    on_progress: Callable[[SweepProgress], None] | None = None,
) -> pd.DataFrame:
    """Run what is not yet finished of a sweep and collect all that is.

    Each run is saved as soon as it ends, as ``output_dir/<name>/runs/<run id>``. In ``output_dir/<name>``,
    ``results.csv`` gets a row for each finished run, what was varied and its summary, and ``sweep.json``
    tells what the sweep was.

    Parameters
    ----------
    jobs
        Processes.
    overwrite
        Run again what is finished.
    shard
        ``(k, n)``: only every n-th run from the k-th on, for n machines that share the folder; then
        ``results.csv`` holds what all of them have finished so far.
    on_progress
        Called at the start and whenever a run ends.

    Raises
    ------
    ConfigError
        For a sweep that cannot be planned; nothing was run.
    BatchsimError
        If runs failed (the others are finished and collected), the sweep was interrupted, or a worker process
        was killed.
    """
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}; a whole number >= 1 is needed")
    sweep = load_sweep(path, full=full)
    runs = plan(sweep, path)
    folder = Path(output_dir) / sweep.name
    mine = {run.run_id: run for run in _take_shard(runs, shard)}
    to_do = [run for run in mine.values() if overwrite or not _is_finished(folder, run, sweep)]
    write_whole(folder / "sweep.json", _sweep_json(sweep, full=full))

    failures: list[str] = []
    num_ended = len(mine) - len(to_do)

    def report(failure: str | None = None) -> None:
        if on_progress is not None:
            on_progress(SweepProgress(sweep.name, num_ended, len(mine), failure))

    report()
    try:
        for run, error in _run_all(to_do, folder, sweep, jobs):
            num_ended += 1
            failure = None if error is None else f"{run}: {error}"
            failures += [failure] if failure else []
            report(failure)
    except (KeyboardInterrupt, BrokenProcessPool) as error:
        what = "a worker process was killed" if isinstance(error, BrokenProcessPool) else "interrupted"
        saved = num_ended - len(failures)
        raise BatchsimError(
            f"{sweep.name}: {what}; {saved} of {len(mine)} runs are saved in {folder}, "
            "the same command does the rest"
        ) from error
    results = _collect(folder, runs)
    write_whole(folder / "results.csv", results.to_csv(index=False, lineterminator="\n"))
    if failures:
        raise BatchsimError(
            f"{sweep.name}: {len(failures)} of {len(mine)} runs failed, the others are in {folder}; "
            f"the first: {failures[0]}"
        )
    return results


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``K/N``."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ConfigError(f"shard {text!r}: write K/N with 1 <= K <= N, e.g. 2/4")
    return int(part), int(parts)


def _configure(settings: Mapping[str, Any], where: str | Path) -> RunConfig:
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        set_dotted(tree, key, deepcopy(value))
    config = validate(RunConfig, tree, str(where))
    try:
        presets.build(config.policy)
        make_predictor(config.predictor)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return config


def _check_same_requests(runs: Iterable[PlannedRun], where: str | Path) -> None:
    """Refuse runs that differ in policy or predictor alone, yet set different shares aside for training."""
    fractions: dict[str, float] = {}
    for run in runs:
        config = run.config
        fraction = training_fraction(config, presets.build(config.policy), make_predictor(config.predictor))
        rest = config.model_dump_json(exclude={"policy", "predictor"})
        if fractions.setdefault(rest, fraction) != fraction:
            raise ConfigError(
                f"{where}: policies or predictors that learn would be evaluated on other requests than those "
                "that do not; set workload.training_fraction, e.g. to 0.1"
            )


def _identify(config: RunConfig, content_hash: Callable[[Path], str]) -> str:
    """Name a run; files count by content, so that the same run has the same name on another machine."""
    settings = config.model_dump(mode="json")
    settings["latency"]["file"] = config.latency.file and content_hash(Path(config.latency.file))
    settings["workload"]["trace"] = None
    trace_hash = None
    if config.workload.generator is None:
        trace_hash = content_hash(Path(config.workload.trace) if config.workload.trace else embedded_trace())
    return run_id(settings, __version__, trace_hash)


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error


def _beside(sweep_file: Path, name: str) -> str:
    beside = sweep_file.parent / str(name)
    return str(beside) if beside.is_file() else name


def _take_shard(runs: Sequence[PlannedRun], shard: tuple[int, int]) -> Sequence[PlannedRun]:
    part, parts = shard
    if not 1 <= part <= parts:
        raise ConfigError(f"shard is {part}/{parts}; K/N with 1 <= K <= N is needed")
    return runs[part - 1 :: parts]


def _run_all(
    runs: Sequence[PlannedRun], folder: Path, sweep: SweepConfig, jobs: int
) -> Iterable[tuple[PlannedRun, str | None]]:
    tasks = (delayed(_run)(run, _run_folder(folder, run), save_tables=sweep.save == "tables") for run in runs)
    with parallel_config("loky", inner_max_num_threads=1):
        # One run a task: what a killed process takes with it is the run it was at.
        yield from Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)(tasks)


def _run(run: PlannedRun, directory: Path, *, save_tables: bool) -> tuple[PlannedRun, str | None]:
    """Simulate and save in a worker process; return what went wrong instead of raising it."""
    try:
        result = simulate(run.config)
        tables = result.tables if save_tables else {}
        save_run(directory, result.manifest, result.summary, tables, overwrite=True)
    except BatchsimError as error:
        return run, str(error)
    except Exception as error:  # a fault of one run, ours or a plug-in's, must not take the others with it
        return run, f"{type(error).__name__}: {error}"
    return run, None


def _run_folder(folder: Path, run: PlannedRun) -> Path:
    return folder / "runs" / run.run_id


def _is_finished(folder: Path, run: PlannedRun, sweep: SweepConfig) -> bool:
    wanted = ["summary.json", *(["requests.parquet"] if sweep.save == "tables" else [])]
    return all((_run_folder(folder, run) / name).is_file() for name in wanted)


def _collect(folder: Path, runs: Iterable[PlannedRun]) -> pd.DataFrame:
    rows = []
    for run in runs:
        file = _run_folder(folder, run) / "summary.json"
        if file.is_file():
            summary = json.loads(file.read_text(encoding="utf-8"))
            rows.append({"run_id": run.run_id, "case": run.case, **run.varied, **summary})
    results = pd.DataFrame(rows)
    nested = [
        name for name in results if results[name].map(lambda value: isinstance(value, list | dict)).any()
    ]
    for name in nested:
        results[name] = results[name].map(json.dumps)
    return results


def _sweep_json(sweep: SweepConfig, *, full: bool) -> str:
    shown = {"batchsim": __version__, "is_full": full, "sweep": sweep.model_dump(mode="json")}
    return json.dumps(shown, indent=2, ensure_ascii=False) + "\n"
