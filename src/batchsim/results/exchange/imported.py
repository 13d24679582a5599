"""Measured results as a run directory: the requests of a benchmark, in the table that simulated runs have."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchsim._version import __version__
from batchsim.config import SloConfig
from batchsim.errors import ConfigError
from batchsim.files import read_json
from batchsim.metrics.summary import summarise
from batchsim.records import (
    BATCH_COLUMNS,
    CONTROLLER_COLUMNS,
    FINISHED,
    REQUEST_COLUMNS,
    Records,
    empty,
    table,
)
from batchsim.results.exchange.answers import check_times
from batchsim.results.measured_tables import COLUMNS, MeasuredRun, read_measured
from batchsim.results.sketches import sketch
from batchsim.results.store import load_run, save_run

#: What the manifest of such a directory says that it is; one with its operations is plainly ``measured``.
KIND = "measured results"

#: What nobody knows of the engine that was measured, though the summary of a run has it.
_UNKNOWN = ("queueing_", "busy_", "waiting_", "batch_", "padding_", "kv_use_", "service_mean_s")


def read_results(path: str | Path) -> list[MeasuredRun]:
    """Read the runs of a file as `read_measured` does, or the one that was imported into a directory.

    Raises
    ------
    ConfigError, TraceError
        In one sentence.
    """
    path = Path(path)
    return [_read_imported(path)] if path.is_dir() else read_measured(path)


def is_imported(directory: Path) -> bool:
    """Whether a directory holds measured results."""
    file = directory / "manifest.json"
    if not file.is_file():
        return False
    manifest = read_json(file)
    return isinstance(manifest, dict) and manifest.get("kind") == KIND


def save_measured(
    run: MeasuredRun, source: Path, directory: Path, slo: SloConfig | None = None, *, overwrite: bool = False
) -> dict[str, Any]:
    """Write a run directory: ``requests.parquet``, ``workload.csv`` and a summary; return the summary.

    Its ``scheduled_s`` are blank, its other tables empty: what the engine did is not in such a file.
    """
    summary = measured_summary(run, slo or SloConfig(), source.name)
    manifest = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": KIND,
        "tool": run.tool,
        "source": {"name": source.name, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()},
        "has_arrivals": run.has_arrivals,
        "is_simulated": run.is_simulated,
        "notices": list(run.notices),
        "num_left_out": run.num_left_out,
        "versions": {"batchsim": __version__},
        "refusals": {},
    }
    records = measured_records(run)
    tables = {"requests": records.requests, "batches": records.batches, "controllers": records.controllers}
    save_run(
        directory,
        manifest,
        summary,
        tables,
        sketches=sketch(records, summary["num_warmup"]),
        workload=run.workload(source.name),
        overwrite=overwrite,
    )
    return summary


def measured_records(run: MeasuredRun) -> Records:
    """Put a measured run into the tables of a simulated one, blank where the file does not tell."""
    size = len(run.requests)
    columns: dict[str, Any] = {
        **{name: np.full(size, -1) for name in ("bin", "gpu_id", "batch_id")},
        **{name: np.zeros(size) for name in ("batch_size", "num_evictions")},
        "scheduled_s": np.full(size, np.nan),
        "predicted_output_tokens": run.requests["output_tokens"].to_numpy(),
        "status": np.full(size, FINISHED, dtype=object),
        **{name: run.requests[name].to_numpy() for name in COLUMNS},
    }
    requests = table(REQUEST_COLUMNS, columns)
    requests = requests.sort_values(["arrival_s", "request_id"], kind="stable", ignore_index=True)
    return Records(requests, empty(BATCH_COLUMNS), empty(CONTROLLER_COLUMNS), 1, 1, {})


def measured_summary(
    run: MeasuredRun, slo: SloConfig, name: str, num_warmup: int | None = None
) -> dict[str, Any]:
    """Summarise a measured run as a simulated one, None for what its file does not tell.

    Whether requests waited longer and longer is judged by when their first tokens came: who waits is who has
    none yet.

    Parameters
    ----------
    num_warmup
        Requests to cut, as many as from the run that it is compared with; found as usual if left out.
    """
    records = measured_records(run)
    requests = records.requests
    began_s = requests["first_token_s"].fillna(requests["arrival_s"])
    is_untold = bool(requests["first_token_s"].isna().all())
    records = Records(requests.assign(scheduled_s=began_s), records.batches, records.controllers, 1, 1, {})
    numbers = summarise(records, slo, "auto" if num_warmup is None else num_warmup)
    unknown = {key: None for key in numbers if key.startswith(_UNKNOWN)}
    span_s = float(np.ptp(requests["arrival_s"]))
    summary = {
        "policy": run.tool,
        "world": "measured",
        "workload": name,
        "workload_kind": "unknown" if run.is_simulated else "measured",
        "num_dropped": run.num_left_out,
        "num_training": 0,
        "request_rate_per_s": (len(requests) - 1) / span_s if span_s > 0 else None,
        "prices": None,
        "expected_error": f"its times were {'simulated' if run.is_simulated else 'measured'}",
        **numbers,
        **unknown,
    }
    if is_untold:
        reason = "its file does not tell when first tokens came"
        summary |= {"verdict": "transient", "verdict_reason": reason, "saturated": False}
    return summary


def _read_imported(directory: Path) -> MeasuredRun:
    if not is_imported(directory):
        raise ConfigError(
            f"{directory}: holds no measured results, as `batchsim import-results FILE -o DIR` writes them"
        )
    manifest, _, tables = load_run(directory)
    requests: pd.DataFrame = tables["requests"]
    if missing := [name for name in (*COLUMNS, "status") if name not in requests]:
        raise ConfigError(f"{directory / 'requests.parquet'}: has no column {missing[0]}")
    check_times(requests, directory / "requests.parquet")
    notices, num_left_out = manifest.get("notices"), manifest.get("num_left_out")
    return MeasuredRun(
        str(manifest.get("tool")),
        requests[list(COLUMNS)].sort_values("request_id", ignore_index=True),
        tuple(map(str, notices)) if isinstance(notices, list) else (),
        has_arrivals=bool(manifest.get("has_arrivals", True)),
        num_left_out=num_left_out if isinstance(num_left_out, int) else 0,
        is_simulated=manifest.get("is_simulated") is True,
    )
