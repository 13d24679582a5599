"""One run in numbers: `summarise` for people and files, `laws` for checking the simulator itself."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.config import SloConfig
from batchsim.metrics import engine, system
from batchsim.metrics import requests as per_request
from batchsim.metrics.efficiency import Hardware
from batchsim.metrics.engine import decoded_tokens, kv_share
from batchsim.metrics.filling import Filling, filling, num_settling
from batchsim.metrics.load import PERCENTILES, batch_load, engine_load
from batchsim.metrics.slo import limited_statistics
from batchsim.metrics.statistics import batch_means_interval, mser5
from batchsim.metrics.system import Window
from batchsim.metrics.tokens import decode_runs, num_tokens
from batchsim.metrics.verdict import verdict
from batchsim.records import ABANDONED, FINISHED, REFUSED, STRANDED, Records


def summarise(
    records: Records,
    slo: SloConfig,
    warmup: Literal["auto", "mser5"] | float | int,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """Summarise a run as a flat dict, JSON-ready: seconds as ``_s``, None for what cannot be told.

    What the machines were busy with has keys of its own in each world: `load.batch_load`,
    `load.engine_load`.

    Parameters
    ----------
    warmup
        ``auto``: cut who arrives until the requests in service have built up, if there are more than a few,
        and until the queue has forgotten that it was empty, unless it grows for ever (`filling`);
        ``mser5``: cut by MSER-5 on the end-to-end times in arrival order, which cuts busy periods at the
        start and makes means too low; a fraction: that share of the requests; a whole number: so many.
    hardware
        Of the replicas, for ``mfu`` and ``mbu`` at the iteration level.

    Returns
    -------
    dict
        Times and SLO attainment are of the *covered* requests, those that arrive after the cut (times: the
        ``num_covered_finished`` of them that finished; percentiles by numpy's linear rule, but for ``itl``,
        where each is a gap that occurs). Rates, time averages, batch sizes and padding are of the ``window``:
        ``steady`` from when the system is filled (and the first covered arrival) to the last arrival, or,
        where the run is too short for that, ``whole run`` from the first arrival to the last finish; then
        only the rates of the whole run are given, ``whole_run_*``. Counts are of the whole run.
        ``e2e_mean_ci95_s`` is a half width; None where the run is saturated or too short for any.
    """
    requests = records.requests
    filled = filling(requests)
    judged = verdict(requests)
    num_warmup = _warmup_cut(requests, warmup, filled, is_saturated=judged.name == "saturated")
    covered = requests.iloc[num_warmup:]
    run = _whole_run(requests)
    steady = _steady_window(covered, filled)
    window = run if steady is None else steady
    if records.is_iteration_level:
        load = engine_load(records, covered, window, hardware)
    else:
        load = batch_load(records, window)
    finished = covered[covered["status"] == FINISHED]
    summary = {
        **_counts(requests),
        "num_replicas": records.num_replicas,
        "num_warmup": num_warmup,
        "num_covered": len(covered),
        "num_covered_finished": len(finished),
        "warmup_rule": warmup,
        "window": "whole run" if steady is None else "steady",
        "window_start_s": window.start_s,
        "window_end_s": window.end_s,
        "makespan_s": run.end_s - run.start_s,
        "service_mean_s": filled.service_mean_s,
        **_rates(records, slo, steady, run),
        **_times(finished),
        "e2e_mean_ci95_s": math.nan if judged.name == "saturated" else _half_width(finished),
        **_slo(covered, slo),
        **limited_statistics(covered, slo),
        **load,
        "verdict": judged.name,
        "verdict_reason": judged.reason,
        "saturated": judged.name == "saturated",
        "waiting_growth_per_s": judged.growth_per_s,
        "overload_time_share": judged.overload_time_share,
    }
    return {key: _plain(value) for key, value in summary.items()}


def laws(records: Records) -> dict[str, float]:
    """Check a run against laws that hold exactly for any simulator; every residual must vanish, to rounding.

    Returns
    -------
    dict
        ``little``: relative difference of the summed times in system and the integral of the number in
        system, built from sorted event times. ``utilisation``: difference of the time integral of busy GPUs
        / GPUs and the summed times of batches (or spans) / GPUs. ``overbooked``: most batches that ran at
        once beyond the GPUs there are; at the iteration level, most spans at once beyond one per replica.

        Run to completion: ``flow``, finished requests less members of finished batches.

        Iteration level: ``tokens``, output tokens of finished requests that the log of spans has too many
        or too few of, summed over requests. ``decodes``, tokens that the spans gave less those of decode
        runs; more than 0 where a request that ran did not finish. ``overfull``: KV blocks in use beyond
        those there are, as shares of these, summed over spans.
    """
    finished = records.requests[records.requests["status"] == FINISHED]
    in_system, _ = _integral(finished["arrival_s"], finished["finish_s"])
    sojourns = float(per_request.e2e_s(finished).sum())
    little = (in_system - sojourns) / sojourns if sojourns > 0 else 0.0
    return {"little": little, **(_engine_laws if records.is_iteration_level else _batch_laws)(records)}


def _batch_laws(records: Records) -> dict[str, float]:
    batches = records.batches
    num_finished = int((records.requests["status"] == FINISHED).sum())
    residual, most_busy = _utilisation(records, batches)
    return {
        "utilisation": residual,
        "flow": float(num_finished - int(batches["batch_size"].sum())),
        "overbooked": float(max(most_busy - records.num_replicas, 0)),
    }


def _engine_laws(records: Records) -> dict[str, float]:
    requests, iterations, preemptions = records.requests, records.iterations, records.preemptions
    finished = requests[requests["status"] == FINISHED]
    missing = num_tokens(finished, iterations, preemptions) - finished["output_tokens"]
    in_runs = decode_runs(finished, iterations, preemptions)["num_decoded"].sum()
    most_busy = [
        _integral(spans["start_s"], spans["finish_s"])[1] for _, spans in iterations.groupby("gpu_id")
    ]
    return {
        "utilisation": _utilisation(records, iterations)[0],
        "tokens": float(missing.abs().sum()),
        "decodes": float(decoded_tokens(iterations).sum() - in_runs),
        "overbooked": float(max(most_busy, default=1) - 1),
        "overfull": float((kv_share(iterations, records.kv_blocks) - 1).clip(lower=0).sum()),
    }


def _utilisation(records: Records, busy: pd.DataFrame) -> tuple[float, int]:
    """Residual of the law, and most of the rows of ``busy`` that ran at once."""
    run = _whole_run(records.requests)
    gpu_s = records.num_replicas * (run.end_s - run.start_s)
    busy_s, most_busy = _integral(busy["start_s"], busy["finish_s"])
    summed_s = float((busy["finish_s"] - busy["start_s"]).sum())
    return (busy_s - summed_s) / gpu_s if gpu_s > 0 else 0.0, most_busy


def _warmup_cut(requests: pd.DataFrame, warmup: str | float, filled: Filling, *, is_saturated: bool) -> int:
    if isinstance(warmup, int):
        return warmup
    if isinstance(warmup, float):
        return int(warmup * len(requests))
    if warmup == "auto":
        if filled.window is None:
            return 0
        num_filling = int((requests["arrival_s"] < filled.window.start_s).sum())
        return num_filling if is_saturated else max(num_filling, num_settling(requests))
    rows = np.flatnonzero((requests["status"] == FINISHED).to_numpy())
    cut = mser5(per_request.e2e_s(requests).to_numpy()[rows])
    return int(rows[cut]) if cut else 0


def _whole_run(requests: pd.DataFrame) -> Window:
    if requests.empty:
        return Window(math.nan, math.nan)
    return Window(float(requests["arrival_s"].min()), float(requests["finish_s"].max()))


def _steady_window(covered: pd.DataFrame, filled: Filling) -> Window | None:
    """From the first covered arrival to the last, as far as the system is filled."""
    if filled.window is None or covered.empty:
        return None
    window = Window(max(float(covered["arrival_s"].iloc[0]), filled.window.start_s), filled.window.end_s)
    return window if window.end_s > window.start_s else None


def _counts(requests: pd.DataFrame) -> dict[str, Any]:
    status = requests["status"].value_counts()
    return {
        "num_requests": len(requests),
        **{f"num_{name}": status.get(name, 0) for name in (FINISHED, ABANDONED, REFUSED, STRANDED)},
    }


def _rates(records: Records, slo: SloConfig, steady: Window | None, run: Window) -> dict[str, float]:
    """Of the steady window, if there is one, and of the whole run."""
    rates: dict[str, float] = {}
    for prefix, window in (("", steady or Window(math.nan, math.nan)), ("whole_run_", run)):
        done = system.throughput(records.requests, window)
        if records.is_iteration_level:
            tables = (records.requests, records.iterations, records.preemptions)
            done = done._replace(**engine.token_throughput(*tables, window)._asdict())
        rates |= {
            f"{prefix}request_throughput_per_s": done.requests_per_s,
            f"{prefix}output_throughput_tokens_per_s": done.output_tokens_per_s,
            f"{prefix}total_throughput_tokens_per_s": done.total_tokens_per_s,
            f"{prefix}goodput_requests_per_s": system.goodput_requests_per_s(records.requests, slo, window),
        }
    return rates


def _times(finished: pd.DataFrame) -> dict[str, float]:
    times: dict[str, float] = {}
    for name, metric in per_request.TIMES.items():
        values = metric(finished).dropna().to_numpy()
        times[f"{name}_mean_s"] = float(values.mean()) if len(values) else math.nan
        percentiles = np.percentile(values, PERCENTILES) if len(values) else [math.nan] * len(PERCENTILES)
        times |= {f"{name}_p{p}_s": value for p, value in zip(PERCENTILES, percentiles, strict=True)}
    times["normalized_latency_mean_s"] = float(per_request.normalized_latency_s(finished).mean())
    return times


def _half_width(finished: pd.DataFrame) -> float:
    return batch_means_interval(per_request.e2e_s(finished)).half_width


def _slo(covered: pd.DataFrame, slo: SloConfig) -> dict[str, float]:
    met = system.slo_met(covered, slo)
    return {
        "slo_attainment": system.slo_attainment(covered, slo),
        **{
            f"slo_attainment_{name}": met[name].mean() if name in met else math.nan
            for name in ("e2e", "ttft", "tpot")
        },
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
