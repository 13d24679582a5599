"""What figures need of a sweep, held against its planned runs before the first of them takes its time.

A need is a function of the plan that says what is amiss, or nothing. `plots.FIGURES` lists those of each
figure, `own.needs_of` those of the ones that a sweep file describes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import pandas as pd

from batchsim.config import SloConfig, SweepConfig, flat
from batchsim.config.figure import OUTPUT_TOKENS, THROUGHPUT
from batchsim.errors import nearest
from batchsim.figures.results import facets_of
from batchsim.policies import presets
from batchsim.study.plan import PlannedRun
from batchsim.study.run import simulate

#: Rows of panels, and lines named above them, that still make a picture.
MOST_ROWS, MOST_LINES = 50, 200

_WORLDS = ("static_fifo", "vllm_v1")  # a preset of each
_ALL_LIMITS = SloConfig(e2e_ms=1e6, ttft_ms=1e6, tpot_ms=1e6).model_dump_json()


class Plan(NamedTuple):
    """A sweep and all its runs.

    Attributes
    ----------
    table
        A row per run as the results will have it, but for what is measured; all of it text.
    """

    sweep: SweepConfig
    runs: Sequence[PlannedRun]
    table: pd.DataFrame

    @property
    def settings(self) -> list[str]:
        """Settings that an own figure may name."""
        return list(dict.fromkeys(["policy", "case", *self.runs[0].varied]))


def plan_of(sweep: SweepConfig, runs: Sequence[PlannedRun]) -> Plan:
    """Put a sweep and its runs together."""
    rows = [
        {
            **run.varied,
            "case": run.case,
            "policy": run.config.policy.preset,
            "predictor": run.config.predictor.kind,
        }
        for run in runs
    ]
    return Plan(sweep, runs, pd.DataFrame(rows).astype(str))


Need = Callable[[Plan], str]


def varied(*settings: str) -> Need:
    """The sweep varies these settings, each of them another one."""

    def missing(plan: Plan) -> str:
        for key in settings:
            if key not in plan.settings:
                return f"setting {key!r} is not varied; {nearest(key, plan.settings)}"
        if len(set(settings)) < len(settings):
            return f"setting {settings[0]!r} is named twice; another one is needed"
        return ""

    return missing


def several(*settings: str) -> Need:
    """There is something to compare: runs that differ in one of some settings."""

    def missing(plan: Plan) -> str:
        is_there = any(one in plan.table and len(plan.table[one].unique()) > 1 for one in settings)
        return "" if is_there else f"several values of {' or '.join(map(repr, settings))} are needed"

    return missing


def readable(lines: str, *axes: str) -> Need:
    """Neither lines nor rows of panels, one for each combination of what varies besides, are too many."""

    def missing(plan: Plan) -> str:
        facets = facets_of(plan.sweep, plan.table, (lines, *axes))
        num_rows = plan.table.groupby(facets).ngroups if facets else 1
        if num_rows > MOST_ROWS:
            return (
                f"{num_rows:,} rows of panels, one for each {' and '.join(facets)}, are more than the "
                f"{MOST_ROWS} that a page holds; vary less in one sweep"
            )
        num_lines = plan.table[lines].nunique()
        if num_lines > MOST_LINES:
            return (
                f"{num_lines:,} lines, one for each {lines}, are more than the {MOST_LINES} that a page holds"
            )
        return ""

    return missing


def measured(*metrics: str) -> Need:
    """Every name is that of a metric, and some run will have one of them."""

    def missing(plan: Plan) -> str:
        worlds = {
            (
                run.config.slo.model_dump_json(),
                presets.find_preset(run.config.policy.preset).is_iteration_level,
            )
            for run in plan.runs
        }
        known = {
            name
            for limits in (_ALL_LIMITS, *(limits for limits, _ in worlds))
            for preset in _WORLDS
            for name in _metrics(preset, limits)
        }
        for name in metrics:
            if name not in known:
                return f"metric {name!r} is unknown; {nearest(name, sorted(known))}"
        if not any(_lacks(name, *world) == "" for name in metrics for world in worlds):
            return _lacks(metrics[0], *min(worlds))
        return ""

    return missing


def _lacks(metric: str, limits: str, is_iteration_level: bool) -> str:
    """Say why runs under these limits, in this world, will not have a metric."""
    preset = _WORLDS[is_iteration_level]
    if metric not in _metrics(preset, _ALL_LIMITS) and metric not in _metrics(preset, limits):
        world = "batches that run to completion" if is_iteration_level else "iterations"
        return f"metric {metric!r} is one of {world}; a policy that has them is needed"
    if _metrics(preset, _ALL_LIMITS).get(metric) and not _metrics(preset, limits)[metric]:
        return f"metric {metric!r} tells of limits that no run has; set one, e.g. slo.e2e_ms"
    return ""


@cache
def _metrics(preset: str, limits: str) -> dict[str, bool]:
    """Name what a summary has that can be drawn, and whether there is a value: asked of two requests."""
    lengths = {"kind": "fixed", "tokens": 8}
    generator = {"kind": "poisson", "rate_per_s": 1.0, "prompt": lengths, "output": lengths}
    summary = simulate(
        {
            "policy": {"preset": preset},
            "workload": {
                "num_requests": 2,
                "generator": generator,
                "tenants": [{"name": "any", "slo_class": "any"}],
            },
            "slo": SloConfig.model_validate_json(limits),
        }
    ).summary
    names = {
        name: value is not None
        for name, value in summary.items()
        if not isinstance(value, str | list | dict) and name != "seed"
    }
    return {THROUGHPUT: True, OUTPUT_TOKENS: True, **names}


def cases_are_named(plan: Plan) -> str:
    """Every case has a label of its own."""
    labels = [case.get("label") for case in plan.sweep.cases]
    is_good = None not in labels and len(set(map(str, labels))) == len(labels) > 1
    return "" if is_good else "several `cases`, each with a label of its own, are needed"


def keeps_tables(plan: Plan) -> str:
    """The tables of the runs are kept."""
    return "" if plan.sweep.save == "tables" else 'it is drawn from tables of the runs; set save = "tables"'


def runs_to_completion(plan: Plan) -> str:
    """No policy batches at every iteration."""
    for run in plan.runs:
        if presets.find_preset(run.config.policy.preset).is_iteration_level:
            return f"policy {run.config.policy.preset} has no batches; one that runs to completion is needed"
    return ""


def has_controller(plan: Plan) -> str:
    """Some policy decides, as it runs, how much may be under way."""
    policies = {run.config.policy.model_dump_json(): run.config.policy for run in plan.runs}
    if any(presets.build(policy).controllers for policy in policies.values()):
        return ""
    return "no policy has a controller; one is needed, e.g. dynamic_no_bins"


def uniform_answers(plan: Plan) -> str:
    """Output lengths of all runs follow the same uniform law."""
    output = "workload.generator.output."
    given = flat(plan.sweep.base)
    is_set_elsewhere = any(key.startswith("workload.generator") for key in plan.settings)
    if given.get(f"{output}kind") == "uniform" and not is_set_elsewhere:
        return ""
    return "output lengths of a generator of kind uniform, the same for all runs, are needed"
