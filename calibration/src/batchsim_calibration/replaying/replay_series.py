"""Several replays of one trace on one engine, with calibration rounds before, between and after them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from math import ceil
from pathlib import Path
from typing import Any

from batchsim.config import RunConfig
from batchsim.records import FINISHED
from batchsim.results.store import check_vacant
from batchsim_calibration.measuring.grid import Point
from batchsim_calibration.measuring.protocol import Measurement, OnProgress
from batchsim_calibration.measuring.rows import partial_of
from batchsim_calibration.provenance import (
    device_state,
    git_revision,
    machine,
    model_identity,
    provenance,
    shown_command,
)
from batchsim_calibration.replaying.inbox import Log
from batchsim_calibration.replaying.measured_run import check_same_run, write_run
from batchsim_calibration.replaying.replay import Trace, replay, warm_up
from batchsim_calibration.serving.engine import Engine
from batchsim_calibration.serving.models import LoadedModel

#: Trials of each calibration point, all rounds together, at least.
_LEAST_TRIALS = 5

Say = Callable[[str], None]


class Interleaved:
    """A calibration whose trials are spread over rounds, so that it sees the machine the replays saw.

    Nor does it take disturbed samples again: a replay cannot choose its moments either.

    Parameters
    ----------
    path
        Of the table; ``<path>.partial`` until all rounds are measured.
    num_rounds
        How often `measure_round` will be called.
    resume
        Keep what an interrupted series measured; rounds that are done then take no time.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        engine: Engine,
        points: list[Point],
        path: Path,
        num_rounds: int,
        *,
        seed: int = 0,
        overwrite: bool = False,
        resume: bool = False,
        on_progress: OnProgress = lambda *_: None,
    ) -> None:
        if not resume:  # rounds that lay between other replays say nothing of those to come
            partial_of(path).unlink(missing_ok=True)
        self._loaded = loaded
        self._trials_per_round = ceil(_LEAST_TRIALS / num_rounds)
        self._next_trial = 1
        self._configuration = {
            "num_trials": num_rounds * self._trials_per_round,
            "num_rounds": num_rounds,
            "seed": seed,
            "num_points": len(points),
            "num_slots": engine.num_slots,
            "max_tokens": engine.max_tokens,
        }
        self._measurement = Measurement(
            engine,
            points,
            path,
            num_trials=num_rounds * self._trials_per_round,
            max_attempts=1,
            configuration={
                **model_identity(loaded),
                **machine(loaded.device),
                **self._configuration,
            },
            seed=seed,
            overwrite=overwrite,
            on_progress=on_progress,
        )
        self.opened = self._measurement.opened
        self.warm_up = self._measurement.warm_up
        self._state_before = device_state(loaded.device)

    def measure_round(self) -> None:
        """Measure the trials of the next round."""
        for _ in range(self._trials_per_round):
            self._measurement.measure_trial(self._next_trial)
            self._next_trial += 1

    def finish(self) -> None:
        """Repeat what spread widely, after the last round."""
        self._measurement.measure_extra()

    def publish(self, say: Say) -> None:
        """Let the table appear; the file must be closed."""
        outcome = self._measurement.outcome()
        for warning in outcome.warnings():
            say(f"Warning: {warning}")
        self._measurement.publish(
            provenance(
                self._loaded, outcome, configuration=self._configuration, state_before=self._state_before
            )
        )


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
