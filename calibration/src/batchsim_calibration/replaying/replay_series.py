"""Several replays on one engine, in turns; other work may be done after each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from batchsim.config import RunConfig
from batchsim.records import FINISHED
from batchsim.results.store import check_vacant
from batchsim_calibration.measuring.interleaved import Interleaved
from batchsim_calibration.provenance import device_state, git_revision, shown_command
from batchsim_calibration.replaying.inbox import Log
from batchsim_calibration.replaying.measured_run import check_same_run, write_run
from batchsim_calibration.replaying.replay import Trace

Say = Callable[[str], None]


class Job(NamedTuple):
    """What one replay serves, and the configuration by which a simulation repeats it."""

    config: RunConfig
    trace: Trace


def replay_series(
    jobs: Mapping[str, Job],
    play: Callable[[Job], Log],
    identity: Mapping[str, Any],
    output_dir: Path,
    *,
    device: torch.device,
    num_repeats: int = 1,
    overwrite: bool = False,
    resume: bool = False,
    after_each: Callable[[], None] = lambda: None,
    say: Say = print,
) -> list[Path]:
    """Replay jobs in turns; return the run directories.

    They are called after the keys of `jobs` and the repeat, from 1 on, and each is there as soon as its
    replay has ended. With ``resume`` those that are there are kept.

    Parameters
    ----------
    play
        Serves a job.
    identity
        What engine and machine are, for the manifests.

    Raises
    ------
    ConfigError
        If a directory is taken, or a configuration does not suit the engine.
    """
    runs = [(name, output_dir / f"{name}-{repeat}") for repeat in range(1, num_repeats + 1) for name in jobs]
    kept = {directory for _, directory in runs if resume and directory.exists()}
    for name, directory in runs:
        if directory in kept:
            check_same_run(directory, jobs[name].trace, jobs[name].config, identity)
        else:
            check_vacant(directory, overwrite=overwrite)
    for name, directory in runs:
        if directory in kept:
            say(f"{directory.name}: is there, and kept")
        else:
            config, trace = jobs[name]
            before = device_state(device)
            log = play(jobs[name])
            told = _provenance(identity, before, device_state(device))
            write_run(directory, log, trace, config, told, overwrite=overwrite)
            say(f"{directory.name}: {_told(log)}")
        after_each()
    return [directory for _, directory in runs]


def series_between(calibration: Interleaved, series: Callable[..., list[Path]], say: Say) -> list[Path]:
    """Run a series with a round of calibration before, between and after its replays."""
    with calibration.opened():
        calibration.warm_up()
        calibration.measure_round()
        runs = series(after_each=calibration.measure_round)
        calibration.finish()
    calibration.publish(say)
    return runs


def _provenance(
    identity: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "kind": "measured",
        **identity,
        "command": shown_command(sys.argv),
        "git_revision": git_revision(),
        "state_before": dict(before),
        "state_after": dict(after),
    }


def _told(log: Log) -> str:
    finished = [request for request in log.requests if request.status == FINISHED]
    rows = log.iterations or log.batches
    start, finish = (1, 2) if log.iterations else (7, 9)
    busy_s = sum(row[finish] - row[start] for row in rows)
    end_s = rows[-1][finish] if rows else 0.0
    kind = "iterations" if log.iterations else "batches"
    ended = f"{len(finished)} of {len(log.requests)} requests finished in {end_s:.1f} s"
    if not finished:
        return ended
    mean_s = sum(request.finish_s - request.arrival_s for request in finished) / len(finished)
    return f"{ended}, mean E2E {mean_s:.2f} s, {len(rows)} {kind}, busy {busy_s / end_s:.0%} of the time"
