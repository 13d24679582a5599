"""Many summaries of one configuration as one: means over replications, each with its interval."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from batchsim.metrics.statistics import bounds, ci95_keys, t_intervals

#: What runs of one point of a sweep differ in.
SEEDS = ("replication", "seed")
#: Numbers of a summary that say what was asked and how it was taken: they have no interval.
_CONDITIONS = (
    "num_gpus", "num_replicas", "num_requests", "num_training", "num_dropped", "num_warmup", "num_covered",
    "num_covered_finished", "warmup_rule", "window_start_s", "window_end_s", "request_rate_per_s", "seed",
)  # fmt: skip


def over_replications(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarise runs that differ in what was drawn at random alone.

    Parameters
    ----------
    summaries
        Of each run, the first of them with the seed that the configuration names.

    Returns
    -------
    dict
        The keys of a summary. Numbers are means over the runs, with the ends of Student's 95 % interval
        beside them (`ci95_keys`), no further than the number can be (`bounds`), None where all runs have the
        same; a number that some run lacks is None. A
        claim holds where it holds in all runs, a text stands where it is the same in all. The verdict is the
        worst of all, ``saturated`` before ``transient``, and ``num_saturated`` and ``num_transient`` say how
        many had it; ``num_replications`` counts them, and ``seed`` is that of the first.

        Of a single run it is its own summary.
    """
    first, num = summaries[0], len(summaries)
    if num == 1:
        return {**first, "num_replications": 1, **_counted(summaries)}
    keys = dict.fromkeys(key for summary in summaries for key in summary if "_ci95_" not in key)
    columns = {key: [summary.get(key) for summary in summaries] for key in keys}
    means = _means({key: values for key, values in columns.items() if all(map(_is_number, values))})
    merged: dict[str, Any] = {}
    for key, values in columns.items():
        if all(value == values[0] for value in values):
            mean, half_width = values[0], math.nan
        elif key in means:
            mean, half_width = means[key]
        else:
            mean, half_width = False if all(isinstance(one, bool) for one in values) else None, math.nan
        merged[key] = _known(mean)
        if key in means and mean is not None and _is_outcome(key):
            least, most = bounds(key)
            # An end that is NaN, of no interval, stays so.
            ends = (max(mean - half_width, least), min(mean + half_width, most))
            merged |= dict(zip(ci95_keys(key), map(_known, ends), strict=True))
    worst = max(summaries, key=lambda summary: _BADNESS.get(str(summary.get("verdict")), 0))
    return {
        **merged,
        **{key: worst[key] for key in ("verdict", "verdict_reason") if key in worst},
        "seed": first.get("seed"),
        "saturated": any(summary.get("saturated") for summary in summaries),
        "num_replications": num,
        **_counted(summaries),
        "intervals": f"Student's t over {num} replications",
    }


def _means(columns: Mapping[str, Sequence[Any]]) -> dict[str, tuple[float, float]]:
    """Mean and half width of the interval of each; NaN where a value is missing."""
    if not columns:
        return {}
    means, half_widths = t_intervals(np.array(list(columns.values()), dtype=np.float64))  # None is NaN
    return dict(zip(columns, zip(means.tolist(), half_widths.tolist(), strict=True), strict=True))


def outcomes(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of the numbers that came of the runs and may have an interval."""
    return [
        key
        for key in dict.fromkeys(key for summary in summaries for key in summary)
        if _is_outcome(key)
        and all(_is_number(summary.get(key)) for summary in summaries)
        and any(summary.get(key) is not None for summary in summaries)
    ]


def aggregated(rows: Iterable[Mapping[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    """Summarise rows of a table of runs that have the same values ``by``, as `over_replications`.

    A row for each combination, in order of appearance.
    """
    points: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        point = json.dumps([row.get(key) for key in by], default=str)  # values may be lists
        points.setdefault(point, []).append({key: row[key] for key in row if key not in _OF_RUNS})
    made = []
    for runs in points.values():
        summaries = [{key: run[key] for key in run if key not in by} for run in runs]
        made.append({**{key: runs[0].get(key) for key in by}, **over_replications(summaries)})
    return made


#: Columns of a table of runs that tell its rows apart.
_OF_RUNS = ("run_id", "replication", "num_runs_planned")
_BADNESS = {"transient": 1, "saturated": 2}


def _counted(summaries: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {
        f"num_{verdict}": sum(summary.get("verdict") == verdict for summary in summaries)
        for verdict in ("saturated", "transient")
    }


def _is_outcome(key: str) -> bool:
    return "_ci95_" not in key and key not in _CONDITIONS and not key.startswith("expected_error_")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
