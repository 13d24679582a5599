"""A measured run beside what several policies would have made of its requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd

from batchsim.config import RunConfig, load_config
from batchsim.errors import ConfigError
from batchsim.metrics.requests import e2e_s
from batchsim.metrics.statistics import paired_difference
from batchsim.results.exchange.imported import measured_records, measured_summary
from batchsim.results.measured_tables import MeasuredRun
from batchsim.sim.recording.recorder import Recorder
from batchsim.study.compare import for_policies
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredComparison:
    """A measured run, and the simulations of its requests.

    Attributes
    ----------
    measured
        Its summary, over the same requests as those of the simulations.
    results
        By policy name, in the order asked for.
    differences
        One row per policy, simulated less measured: columns as `study.compare.Comparison` has them. NaN where
        arrivals were drawn, so that requests are not the same.
    """

    measured: Mapping[str, Any]
    results: Mapping[str, SimulationResult]
    differences: pd.DataFrame


def compare_measured(
    config: RunConfig | Mapping[str, Any] | None,
    policies: Sequence[str],
    run: MeasuredRun,
    name: str,
    *,
    on_start: Callable[[str, Recorder], None] | None = None,
) -> MeasuredComparison:
    """Simulate several presets on the requests of a measured run, when they were sent.

    As `study.compare.compare` does; the longest warm-up that any side needs is cut from all.

    Parameters
    ----------
    name
        What the measured run is called.

    Raises
    ------
    ConfigError
        For no policy or one named twice, a workload or clients of their own, and as `simulate`.
    """
    if not policies or len(set(policies)) < len(policies):
        raise ConfigError(f"policies are {', '.join(policies) or '(none)'}; different ones are needed")
    config = load_config(config)
    own = [f"workload.{key}" for key in config.workload.model_fields_set - {"num_requests"}]
    if own or "clients" in config.model_fields_set:
        raise ConfigError(
            f"{min(own, default='clients')}: the requests are those that were measured; this cannot be set"
        )
    workload = run.workload(name)
    results = {
        policy: simulate(one, workload, on_start=None if on_start is None else partial(on_start, policy))
        for policy, one in for_policies(config, policies).items()
    }
    # Nothing was simulated of those that a policy learns from, which come first, nor after so many as asked.
    summaries = [result.summary for result in results.values()]
    run = _part(run, *(max(int(one[key]) for one in summaries) for key in ("num_training", "num_requests")))
    summary = measured_summary(run, config.slo, name)
    num_warmup = max(one["num_warmup"] for one in (summary, *(each.summary for each in results.values())))
    results = {policy: result.with_warmup(num_warmup) for policy, result in results.items()}
    summary = measured_summary(run, config.slo, name, num_warmup)
    return MeasuredComparison(summary, results, _differences(name, run, results, num_warmup))


def _part(run: MeasuredRun, num_before: int, num: int) -> MeasuredRun:
    """Return so many requests of a run, without the first ones; the next arrives at 0."""
    requests = run.requests.sort_values(["arrival_s", "request_id"], kind="stable")
    requests = requests.iloc[num_before : num_before + num]
    start_s = requests["arrival_s"].iloc[0]
    times = {name: requests[name] - start_s for name in ("arrival_s", "first_token_s", "finish_s")}
    return replace(run, requests=requests.assign(**times))


def _differences(
    name: str, run: MeasuredRun, results: Mapping[str, SimulationResult], num_warmup: int
) -> pd.DataFrame:
    requests = measured_records(run).requests.iloc[num_warmup:]
    measured_s = e2e_s(requests).set_axis(requests["request_id"])
    rows = []
    for policy, result in results.items():
        covered = result.requests.iloc[num_warmup:]
        simulated_s = e2e_s(covered).set_axis(covered["request_id"]).reindex(measured_s.index)
        pairs = pd.DataFrame({"measured": measured_s, "simulated": simulated_s}).dropna()
        difference = paired_difference(pairs["simulated"], pairs["measured"])
        half_width_s = math.nan if result.summary["saturated"] else difference.half_width
        told = (difference.mean, half_width_s) if run.has_arrivals else (math.nan, math.nan)
        rows.append((policy, name, len(pairs), *told))
    columns = ["policy", "baseline", "num_paired", "e2e_difference_mean_s", "e2e_difference_ci95_s"]
    return pd.DataFrame(rows, columns=columns)
