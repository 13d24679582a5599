"""Measured runs of which only the tokens of each second are known: when the last one came, and is predicted.

A folder holds ``workloads/*.jsonl`` and, for each GPU, ``NAME_config.json`` (a cluster of LLMServingSim) with
``NAME_throughput.measured_vllm.csv`` and maybe ``NAME_throughput.peer_*.csv``: ``time_s, throughput``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from batchsim.errors import ConfigError, TraceError
from batchsim.validation.fidelity.engine_run import read_settings
from batchsim.validation.fidelity.kv_memory import read_model_config
from batchsim.validation.fidelity.predict import predict, read_workload

_MEASURED = "_throughput.measured_vllm.csv"


class TimelineEnd(NamedTuple):
    """When a run ended: the last second in which a token came, and the last token predicted.

    ``reason`` says why nothing was predicted.
    """

    name: str
    num_replicas: int
    measured_s: float
    predicted_s: float | None = None
    peer_s: float | None = None
    reason: str = ""

    @property
    def error(self) -> float | None:
        """Relative to the middle of the last second."""
        return None if self.predicted_s is None else self.predicted_s / (self.measured_s - 0.5) - 1


def timeline_ends(directory: str | Path, data_dir: str | Path) -> Iterator[TimelineEnd]:
    """Predict the runs of a folder, with the first form of profiles and the models in ``data_dir``.

    Raises
    ------
    ConfigError, TraceError
        If a file is not there, or holds something else.
    """
    directory, data_dir = Path(directory), Path(data_dir)
    for path in sorted(directory.glob(f"*/*{_MEASURED}")):
        yield _end(path, directory / "workloads", data_dir)


def _end(path: Path, workloads: Path, data_dir: Path) -> TimelineEnd:
    stem = path.name.removesuffix(_MEASURED)
    cluster = _json(path.with_name(f"{stem}_config.json"))
    instances = [one for node in cluster.get("nodes", []) for one in node.get("instances", [])]
    peer = next(iter(sorted(path.parent.glob(f"{stem}_throughput.peer_*.csv"))), None)
    known = TimelineEnd(
        f"{path.parent.name}/{stem}",
        len(instances),
        _last_s(path),
        peer_s=None if peer is None else _last_s(peer),
    )
    model = str(instances[0].get("model_name")) if instances else ""
    config = data_dir / "models" / f"{model}.json"
    profile = data_dir / "profiles_v0" / path.parent.name / model
    if any(one.get("pd_type") for one in instances):
        return known._replace(reason="prefill and decode on GPUs of their own are not simulated")
    if not config.is_file() or not profile.is_dir():
        return known._replace(reason=f"no {'profile' if config.is_file() else 'config.json'} of {model}")
    # Of that time is vLLM 0.11, which schedules while the GPU waits.
    settings = replace(
        read_settings({"vllm_version": "0.11", **cluster}, path.with_name(f"{stem}_config.json")),
        data_parallel=len(instances),
    )
    family = model.rsplit("/", 1)[-1].split("-")[0].lower()
    sent = next(iter(sorted(workloads.glob(f"*{family}*.jsonl"))), None)
    if sent is None:
        raise ConfigError(f"{workloads}: no workload of {family}, which {path} needs")
    workload, names = read_workload(sent)
    prediction = predict(settings, profile, read_model_config(config), workload, names)
    start_s = float(json.loads(sent.read_text(encoding="utf-8").split("\n", 1)[0])["arrival_time_ns"]) * 1e-9
    return known._replace(predicted_s=start_s + float(prediction.requests["last_token_s"].max()))


def _last_s(path: Path) -> float:
    frame = pd.read_csv(path)
    if not {"time_s", "throughput"} <= set(frame):
        raise TraceError(
            f"{path}: columns time_s and throughput are needed; found {', '.join(frame.columns)}"
        )
    return float(frame.loc[frame["throughput"] > 0, "time_s"].max())


def _json(path: Path) -> Mapping[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {type(tree).__name__}; an object is needed")
    return tree
