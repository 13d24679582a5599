"""One run in numbers: `summarise` for people and files, `laws` for checking the simulator itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.config import SloConfig
from batchsim.metrics import requests as per_request
from batchsim.metrics import system
from batchsim.metrics.statistics import backlog_trend, batch_means_interval, falls_behind, mser5
from batchsim.metrics.system import Window
from batchsim.records import ABANDONED, FINISHED, REFUSED, STRANDED, Records

#: Fewest requests that a steady window must cover, and that ``auto`` needs to look for a warm-up.
ENOUGH_REQUESTS = 1000

_TIMES: dict[str, Callable[[pd.DataFrame], pd.Series[float]]] = {
    "e2e": per_request.e2e_s,
    "queueing": per_request.queueing_s,
    "ttft": per_request.ttft_s,
    "tpot": per_request.tpot_s,
}
_PERCENTILES = (50, 90, 95, 99)


def summarise(
    records: Records, slo: SloConfig, warmup: Literal["auto", "mser5"] | float | int
) -> dict[str, Any]:
    """Summarise a run as a flat dict, JSON-ready: seconds as ``_s``, None for what cannot be told.

    Parameters
    ----------
    warmup
        ``mser5``: cut by MSER-5 on the end-to-end times in arrival order; ``auto``: the same from 1000
        finished requests on, else nothing; a fraction: that share of the requests; a whole number: so many.

    Returns
    -------
    dict
        Times and SLO attainment are of the *covered* requests, those that arrive after the cut (times: the
        ``num_covered_finished`` of them that finished; percentiles by numpy's linear rule). Rates, time
        averages, batch sizes and padding are of the ``window``: ``steady`` from the first covered to the last
        arrival, if at least 1000 requests are covered and arrivals last at least half of the makespan, else
        ``whole run`` from the first arrival to the last finish. Counts are of the whole run.
        ``e2e_mean_ci95_s`` is a half width.
    """
    requests, batches = records.requests, records.batches
    num_warmup = _warmup_cut(requests, warmup)
    covered = requests.iloc[num_warmup:]
    run = _whole_run(requests)
    name, window = _window(requests, covered, run)
    trend = backlog_trend(requests, window)
    finished = covered[covered["status"] == FINISHED]
    summary = {
        **_counts(requests, batches),
        "num_gpus": records.num_gpus,
        "num_warmup": num_warmup,
        "num_covered": len(covered),
        "num_covered_finished": len(finished),
        "warmup_rule": warmup,
        "window": name,
        "window_start_s": window.start_s,
        "window_end_s": window.end_s,
        "makespan_s": run.end_s - run.start_s,
        **_rates(requests, window, run),
        **_times(finished),
        **_slo(requests, covered, slo, window),
        **_load(records, window),
        "saturated": trend.is_saturated or falls_behind(requests, batches, records.num_gpus),
        "backlog_slope_per_s": trend.slope_per_s,
    }
    return {key: _plain(value) for key, value in summary.items()}


def laws(records: Records) -> dict[str, float]:
    """Check a run against laws that hold exactly for any simulator; every residual must vanish, to rounding.

    Returns
    -------
    dict
        ``little``: relative difference of the summed times in system and the integral of the number in
        system, built from sorted event times. ``utilisation``: difference of the time integral of busy GPUs
        / GPUs and batches per second * mean batch time / GPUs. ``flow``: finished requests less members of
        finished batches. ``overbooked``: most GPUs busy at once beyond those there are.
    """
    finished = records.requests[records.requests["status"] == FINISHED]
    batches = records.batches
    in_system, _ = _integral(finished["arrival_s"], finished["finish_s"])
    sojourns = float(per_request.e2e_s(finished).sum())
    busy_s, most_busy = _integral(batches["start_s"], batches["finish_s"])
    span_s = _whole_run(records.requests)
    gpu_s = records.num_gpus * (span_s.end_s - span_s.start_s)
    mean_batch_s = float((batches["finish_s"] - batches["start_s"]).mean()) if len(batches) else 0.0
    return {
        "little": (in_system - sojourns) / sojourns if sojourns > 0 else 0.0,
        "utilisation": busy_s / gpu_s - len(batches) * mean_batch_s / gpu_s if gpu_s > 0 else 0.0,
        "flow": float(len(finished) - int(batches["batch_size"].sum())),
        "overbooked": float(max(most_busy - records.num_gpus, 0)),
    }


def _warmup_cut(requests: pd.DataFrame, warmup: str | float) -> int:
    if isinstance(warmup, int):
        return warmup
    if isinstance(warmup, float):
        return int(warmup * len(requests))
    is_finished = (requests["status"] == FINISHED).to_numpy()
    rows = np.flatnonzero(is_finished)
    if warmup == "auto" and len(rows) < ENOUGH_REQUESTS:
        return 0
    cut = mser5(per_request.e2e_s(requests).to_numpy()[rows])
    return int(rows[cut]) if cut else 0


def _whole_run(requests: pd.DataFrame) -> Window:
    if requests.empty:
        return Window(math.nan, math.nan)
    return Window(float(requests["arrival_s"].min()), float(requests["finish_s"].max()))


def _window(requests: pd.DataFrame, covered: pd.DataFrame, run: Window) -> tuple[str, Window]:
    arrivals_s = requests["arrival_s"]
    if len(covered) < ENOUGH_REQUESTS or not arrivals_s.max() - run.start_s >= (run.end_s - run.start_s) / 2:
        return "whole run", run
    return "steady", Window(float(covered["arrival_s"].iloc[0]), float(arrivals_s.max()))


def _counts(requests: pd.DataFrame, batches: pd.DataFrame) -> dict[str, Any]:
    status = requests["status"].value_counts()
    return {
        "num_requests": len(requests),
        **{f"num_{name}": status.get(name, 0) for name in (FINISHED, ABANDONED, REFUSED, STRANDED)},
        "num_flushed": batches.loc[batches["is_flush"], "batch_size"].sum(),
        "num_evicted": requests["num_evictions"].sum(),
        "num_batches": len(batches),
        "num_extrapolated_batches": batches["is_extrapolated"].sum(),
    }


def _rates(requests: pd.DataFrame, window: Window, run: Window) -> dict[str, float]:
    inside, whole = system.throughput(requests, window), system.throughput(requests, run)
    return {
        "request_throughput_per_s": inside.requests_per_s,
        "output_throughput_tokens_per_s": inside.output_tokens_per_s,
        "total_throughput_tokens_per_s": inside.total_tokens_per_s,
        "whole_run_request_throughput_per_s": whole.requests_per_s,
        "whole_run_output_throughput_tokens_per_s": whole.output_tokens_per_s,
    }


def _times(finished: pd.DataFrame) -> dict[str, float]:
    times: dict[str, float] = {}
    for name, metric in _TIMES.items():
        values = metric(finished).dropna().to_numpy()
        times[f"{name}_mean_s"] = float(values.mean()) if len(values) else math.nan
        percentiles = np.percentile(values, _PERCENTILES) if len(values) else [math.nan] * len(_PERCENTILES)
        times |= {f"{name}_p{p}_s": value for p, value in zip(_PERCENTILES, percentiles, strict=True)}
    times["e2e_mean_ci95_s"] = batch_means_interval(per_request.e2e_s(finished)).half_width
    times["normalized_latency_mean_s"] = float(per_request.normalized_latency_s(finished).mean())
    return times


def _slo(requests: pd.DataFrame, covered: pd.DataFrame, slo: SloConfig, window: Window) -> dict[str, float]:
    met = system.slo_met(covered, slo)
    return {
        "slo_attainment": system.slo_attainment(covered, slo),
        **{
            f"slo_attainment_{name}": met[name].mean() if name in met else math.nan
            for name in ("e2e", "ttft", "tpot")
        },
        "goodput_requests_per_s": system.goodput_requests_per_s(requests, slo, window),
    }


def _load(records: Records, window: Window) -> dict[str, float]:
    batches, num_gpus, capacity = records.batches, records.num_gpus, records.kv_capacity_tokens
    inside = system.finished_in(batches, window)
    sizes = inside["batch_size"]
    return {
        "busy_fraction": system.busy_fraction(batches, num_gpus, window),
        "batch_size_mean": sizes.mean(),
        "batch_size_p50": sizes.median(),
        "batch_size_max": sizes.max(),
        "batch_fill": system.batch_fill(batches, window),
        "padding_waste_output": system.padding_waste_output(inside),
        "padding_waste_prompt": system.padding_waste_prompt(inside),
        "kv_use_mean": system.kv_use(batches, num_gpus, capacity, window),
        "kv_use_max": inside["kv_tokens"].max() / capacity,
    }


def _integral(start_s: pd.Series[float], end_s: pd.Series[float]) -> tuple[float, int]:
    """Integral over time of the number of intervals that are open, and the most that are open at once."""
    times_s: NDArray[np.float64] = np.concatenate([start_s.to_numpy(), end_s.to_numpy()])
    steps = np.repeat([1, -1], len(start_s))
    order = np.lexsort((steps, times_s))  # at one instant, ends first
    times_s, open_ = times_s[order], np.cumsum(steps[order])
    return float(np.diff(times_s) @ open_[:-1]), int(open_.max(initial=0))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
