"""Many summaries of one configuration as one: means over replications, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from batchsim.metrics.statistics import Interval, ci95_keys, t_interval

#: Numbers of a summary that say what was asked, not what came of it.
CONDITIONS = ("seed", "num_gpus", "num_requests", "num_training", "num_dropped")
#: Numbers that say how a summary was taken: their means are told, without an interval.
_HOW_TAKEN = (
    "num_replicas", "num_warmup", "num_covered", "num_covered_finished", "warmup_rule", "window_start_s",
    "window_end_s", "request_rate_per_s",
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
        beside them (`ci95_keys`), None where all runs have the same; a number that some run lacks is None. A
        claim holds where it holds in all runs, a text stands where it is the same in all. The verdict is the
        worst of all, ``saturated`` before ``transient``, and ``num_saturated`` and ``num_transient`` say how
        many had it; ``num_replications`` counts them, and ``seed`` is that of the first.

        Of a single run it is its own summary.
    """
    first, num = summaries[0], len(summaries)
    if num == 1:
        return {**first, "num_replications": 1, **_counted(summaries)}
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for summary in summaries for key in summary):
        if "_ci95_" not in key:
            merged |= _merged(key, [summary.get(key) for summary in summaries])
    worst = max(summaries, key=lambda summary: _BADNESS.get(str(summary.get("verdict")), 0))
    is_saturated = any(summary.get("saturated") for summary in summaries)
    told = {key: worst[key] for key in ("verdict", "verdict_reason") if key in worst}
    return {
        **merged,
        **told,
        "seed": first.get("seed"),
        "saturated": is_saturated,
        "num_replications": num,
        **_counted(summaries),
        "intervals": f"Student's t over {num} replications",
    }


def outcomes(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of the numbers that came of the runs and may have an interval."""
    return [
        key
        for key in dict.fromkeys(key for summary in summaries for key in summary)
        if "_ci95_" not in key
        and not _is_condition(key)
        and key not in _HOW_TAKEN
        and any(_is_number(summary.get(key)) for summary in summaries)
    ]


def aggregated(runs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Summarise the rows that have the same values ``by``, as `over_replications`: a row for each."""
    rows = []
    for values, part in runs.groupby(list(by), sort=False, dropna=False) if by else [((), runs)]:
        summaries = part.drop(columns=[*by, *_OF_RUNS], errors="ignore").to_dict("records")
        named = [{str(key): value for key, value in summary.items()} for summary in summaries]
        rows.append({**dict(zip(by, values, strict=True)), **over_replications(named)})
    return pd.DataFrame(rows)


#: Columns of a table of runs that tell its rows apart.
_OF_RUNS = ("run_id", "replication", "num_runs_planned")
_BADNESS = {"transient": 1, "saturated": 2}


def _counted(summaries: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {
        f"num_{verdict}": sum(summary.get("verdict") == verdict for summary in summaries)
        for verdict in ("saturated", "transient")
    }


def _merged(key: str, values: Sequence[Any]) -> dict[str, Any]:
    """One value, and the ends of its interval where it is a number that could differ."""
    first = values[0]
    is_same = all(value == first for value in values)
    if all(isinstance(value, bool) for value in values):
        return {key: all(values)}
    if not all(value is None or _is_number(value) for value in values):
        return {key: first if is_same else None}
    if _is_condition(key):
        return {key: first}
    low, high = ci95_keys(key)
    if is_same and first is not None:
        told = Interval(first, math.nan, math.nan)
    elif any(value is None or math.isnan(value) for value in values):
        told = Interval(math.nan, math.nan, math.nan)
    else:
        told = t_interval(values)
    ends = {} if key in _HOW_TAKEN else {low: told.low, high: told.high}
    return {name: None if math.isnan(value) else value for name, value in ({key: told.mean} | ends).items()}


def _is_condition(key: str) -> bool:
    return key in CONDITIONS or key.startswith("expected_error")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
