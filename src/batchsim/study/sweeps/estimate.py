"""How long the runs of a sweep will take: told from those that are finished, or from small ones."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from batchsim.errors import BatchsimError, ConfigError
from batchsim.files import read_json
from batchsim.study.plan import PlannedRun
from batchsim.study.run import simulate

#: Requests of a run that is made only to see how long it takes, and how many policies are tried.
_PROBED_REQUESTS, _MOST_PROBES = 500, 8


class Estimate(NamedTuple):
    """How long runs take, one after the other.

    Attributes
    ----------
    run_s
        Of each run, by run id; empty where nothing tells.
    source
        What that is made from, in words.
    """

    run_s: Mapping[str, float]
    source: str


class _Timed(NamedTuple):
    preset: str
    num_requests: int
    duration_s: float


def estimate(to_do: Sequence[PlannedRun], finished: Iterable[tuple[PlannedRun, Path]]) -> Estimate:
    """Estimate each run that is to do, in proportion to its requests, from runs of the same policy.

    Where none of its policy is known, from those of all; where the number of requests is not known before a
    trace is read, from the mean of the runs. Of the finished ones the directories are given.
    """
    known = [timed for run, directory in finished if (timed := _read(run, directory)) is not None]
    if known:
        source = f"from {len(known)} finished runs of this sweep"
    else:
        known = _probe(to_do)
        source = f"from a run of {_PROBED_REQUESTS} requests, or fewer, of each policy"
    if not known:
        return Estimate({}, "no run tells how long they take")
    return Estimate({run.run_id: _duration_s(run, known) for run in to_do}, source)


def num_requests(run: PlannedRun) -> int | None:
    """Return how many requests a run simulates, where its settings say so."""
    workload = run.config.workload
    if workload.num_requests_per_gpu is not None:
        return workload.num_requests_per_gpu * run.config.cluster.num_gpus
    return workload.num_requests


def shares(runs: Sequence[PlannedRun]) -> dict[str, float]:
    """Return each run's share of all work, by run id: that of its requests, where all are known."""
    counts = [num_requests(run) for run in runs]
    known = [count for count in counts if count is not None]
    if len(known) < len(runs):
        return {run.run_id: 1 / len(runs) for run in runs}
    return {run.run_id: count / sum(known) for run, count in zip(runs, known, strict=True)}


def _duration_s(run: PlannedRun, known: Sequence[_Timed]) -> float:
    alike = [timed for timed in known if timed.preset == run.config.policy.preset] or known
    count = num_requests(run)
    if count is None:
        return fmean(timed.duration_s for timed in alike)
    total_s, total = sum(timed.duration_s for timed in alike), sum(timed.num_requests for timed in alike)
    return count * total_s / max(total, 1)


def _read(run: PlannedRun, directory: Path) -> _Timed | None:
    """How long a finished run took, by its manifest; None where that does not say so."""
    with suppress(ConfigError, LookupError, TypeError, ValueError):
        manifest = read_json(directory / "manifest.json")
        told = _Timed(
            run.config.policy.preset,
            int(manifest["workload"]["num_requests"]),
            float(manifest["duration_s"]),
        )
        return told if told.num_requests > 0 and told.duration_s >= 0 else None
    return None


def _probe(runs: Sequence[PlannedRun]) -> list[_Timed]:
    """Time a small run of each policy; one that fails tells nothing, its sweep will."""
    first = {run.config.policy.preset: run for run in reversed(runs)}
    timed = []
    for preset, run in list(reversed(first.items()))[:_MOST_PROBES]:
        count = min(num_requests(run) or _PROBED_REQUESTS, _PROBED_REQUESTS)
        smaller = {"workload.num_requests": count, "workload.num_requests_per_gpu": None}
        with suppress(BatchsimError):
            for _ in range(2):  # the first reads files and imports what all others have
                start_s = time.perf_counter()
                simulate(run.config, overrides=smaller)
                end_s = time.perf_counter()
            timed.append(_Timed(preset, count, end_s - start_s))
    return timed
