"""A measured run read back, ready to be simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from batchsim.config import RunConfig, load_config
from batchsim.errors import ConfigError, TraceError
from batchsim.files import read_json, resolved
from batchsim.latency.base import RECORDED_FIELDS, BatchShape, IterationShape
from batchsim.metrics.system import Window, busy_fraction
from batchsim.policies.presets import PRESETS, find_preset
from batchsim.results.store import load_run
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate
from batchsim.study.setup.hardware import AnyLatency
from batchsim.workload.formats import read_trace
from batchsim.workload.request import Workload

#: What is lost when a time is written is less than this.
_CLOCK_S = 1e-9


@dataclass(frozen=True, eq=False)
class Recording:
    """A measured run: a run directory whose manifest says ``measured``, with the trace beside it.

    Attributes
    ----------
    config
        By which a simulation repeats it; its workload is ``workload``, whose requests come at their time.
    world
        ``iterations`` or ``batches``: what the engine ran, and the name of the table of it.
    operations
        This table, in the order in which the engine ran them.
    provenance
        What it was measured on.
    """

    directory: Path
    config: RunConfig
    workload: Workload
    requests: pd.DataFrame
    world: Literal["iterations", "batches"]
    operations: pd.DataFrame
    provenance: Mapping[str, Any]

    @property
    def policy(self) -> str:
        """The preset that drove it."""
        return self.config.policy.preset

    @cached_property
    def durations_s(self) -> list[float]:
        """Seconds of each operation."""
        return (self.operations["finish_s"] - self.operations["start_s"]).tolist()

    @property
    def load(self) -> float:
        """Share of the time from the first arrival to the last finish in which the engine was busy."""
        requests = self.requests
        run = Window(float(requests["arrival_s"].min()), float(requests["finish_s"].max()))
        return busy_fraction(self.operations, 1, run)

    @property
    def num_preempted(self) -> int:
        """How often requests gave their memory up: were preempted, or thrown out of a batch."""
        name = "num_preempted" if self.world == "iterations" else "num_evicted"
        return int(self.operations[name].sum())

    def simulate(self, latency: AnyLatency, *, exact: bool = False) -> SimulationResult:
        """Simulate it with a latency model, extrapolated where need be; ``exact``: iteration by iteration."""
        tree = self.config.model_dump()
        tree |= {"workload": {"training_fraction": 0.0}, "latency": {"outside": "extrapolate"}}
        if exact:
            tree["engine"] |= {
                "exact_iterations": True,
                "launch_s": 0.0,
                "wake_s": 0.0,
                "async_scheduling": False,
            }
        return simulate(tree, self.workload, latency=latency)

    def batch_shapes(self) -> list[BatchShape]:
        """Return what each batch asks of a latency model; members that were thrown out cost their time."""
        table = self.operations
        sizes = table["batch_size"] + table["num_evicted"]
        columns = (sizes, table["max_prompt_tokens"], table["max_output_tokens"])
        return list(map(BatchShape._make, zip(*(column.tolist() for column in columns), strict=True)))

    def iteration_shapes(self) -> list[IterationShape]:
        """Return what each iteration asks of a latency model."""
        columns = (self.operations[name].tolist() for name in RECORDED_FIELDS)
        return [IterationShape(*row) for row in zip(*columns, strict=True)]


def read_recording(directory: Path) -> Recording:
    """Read a measured run.

    Raises
    ------
    ConfigError, TraceError
        If the directory holds no measured run of one engine, or what it holds cannot be simulated again.
    """
    directory = Path(directory)
    manifest, _, tables = load_run(directory)
    if manifest.get("kind") != "measured":
        raise ConfigError(f"{directory}: its manifest does not say that it was measured; a simulation?")
    given, provenance = manifest.get("config", {}), manifest.get("provenance", {})
    if not isinstance(given, dict) or not isinstance(provenance, dict):
        raise ConfigError(f"{directory}: its manifest has a config or provenance that is no object")
    # Its requests are in it: how they were chosen does not matter, nor what that was called at the time.
    config = load_config({section: value for section, value in given.items() if section != "workload"})
    if config.policy.preset not in PRESETS:  # what lies in a folder of data must not say what code is run
        raise ConfigError(
            f"{directory}: policy {config.policy.preset!r} is none of batchsim's own; a measured run is "
            f"simulated under one of these: {', '.join(PRESETS)}"
        )
    world: Literal["iterations", "batches"] = (
        "iterations" if find_preset(config.policy.preset).is_iteration_level else "batches"
    )
    if world not in tables:
        raise ConfigError(
            f"{directory}: policy {config.policy.preset} makes {world}; there is no table of them"
        )
    _check_settled(directory, config, world)
    _check_operations(directory, tables[world])
    return Recording(
        directory,
        config,
        read_trace(directory / "workload.csv"),
        tables["requests"],
        world,
        tables[world],
        provenance,
    )


def recordings_in(paths: Sequence[Path]) -> list[Recording]:
    """Read measured runs: run directories, or directories of such.

    Raises
    ------
    ConfigError, TraceError
        Also if there is no run in one of them.
    """
    found = []
    for path in paths:
        if (path / "manifest.json").is_file():
            found.append(path)
            continue
        inside = sorted(file.parent for file in path.glob("*/manifest.json"))
        measured = [directory for directory in inside if _is_measured(directory)]
        if not measured:
            raise ConfigError(
                f"{path}: no measured run in it; a run directory, or a folder of such, is needed"
            )
        found += measured
    # A run given twice is no repeat of itself.
    return [read_recording(directory) for directory in {resolved(path): path for path in found}.values()]


def _check_settled(directory: Path, config: RunConfig, world: str) -> None:
    """The configuration must repeat the run by itself, memory included, and be of one engine."""
    memory, key = (
        (config.engine.num_kv_blocks, "engine.num_kv_blocks")
        if world == "iterations"
        else (config.cluster.kv_capacity_tokens, "cluster.kv_capacity_tokens")
    )
    if memory is None:
        raise ConfigError(f"{directory}: its configuration leaves {key} open; the engine's is needed")
    if config.cluster.num_gpus > config.cluster.gpus_per_replica or config.cluster.replicas:
        raise ConfigError(f"{directory}: a run of several engines; recorded durations are those of one")


def _check_operations(directory: Path, operations: pd.DataFrame) -> None:
    if operations.empty:
        raise TraceError(f"{directory}: the engine ran nothing; at least one operation is needed")
    start_s, finish_s = operations["start_s"].to_numpy(), operations["finish_s"].to_numpy()
    overlaps = np.append(False, start_s[1:] < finish_s[:-1] - _CLOCK_S)
    wrong = {
        "ends before it starts": ~(finish_s > start_s),
        "starts before the one before it ends": overlaps,
        "holds several iterations": operations.get("num_iterations", np.ones(len(operations))) != 1,
    }
    for what, is_wrong in wrong.items():
        if is_wrong.any():
            row = int(np.argmax(is_wrong))
            raise TraceError(
                f"{directory}, operation {row} {what}: from {start_s[row]:.9f} to {finish_s[row]:.9f} s; "
                "one row each, one after another, is needed"
            )


def _is_measured(directory: Path) -> bool:
    manifest = read_json(directory / "manifest.json")
    return isinstance(manifest, dict) and manifest.get("kind") == "measured"
