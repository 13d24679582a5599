"""In which order and how often points are measured, so that a restless machine does not look like a model.

Every shape is warmed up. Each trial then goes through all points in an order of its own, so that drift falls
on all alike; a reference point in between tells how much the machine drifted. Samples during which other work
had the core are kept as ``disturbed`` and taken again, points whose trials spread widely get extra ones; a
point too large for the device is marked, and larger ones are left out. When the time is up, what is left of
all this but the first trial is left out, and the outcome says so.
"""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from batchsim.errors import ConfigError
from batchsim.files import write_whole
from batchsim.streams import stream
from batchsim_calibration.measuring.grid import Point, reference_of
from batchsim_calibration.measuring.operations import Measurable
from batchsim_calibration.measuring.outcome import REFERENCE_SAMPLES, Outcome, outcome_of, unsteady_in
from batchsim_calibration.measuring.rows import Row, RowFile, Task, hash_of
from batchsim_calibration.serving.engine import is_out_of_memory
from batchsim_calibration.serving.timing import Timing, undisturbed

MAX_ATTEMPTS = 4
#: Points between two visits to the reference point.
REFERENCE_EVERY = 25
#: A first run this short is repeated, for it also loads kernels and tells too long a time.
_SHORT_S = 0.2

#: Told what goes on, how much of it is done, and how much there is.
OnProgress = Callable[[str, float, float], None]


def calibrate_latency_grid(
    engine: Measurable,
    points: Sequence[Point],
    path: Path,
    *,
    num_trials: int = 7,
    max_extra_trials: int = 8,
    budget_s: float = math.inf,
    configuration: Mapping[str, Any] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    describe: Callable[[Outcome], Mapping[str, Any]] | None = None,
    on_estimate: Callable[[float], None] = lambda _: None,
    on_progress: OnProgress = lambda *_: None,
) -> Outcome:
    """Measure points into a calibration table; an interrupted run goes on where it stopped.

    Parameters
    ----------
    describe
        Gives the content of the JSON beside the table; none is written without it, and the table then counts
        as synthetic.
    on_estimate
        Told, after the warm-up, how many seconds there are to come.

    See `Measurement` for the others and for what is raised.
    """
    measurement = Measurement(
        engine,
        points,
        path,
        num_trials=num_trials,
        max_extra_trials=max_extra_trials,
        budget_s=budget_s,
        configuration=configuration or {},
        seed=seed,
        overwrite=overwrite,
        on_progress=on_progress,
    )
    with measurement.opened():
        on_estimate(measurement.warm_up())
        for trial in range(1, num_trials + 1):
            measurement.measure_trial(trial)
        measurement.measure_extra()
    outcome = measurement.outcome()
    measurement.publish(describe(outcome) if describe else None)
    return outcome


