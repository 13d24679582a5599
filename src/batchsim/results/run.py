"""One run from its configuration to its summary: `simulate`."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim._version import __version__
from batchsim.config import ClusterConfig, RunConfig, load_config
from batchsim.latency.analytic import NoisyLatency
from batchsim.latency.base import BatchLatency
from batchsim.latency.store import default_latency, load_latency
from batchsim.metrics.summary import summarise
from batchsim.policies import presets
from batchsim.policies.base import Setting
from batchsim.policies.presets import Policy
from batchsim.records import Records
from batchsim.results.store import save_run
from batchsim.sim.gpu import KVMemory
from batchsim.sim.recorder import Recorder
from batchsim.sim.simulation import Cluster, run_simulation
from batchsim.specs import kv_capacity_tokens, load_gpu, load_model
from batchsim.streams import stream
from batchsim.workload.load import prepare
from batchsim.workload.predictor import Predictor, make_predictor, prediction_quality
from batchsim.workload.request import Workload

#: Share of the workload set aside where a policy or predictor learns and the configuration does not say how
#: much.
DEFAULT_TRAINING_FRACTION = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class SimulationResult:
    """What one run gave.

    Attributes
    ----------
    config
        As used, defaults filled in.
    summary
        Flat and JSON-ready: numbers of `metrics.summary.summarise`, and what they hold for (policy, predictor
        and its quality, latency model and its provenance, workload).
    records
        All that left the simulation; `requests`, `batches` and `controllers` are its tables.
    manifest
        Configuration, versions, seed, hashes and provenance: what it takes to repeat the run.
    """

    config: RunConfig
    summary: Mapping[str, Any]
    records: Records
    manifest: Mapping[str, Any]

    @property
    def requests(self) -> pd.DataFrame:
        """One row per request: `records.REQUEST_COLUMNS`."""
        return self.records.requests

    @property
    def batches(self) -> pd.DataFrame:
        """One row per batch: `records.BATCH_COLUMNS`."""
        return self.records.batches

    @property
    def controllers(self) -> pd.DataFrame:
        """One row per decision of a controller: `records.CONTROLLER_COLUMNS`."""
        return self.records.controllers

    def with_warmup(self, num_requests: int) -> SimulationResult:
        """Summarise again with this many requests cut as warm-up."""
        numbers = summarise(self.records, self.config.slo, num_requests)
        return replace(self, summary={**self.summary, **numbers})

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write the run directory, which appears whole or not at all; return its path."""
        tables = {"requests": self.requests, "batches": self.batches, "controllers": self.controllers}
        save_run(Path(directory), dict(self.manifest), dict(self.summary), tables, overwrite=overwrite)
        return Path(directory)


def simulate(
    config: RunConfig | Mapping[str, Any] | str | Path | None = None,
    workload: Workload | None = None,
    *,
    latency: BatchLatency | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_start: Callable[[Recorder], None] | None = None,
) -> SimulationResult:
    """Simulate one configuration.

    Parameters
    ----------
    config
        A `RunConfig`, a nested mapping, or the path of a TOML file; the defaults alone if left out.
    workload
        Requests to use instead of what ``config.workload`` names; its other settings still apply.
    latency
        Model to use instead of the file that ``config.latency`` names, e.g. from `load_latency`.
    overrides
        Dotted keys that win over ``config``, e.g. ``{"cluster.num_gpus": 4}``.
    on_start
        Called with the recorder before the first event, to watch progress.

    Raises
    ------
    ConfigError, TraceError, PlanError, StalledSimulation
        Each with one sentence for the user.
    """
    config = load_config(config, overrides)
    policy = presets.build(config.policy)
    predictor = make_predictor(config.predictor)
    training, evaluated = prepare(
        config.workload,
        config.cluster.num_gpus,
        stream(config.seed, "workload"),
        workload,
        training_fraction(config, policy, predictor),
    )
    latency = latency or _load_latency(config)
    memory = KVMemory(_capacity_tokens(config.cluster), config.cluster.kv_layout)
    policies = _prepare_policies(config, policy, memory, training)
    edges = np.asarray(policies[0].queueing.edges, dtype=np.float64)
    predicted = predictor.predict(evaluated, training, edges, stream(config.seed, "predictor"))
    records = run_simulation(
        evaluated,
        predicted,
        policies,
        Cluster(
            config.cluster.num_gpus,
            memory,
            NoisyLatency(latency, config.latency.noise, stream(config.seed, "latency"))
            if config.latency.noise
            else latency,
            may_extrapolate=config.latency.outside == "extrapolate",
        ),
        config.patience_s,
        on_start,
    )
    summary = {
        **_conditions(config, policies[0], latency, training, evaluated),
        **summarise(records, config.slo, config.metrics.warmup),
        **prediction_quality(evaluated.output_tokens, predicted, edges),
    }
    manifest = _manifest(config, latency, evaluated, records)
    return SimulationResult(config, summary, records, manifest)


