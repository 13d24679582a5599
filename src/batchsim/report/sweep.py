"""What a page knows of one sweep: its runs, what was varied, distributions, and where all comes from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from batchsim.config import flat
from batchsim.figures.results import SweepResults, outside_range, states, with_throughput_per_gpu
from batchsim.figures.style import looks_of
from batchsim.report.closeup import closeups
from batchsim.report.coding import column
from batchsim.report.metrics import label, metrics_of
from batchsim.results.particulars import QUANTILES

#: Keys that say how much comes: what a load curve is drawn over.
_LOADS = re.compile(r"workload\.(request_rate|request_rate_per_gpu|load|rate_scale|generator\..*rate.*)")
_CONCURRENCY = "clients.concurrency"
#: Repetitions of the same run: averaged over, not drawn apart.
REPEATS = ("replication", "seed")
_SYMBOLS = dict(
    zip(
        "osD^vPX*",
        ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star"),
        strict=True,
    )
)
_MOST_SAID = 300  # letters of what a latency file says of itself

Sketches = dict[str, list[NDArray[np.float32] | None]]


def describe(results: SweepResults, most_closeups: int) -> tuple[dict[str, Any], Sketches]:
    """Describe a sweep, ready for JSON but for its distributions: by metric, the quantiles of each run."""
    runs = _derived(results.runs)
    keys = keys_of(results, runs)
    x = _x_of(runs, keys)
    lines = _lines_of(runs, keys, x)
    seen, why_not = closeups(results, lines, x, most_closeups) if most_closeups else ([], [])
    metrics = metrics_of(runs, keys)
    shown = [name for name in map(str, runs) if name in _told(keys, metrics)]
    described = {
        "name": results.sweep.name,
        "title": results.sweep.title or results.sweep.name,
        "rows": len(runs),
        "share": results.share,
        "columns": {name: column(runs[name]) for name in shown},
        "keys": [_key(runs, name, lines) for name in keys],
        "x": x,
        "lines": lines,
        "looks": _looks(runs, lines),
        "metrics": metrics,
        "limits": _limits(results),
        "outside": outside_range(results.runs),
        "failures": _failures(results),
        "facts": _facts(results, runs),
        "closeups": seen,
        "closeups_not": why_not,
    }
    return described, _sketches(results)


def _derived(runs: pd.DataFrame) -> pd.DataFrame:
    """Add the state of each run, its share outside the latency model's range, and rates per GPU and user."""
    runs = with_throughput_per_gpu(runs)
    outside = pd.Series(np.nan, runs.index)
    for part, total in (
        ("num_extrapolated_batches", "num_batches"),
        ("num_extrapolated_iterations", "iterations_total"),
    ):
        if part in runs and total in runs:
            outside = outside.fillna(runs[part] / runs[total].where(runs[total] > 0))
    added: dict[str, Any] = {"state": states(runs), "outside_share": outside.fillna(0.0)}
    if "tpot_mean_s" in runs:
        added["user_tokens_per_s"] = 1 / runs["tpot_mean_s"].where(runs["tpot_mean_s"] > 0)
    return runs.assign(**added)


def keys_of(results: SweepResults, runs: pd.DataFrame) -> list[str]:
    """List what tells the runs apart, without those that say what another has said."""
    axes = results.sweep.axes
    cases = (key for case in results.sweep.cases for key in flat(case) if key != "label")
    names = dict.fromkeys(["case", "policy", *axes, *cases, "num_gpus", *REPEATS])
    kept: list[str] = []
    seen: list[Any] = []
    for name in names:
        if name not in runs or runs[name].nunique(dropna=False) < 2:
            continue
        codes = tuple(pd.factorize(runs[name], use_na_sentinel=False)[0])
        is_of_case = name not in ("policy", *axes) and "case" in kept
        if codes not in seen and not (is_of_case and _follows(runs, name, "case")):
            kept.append(name)
            seen.append(codes)
    return kept


def _follows(runs: pd.DataFrame, name: str, other: str) -> bool:
    """Whether a value of one key is always found with the same value of another."""
    return bool((runs.groupby(other, dropna=False)[name].nunique(dropna=False) < 2).all())


def _is_number(values: pd.Series[Any]) -> bool:
    return (
        pd.api.types.is_numeric_dtype(values)
        and not pd.api.types.is_bool_dtype(values)
        and bool(values.notna().all())
    )


def _x_of(runs: pd.DataFrame, keys: list[str]) -> str | None:
    """What curves are drawn over: the load, where it has values enough for a curve; else what has most."""
    numbers = {key: runs[key].nunique() for key in keys if key not in REPEATS and _is_number(runs[key])}
    if not numbers:
        return None
    loads = {
        key: num for key, num in numbers.items() if (_LOADS.fullmatch(key) or key == _CONCURRENCY) and num > 2
    }
    chosen = loads or numbers
    return max(chosen, key=lambda key: chosen[key])


def _lines_of(runs: pd.DataFrame, keys: list[str], x: str | None) -> str:
    others = [key for key in keys if key != x and key not in REPEATS]
    numbers = [key for key in others if _is_number(runs[key])]
    for key in ("case", "policy"):
        if key in others:
            return key
    return min(others, key=lambda key: key in numbers) if others else "policy"


