"""Replicas that come, go and fail: how many there were, what time is paid for, what failures cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from batchsim.metrics.system import Window, inside_s, ratio
from batchsim.metrics.tokens import lost_runs
from batchsim.metrics.weighted import Floats
from batchsim.records import FAILURES, Records, arrays


def paid_s(records: Records, window: Window) -> Floats:
    """Seconds of the window in which each replica was paid for, ``(num_replicas,)``: unless it was off.

    From the moment it is asked for, so its cold start counts, and repairs do.
    """
    states = records.replica_states
    if not len(states):
        return np.full(records.num_replicas, window.length_s)
    seconds_s = inside_s(states["start_s"], states["end_s"], window)
    weights = np.where(has_state(records, "off"), 0.0, seconds_s)
    return np.bincount(states["gpu_id"], weights, records.num_replicas).astype(np.float64)


def mean_replicas(records: Records, window: Window) -> float:
    """Replicas that were paid for, averaged over the window, NaN of none; all where all always are there."""
    if not len(records.replica_states):
        return records.num_replicas
    return float(paid_s(records, window).sum()) / window.length_s or math.nan


def has_state(records: Records, *states: str) -> Any:
    """Whether each row of the states is of one of these, ``(num_rows,)``."""
    return np.any([records.replica_states["state"] == one for one in states], axis=0)


def fleet(records: Records, run: Window) -> dict[str, float]:
    """How many replicas there were in the run, and what failures cost; nothing where all always are there.

    On are those that run requests, draining ones included.
    """
    states = records.replica_states
    if not len(states):
        return {}
    start_s, end_s = states["start_s"].to_numpy(), states["end_s"].to_numpy()
    is_on, has_failed = has_state(records, "on", "draining"), has_state(records, "failed")
    failed_s = inside_s(start_s[has_failed], end_s[has_failed], run).sum()
    asked = has_state(records, "starting")
    ready_s = start_s[has_state(records, "on")]
    mode = records.preemptions["mode"]
    rows = np.any([mode == one for one in FAILURES], axis=0)
    lost = lost_runs(*map(arrays, (records.requests, records.iterations, records.preemptions)))
    return {
        "replicas_on_mean": inside_s(start_s[is_on], end_s[is_on], run).sum() / run.length_s,
        "replicas_on_max": most_at_once(start_s[is_on], end_s[is_on]),
        "replicas_paid_mean": mean_replicas(records, run),
        "num_cold_starts": np.count_nonzero(asked),
        "first_ready_s": max(ready_s.min() - run.start_s, 0.0) if len(ready_s) else math.nan,
        "num_failures": np.count_nonzero(has_failed),
        "failed_share": ratio(failed_s, paid_s(records, run).sum()),
        "num_interrupted": records.preemptions["request_id"][rows].nunique(),
        "failure_lost_tokens": records.preemptions["lost_tokens"][rows].sum(),
        "wasted_output_tokens": (lost.num_decoded + lost.has_token_at_start).sum(),
    }


def most_at_once(start_s: Floats, end_s: Floats) -> int:
    """Most intervals that are open at once; at one instant, some end before others begin."""
    times_s = np.concatenate([start_s, end_s])
    steps = np.repeat([1, -1], len(start_s))
    return int(np.cumsum(steps[np.lexsort((steps, times_s))]).max(initial=0))