def training_fraction(config: RunConfig, policy: Policy, predictor: Predictor) -> float:
    """Share of the workload to set aside: as configured, else only where something learns from it."""
    if config.workload.training_fraction is not None:
        return config.workload.training_fraction
    return DEFAULT_TRAINING_FRACTION if policy.queueing.learns or predictor.needs_training else 0.0


def _load_latency(config: RunConfig) -> BatchLatency:
    """The file that is named, or a derived model of the GPU whose memory counts."""
    if config.latency.file is not None:
        return load_latency(config.latency.file)
    return default_latency(load_model(config.cluster.model), load_gpu(config.cluster.gpu))


def _capacity_tokens(cluster: ClusterConfig) -> int:
    if cluster.kv_capacity_tokens is not None:
        return cluster.kv_capacity_tokens
    return kv_capacity_tokens(load_model(cluster.model), load_gpu(cluster.gpu), cluster.memory_margin)


def _prepare_policies(
    config: RunConfig, policy: Policy, memory: KVMemory, training: Workload
) -> list[Policy]:
    """One policy for a central queue; with a routing, one of its own for each GPU."""
    num_queues = 1 if policy.routing is None else config.cluster.num_gpus
    slo = config.slo
    setting = Setting(
        kv_capacity_tokens=memory.capacity_tokens,
        training_prompt_tokens=training.prompt_tokens,
        training_output_tokens=training.output_tokens,
        num_bins=policy.queueing.num_bins,
        batch_size=policy.sizing.max_batch_size,
        slo_tpot_s=None if slo.tpot_ms is None else slo.tpot_ms / 1000,
        slo_e2e_s=None if slo.e2e_ms is None else slo.e2e_ms / 1000,
        rng=stream(config.seed, "routing"),
    )
    policies = [policy, *(presets.build(config.policy) for _ in range(num_queues - 1))]
    for one in policies:
        one.queueing.prepare(setting)
        bins: NDArray[np.int64] = np.array(
            [one.queueing.bin_of(tokens) for tokens in training.output_tokens.tolist()], dtype=np.int64
        )
        one.sizing.prepare(replace(setting, training_bins=bins))
        if one.routing is not None:
            one.routing.prepare(setting)
    return policies


def _conditions(
    config: RunConfig, policy: Policy, latency: BatchLatency, training: Workload, evaluated: Workload
) -> dict[str, Any]:
    """What the numbers hold for."""
    source = evaluated.source
    return {
        "policy": policy.name,
        "combination": policy.describe(),
        "bin_edges": list(policy.queueing.edges),
        "predictor": config.predictor.kind,
        "latency_model": latency.info.name,
        "latency_provenance": latency.info.provenance,
        "workload": source.name,
        "workload_kind": source.kind,
        "num_dropped": sum(source.dropped.values()),
        "num_training": len(training),
        "request_rate_per_s": None if np.isnan(evaluated.mean_rate_per_s) else evaluated.mean_rate_per_s,
        "seed": config.seed,
    }


def _manifest(
    config: RunConfig, latency: BatchLatency, evaluated: Workload, records: Records
) -> dict[str, Any]:
    source = evaluated.source
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "versions": {
            "batchsim": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("simpy", "numpy", "pandas", "pyarrow")},
        },
        "workload": {
            "name": source.name,
            "kind": source.kind,
            "sha256": source.sha256,
            "num_requests": len(evaluated),
            "dropped": dict(source.dropped),
            "notices": list(source.notices),
        },
        "latency": {
            "name": latency.info.name,
            "provenance": latency.info.provenance,
            "details": latency.info.details,
        },
        "kv_capacity_tokens": records.kv_capacity_tokens,
        "refusals": {str(request_id): reason for request_id, reason in records.refusals.items()},
    }
