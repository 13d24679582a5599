"""Measured runs for tests: simulated ones with irregular durations, saved as a replay saves its own."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchsim.config import RunConfig, load_config
from batchsim.latency.linear import LinearIterationLatency
from batchsim.policies.presets import PRESETS
from batchsim.policies.queueing import MultiBin
from batchsim.results.store import save_run
from batchsim.study.run import simulate
from batchsim.workload.request import Workload
from tests.sim.worlds import workload

MACHINE = {"gpu": "Test GPU", "device": "cuda", "model": "tiny", "dtype": "bf16"}


def engine(slowness: float = 1.0, **given: Any) -> LinearIterationLatency:
    """The engine that is measured, or a model that takes so many times as long."""
    return LinearIterationLatency(
        0.02 * slowness, 1e-4 * slowness, 0.0, 1e-3 * slowness, 1e-6 * slowness, **given
    )


def requests(num: int = 80, rate_per_s: float = 4.0, seed: int = 0) -> Workload:
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1 / rate_per_s, num))
    return workload(arrival_s - arrival_s[0], rng.integers(1, 60, num), rng.integers(5, 200, num))


def settled(preset: str) -> dict[str, Any]:
    """Name all that the run depends on: bins have their edges, and the engine's memory is tight."""
    bins = isinstance(PRESETS[preset].queueing, MultiBin)
    return {
        "policy": {
            "preset": preset,
            "batch_size": 8,
            **({"queueing": {"boundaries": [15, 30, 45]}} if bins else {}),
            **({"batching": {"reserve": "pow2"}} if preset == "orca" else {}),
        },
        "workload": {"training_fraction": 0.0},
        "engine": {"num_kv_blocks": 45, "prefix_caching": False, "exact_iterations": True},
        "cluster": {"kv_capacity_tokens": 1200},
        "slo": {"tpot_ms": 40, "e2e_ms": 2000},
    }


def measure(
    directory: Path,
    preset: str,
    *,
    trace: tuple[Any, ...] = (),
    slowness: float = 1.0,
    seed: int = 0,
    noise: float = 0.3,
    predicted_tokens: int | None = None,
    provenance: Mapping[str, Any] = MACHINE,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a measured run of ``requests(*trace)``; ``changes`` are made to the manifest's configuration."""
    config, tables = _run(preset, trace, slowness, seed, noise, predicted_tokens)
    manifest = {
        "kind": "measured",
        "config": load_config(config, changes).model_dump(mode="json"),
        "latency": None,
        "provenance": dict(provenance),
    }
    save_run(directory, manifest, {"kind": "measured", "policy": preset}, tables, workload=requests(*trace))
    return directory


@lru_cache(maxsize=64)
def _run(
    preset: str,
    trace: tuple[Any, ...],
    slowness: float,
    seed: int,
    noise: float,
    predicted_tokens: int | None,
) -> tuple[RunConfig, Mapping[str, pd.DataFrame]]:
    config = load_config(settled(preset))
    if predicted_tokens is not None:
        config = load_config(config, {"predictor": {"kind": "constant", "tokens": predicted_tokens}})
    noisy = {"seed": seed, "latency.noise": noise, "latency.outside": "extrapolate"}
    result = simulate(config, requests(*trace), latency=engine(slowness), overrides=noisy)
    return config, result.tables
