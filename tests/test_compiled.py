"""Compiled engines are the same engines: every table of a run is the same to the last bit."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from batchsim.policies import PRESETS

COMPILED = os.environ.get("BATCHSIM_COMPILED", "")
pytestmark = pytest.mark.skipif(not COMPILED, reason="there are no compiled engines: make test-compiled")

#: Runs the configurations that it is given; prints a digest of every table, and where the engines are from.
RUNS = """
import json, sys
import pandas as pd
import batchsim
from batchsim.sim import spans

digests = []
for config in json.load(sys.stdin):
    records = batchsim.simulate(config).records
    tables = (records.requests, records.batches, records.iterations, records.preemptions)
    digests.append([[len(one), str(pd.util.hash_pandas_object(one).sum())] for one in tables])
print(json.dumps({"file": spans.__file__, "digests": digests}))
"""

#: Tight enough that engines preempt.
WORLD = {
    "workload": {
        "num_requests": 400,
        "generator": {
            "kind": "poisson",
            "rate_per_s": 12.0,
            "prompt": {"kind": "lognormal", "mean": 300, "sigma": 0.9},
            "output": {"kind": "lognormal", "mean": 120, "sigma": 0.9},
        },
    },
    "cluster": {"num_gpus": 2},
}
TIGHT = {"num_kv_blocks": 300}


def configs() -> list[dict[str, Any]]:
    """All presets, engines with and without asynchronous scheduling and failures; speculation."""
    made = []
    for name, preset in PRESETS.items():
        policy = {"policy": {"preset": name, "batch_size": 16}}
        if not preset.is_iteration_level:
            made.append({**WORLD, **policy})
            continue
        for is_async, failures in product((False, True), ({}, {"failures": {"time_between_s": 9.0}})):
            engine = {**TIGHT, "async_scheduling": is_async, "launch_s": 0.002}
            made.append({**WORLD, **policy, "engine": engine, **failures})
    speculation = {"num_speculative_tokens": 3, "acceptance": 0.7}
    made.append({**WORLD, "policy": {"preset": "vllm_v1"}, "engine": {**TIGHT, "speculation": speculation}})
    return made


def run_with(path: str) -> dict[str, Any]:
    """Run all of them in a process that finds the package there."""
    environment = {**os.environ, "PYTHONPATH": path}
    ended = subprocess.run(
        [sys.executable, "-c", RUNS],
        input=json.dumps(configs()),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_compiled_engines_give_the_same_tables_to_the_last_bit() -> None:
    compiled, interpreted = run_with(COMPILED), run_with("src")
    assert Path(compiled["file"]).suffix in {".so", ".pyd"}
    assert Path(interpreted["file"]).suffix == ".py"
    assert compiled["digests"] == interpreted["digests"]
    preempted = sum(tables[3][0] for tables in interpreted["digests"])
    assert preempted > 100  # engines were short of memory
