"""A few runs closely: what each replica did in a short while, who waited, and what controllers decided.

They come from the tables of a run, where these lie in its folder; else a run that is short is simulated once
more, if all that decides it is as it was: that is the same run, and makes the same picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from batchsim.config import RunConfig
from batchsim.errors import BatchsimError, ConfigError
from batchsim.figures.results import SweepResults, states
from batchsim.metrics.system import num_waiting
from batchsim.records import arrays
from batchsim.report.coding import deltas, short
from batchsim.report.metrics import label
from batchsim.results.store import load_run
from batchsim.results.timeline import span_kinds
from batchsim.study.identity import identify
from batchsim.study.run import simulate

#: Bars of a close-up, all replicas together, and of each; points of a course; lanes; controllers.
_BARS, _BARS_EACH, _POINTS, _LANES, _CONTROLLERS = 600, 150, 300, 16, 4
#: A run with more requests is not simulated for a picture of its hundredth part.
_MOST_REQUESTS = 20_000
_MS = 1e-3


def closeups(results: SweepResults, lines: str, x: str | None, most: int) -> tuple[list[Any], list[str]]:
    """Look closely at a run of each line; return what was seen, and why of some there is nothing to see."""
    seen: list[Any] = []
    why_not: list[str] = []
    origins = results.origins
    for run in _chosen(results, lines, x):
        if len(seen) == most:
            break
        name = f"{run[lines]}" + (f", {label(x)} {run[x]:g}" if x is not None else "")
        try:
            tables = _tables(results, run, origins)
        except Exception as fault:  # a policy from outside may raise anything, and the page goes on
            said = str(fault) if isinstance(fault, BatchsimError) else f"{type(fault).__name__}: {fault}"
            why_not.append(f"{name}: {said}")
            continue
        if tables is None:
            why_not.append(f"{name}: {run['num_requests']:,} requests, too many to simulate for a picture")
            continue
        seen.append(
            {
                "run": run["run_id"],
                "name": name,
                **_window(tables, int(run.get("num_replicas", 1))),
                "controllers": _controllers(tables["controllers"]),
            }
        )
    return seen, why_not


def _chosen(results: SweepResults, lines: str, x: str | None) -> list[dict[str, Any]]:
    """Of each line the run at the highest load that it sustains; the lowest, if it sustains none.

    Runs that are there to be looked at, or short enough to be simulated for it, come first.
    """
    runs = results.runs.assign(state=states(results.runs))
    is_short = (runs["num_requests"] <= _MOST_REQUESTS) | (results.sweep.save == "tables")
    chosen = []
    for _, part in runs.groupby(lines, sort=False, dropna=False):
        there = part[is_short[part.index]] if is_short[part.index].any() else part
        ordered = there.sort_values(x, kind="stable") if x is not None else there
        stable = ordered[ordered["state"] == "stable"]
        row = stable.iloc[-1] if len(stable) else ordered.iloc[0]
        chosen.append({str(key): value for key, value in row.to_dict().items()})
    return chosen


def _tables(
    results: SweepResults, run: Mapping[str, Any], origins: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, pd.DataFrame] | None:
    """The tables of a run; None if they are not there, and it is too long to be simulated for them."""
    run_id = str(run["run_id"])
    folder = results.folder / "runs" / run_id
    if (folder / "requests.parquet").exists():
        return load_run(folder)[2]
    if run["num_requests"] > _MOST_REQUESTS:
        return None
    config = RunConfig.model_validate(origins[run_id]["config"])
    if identify(config).run_id != run_id:
        raise ConfigError(
            "cannot be simulated again: its trace, latency file or policy, or batchsim itself, has changed"
        )
    return simulate(config).tables


def _window(tables: Mapping[str, pd.DataFrame], num_replicas: int) -> dict[str, Any]:
    """What ran from the middle of the arrivals on, replica by replica, and how many waited meanwhile."""
    requests = tables["requests"]
    is_engine = "iterations" in tables
    bars = tables["iterations" if is_engine else "batches"]
    shown, num_bars = bars[bars["gpu_id"] < _LANES], min(_BARS, _BARS_EACH * num_replicas)
    middle_s = float(requests["arrival_s"].iloc[len(requests) // 2]) if len(requests) else 0.0
    later = shown[shown["finish_s"] > middle_s].sort_values("start_s", kind="stable").head(num_bars)
    if later.empty:
        later = shown.sort_values("start_s", kind="stable").tail(num_bars)
    start_s = float(later["start_s"].min()) if len(later) else 0.0
    end_s = float(later["finish_s"].max()) if len(later) else 0.0
    kinds = span_kinds(later) if is_engine else ["batch"] * len(later)
    names = list(dict.fromkeys(kinds))
    size = later["decode_seqs"] + later["prefill_seqs"] if is_engine else later["batch_size"]
    columns = {"n": size, "i": later["num_iterations"]} if is_engine else {"n": size, "b": later["bin"]}
    return {
        "engine": is_engine,
        "lanes": min(num_replicas, _LANES),
        "replicas": num_replicas,
        "t0": round(start_s, 3),  # late in a long trace, six digits are no longer milliseconds
        "t1": round(end_s, 3),
        "kinds": names,
        "bars": {
            "g": later["gpu_id"].tolist(),
            "s": deltas(later["start_s"].to_numpy() - start_s, _MS),
            "d": [short(round(1000 * value, 3)) for value in (later["finish_s"] - later["start_s"])],
            "k": [names.index(kind) for kind in kinds],
            **{key: column.tolist() for key, column in columns.items()},
        },
        "waiting": _waiting(requests, start_s, end_s),
    }


def _waiting(requests: pd.DataFrame, start_s: float, end_s: float) -> dict[str, Any]:
    """How many requests wait to be scheduled first, at moments evenly over the window."""
    moments = np.linspace(start_s, end_s, _POINTS)
    return {"t": deltas(moments - start_s, _MS), "n": num_waiting(arrays(requests), moments).tolist()}


def _controllers(decided: pd.DataFrame) -> list[dict[str, Any]]:
    """What each controller allowed over the whole run, and measured, at as many points as a screen shows."""
    courses = []
    groups: Sequence[Any] = [
        (key, part)
        for key, part in decided.groupby(["controller", "gpu_id", "bin"], observed=True, sort=True)
        if len(part)
    ]
    for (name, gpu_id, bin_), part in groups[:_CONTROLLERS]:
        places = np.unique(np.linspace(0, len(part) - 1, min(_POINTS, len(part))).round().astype(int))
        few = part.iloc[places]
        where = [f"replica {gpu_id}"] * (gpu_id >= 0) + [f"bin {bin_}"] * (bin_ >= 0)
        courses.append(
            {
                "name": ", ".join([str(name), *where]),
                "t": [short(value) for value in few["time_s"]],
                "allowed": few["batch_size"].tolist(),
                "measured": [short(value) for value in few["measured"]],
                "of": len(part),
                "left": len(groups) - _CONTROLLERS,
            }
        )
    return courses
