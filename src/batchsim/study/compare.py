"""Several policies on the same arrivals: paired differences, and a warning where two of them did the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchsim.config import RunConfig, load_config
from batchsim.errors import ConfigError
from batchsim.latency.base import BatchLatency
from batchsim.metrics.requests import e2e_s
from batchsim.metrics.statistics import paired_difference, t_test
from batchsim.policies import presets
from batchsim.policies.presets import describe
from batchsim.policies.queueing import MultiBin
from batchsim.sim.recording.recorder import Recorder
from batchsim.study.aggregate import outcomes
from batchsim.study.replications import Replications, Stopping, is_same_run, replication
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate, training_fraction
from batchsim.workload.predictor import make_predictor
from batchsim.workload.request import Workload


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Results of several policies on the same requests.

    Attributes
    ----------
    results
        By policy name, in the order asked for.
    differences
        One row per policy but the first, against the first: columns ``policy, baseline, num_paired,
        e2e_difference_mean_s, e2e_difference_ci95_s`` (half width; NaN where either run is saturated or both
        are too short to tell). Pairs are covered requests that finished under both.
    twins
        One sentence for each pair of policies that gave identical schedules; empty is good.
    """

    results: Mapping[str, SimulationResult]
    differences: pd.DataFrame
    twins: Sequence[str]


def compare(
    config: RunConfig | Mapping[str, Any] | str | Path | None,
    policies: Sequence[str],
    workload: Workload | None = None,
    *,
    latency: BatchLatency | None = None,
    on_start: Callable[[str, Recorder], None] | None = None,
) -> Comparison:
    """Simulate several presets on the same evaluated requests and the same random streams.

    If any of them learns, the training part is set aside for all; the longest warm-up that any of them needs
    is cut from all. ``policy.num_bins`` applies to those with bins.

    Raises
    ------
    ConfigError
        For fewer than two policies or one named twice, and as `simulate`.
    """
    _check_different(policies)
    return _compare_once(load_config(config), policies, workload, latency, on_start)


def _check_different(policies: Sequence[str]) -> None:
    if len(policies) < 2 or len(set(policies)) < len(policies):
        raise ConfigError(
            f"compare got policies {', '.join(policies) or '(none)'}; at least two different ones are needed"
        )


def _compare_once(
    config: RunConfig,
    policies: Sequence[str],
    workload: Workload | None,
    latency: BatchLatency | None,
    on_start: Callable[[str, Recorder], None] | None,
) -> Comparison:
    results = {
        name: simulate(
            one, workload, latency=latency, on_start=None if on_start is None else partial(on_start, name)
        )
        for name, one in for_policies(config, policies).items()
    }
    num_warmup = max(result.summary["num_warmup"] for result in results.values())
    results = {name: result.with_warmup(num_warmup) for name, result in results.items()}
    return Comparison(results, _differences(results), _told(_twin_pairs(results), results))


@dataclass(frozen=True, slots=True, eq=False)
class ReplicatedComparison:
    """Replications of several policies, each on the same requests and draws for all.

    Attributes
    ----------
    first
        Replication 0, whole.
    replications
        By policy name, in the order asked for.
    differences
        One row per policy but the first and number of a summary that is not the same in all runs: columns
        ``policy, baseline, metric, baseline_mean, mean, difference, ci95_low, ci95_high, p_value,
        num_replications``. The difference, policy minus baseline, is taken in each replication; its interval
        and p-value are those of Student's paired test over replications.
    twins
        One sentence for each pair of policies that gave identical schedules in every replication.
    """

    first: Comparison
    replications: Mapping[str, Replications]
    differences: pd.DataFrame
    twins: Sequence[str]

    @property
    def is_fixed(self) -> bool:
        """Whether nothing random bears on any of the runs, so that there is replication 0 alone."""
        return all(one.is_fixed for one in self.replications.values())

    @property
    def notices(self) -> list[str]:
        """What a reader should know of the intervals, in sentences."""
        said = {name: one.notices for name, one in self.replications.items()}
        if self.is_fixed:
            return next(iter(said.values()))
        return [f"{name}: {sentence}" for name, sentences in said.items() for sentence in sentences]


def compare_replications(
    config: RunConfig | Mapping[str, Any] | str | Path | None,
    policies: Sequence[str],
    workload: Workload | None = None,
    stopping: Stopping | None = None,
    *,
    latency: BatchLatency | None = None,
    on_start: Callable[[str, Recorder], None] | None = None,
) -> ReplicatedComparison:
    """Do `compare` with several seeds: the same replication draws the same for all policies.

    A precision has to be reached by each of them.
    """
    _check_different(policies)
    loaded, stopping = load_config(config), stopping or Stopping()

    def run(k: int) -> Comparison:
        return _compare_once(replication(loaded, k), policies, workload, latency, on_start)

    first = run(0)
    summaries = {name: [result.summary] for name, result in first.results.items()}
    values = [[stopping.value(done[0])] for done in summaries.values()]
    is_fixed, twins = False, _twin_pairs(first.results)
    while not is_fixed and not stopping.is_done(values):
        results = run(len(values[0])).results
        if len(values[0]) == 1:
            is_fixed = all(is_same_run(first.results[name], results[name]) for name in results)
        if not is_fixed:
            twins = [pair for pair in _twin_pairs(results) if pair in twins]
            for column, (name, done) in zip(values, summaries.items(), strict=True):
                done.append(results[name].summary)
                column.append(stopping.value(done[-1]))
    replications = {
        name: Replications(first.results[name], tuple(done), stopping, is_fixed)
        for name, done in summaries.items()
    }
    return ReplicatedComparison(first, replications, _paired(summaries), _told(twins, first.results))


