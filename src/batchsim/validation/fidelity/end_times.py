"""Measured runs of which only the tokens of each second are known: when the last one came, and is predicted.

A folder holds ``workloads/*.jsonl`` and, for each GPU, ``NAME_config.json`` (a cluster of LLMServingSim) with
``NAME_throughput.measured_vllm.csv`` and maybe ``NAME_throughput.peer_*.csv``: ``time_s, throughput``.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from batchsim.errors import ConfigError, TraceError
from batchsim.files import MAX_COUNT, read_json
from batchsim.files.tables import read_csv
from batchsim.specs import read_model
from batchsim.validation.fidelity.engine_run import read_settings
from batchsim.validation.fidelity.kv_memory import read_model_config
from batchsim.validation.fidelity.predict import predict, read_workload
from batchsim.workload.tables import read_table

_MEASURED = "_throughput.measured_vllm.csv"
_MOST_CHARACTERS = 200  # of a model's name, which is that of a file as well


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
    cluster_file = path.with_name(f"{stem}_config.json")
    cluster, instances = _read_cluster(cluster_file)
    peer = next(iter(sorted(path.parent.glob(f"{glob.escape(stem)}_throughput.peer_*.csv"))), None)
    known = TimelineEnd(
        f"{path.parent.name}/{stem}",
        len(instances),
        _last_s(path),
        peer_s=None if peer is None else _last_s(peer),
    )
    model = instances[0].get("model_name") if instances else ""
    if not isinstance(model, str) or not model.isprintable() or len(model) > _MOST_CHARACTERS:
        raise ConfigError(f"{cluster_file}: model_name is {model!r:.60}; the name of a model is needed")
    config = data_dir / "models" / f"{model}.json"
    profile = data_dir / "profiles_v0" / path.parent.name / model
    roles = [str(one.get("pd_type") or "both") for one in instances]
    if set(roles) not in ({"both"}, {"prefill", "decode"}):
        return known._replace(reason=f"instances of pd_type {', '.join(roles):.60} are not simulated")
    if not config.is_file() or not profile.is_dir():
        return known._replace(reason=f"no {'profile' if config.is_file() else 'config.json'} of {model}")
    # Of that time is vLLM 0.11, which schedules while the GPU waits.
    settings = replace(
        read_settings({"vllm_version": "0.11", **cluster}, cluster_file),
        data_parallel=len(instances),
        num_prefill=roles.count("prefill"),
    )
    family = model.rsplit("/", 1)[-1].split("-")[0].lower()
    sent = next(iter(sorted(workloads.glob(f"*{glob.escape(family)}*.jsonl"))), None)
    if sent is None:
        raise ConfigError(f"{workloads}: no workload of {family}, which {path} needs")
    workload, names = read_workload(sent)
    tree = read_model_config(config)
    if settings.num_prefill:
        settings = replace(settings, kv_token_bytes=read_model(tree, str(config)).kv_bytes_per_token)
    prediction = predict(settings, profile, tree, workload, names)
    last_s = float(prediction.requests["last_token_s"].max())
    if math.isnan(last_s):
        return known._replace(reason=f"no request of {sent.name} fits the memory that is left for KV")
    return known._replace(predicted_s=_first_arrival_s(sent) + last_s)


def _first_arrival_s(workload: Path) -> float:
    table = read_table(workload).table
    if "arrival_time_ns" not in table:
        raise TraceError(
            f"{workload}: column arrival_time_ns is needed; found {', '.join(table.columns):.400}"
        )
    return float(pd.to_numeric(table["arrival_time_ns"], errors="coerce").min()) * 1e-9


def _last_s(path: Path) -> float:
    table = read_csv(path)
    table.need(("time_s", "throughput"))
    seconds = table.spreads("time_s")[table.numbers("throughput", 0, MAX_COUNT) > 0]
    if seconds.empty or seconds.max() < 1:  # a row tells of the second that ends with it
        raise TraceError(f"{path}: no tokens in any second, so that nothing ended")
    return float(seconds.max())


def _read_cluster(path: Path) -> tuple[Mapping[str, Any], list[Any]]:
    """The configuration of a cluster, and the instances of all its nodes."""
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {type(tree).__name__}; an object is needed")
    nodes = _objects(tree.get("nodes", []), "nodes", path)
    return tree, [one for node in nodes for one in _objects(node.get("instances", []), "instances", path)]


def _objects(value: Any, name: str, path: Path) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ConfigError(f"{path}: {name} is {value!r:.60}; a list of objects is needed")
    return value
