"""Measured results of others' benchmarks beside a simulation of the same requests.

What the engine did is not in them, so that the gate of its logic is not judged, nor is the whole: a file is
one run, which does not tell how far the machine varies. The errors are shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import pandas as pd

from batchsim.config import RunConfig, load_config
from batchsim.errors import ConfigError
from batchsim.files import resolved
from batchsim.latency.store import load_latency
from batchsim.results.exchange.imported import read_results
from batchsim.results.measured_tables import MeasuredRun
from batchsim.study.run import simulate
from batchsim.study.setup.hardware import AnyLatency
from batchsim.validation.comparison import MAPE, THROUGHPUT, Comparison, compare_requests
from batchsim.validation.replays.cases import Case, Validation, model_in_words, predicted_requests
from batchsim.validation.replays.gates import Gate, model_gates

#: What is simulated unless settings say otherwise: vLLM's own scheduler, outside the model's range, too.
_USUAL = {
    "policy": {"preset": "vllm_v1"},
    "workload": {"training_fraction": 0.0},
    "latency": {"outside": "extrapolate"},
}


def validate_results(paths: Sequence[Path], predicted: Path, settings: Mapping[str, Any]) -> Validation:
    """Simulate the requests of each measured run when they were sent, and compare.

    Parameters
    ----------
    paths
        What `read_results` reads.
    predicted
        A latency file.
    settings
        Dotted keys of the configuration; ``vllm_v1`` on one GPU if left out.

    Raises
    ------
    ConfigError, TraceError
        If something cannot be read or used.
    """
    if predicted.is_dir():
        raise ConfigError(f"{predicted}: a latency file is needed to simulate the requests of {paths[0]}")
    if fixed := [key for key in settings if key.startswith(("workload", "clients"))]:
        raise ConfigError(f"{fixed[0]}: the requests are those that were measured; this cannot be set")
    config = load_config(_USUAL, settings)
    latency = load_latency(predicted)
    cases, notices = [], list[str]()
    for name, run in _named(paths).items():
        case, assumed = _case(name, run, config, latency)
        cases.append(case)
        notices += [*run.notices, *(sentence for sentence in assumed if sentence not in notices)]
    gates = [*model_gates(latency.info.details), *map(_gate, cases)]
    runs = [{"run": case.name, "case": case.name, "num_requests": len(case.measured[0])} for case in cases]
    prediction = f"{model_in_words(latency)} under {config.policy.preset}"
    return Validation(prediction, cases, gates, pd.DataFrame(runs), notices)


def _named(paths: Sequence[Path]) -> dict[str, MeasuredRun]:
    """Runs by the name of their file, numbered where there are several of a name."""
    named: dict[str, MeasuredRun] = {}
    for path in {resolved(path): path for path in paths}.values():
        for run in read_results(path):
            names = chain([path.stem], (f"{path.stem}_{number}" for number in count(2)))
            named[next(name for name in names if name not in named)] = run
    return named


def _case(name: str, run: MeasuredRun, config: RunConfig, latency: AnyLatency) -> tuple[Case, Sequence[str]]:
    result = simulate(config, run.workload(name), latency=latency)
    requests, num_extrapolated = predicted_requests(result)
    comparison = _shown(compare_requests([run.requests], requests), run.has_arrivals)
    preset = config.policy.preset
    case = Case(name, preset, [run.requests], run.tool, math.nan, requests, comparison, num_extrapolated)
    return case, result.manifest["notices"]


def _shown(comparison: Comparison, has_arrivals: bool) -> Comparison:
    """Errors without a verdict; where arrivals were drawn, of distributions alone."""
    errors = comparison.errors.assign(verdict="not judged")
    if not has_arrivals:
        errors = errors[errors["metric"].ne(THROUGHPUT) & errors["statistic"].ne(MAPE)]
    return replace(comparison, errors=errors.reset_index(drop=True))


def _gate(case: Case) -> Gate:
    worst, error = case.comparison.worst_time
    finding = (
        f"largest error of a time {error:+.1%} ({worst}); one run does not tell how far the machine varies"
    )
    return Gate("end to end", case.name, "not judged", finding)
