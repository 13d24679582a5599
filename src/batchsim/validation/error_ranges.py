"""From errors at published points to the range that an answer could be off by, and whether it holds.

Points of one model are much alike, and so every model counts the same, however many points it has. Whether
the range of some models tells of another is seen by leaving each out in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.files import json_text, read_json, write_whole

#: Quantiles of predicted / measured - 1 between which a range lies.
LOW, HIGH = 0.1, 0.9


class Range(NamedTuple):
    """Ends of what predicted / measured - 1 is at 8 of 10 points; NaN where no group tells."""

    low: float
    high: float


def errors_of(points: pd.DataFrame) -> pd.Series[float]:
    """Predicted / measured - 1 of points: `points.POINT_COLUMNS`."""
    return points["predicted_s"] / points["measured_s"] - 1


def error_range(error: pd.Series[float], group: pd.Series[Any]) -> Range:
    """The range of errors if each group counts the same."""
    if error.empty:
        return Range(np.nan, np.nan)
    ordered = error.sort_values()
    weights = 1 / group.groupby(group).transform("size").loc[ordered.index].to_numpy(dtype=np.float64)
    shares = np.round(np.cumsum(weights) / weights.sum(), 12)  # so that 0.9 is where it should be
    places = np.searchsorted(shares, [LOW, HIGH]).clip(max=len(ordered) - 1)
    return Range(*map(float, ordered.to_numpy()[places]))


def held_out_ranges(error: pd.Series[float], group: pd.Series[Any]) -> dict[Any, Range]:
    """For each group, the range that all others tell."""
    return {name: error_range(error[group != name], group[group != name]) for name in group.unique()}


def share_within(error: pd.Series[float], bounds: Range | Sequence[Range]) -> float:
    """Share of errors inside a range, or each inside its own."""
    low, high = np.asarray(bounds, dtype=np.float64).T
    inside: NDArray[np.bool_] = (error >= low) & (error <= high)
    return float(inside.mean())


def told_ranges(points: pd.DataFrame, group: pd.Series[Any]) -> dict[str, Any]:
    """What a latency model of such points is said to be off by, by metric: JSON-ready.

    Returns
    -------
    dict
        ``num_points``, ``num_groups`` and ``errors``: by metric in lower case ``low``, ``high``, and
        ``held_out_coverage``, the share of points within the range that the other groups tell; None with a
        single group.
    """
    error, told = errors_of(points), {}
    for metric, of_metric in error.groupby(points["metric"]):
        groups = group.loc[of_metric.index]
        without = held_out_ranges(of_metric, groups)
        covered = share_within(of_metric, [without[name] for name in groups]) if len(without) > 1 else None
        low, high = error_range(of_metric, groups)
        told[str(metric).lower()] = {
            "low": round(low, 3),
            "high": round(high, 3),
            "held_out_coverage": None if covered is None else round(covered, 2),
        }
    num_points = int(points["metric"].value_counts().max())
    return {"num_points": num_points, "num_groups": int(group.nunique()), "errors": told}


def with_e2e(loops: pd.DataFrame) -> pd.DataFrame:
    """Add the times of whole requests to those of closed loops, in which TPOT follows TTFT."""
    first, later = loops[loops["metric"] == "TTFT"], loops[loops["metric"] == "TPOT"]
    later = later.set_axis(first.index)
    whole = {
        name: first[name] + (first["output_tokens"] - 1) * later[name]
        for name in ("measured_s", "predicted_s")
    }
    return pd.concat([loops, first.assign(metric="E2E", **whole)], ignore_index=True)


def write_ranges(path: str | Path, kind: str, made_by: str, ranges: Mapping[str, Any]) -> None:
    """Put the ranges of one kind of latency model into a file, beside those of the others."""
    path = Path(path)
    known = read_json(path) if path.is_file() else {}
    date = datetime.now(UTC).date().isoformat()
    known[kind] = {"made_by": made_by, "date": date, "ranges": dict(ranges)}
    write_whole(path, json_text(dict(sorted(known.items()))))
