"""Results of sweeps that never ran: tables built from the few columns a test cares about."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from batchsim.config import SweepConfig
from batchsim.figures.results import SweepResults


def results(grid: Mapping[str, list[Any]], **columns: list[Any]) -> SweepResults:
    """A sweep whose runs have these columns."""
    num = len(next(iter(columns.values())))
    conditions = {
        "case": "", "num_gpus": 1, "saturated": False, "seed": 0, "num_requests": 10, "predictor": "oracle",
        "workload": "a trace", "workload_kind": "synthetic", "latency_model": "a model",
        "latency_provenance": "derived", "e2e_mean_s": 1.0, "e2e_p99_s": 2.0,
        "slo_attainment": 1.0, "slo_attainment_tpot": 1.0, "whole_run_request_throughput_per_s": 1.0,
        "whole_run_output_throughput_tokens_per_s": 100.0, "normalized_latency_mean_s": 0.1,
    }  # fmt: skip
    runs = pd.DataFrame({name: [value] * num for name, value in conditions.items()} | columns)
    if "e2e_mean_ci95_high_s" not in runs:
        runs["e2e_mean_ci95_high_s"] = runs["e2e_mean_s"] + 0.1
    base = {"slo.e2e_ms": 20_000, "slo.tpot_ms": 50}
    sweep = SweepConfig(name="made-up", figure="scaling", base=base, grid=dict(grid))
    return SweepResults(Path(), sweep, runs)
