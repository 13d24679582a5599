"""Measured runs beside what the simulator makes of them: errors, and the verdicts of three gates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchsim.config import flat
from batchsim.errors import ConfigError
from batchsim.latency.families import as_batch_latency, as_iteration_latency
from batchsim.latency.store import load_latency
from batchsim.results.exchange.imported import is_imported
from batchsim.results.store import load_run
from batchsim.study.setup.hardware import AnyLatency
from batchsim.validation.comparison import THROUGHPUT, compare_requests, relative_half_range
from batchsim.validation.replays.cases import Case, Validation, model_in_words, predicted_requests
from batchsim.validation.replays.gates import MOST_LOAD, end_to_end_gate, logic_gate, model_gates
from batchsim.validation.replays.measured_replay import Recording, recordings_in
from batchsim.validation.replays.measured_results import validate_results


def validate(
    measured: Sequence[Path], predicted: Path, settings: Mapping[str, Any] | None = None
) -> Validation:
    """Lay measured runs beside a prediction.

    Parameters
    ----------
    measured
        Run directories, or folders of such. Runs with the same configuration, trace and machine are repeats.
        Or what `read_results` reads of others' benchmarks, each run of which is a case.
    predicted
        A latency file, with which every measured run is simulated; or the directory of a run, which is only
        compared.
    settings
        Dotted keys of the configuration under which the requests of files are simulated; run directories
        bring their own.

    Raises
    ------
    ConfigError, TraceError
        If something cannot be read, or a run directory is to predict runs of several configurations.
    """
    for path in measured:
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder")
    are_files = [path.is_file() or is_imported(path) for path in measured]
    if all(are_files):
        return validate_results(measured, predicted, settings or {})
    if any(are_files):
        raise ConfigError(f"{measured[are_files.index(True)]}: files and folders of measured runs go apart")
    if settings:
        raise ConfigError(
            f"{measured[0]}: a run directory says its configuration itself; {', '.join(settings)} goes with "
            "files of results only"
        )
    groups = _repeats(recordings_in(measured))
    if predicted.is_dir():
        return _against_run(groups, predicted)
    latency = load_latency(predicted)
    cases = [
        _case(name, recordings, *predicted_requests(recordings[0].simulate(latency)))
        for name, recordings in groups.items()
    ]
    rows = [
        {**_row(name, one), **_bias(one, latency)}
        for name, recordings in groups.items()
        for one in recordings
    ]
    spreads = {case.name: _speed_spread(case, cases, rows) for case in cases}
    cases = [_coarsened(case, spreads[case.name]) for case in cases]
    gates = [
        *(logic_gate(one) for recordings in groups.values() for one in recordings),
        *model_gates(latency.info.details),
        *(end_to_end_gate(case.name, case.comparison, case.load, spreads[case.name]) for case in cases),
    ]
    return Validation(model_in_words(latency), cases, gates, pd.DataFrame(rows))


def _against_run(groups: Mapping[str, Sequence[Recording]], predicted: Path) -> Validation:
    if len(groups) > 1:
        raise ConfigError(
            f"{predicted}: one run cannot predict {', '.join(groups)}; measured repeats of one configuration "
            "are needed, or a latency file"
        )
    manifest, summary, tables = load_run(predicted)
    ((name, recordings),) = groups.items()
    policy = flat(manifest).get("config.policy.preset", "unknown")
    if policy != recordings[0].policy:
        raise ConfigError(f"{predicted}: a run of {policy}; the measured ones are of {recordings[0].policy}")
    if manifest.get("kind") == "measured":
        how = "measured"
    else:
        how = f"{summary.get('latency_model')} ({summary.get('latency_provenance')})"
    return Validation(
        f"{predicted.name}: {how}",
        [_case(name, recordings, tables["requests"])],
        [],
        pd.DataFrame([_row(name, recording) for recording in recordings]),
    )


def _case(
    name: str,
    recordings: Sequence[Recording],
    predicted: pd.DataFrame,
    num_extrapolated: int | None = None,
) -> Case:
    comparison = compare_requests([recording.requests for recording in recordings], predicted)
    load = max(recording.load for recording in recordings)
    if load > MOST_LOAD:
        comparison = replace(comparison, errors=comparison.errors.assign(verdict="not judged"))
    measured = [recording.requests for recording in recordings]
    machine = _machine(recordings[0])
    return Case(name, recordings[0].policy, measured, machine, load, predicted, comparison, num_extrapolated)


def _speed_spread(case: Case, cases: Sequence[Case], runs: Sequence[Mapping[str, Any]]) -> float:
    """Say how far a case's machine varied in speed between repeats, of this run or others; NaN if unknown.

    Speed is the seconds of all operations beside what the model gives them: within one case, an error of the
    model cancels.
    """
    spreads = [
        relative_half_range([1 + run["bias"] for run in runs if run["case"] == other.name])
        for other in cases
        if other.measured_on == case.measured_on
    ]
    return float(np.fmax.reduce(spreads))


def _coarsened(case: Case, speed_spread: float) -> Case:
    """Judge no time more finely than the machine kept its speed: few repeats may agree by chance."""
    errors = case.comparison.errors
    is_judged = errors["verdict"].isin(["pass", "fail"]) & errors["metric"].ne(THROUGHPUT)
    verdicts = errors["verdict"].mask(is_judged & errors["bar"].le(speed_spread), "inconclusive")
    return replace(case, comparison=replace(case.comparison, errors=errors.assign(verdict=verdicts)))


def _repeats(recordings: Sequence[Recording]) -> dict[str, list[Recording]]:
    """Put runs of equal configuration, trace and machine together, under the name they share."""
    alike: dict[tuple[str, str | None, str], list[Recording]] = {}
    for one in recordings:
        key = (one.config.model_dump_json(), one.workload.source.sha256, _machine(one))
        alike.setdefault(key, []).append(one)
    named: dict[str, list[Recording]] = {}
    for group in alike.values():
        shared = re.sub(r"-\d+$", "", group[0].directory.name)
        names = chain([shared], (f"{shared}_{number}" for number in count(2)))
        named[next(name for name in names if name not in named)] = group
    return named


def _machine(recording: Recording) -> str:
    told = recording.provenance
    model = ", ".join(str(told[key]) for key in ("model", "dtype", "attention") if told.get(key))
    return f"{model or 'unknown model'} on {told.get('gpu') or told.get('device') or 'unknown machine'}"


def _row(case: str, recording: Recording) -> dict[str, Any]:
    return {
        "run": recording.directory.name,
        "case": case,
        "num_requests": len(recording.requests),
        "num_operations": len(recording.operations),
        "num_preempted": recording.num_preempted,
        "load": recording.load,
    }


def _bias(recording: Recording, latency: AnyLatency) -> dict[str, Any]:
    """Compare the model with the recorded operations in total, and count those outside its range."""
    if recording.world == "iterations":
        iteration = as_iteration_latency(latency)
        shapes = recording.iteration_shapes()
        predicted_s = sum(map(iteration.iteration_s, shapes))
        num_inside = sum(map(iteration.covers, shapes))
    else:
        batch = as_batch_latency(latency)
        batches = recording.batch_shapes()
        predicted_s = sum(batch.batch_time(shape).total_s for shape in batches)
        num_inside = sum(batch.domain.contains(*shape) for shape in batches)
    return {
        "bias": predicted_s / sum(recording.durations_s) - 1,
        "num_outside": len(recording.operations) - num_inside,
    }
