"""Several replays of one trace on one engine; other work may be done after each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from batchsim.config import RunConfig
from batchsim.records import FINISHED
from batchsim.results.store import check_vacant
from batchsim_calibration.provenance import (
    device_state,
    git_revision,
    machine,
    model_identity,
    shown_command,
)
from batchsim_calibration.replaying.inbox import Log
from batchsim_calibration.replaying.measured_run import check_same_run, write_run
from batchsim_calibration.replaying.replay import Trace, replay, warm_up
from batchsim_calibration.serving.engine import Engine
from batchsim_calibration.serving.models import LoadedModel

Say = Callable[[str], None]


def replay_series(
    loaded: LoadedModel,
    engine: Engine,
    trace: Trace,
    configs: Mapping[str, RunConfig],
    output_dir: Path,
    *,
    num_repeats: int = 1,
    overwrite: bool = False,
    resume: bool = False,
    after_each: Callable[[], None] = lambda: None,
    say: Say = print,
) -> list[Path]:
    """Replay a trace under each settled configuration, in turns; return the run directories.

    They are called after the keys of `configs` and the repeat, from 1 on, and each is there as soon as its
    replay has ended. With ``resume`` those that are there are kept.

    Raises
    ------
    ConfigError
        If a directory is taken, or a configuration does not suit the engine.
    """
    runs = [
        (name, output_dir / f"{name}-{repeat}") for repeat in range(1, num_repeats + 1) for name in configs
    ]
    kept = {directory for _, directory in runs if resume and directory.exists()}
    for name, directory in runs:
        if directory in kept:
            check_same_run(directory, trace, configs[name], _provenance(loaded, engine, {}))
        else:
            check_vacant(directory, overwrite=overwrite)
    for name, directory in runs:
        if directory in kept:
            say(f"{directory.name}: is there, and kept")
        else:
            warm_up(engine, trace.workload)
            before = device_state(loaded.device)
            log = replay(engine, configs[name], trace.workload)
            told = _provenance(loaded, engine, before)
            write_run(directory, log, trace, configs[name], told, overwrite=overwrite)
            say(f"{directory.name}: {_told(log)}")
        after_each()
    return [directory for _, directory in runs]


def _provenance(loaded: LoadedModel, engine: Engine, before: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": "measured",
        **model_identity(loaded),
        **machine(loaded.device),
        "num_slots": engine.num_slots,
        "max_tokens": engine.max_tokens,
        "command": shown_command(sys.argv),
        "git_revision": git_revision(),
        "state_before": dict(before),
        "state_after": device_state(loaded.device),
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