def _paired(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """Each number of a summary against that of the first policy, replication by replication."""
    (baseline, first), *others = summaries.items()
    rows = []
    for name, runs in others:
        for metric in outcomes([*first, *runs]):
            pairs = [(one.get(metric), other.get(metric)) for one, other in zip(first, runs, strict=True)]
            if any(value is None for pair in pairs for value in pair):
                continue
            before, after = np.array(pairs, dtype=np.float64).T
            if (before == before[0]).all() and (after == before[0]).all():
                continue
            interval, p_value = t_test(after - before)
            means = float(before.mean()), float(after.mean())
            rows.append((name, baseline, metric, *means, *interval, p_value, len(pairs)))
    columns = ["policy", "baseline", "metric", "baseline_mean", "mean", "difference", "ci95_low", "ci95_high"]
    return pd.DataFrame(rows, columns=[*columns, "p_value", "num_replications"])


def for_policies(base: RunConfig, policies: Sequence[str]) -> dict[str, RunConfig]:
    """Configure several presets alike, so that all are evaluated on the same requests."""
    configs = {name: _for_policy(base, name) for name in policies}
    fraction = max(
        training_fraction(one, presets.build(one.policy), make_predictor(one.predictor))
        for one in configs.values()
    )
    return {name: load_config(one, {"workload.training_fraction": fraction}) for name, one in configs.items()}


def _for_policy(base: RunConfig, name: str) -> RunConfig:
    overrides: dict[str, Any] = {"policy.preset": name}
    if base.policy.num_bins is not None and not isinstance(presets.find_preset(name).queueing, MultiBin):
        overrides["policy.num_bins"] = None
    return load_config(base, overrides)


def _differences(results: Mapping[str, SimulationResult]) -> pd.DataFrame:
    (baseline, first), *others = results.items()
    first_e2e_s = _covered_e2e_s(first)
    rows = []
    for name, result in others:
        # By request, since clients may send them in another order; in the order of the first.
        other_e2e_s = _covered_e2e_s(result).reindex(first_e2e_s.index)
        pairs = pd.DataFrame({"first": first_e2e_s, "other": other_e2e_s}).dropna()
        difference = paired_difference(pairs["other"], pairs["first"])
        is_saturated = first.summary["saturated"] or result.summary["saturated"]
        half_width_s = math.nan if is_saturated else difference.half_width
        rows.append((name, baseline, len(pairs), difference.mean, half_width_s))
    columns = ["policy", "baseline", "num_paired", "e2e_difference_mean_s", "e2e_difference_ci95_s"]
    return pd.DataFrame(rows, columns=columns)


def _covered_e2e_s(result: SimulationResult) -> pd.Series[float]:
    covered = result.requests.iloc[result.summary["num_warmup"] :]
    return e2e_s(covered).set_axis(covered["request_id"])


def _twin_pairs(results: Mapping[str, SimulationResult]) -> list[tuple[str, str]]:
    return [
        (first, second)
        for first, second in combinations(results, 2)
        if results[first].requests["finish_s"].equals(results[second].requests["finish_s"])
        and results[first].requests["status"].equals(results[second].requests["status"])
    ]


def _told(pairs: Sequence[tuple[str, str]], results: Mapping[str, SimulationResult]) -> list[str]:
    return [_twin_sentence(first, second, results[first], results[second]) for first, second in pairs]


def _twin_sentence(first: str, second: str, result: SimulationResult, twin: SimulationResult) -> str:
    one, other = presets.build(result.config.policy), presets.build(twin.config.policy)
    shared = [
        describe(answer)
        for answer, same in (
            (one.queueing, other.queueing),
            (one.sizing, other.sizing),
            (one.batching, other.batching),
        )
        if describe(answer) == describe(same)
    ]
    busy = result.summary["busy_fraction"]
    size = result.summary.get("batch_size_mean", result.summary.get("running_mean"))
    load = (
        ""
        if busy is None or size is None
        else f" at a busy fraction of {busy:.2f} and a mean batch size of {size:.2f}"
    )
    return (
        f"{first} and {second} gave identical results for all {len(result.requests)} requests{load}; they "
        f"share {' and '.join(shared) or 'none of their choices'}. "
        "At this load the comparison does not tell them apart."
    )
