"""What the rows of a measurement say about how steady the machine was."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from batchsim_calibration.measuring.grid import Point
from batchsim_calibration.measuring.rows import Purpose, Row

#: Spread per root of the number of trials from which on a point gets extra ones: what its mean is unsure by.
WIDE_SPREAD = 0.03
#: Samples of one visit to the reference point, and the drift between visits that is warned of.
REFERENCE_SAMPLES = 3
NOTABLE_DRIFT = 0.05


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a measurement came to.

    Attributes
    ----------
    rows_by_status
        Of all rows, those of earlier starts included.
    num_points
        Points with at least one ok trial.
    num_kept_disturbed
        Rows marked ok although all attempts of their trial were disturbed: the cleanest of them.
    num_left_out
        Points not measured because a smaller one ran out of memory.
    num_not_taken
        Trials, and visits to the reference point, that there was no time for.
    num_single
        Points with one trial, whose spread nobody knows.
    num_unsteady
        Points whose trials spread too widely for their number, extra ones included.
    median_spread
        Over the points with several trials: interquartile range per median; NaN without any.
    drift
        See `drift_of`.
    num_resumed_rows
        Rows that were there at the start.
    taken_s
        By this start alone.
    """

    rows_by_status: Mapping[str, int]
    num_points: int
    num_kept_disturbed: int
    num_left_out: int
    num_not_taken: int
    num_single: int
    num_unsteady: int
    median_spread: float
    drift: float
    num_resumed_rows: int
    taken_s: float

    def warnings(self) -> list[str]:
        """Sentences that a user should see."""
        sentences = []
        if self.drift > NOTABLE_DRIFT:
            sentences.append(
                f"the machine drifted: the reference point took up to {self.drift:.0%} more or less"
            )
        if self.num_kept_disturbed:
            sentences.append(
                f"{self.num_kept_disturbed} of {self.rows_by_status.get('ok', 0)} trials were disturbed by "
                "other work at every attempt; the cleanest attempts were kept (column cpu_share)"
            )
        if self.num_not_taken:
            sentences.append(
                f"the time was up before {self.num_not_taken} samples were taken: spreads are of fewer "
                "trials; measure again when the machine is less busy, or with a larger --budget"
            )
        if self.num_single:
            sentences.append(
                f"{self.num_single} of {self.num_points} points have a single trial, of unknown spread"
            )
        if self.num_unsteady:
            sentences.append(
                f"{self.num_unsteady} of {self.num_points} points are unsure by more than {WIDE_SPREAD:.0%} "
                "(interquartile range per median, over the root of the number of trials)"
            )
        if self.rows_by_status.get("oom"):
            sentences.append(
                f"{self.rows_by_status['oom']} points ran out of memory, and {self.num_left_out} larger ones "
                "were left out"
            )
        return sentences


def outcome_of(
    rows: Sequence[Row],
    device: torch.device,
    *,
    num_left_out: int,
    num_not_taken: int,
    num_resumed_rows: int,
    taken_s: float,
) -> Outcome:
    """Sum up all rows of a table."""
    spreads, numbers = spreads_of(rows), _numbers(rows)
    known = [spread for point, spread in spreads.items() if numbers[point] > 1]
    return Outcome(
        rows_by_status=dict(Counter(row.status for row in rows)),
        num_points=len(spreads),
        num_kept_disturbed=sum(
            row.status == "ok" and row.timing is not None and row.timing.is_disturbed(device) for row in rows
        ),
        num_left_out=num_left_out,
        num_not_taken=num_not_taken,
        num_single=sum(number == 1 for number in numbers.values()),
        num_unsteady=len(unsteady_in(rows)),
        median_spread=float(np.median(known)) if known else math.nan,
        drift=drift_of(rows),
        num_resumed_rows=num_resumed_rows,
        taken_s=taken_s,
    )


def spreads_of(rows: Sequence[Row]) -> dict[Point, float]:
    """Return the interquartile range per median of each point's ok trials, the drift monitor's aside."""
    spreads = {}
    for point, times_s in _times_s(rows, "trial", "extra").items():
        low_s, median_s, high_s = np.quantile([time_s for _, time_s in times_s], (0.25, 0.5, 0.75))
        spreads[point] = float((high_s - low_s) / median_s)
    return spreads


def unsteady_in(rows: Sequence[Row]) -> list[Point]:
    """Return the points whose trials spread too widely for their number."""
    numbers, spreads = _numbers(rows), spreads_of(rows)
    return [point for point, spread in spreads.items() if spread > WIDE_SPREAD * math.sqrt(numbers[point])]


def _numbers(rows: Sequence[Row]) -> dict[Point, int]:
    """Ok trials of each point."""
    return {point: len(times_s) for point, times_s in _times_s(rows, "trial", "extra").items()}


def drift_of(rows: Sequence[Row]) -> float:
    """Return the largest deviation of a visit to the reference point from the median visit.

    A visit counts as the median of its samples; NaN for fewer than two visits.
    """
    visits: dict[int, list[float]] = {}
    for times_s in _times_s(rows, "reference").values():
        for trial, time_s in times_s:
            visits.setdefault((trial - 1) // REFERENCE_SAMPLES, []).append(time_s)
    if len(visits) < 2:
        return math.nan
    medians_s = np.array([np.median(times_s) for times_s in visits.values()])
    return float(np.abs(medians_s / np.median(medians_s) - 1).max())


def _times_s(rows: Sequence[Row], *purposes: Purpose) -> dict[Point, list[tuple[int, float]]]:
    """Trial numbers and times of each point."""
    times_s: dict[Point, list[tuple[int, float]]] = {}
    for row in rows:
        if row.task.purpose in purposes and row.status == "ok" and row.timing is not None:
            times_s.setdefault(row.task.point, []).append((row.task.trial, row.timing.wall_s))
    return times_s
