"""A replay on disk: the directory of a simulated run, marked as measured, with the trace in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from batchsim.config import RunConfig
from batchsim.errors import ConfigError
from batchsim.files import reason
from batchsim.policies import presets
from batchsim.records import (
    BATCH_COLUMNS,
    CONTROLLER_COLUMNS,
    FINISHED,
    ITERATION_COLUMNS,
    ITERATION_REQUEST_COLUMNS,
    PREEMPTION_COLUMNS,
    REQUEST_COLUMNS,
    STATUSES,
    table,
)
from batchsim.results.store import save_run
from batchsim.workload.formats import write_trace
from batchsim.workload.request import Workload
from batchsim_calibration.provenance import version_of
from batchsim_calibration.replaying.inbox import Log
from batchsim_calibration.replaying.replay import Trace

#: What of the provenance a series of replays has in common, however often it was interrupted.
SAME_IN_ALL_REPEATS = (
    *("model", "weights", "dtype", "attention", "execution"),
    *("device", "gpu", "num_slots", "max_tokens"),
)


def tables_of(log: Log, workload: Workload, *, is_iteration_level: bool) -> dict[str, pd.DataFrame]:
    """Put the tables of the replay's world together, by name."""
    decisions = [(time_s, gpu_id, *decision) for time_s, gpu_id, decision in log.decisions]
    names = ("time_s", "gpu_id", "controller", "bin", "batch_size", "low", "high", "measured")
    controllers = table(CONTROLLER_COLUMNS, _by_name(names, decisions))
    if not is_iteration_level:
        return {
            "requests": table(REQUEST_COLUMNS, _requests(log, workload)),
            "batches": table(BATCH_COLUMNS, _by_name(BATCH_COLUMNS, log.batches)),
            "controllers": controllers,
        }
    requests = {**_requests(log, workload), "cached_tokens": np.zeros(len(workload))}
    for name in ("decode_start_s", "recomputed_tokens", "num_preemptions"):
        requests[name] = np.array([getattr(request, name) for request in log.requests])
    preemptions = _by_name(PREEMPTION_COLUMNS, log.preemptions)
    preemptions["mode"] = pd.Categorical(preemptions["mode"], categories=["recompute", "swap"])
    return {
        "requests": table(ITERATION_REQUEST_COLUMNS, requests),
        "iterations": table(ITERATION_COLUMNS, _by_name(ITERATION_COLUMNS, log.iterations)),
        "preemptions": table(PREEMPTION_COLUMNS, preemptions),
        "controllers": controllers,
    }


def check_same_run(directory: Path, trace: Trace, config: RunConfig, provenance: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless a directory holds a replay of this trace, configuration and engine."""
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        served = (directory / "workload.csv").read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{directory}: holds no run to keep ({reason(error)}); move it away") from error
    with TemporaryDirectory() as folder:
        write_trace(trace.workload, Path(folder) / "workload.csv")
        is_same = {"trace": served == (Path(folder) / "workload.csv").read_bytes()}
    is_same["configuration"] = manifest.get("config") == config.model_dump(mode="json")
    told = manifest.get("provenance", {})
    is_same |= {name: told.get(name) == provenance.get(name) for name in SAME_IN_ALL_REPEATS}
    if others := [what for what, same in is_same.items() if not same]:
        raise ConfigError(
            f"{directory}: is a run with another {', '.join(others)}; choose another directory, or replace "
            "it (--overwrite)"
        )


def write_run(
    directory: Path,
    log: Log,
    trace: Trace,
    config: RunConfig,
    provenance: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Write a replay; as `save_run`."""
    is_iteration_level = presets.find_preset(config.policy.preset).is_iteration_level
    world = "iteration level" if is_iteration_level else "run to completion"
    tables = tables_of(log, trace.workload, is_iteration_level=is_iteration_level)
    summary = {
        "kind": "measured",
        "policy": config.policy.preset,
        "world": world,
        "num_requests": len(trace.workload),
        "num_finished": sum(request.status == FINISHED for request in log.requests),
    }
    save_run(
        directory,
        _manifest(log, trace, config, provenance),
        summary,
        tables,
        workload=trace.workload,
        overwrite=overwrite,
    )


def _manifest(log: Log, trace: Trace, config: RunConfig, provenance: Mapping[str, Any]) -> dict[str, Any]:
    source, engine, cluster = trace.workload.source, config.engine, config.cluster
    blocks = engine.num_kv_blocks
    return {
        "kind": "measured",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "versions": {name: version_of(name) for name in ("batchsim", "batchsim-calibration")},
        "workload": {
            "name": source.name,
            "kind": source.kind,
            "sha256": source.sha256,
            "num_requests": len(trace.workload),
            "dropped": dict(source.dropped),
            "notices": list(source.notices),
            **trace.changes,
        },
        "latency": None,
        "kv_capacity_tokens": cluster.kv_capacity_tokens if blocks is None else blocks * engine.block_size,
        "refusals": {str(one.request_id): one.refusal for one in log.requests if one.refusal},
        "provenance": dict(provenance),
    }


def _requests(log: Log, workload: Workload) -> dict[str, Any]:
    requests = log.requests
    names = ("bin", "batch_id", "batch_size", "scheduled_s", "first_token_s", "finish_s", "num_evictions")
    return {
        "request_id": workload.request_id,
        "arrival_s": workload.arrival_s,
        "prompt_tokens": workload.prompt_tokens,
        "output_tokens": workload.output_tokens,
        "predicted_output_tokens": log.predicted_output_tokens,
        "gpu_id": np.array([0 if request.status == FINISHED else -1 for request in requests]),
        **{name: np.array([getattr(request, name) for request in requests]) for name in names},
        "status": pd.Categorical([request.status for request in requests], categories=STATUSES),
    }


def _by_name(names: Iterable[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    names = list(names)
    columns: Iterable[Sequence[Any]] = zip(*rows, strict=True) if rows else [()] * len(names)
    return dict(zip(names, columns, strict=True))
