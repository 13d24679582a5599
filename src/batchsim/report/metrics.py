"""What stands on the page of a column of results: its words, how it is drawn, and which way is better."""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd

from batchsim.figures.axes import QUANTITIES, quantity
from batchsim.metrics.statistics import bounds, ci95_keys

#: What people look at first, in this order; all else is below, by name.
MAIN = (
    "e2e_mean_s", "e2e_p50_s", "e2e_p99_s", "ttft_mean_s", "ttft_p99_s", "tpot_mean_s", "tpot_p99_s",
    "itl_mean_s", "itl_p99_s", "worst_gap_p99_s", "queueing_mean_s", "normalized_latency_mean_s",
    "slo_attainment", "goodput_requests_per_s", "throughput_per_gpu_per_s", "output_tokens_per_gpu_per_s",
    "user_tokens_per_s", "request_throughput_per_s", "output_throughput_tokens_per_s",
    "usd_per_million_output_tokens", "joules_per_output_token", "busy_fraction", "batch_size_mean",
    "running_mean", "waiting_mean", "kv_use_mean", "padding_waste_output", "bin_accuracy", "kendall_tau",
    "preemptions_per_request", "prefix_hit_rate", "worst_tenant_slo_attainment", "jain_index",
)  # fmt: skip

#: Columns that say what a run was, or that only other columns are read with.
_NO_METRIC = re.compile(
    r"(num_runs_planned|seed|replication|num_(gpus|replicas|training|warmup|dropped)|saturated|state"
    r"|outside_share|expected_error.*|.*_ci95.*|window_(start|end)_s|bin_edges|slo_met.*|warmup_rule)"
)
_UPPER = {name: name.upper() for name in ("e2e", "ttft", "tpot", "itl", "slo", "kv", "usd", "mfu", "mbu")}
_UPPER |= {"ci95": "95 %", "gpu": "GPU", "gpus": "GPUs", "usd": "USD"}
_UPPER |= {f"p{percent}": f"P{percent}" for percent in (50, 90, 95, 99)}
_LESS = re.compile(
    r"(e2e|ttft|tpot|itl|queueing|worst_gap|normalized|waiting|usd|joules|padding|preemption|recomputed"
    r"|num_(abandoned|refused|stranded|failed|shed|preempt|evicted|extrapolated)|missed|makespan|gpu_hours)"
)
_MORE = re.compile(
    r"(throughput|goodput|tokens_per_gpu|user_tokens|attainment|accuracy|within_one|kendall|fill|mfu|mbu"
    r"|hit_rate|jain|served|num_finished|tokens_per_step)"
)
_KEYS = {
    "case": "Case",
    "policy": "Policy",
    "num_gpus": "GPUs",
    "seed": "Seed",
    "replication": "Replication",
    "state": "State",
    "outside_share": "Outside the latency model's range",
    "user_tokens_per_s": "Output tokens per user (1/s)",
    "workload_kind": "Trace",
    "run_id": "Run",
}


def label(name: str) -> str:
    """Words for a column, or a varied key."""
    if name in _KEYS:
        return _KEYS[name]
    said = quantity(name).label
    if said != name or name in QUANTITIES:
        return said
    if "." in name:  # a setting, by the name that it is set by
        return " ".join(name.split(".")[1:]).replace("_", " ").capitalize()
    unit = ""
    for ending, shown in (("_tokens_per_s", "tokens/s"), ("_per_s", "1/s"), ("_s", "s")):
        if name.endswith(ending):
            name, unit = name.removesuffix(ending), f" ({shown})"
            break
    words = " ".join(_UPPER.get(word, word) for word in name.removeprefix("num_").split("_"))
    return words[:1].upper() + words[1:] + unit


def better(name: str) -> str:
    """Which is better, ``more`` or ``less``; empty where neither is."""
    if _MORE.search(name):
        return "more"
    return "less" if _LESS.match(name.removeprefix("whole_run_").removeprefix("slo_")) else ""


def metrics_of(runs: pd.DataFrame, keys: list[str]) -> list[dict[str, Any]]:
    """List what can be drawn of the runs: numbers that some run has, those of `MAIN` first."""
    there = [
        name
        for name in map(str, runs)
        if name not in keys
        and not _NO_METRIC.fullmatch(name)
        and pd.api.types.is_numeric_dtype(runs[name])
        and not pd.api.types.is_bool_dtype(runs[name])
        and runs[name].notna().any()
    ]
    main = [name for name in MAIN if name in there]
    return [
        {
            "key": name,
            "label": label(name),
            "scale": quantity(name).scale,
            "better": better(name),
            "main": name in main,
            "interval": [end for end in ci95_keys(name) if end in runs],
            **_bounds(name),
        }
        for name in [*main, *sorted(set(there) - set(main))]
    ]


def _bounds(name: str) -> dict[str, list[float | None]]:
    """The least and the most that it can be, where that is not 0 and whatever: a page has room for little."""
    ends = bounds(name)
    if ends == (0.0, math.inf):
        return {}
    return {"bounds": [end if math.isfinite(end) else None for end in ends]}
