"""Do two calibrations agree within their spread?

Intervals come from a bootstrap over trials. A trial goes through all points, so whole trials are drawn: what
slowed the machine down for the length of one counts once, not once per point.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.errors import ConfigError
from batchsim.latency.choices import Clock
from batchsim.latency.tables.table import TOKENS, Calibration, read_calibration
from batchsim.streams import stream
from batchsim_calibration.provenance import REQUIRED

#: Runs that are this near each other agree, however narrow their spread.
TOLERANCE = 0.05
#: So many of the points may disagree by chance.
STRAY_POINTS = 0.1
_NUM_DRAWS = 1000
_LEVEL = 0.95
#: What must be the same for two runs to be of the same thing.
_COMPARABLE = ("model", "weights", "dtype", "attention", "execution", "device", "gpu")

_POINT = ["kind", "batch_size", *TOKENS]
_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """How two calibrations compare. Ratios are second over first.

    Attributes
    ----------
    points
        One row per point of both: ``kind, batch_size``, token counts, ``first_s``, ``second_s`` (medians),
        ``ratio, low, high`` (95 % interval), ``agrees``.
    kinds
        One row per kind: ``kind, num_points``, ``ratio`` (geometric mean over its points), ``low, high``,
        ``agrees``.
    num_only_first, num_only_second
        Points of one alone, which nothing is said of.
    notices
        Sentences a user should see.
    """

    points: pd.DataFrame
    kinds: pd.DataFrame
    num_only_first: int
    num_only_second: int
    notices: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """All kinds agree, and all points but for a few."""
        return bool(self.kinds["agrees"].all() and (~self.points["agrees"]).mean() <= STRAY_POINTS)


def compare(
    first: Path, second: Path, *, tolerance: float = TOLERANCE, clock: Clock = "wall_s", seed: int = 0
) -> Agreement:
    """Compare two tables of raw trials, point by point and kind by kind.

    Something agrees if its interval reaches into the tolerance around 1: the runs disagree only where their
    own spread cannot explain it. Extra trials and visits of the drift monitor, which few points have, are
    left out.

    Raises
    ------
    TraceError
        As `read_calibration`.
    ConfigError
        If a table holds no raw trials, or they have no point in common.
    """
    calibrations = [read_calibration(path, clock) for path in (first, second)]
    tables = [_times(path, one, clock) for path, one in zip((first, second), calibrations, strict=True)]
    common = tables[0].index.intersection(tables[1].index)
    if common.empty:
        raise ConfigError(f"{first.name} and {second.name} have no point in common; nothing can be compared")
    times_s = [table.loc[common].to_numpy(dtype=np.float64) for table in tables]
    generator = stream(seed, "agreement")
    medians_s = [_medians(one) for one in times_s]
    log_ratio = np.log(medians_s[1] / medians_s[0])
    drawn_s = [_medians(_resampled(one, generator)) for one in times_s]
    draws = np.log(drawn_s[1] / drawn_s[0])
    points = common.to_frame(index=False)
    points["first_s"], points["second_s"] = medians_s
    points = _judged(points, log_ratio, draws, tolerance)
    kinds, kind_draws, kind_ratios = [], [], []
    for kind, rows in points.groupby("kind", sort=False).indices.items():
        kinds.append((kind, len(rows)))
        kind_ratios.append(log_ratio[rows].mean())
        kind_draws.append(np.nanmean(draws[:, rows], axis=1))
    by_kind = pd.DataFrame(kinds, columns=["kind", "num_points"])
    return Agreement(
        points=points,
        kinds=_judged(by_kind, np.array(kind_ratios), np.column_stack(kind_draws), tolerance),
        num_only_first=len(tables[0]) - len(common),
        num_only_second=len(tables[1]) - len(common),
        notices=_notices(*calibrations),
    )


def _times(path: Path, calibration: Calibration, clock: Clock) -> pd.DataFrame:
    """Seconds of ok trials: one row per point, one column per trial, NaN where a point lacks one."""
    if not calibration.is_raw:
        raise ConfigError(f"{path}: holds means, not raw trials; their spread is needed")
    rows = pd.read_csv(path, skipinitialspace=True)
    rows = rows[rows["status"].str.strip() == "ok"].assign(kind=rows["kind"].str.strip())
    if "purpose" in rows:
        rows = rows[rows["purpose"] == "trial"]
    rows[[*TOKENS]] = rows[[*TOKENS]].fillna(0).astype("int64")
    return rows.pivot_table(index=_POINT, columns="trial", values=clock, aggfunc="median")


def _resampled(times_s: _Floats, generator: np.random.Generator) -> _Floats:
    """Draws of as many trials, the same ones for all points: shape (draws, points, trials)."""
    num_trials = times_s.shape[1]
    drawn = generator.integers(num_trials, size=(_NUM_DRAWS, num_trials))
    return times_s[:, drawn].transpose(1, 0, 2)


def _medians(times_s: _Floats) -> _Floats:
    if not np.isnan(times_s).any():
        return np.asarray(np.median(times_s, axis=-1))  # many times faster than its sibling below
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw may hold no trial of a point that lacks some
        medians: _Floats = np.nanmedian(times_s, axis=-1)
    return medians


def _judged(rows: pd.DataFrame, log_ratio: _Floats, draws: _Floats, tolerance: float) -> pd.DataFrame:
    tail = (1 - _LEVEL) / 2
    low, high = np.exp(np.nanquantile(draws, (tail, 1 - tail), axis=0))
    agrees = (low <= 1 + tolerance) & (high >= 1 / (1 + tolerance))
    return rows.assign(ratio=np.exp(log_ratio), low=low, high=high, agrees=agrees)


def _notices(first: Calibration, second: Calibration) -> tuple[str, ...]:
    notices: list[str] = []
    for one in (first, second):
        notices += one.notices
        missing = [name for name in REQUIRED if name not in one.details and name != "kind"]
        if one.details and missing:
            notices.append(f"{one.name}: its provenance lacks {', '.join(missing)}")
    notices += [
        f"{name} differs: {first.details[name]} and {second.details[name]}"
        for name in _COMPARABLE
        if name in first.details and name in second.details and first.details[name] != second.details[name]
    ]
    return tuple(notices)