class Measurement:
    """Measures points trial by trial; other work may be done between two trials.

    Rows are keyed by the configuration and by point, purpose and trial: one that the file holds is not
    measured again.

    Parameters
    ----------
    path
        Of the finished table; see `RowFile` for where it lies until then.
    max_extra_trials
        Of a point whose trials spread too widely for their number.
    max_attempts
        Samples taken of a trial until one is not disturbed; one alone where time runs short.
    budget_s
        Seconds of this start, warm-up included, after which nothing but the first trial is measured.
    configuration
        What must be the same for rows to lie in one table. Points, number of trials and seed are added here.

    Raises
    ------
    ConfigError
        If the table is there and may not be replaced, or if one begun there has another configuration.
    """

    def __init__(
        self,
        engine: Measurable,
        points: Sequence[Point],
        path: Path,
        *,
        num_trials: int,
        max_extra_trials: int = 8,
        max_attempts: int = MAX_ATTEMPTS,
        budget_s: float = math.inf,
        configuration: Mapping[str, Any],
        seed: int = 0,
        overwrite: bool = False,
        on_progress: OnProgress = lambda *_: None,
    ) -> None:
        if path.exists() and not overwrite:
            raise ConfigError(
                f"{path}: is there; allow it to be replaced (--overwrite) or choose another name (--name)"
            )
        if num_trials < 1:
            raise ConfigError(f"{num_trials} trials were asked for; at least 1 is needed")
        self._points = list(points)
        self._num_trials = num_trials
        self._max_extra_trials = max_extra_trials
        self._max_attempts = max_attempts
        everything = {**configuration, "points": self._points, "num_trials": num_trials, "seed": seed}
        self._file = RowFile(path, hash_of(everything))
        self._engine = engine
        self._seed = seed
        self._on_progress = on_progress
        self._reference = reference_of(self._points)
        self._done: set[Task] = set()
        self._too_large: set[Point] = set()
        self._expected_s: dict[Point, float] = {}
        self._done_s = self._left_s = 0.0
        self._num_resumed_rows = 0
        self._start_s = time.monotonic()
        self._deadline_s = self._start_s + budget_s

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the file open; inside, trials can be measured."""
        with self._file.opened():
            self._note(self._file.rows)
            self._num_resumed_rows = len(self._file.rows)
            yield

    def warm_up(self) -> float:
        """Run every shape that still has trials to come; return the seconds these will take, by estimate."""
        waiting = {task.point for task in self._still_to_do()}
        smallest_first = sorted(waiting, key=lambda point: (point.kind, math.prod(n + 1 for n in point[1:])))
        with undisturbed():
            for number, point in enumerate(smallest_first):
                self._on_progress("warming up", number, len(waiting))
                if self._is_feasible(point):
                    self._expected_s[point] = self._warm_up(point)
        self._left_s = sum(self._expected_s[task.point] for task in self._still_to_do())
        return min(self._left_s, max(self._time_left_s(), self._left_s / self._num_trials))

    def measure_trial(self, trial: int) -> None:
        """Measure every point once, in the order of this trial, and the reference point in between."""
        self._measure(self._tasks(trial), is_needed=trial == 1)

    def measure_extra(self) -> None:
        """Repeat the points whose trials spread widely, and visit the reference point for the last time."""
        for extra in range(1, self._max_extra_trials + 1):
            unsteady = unsteady_in(self._file.rows)
            order = stream(self._seed, f"extra {extra}").permutation(len(unsteady))
            tasks = [Task(unsteady[index], "extra", extra) for index in order]
            self._left_s += sum(self._expected_s.get(task.point, 0.0) for task in tasks)
            self._measure(tasks)
        self._measure(self._visit(self._first_visit(self._num_trials + 1)), is_needed=True)

    def outcome(self) -> Outcome:
        """Sum up what the file holds."""
        return outcome_of(
            self._file.rows,
            self._engine.device,
            num_left_out=sum(not self._is_feasible(point) for point in self._points) - len(self._too_large),
            num_not_taken=len(self._still_to_do()),
            num_resumed_rows=self._num_resumed_rows,
            taken_s=time.monotonic() - self._start_s,
        )

    def publish(self, details: Mapping[str, Any] | None = None) -> None:
        """Let the table appear, after the JSON that says where it comes from; the file must be closed."""
        if details is not None:
            text = json.dumps(details, indent=2, allow_nan=False)
            write_whole(self._file.path.with_suffix(".json"), f"{text}\n")
        self._file.publish()

    def _tasks(self, trial: int) -> list[Task]:
        tasks: list[Task] = []
        order = stream(self._seed, f"trial {trial}").permutation(len(self._points))
        for place, index in enumerate(order):
            if place % REFERENCE_EVERY == 0:
                tasks += self._visit(self._first_visit(trial) + place // REFERENCE_EVERY)
            tasks.append(Task(self._points[index], "trial", trial))
        return tasks

    def _first_visit(self, trial: int) -> int:
        return (trial - 1) * math.ceil(len(self._points) / REFERENCE_EVERY)

    def _visit(self, visit: int) -> list[Task]:
        samples = range(1, REFERENCE_SAMPLES + 1)
        return [Task(self._reference, "reference", visit * REFERENCE_SAMPLES + sample) for sample in samples]

    def _still_to_do(self) -> list[Task]:
        """Tasks to come; extra trials, which nobody can foresee, aside."""
        tasks = [task for trial in range(1, self._num_trials + 1) for task in self._tasks(trial)]
        tasks += self._visit(self._first_visit(self._num_trials + 1))
        return [task for task in tasks if task not in self._done and self._is_feasible(task.point)]

    def _time_left_s(self) -> float:
        return self._deadline_s - time.monotonic()

    def _measure(self, tasks: Sequence[Task], *, is_needed: bool = False) -> None:
        with undisturbed():
            for task in tasks:
                if task in self._done:
                    continue
                if not is_needed and self._time_left_s() <= 0:
                    self._left_s = 0.0
                    return
                if self._is_feasible(task.point):
                    rows = self._attempts(task)
                    self._file.append(rows)
                    self._note(rows)
                expected_s = self._expected_s.get(task.point, 0.0)
                self._done_s += expected_s
                self._left_s = max(self._left_s - expected_s, 0.0)
                self._on_progress("measuring", self._done_s, self._done_s + self._left_s)

    def _attempts(self, task: Task) -> list[Row]:
        """Rows of one trial: one of them ok, or out of memory; the others disturbed.

        If all attempts are disturbed the cleanest is the trial's: a machine that is never quiet still yields
        a table, and ``cpu_share`` tells which rows to trust less.
        """
        timings: list[Timing] = []
        while len(timings) < self._max_attempts:
            timing = self._try(task.point)
            if timing is None:
                return [Row(task, None, "oom")]
            timings.append(timing)
            if not timing.is_disturbed(self._engine.device) or self._left_s > self._time_left_s():
                break
        best = max(timings, key=lambda timing: timing.cpu_share)
        return [
            Row(task, timing, "ok" if timing is best else "disturbed", number)
            for number, timing in enumerate(timings, start=1)
        ]

    def _try(self, point: Point) -> Timing | None:
        try:
            return self._engine.time(point)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # With the error gone, nothing holds the tensors of the frames it passed through any more.
        self._engine.release()
        gc.collect()
        torch.cuda.empty_cache()
        return None

    def _warm_up(self, point: Point) -> float:
        taken_s = 0.0
        for _ in range(2):
            start_s = time.perf_counter()
            if self._try(point) is None:
                rows = [Row(Task(point, "trial", 1), None, "oom")]
                self._file.append(rows)
                self._note(rows)
                return 0.0
            taken_s = time.perf_counter() - start_s
            if taken_s > _SHORT_S:
                break
        return taken_s

    def _note(self, rows: Sequence[Row]) -> None:
        self._done.update(row.task for row in rows if row.status == "ok")
        self._too_large.update(row.task.point for row in rows if row.status == "oom")

    def _is_feasible(self, point: Point) -> bool:
        return not any(point.is_at_least(limit) for limit in self._too_large)
