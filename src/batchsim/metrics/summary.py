"""One run in numbers: `summarise` for people and files, `laws` for checking the simulator itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from batchsim.config import SloConfig
from batchsim.metrics import engine, system
from batchsim.metrics import requests as per_request
from batchsim.metrics.cluster.fleet import fleet
from batchsim.metrics.cluster.tenants import PLAIN_TARIFF, Tariff, tenant_summary, tenant_table
from batchsim.metrics.cluster.tiers import tier_use
from batchsim.metrics.cluster.transfers import transfer_parts
from batchsim.metrics.cost import Expense, cost_of_run, cost_of_tokens
from batchsim.metrics.efficiency import Hardware
from batchsim.metrics.engine import decoded_tokens, kv_share
from batchsim.metrics.filling import Filling, filling, num_settling
from batchsim.metrics.load import PERCENTILES, Arrays, batch_load, engine_load
from batchsim.metrics.slo import limited_statistics
from batchsim.metrics.statistics import batch_means_interval, mser5
from batchsim.metrics.system import Window, known, largest, mean
from batchsim.metrics.tokens import decode_runs, lost_runs, num_tokens, tokens_of_runs
from batchsim.metrics.verdict import verdict
from batchsim.metrics.weighted import Floats
from batchsim.records import FINISHED, SHED, STATUSES, Columns, Records, arrays, has_status, rows


def summarise(
    records: Records,
    slo: SloConfig,
    warmup: Literal["auto", "mser5"] | float | int,
    hardware: Hardware | None = None,
    expenses: Sequence[Expense] = (),
    tariff: Tariff = PLAIN_TARIFF,
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
    expenses
        What each replica costs and draws, in the order of their numbers; none: not known.
    tariff
        What counts as service to tenants.

    Returns
    -------
    dict
        Times and SLO attainment are of the *covered* requests, those that arrive after the cut (times: the
        ``num_covered_finished`` of them that finished; percentiles by numpy's linear rule, but for ``itl``,
        where each is a gap that occurs). Rates, time averages, batch sizes and padding are of the ``window``:
        ``steady`` from when the system is filled (and the first covered arrival) to the last arrival, or,
        where the run is too short for that, ``whole run`` from the first arrival to the last finish; then
        only the rates of the whole run are given, ``whole_run_*``. Counts are of the whole run.
        ``e2e_mean_ci95_low_s`` and ``_high_s`` are the ends of an interval; None where the run is saturated
        or too short for any; ``intervals`` says what it is taken from.
    """
    requests = arrays(records.requests)
    filled = filling(requests)
    judged = verdict(requests)
    num_warmup = _warmup_cut(requests, warmup, filled, is_saturated=judged.name == "saturated")
    covered = rows(requests, slice(num_warmup, None))
    is_finished = has_status(covered, FINISHED)
    finished = covered if is_finished.all() else rows(covered, is_finished)
    run = _whole_run(requests)
    steady = _steady_window(covered, filled)
    window = run if steady is None else steady
    if records.is_iteration_level:
        load = engine_load(records, requests, covered, finished, window, hardware)
    else:
        load = batch_load(records, requests, window)
    summary = {
        **_counts(requests),
        "num_shed": sum(reason.startswith(SHED) for reason in records.refusals.values()),
        "num_replicas": records.num_replicas,
        "num_warmup": num_warmup,
        "num_covered": len(is_finished),
        "num_covered_finished": np.count_nonzero(is_finished),
        "warmup_rule": warmup,
        "window": "whole run" if steady is None else "steady",
        "window_start_s": window.start_s,
        "window_end_s": window.end_s,
        "makespan_s": run.end_s - run.start_s,
        "service_mean_s": filled.service_mean_s,
        **_rates(records, requests, slo, expenses, steady, run),
        **cost_of_run(expenses, records, run),
        **_times(finished),
        **_interval(finished, is_saturated=judged.name == "saturated"),
        **_slo(covered, slo),
        **limited_statistics(covered, slo),
        **load,
        **transfer_parts(records, finished),
        **tenant_summary(tenant_table(requests, slo, num_warmup, window, tariff)),
        **engine.speculation_parts(records),
        **fleet(records, run),
        **tier_use(records, covered, finished),
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
        runs, lost ones included. ``overfull``: KV blocks in use beyond
        those there are, as shares of these, summed over spans.
    """
    finished = rows(arrays(records.requests), has_status(records.requests, FINISHED))
    in_system, _ = _integral(finished["arrival_s"], finished["finish_s"])
    sojourns = float(per_request.e2e_s(finished).sum())
    little = (in_system - sojourns) / sojourns if sojourns > 0 else 0.0
    return {"little": little, **(_engine_laws if records.is_iteration_level else _batch_laws)(records)}


def _batch_laws(records: Records) -> dict[str, float]:
    batches = records.batches
    num_finished = np.count_nonzero(has_status(records.requests, FINISHED))
    residual, most_busy = _utilisation(records, batches)
    return {
        "utilisation": residual,
        "flow": float(num_finished - int(batches["batch_size"].sum())),
        "overbooked": float(max(most_busy - records.num_replicas, 0)),
    }


def _engine_laws(records: Records) -> dict[str, float]:
    iterations, preemptions = records.iterations, records.preemptions
    finished = rows(arrays(records.requests), has_status(records.requests, FINISHED))
    steps = records.decode_steps
    missing = num_tokens(finished, iterations, preemptions, steps) - finished["output_tokens"]
    in_runs = tokens_of_runs(decode_runs(finished, iterations, preemptions), finished, steps).sum()
    in_runs += lost_runs(arrays(records.requests), iterations, preemptions).num_decoded.sum()
    most_busy = [
        _integral(spans["start_s"], spans["finish_s"])[1] for _, spans in iterations.groupby("gpu_id")
    ]
    return {
        "utilisation": _utilisation(records, iterations)[0],
        "tokens": float(np.abs(missing).sum()),
        "decodes": float(decoded_tokens(iterations).sum() - in_runs),
        "overbooked": float(max(most_busy, default=1) - 1),
        "overfull": float(np.maximum(kv_share(iterations, records.kv_blocks) - 1, 0).sum()),
    }


def _utilisation(records: Records, busy: Columns[Any]) -> tuple[float, int]:
    """Residual of the law, and most of the rows of ``busy`` that ran at once."""
    run = _whole_run(arrays(records.requests))
    gpu_s = records.num_replicas * (run.end_s - run.start_s)
    busy_s, most_busy = _integral(busy["start_s"], busy["finish_s"])
    summed_s = float(np.sum(busy["finish_s"] - busy["start_s"]))
    return (busy_s - summed_s) / gpu_s if gpu_s > 0 else 0.0, most_busy


def _warmup_cut(requests: Arrays, warmup: str | float, filled: Filling, *, is_saturated: bool) -> int:
    if isinstance(warmup, int):
        return warmup
    if isinstance(warmup, float):
        return int(warmup * len(requests["arrival_s"]))
    if warmup == "auto":
        if filled.window is None:
            return 0
        num_filling = int(np.count_nonzero(requests["arrival_s"] < filled.window.start_s))
        return num_filling if is_saturated else max(num_filling, num_settling(requests))
    finished = np.flatnonzero(has_status(requests, FINISHED))
    cut = mser5(per_request.e2e_s(requests)[finished])
    return int(finished[cut]) if cut else 0


def _whole_run(requests: Arrays) -> Window:
    if not len(requests["arrival_s"]):
        return Window(math.nan, math.nan)
    return Window(float(requests["arrival_s"].min()), largest(known(requests["finish_s"])))


def _steady_window(covered: Arrays, filled: Filling) -> Window | None:
    """From the first covered arrival to the last, as far as the system is filled."""
    if filled.window is None or not len(covered["arrival_s"]):
        return None
    window = Window(max(float(covered["arrival_s"][0]), filled.window.start_s), filled.window.end_s)
    return window if window.end_s > window.start_s else None


def _counts(requests: Arrays) -> dict[str, Any]:
    return {
        "num_requests": len(requests["arrival_s"]),
        **{f"num_{one}": np.count_nonzero(has_status(requests, one)) for one in STATUSES},
    }


def _rates(
    records: Records,
    requests: Arrays,
    slo: SloConfig,
    expenses: Sequence[Expense],
    steady: Window | None,
    run: Window,
) -> dict[str, float]:
    """Of the steady window, None where there is none, and of the whole run; and what tokens cost in each."""
    of_run = _rates_in(run, records, requests, slo, expenses)
    if steady is None:
        of_steady = dict.fromkeys(of_run, math.nan)
    else:
        of_steady = _rates_in(steady, records, requests, slo, expenses)
    return {**of_steady, **{f"whole_run_{name}": rate for name, rate in of_run.items()}}


def _rates_in(
    window: Window, records: Records, requests: Arrays, slo: SloConfig, expenses: Sequence[Expense]
) -> dict[str, float]:
    done = system.throughput(requests, window)
    if records.is_iteration_level:
        tables = (requests, records.iterations, records.preemptions)
        done = done._replace(**engine.token_throughput(*tables, window)._asdict())
    return {
        "request_throughput_per_s": done.requests_per_s,
        "output_throughput_tokens_per_s": done.output_tokens_per_s,
        "total_throughput_tokens_per_s": done.total_tokens_per_s,
        "goodput_requests_per_s": system.goodput_requests_per_s(requests, slo, window),
        **cost_of_tokens(expenses, records, done, window),
    }


def _times(finished: Arrays) -> dict[str, float]:
    times: dict[str, float] = {}
    for name, metric in per_request.TIMES.items():
        values = known(metric(finished))
        times[f"{name}_mean_s"] = mean(values)
        percentiles = np.percentile(values, PERCENTILES) if len(values) else [math.nan] * len(PERCENTILES)
        times |= {f"{name}_p{p}_s": value for p, value in zip(PERCENTILES, percentiles, strict=True)}
    times["normalized_latency_mean_s"] = mean(known(per_request.normalized_latency_s(finished)))
    return times


def _interval(finished: Arrays, *, is_saturated: bool) -> dict[str, float | str]:
    interval = batch_means_interval([] if is_saturated else per_request.e2e_s(finished))
    return {
        "e2e_mean_ci95_low_s": interval.low,
        "e2e_mean_ci95_high_s": interval.high,
        "intervals": "none" if math.isnan(interval.half_width) else "batch means of one run",
    }


def _slo(covered: Arrays, slo: SloConfig) -> dict[str, float]:
    met = system.slo_met(covered, slo)
    return {
        "slo_attainment": system.slo_attainment(covered, slo),
        **{
            f"slo_attainment_{name}": mean(met[name]) if name in met else math.nan
            for name in ("e2e", "ttft", "tpot")
        },
    }


def _integral(start_s: ArrayLike, end_s: ArrayLike) -> tuple[float, int]:
    """Integral over time of the number of intervals that are open, and the most that are open at once."""
    times_s: Floats = np.concatenate([start_s, end_s])
    steps = np.repeat([1, -1], len(times_s) // 2)
    order = np.lexsort((steps, times_s))  # at one instant, ends first
    times_s, open_ = times_s[order], np.cumsum(steps[order])
    return float(np.diff(times_s) @ open_[:-1]), int(open_.max(initial=0))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
