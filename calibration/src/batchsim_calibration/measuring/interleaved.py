"""Calibration rounds before, between and after other work on the same engine, such as replays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from batchsim_calibration.measuring.grid import Extent, Point
from batchsim_calibration.measuring.operations import Measurable
from batchsim_calibration.measuring.protocol import Measurement, OnProgress
from batchsim_calibration.measuring.rows import partial_of
from batchsim_calibration.provenance import device_state, provenance

#: Trials of each calibration point, all rounds together, at least.
_LEAST_TRIALS = 5


class Interleaved:
    """A calibration whose trials are spread over rounds, so that it sees the machine the replays saw.

    Nor does it take disturbed samples again: a replay cannot choose its moments either.

    Parameters
    ----------
    identity
        What engine and machine are, for the provenance.
    path
        Of the table; ``<path>.partial`` until all rounds are measured.
    num_rounds
        How often `measure_round` will be called.
    slots
        What the engine has room for.
    resume
        Keep what an interrupted series measured; rounds that are done then take no time.
    told
        What the provenance says besides, though another start of the same series may say otherwise.
    """

    def __init__(
        self,
        engine: Measurable,
        identity: Mapping[str, Any],
        points: Sequence[Point],
        path: Path,
        num_rounds: int,
        slots: Extent,
        *,
        seed: int = 0,
        overwrite: bool = False,
        resume: bool = False,
        told: Mapping[str, Any] | None = None,
        on_progress: OnProgress = lambda *_: None,
    ) -> None:
        if not resume:  # rounds that lay between other replays say nothing of those to come
            partial_of(path).unlink(missing_ok=True)
        self._identity = {**identity, **(told or {})}
        self._device = engine.device
        self._trials_per_round = ceil(_LEAST_TRIALS / num_rounds)
        self._next_trial = 1
        self._configuration = {
            "num_trials": num_rounds * self._trials_per_round,
            "num_rounds": num_rounds,
            "seed": seed,
            "num_points": len(points),
            "num_slots": slots.batch_size,
            "max_tokens": slots.tokens,
        }
        self._measurement = Measurement(
            engine,
            points,
            path,
            num_trials=num_rounds * self._trials_per_round,
            max_attempts=1,
            configuration={**identity, **self._configuration},
            seed=seed,
            overwrite=overwrite,
            on_progress=on_progress,
        )
        self.opened = self._measurement.opened
        self.warm_up = self._measurement.warm_up
        self._state_before = device_state(engine.device)

    def measure_round(self) -> None:
        """Measure the trials of the next round."""
        for _ in range(self._trials_per_round):
            self._measurement.measure_trial(self._next_trial)
            self._next_trial += 1

    def finish(self) -> None:
        """Repeat what spread widely, after the last round."""
        self._measurement.measure_extra()

    def publish(self, say: Callable[[str], None]) -> None:
        """Let the table appear; the file must be closed."""
        outcome = self._measurement.outcome()
        for warning in outcome.warnings():
            say(f"Warning: {warning}")
        self._measurement.publish(
            provenance(
                self._identity,
                self._device,
                outcome,
                configuration=self._configuration,
                state_before=self._state_before,
            )
        )