def _key(runs: pd.DataFrame, name: str, lines: str) -> dict[str, Any]:
    return {
        "key": name,
        "label": label(name),
        "number": _is_number(runs[name]),
        "load": bool(_LOADS.fullmatch(name)) or name == _CONCURRENCY,
        "repeat": name in REPEATS,
        "follows": name == "policy" and name != lines and _follows(runs, name, lines),
        **column(_different(runs[name])),
    }


def _different(values: pd.Series[Any]) -> pd.Series[Any]:
    """Each value once: numbers in their order, names as they come."""
    once: pd.Series[Any] = values.drop_duplicates()
    return once.sort_values() if _is_number(values) else once


def _limits(results: SweepResults) -> dict[str, float]:
    """Limits that all runs have, in seconds, by the times that they are of."""
    limits = results.limits
    given = {"e2e_s": limits.e2e_ms, "ttft_s": limits.ttft_ms, "tpot_s": limits.tpot_ms}
    return {name: limit_ms / 1000 for name, limit_ms in given.items() if limit_ms is not None}


def _looks(runs: pd.DataFrame, lines: str) -> list[dict[str, Any]]:
    """Looks of the lines, in the order in which the key of lines has its values."""
    looks: dict[str, Any] = {}
    for name, look in looks_of(runs, lines).items():
        color, dash = to_hex(look.color), "solid" if look.dashes == "-" else "dash"
        # Of more lines than colours, those that come round again.
        if (color, dash) in {(other["color"], other["dash"]) for other in looks.values()}:
            dash = "dot"
        looks[name] = {"color": color, "symbol": _SYMBOLS[look.marker], "dash": dash}
    return [looks[str(value)] for value in _different(runs[lines])]


def _told(keys: Iterable[str], metrics: Iterable[Mapping[str, Any]]) -> set[str]:
    conditions = {"run_id", "case", "policy", "state", "verdict_reason", "outside_share", "num_gpus", "seed"}
    kinds = {"workload_kind", "latency_provenance"}
    drawn = {name for metric in metrics for name in (metric["key"], *metric["interval"])}
    return {*keys, *drawn, *conditions, *kinds}


def _sketches(results: SweepResults) -> Sketches:
    of_metrics = {metric: results.quantiles(metric) for metric in QUANTILES}
    return {
        metric: [of_runs.get(run_id) for run_id in results.runs["run_id"]]
        for metric, of_runs in of_metrics.items()
        if of_runs
    }


def _failures(results: SweepResults) -> dict[str, Any]:
    """Why runs of the plan are not there."""
    told = results.described
    return {"num": told["num_failures"], "planned": told["num_runs_planned"], "told": told["failures"]}


def _facts(results: SweepResults, runs: pd.DataFrame) -> list[list[str]]:
    """Say where all comes from: a label and a sentence each."""
    told = results.described
    origins = list(results.origins.values())
    return [
        ["Sweep file", f"{told['file']} (sha256 {told['sha256'][:12]})"],
        ["Grid", "the paper's (--full)" if told["is_full"] else "the small one"],
        *_each("Trace", (_workload(origin) for origin in origins)),
        *_each("Latency model", (name for origin in origins for name in _latencies(origin))),
        *_each("How far times could be off", _texts(runs, "expected_error")),
        *_each("Cluster", _texts(runs, "cluster")),
        *_each("Prices", _texts(runs, "prices")),
        *_each("Predictor", _texts(runs, "predictor")),
        *_each("Window of rates", _texts(runs, "window")),
        ["Seeds", ", ".join(f"{seed:.0f}" for seed in sorted(runs["seed"].unique())[:20])],
        *_each("Versions", (_versions(origin) for origin in origins)),
        *_each("Notice", (str(one) for origin in origins for one in origin["notices"])),
    ]


def _each(what: str, texts: Iterable[str]) -> list[list[str]]:
    """A fact that all runs share, or the few that there are of it with how many runs each holds for."""
    counted = Counter(text for text in texts if text)
    if len(counted) == 1:
        return [[what, next(iter(counted))]]
    few = [[what, f"{text} ({num:,} runs)"] for text, num in counted.most_common(6)]
    return [*few, [what, f"and {len(counted) - 6} more"]] if len(counted) > 6 else few


def _texts(runs: pd.DataFrame, name: str) -> Iterable[str]:
    return runs[name].dropna().astype(str) if name in runs else ()


def _workload(origin: Mapping[str, Any]) -> str:
    given = origin["workload"]
    digest = f", sha256 {str(given['sha256'])[:12]}" if given.get("sha256") else ""
    notices = "".join(f"; {one}" for one in given.get("notices", ()))
    return f"{given.get('name', '')}: {given.get('kind', '')}{digest}{notices}"


def _latencies(origin: Mapping[str, Any]) -> Iterable[str]:
    for given in origin["latency"]:
        plain = {key: value for key, value in given.get("details", {}).items() if not isinstance(value, dict)}
        said = "".join(f"; {key}: {value}" for key, value in plain.items())
        short = said if len(said) <= _MOST_SAID else f"{said[:_MOST_SAID]}..."
        yield f"{given.get('name', '')}: {given.get('provenance', '')}{short}"


def _versions(origin: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
