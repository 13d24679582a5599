"""A directory with what a real engine did with a known stream of requests, and with which settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from batchsim.errors import ConfigError, TraceError
from batchsim.files import MAX_COUNT, read_json, resolved
from batchsim.files.tables import CsvTable, read_csv
from batchsim.latency.profiles.operator_profile import KERNEL_GAP_S
from batchsim.latency.profiles.uneven import UnevenContexts
from batchsim.policies.parts.engine_versions import NEWEST, closest_known
from batchsim.specs import load_gpu

GIB = 2**30
_UTILIZATION = 0.9  # of vLLM, where it is not told

#: Times may count from the zero of the system's clock, but must keep their microseconds as floats.
_MOST_S = 1e10
_TIMES = ("arrival_s", "queued_s", "first_token_s", "last_token_s")

#: Names under which ``meta.json`` may have a setting, those of vLLM first; with the table they must stand in
#: where the name alone says too little.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "model": ("model", "model_name", "model_id"),
    "gpu": ("hardware", "hardware.name", "gpu", "gpu_name", "accelerator", "accelerator_name", "device"),
    "version": ("vllm_version", "engine_version", "version"),
    "num_requests": ("num_requests", "num_prompts"),
    "tensor_parallel": ("tensor_parallel_size", "tensor_parallel", "tp_size", "tp"),
    "data_parallel": (
        "data_parallel_size",
        "data_parallel",
        "dp_size",
        "dp",
        "num_instances",
        "num_replicas",
    ),
    "is_expert_parallel": ("enable_expert_parallel", "expert_parallel", "is_expert_parallel"),
    "max_num_seqs": ("max_num_seqs", "max_num_sequences", "max_batch_size", "batch_size"),
    "max_num_batched_tokens": ("max_num_batched_tokens", "token_budget", "max_tokens_per_iteration"),
    "block_size": ("block_size", "kv_block_size", "page_size"),
    "num_kv_blocks": (
        "num_gpu_blocks_override",
        "num_gpu_blocks",
        "num_kv_blocks",
        "kv_blocks",
        "kv_cache_blocks",
        "total_gpu_blocks",
        "num_blocks",
    ),
    "kv_tokens": ("kv_cache_tokens", "kv_cache_size_tokens", "gpu_kv_cache_tokens", "kv_capacity_tokens"),
    "memory_gib": (
        "npu_mem.mem_size",
        "gpu_mem.mem_size",
        "gpu_memory_gb",
        "gpu_memory_gib",
        "memory_gb",
        "memory_gib",
    ),
    "memory_utilization": ("gpu_memory_utilization",),
    "weights_and_kv_share": ("mem_util",),
    "memory_gb_per_s": ("npu_mem.mem_bw", "gpu_mem.mem_bw"),
    "prefix_caching": ("enable_prefix_caching", "prefix_caching"),
    "async_scheduling": ("async_scheduling", "enable_async_scheduling"),
    "link_gb_per_s": ("link_bw", "link_bandwidth", "link_bandwidth_gb_per_s"),
    "link_latency_ns": ("link_latency", "link_latency_ns"),
}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How a measured engine was set up, and what of it a replay follows.

    Attributes
    ----------
    num_kv_blocks
        Of each replica, as vLLM counts them: one of them is its null block, which nobody gets. ``None``: not
        recorded.
    memory_utilization
        Share of a GPU's memory that the engine may use for all it does.
    weights_and_kv_share
        Share that weights and KV blocks have together, where that is what was recorded.
    memory_bytes_per_s
        Rate of a GPU's memory.
    link_bytes_per_s, link_latency_s
        Between the GPUs of a replica: rate in one direction, and seconds of one message.
    num_prefill, kv_token_bytes
        So many of the replicas only compute prompts, and the others decode; bytes of KV that the link between
        carries for each token of a prompt.
    shares_experts
        Whether replicas share the experts of a mixture, whole ones or slices.
    async_scheduling
        The default of vLLM from 0.14 on.
    engine_version
        The version of vLLM whose rules are followed.
    allocate
        What must fit for an admission, if not what the version asks for.
    uneven_contexts
        How much longer attention takes where contexts differ, see `latency.profiles.uneven`.
    kernel_gap_s
        Seconds between the kernels of a pass.
    extra_s
        Seconds added to every iteration.
    notices
        What was not recorded, and what was taken instead.
    """

    tensor_parallel: int = 1
    data_parallel: int = 1
    num_prefill: int = 0
    kv_token_bytes: float | None = None
    is_expert_parallel: bool = False
    shares_experts: bool = False
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    num_kv_blocks: int | None = None
    memory_bytes: float | None = None
    memory_utilization: float = 0.9
    weights_and_kv_share: float | None = None
    memory_bytes_per_s: float | None = None
    prefix_caching: bool = True
    async_scheduling: bool = True
    link_bytes_per_s: float | None = None
    link_latency_s: float = 0.0
    engine_version: str = NEWEST
    allocate: Literal["prompt", "chunk"] | None = None
    uneven_contexts: UnevenContexts = "told"
    kernel_gap_s: float = KERNEL_GAP_S
    extra_s: float = 0.0
    notices: tuple[str, ...] = ()

    @property
    def expert_parallel(self) -> int:
        """GPUs that share out whole experts."""
        return self.tensor_parallel * self.data_parallel if self.is_expert_parallel else 1


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredRun:
    """What a directory holds.

    Attributes
    ----------
    name
        The last two parts of its path, or what ``meta.json`` calls model and GPU.
    requests
        One row per request that was served: ``request_id``, ``output_tokens`` and times in seconds
        (``arrival_s``, ``queued_s``, ``first_token_s``, ``last_token_s``); ``None`` if not there. A time that
        was not recorded is NaN.
    peer
        The same as another simulator predicts it, with its name; ``None`` if not there.
    num_requests
        Requests that were sent, where recorded.
    """

    name: str
    settings: EngineSettings
    requests: pd.DataFrame | None
    peer: pd.DataFrame | None
    peer_name: str = ""
    num_requests: int | None = None
    model: str | None = None
    gpu: str | None = None
    meta: Mapping[str, Any] | None = None


def read_measured_run(directory: str | Path) -> MeasuredRun:
    """Read ``meta.json``, ``measured_requests.csv`` and ``peer_*.csv`` of a directory, as far as they exist.

    Raises
    ------
    ConfigError
        If there is no such directory, or a setting in ``meta.json`` is no such value.
    TraceError
        If a file cannot be read or lacks a column.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such folder; the directory of a measured run is needed")
    meta = _read_meta(directory / "meta.json")
    found = _Found(meta, directory / "meta.json")
    measured = _find(directory, "measured_requests")
    peers = [
        (path, times)
        for path in sorted(directory.glob("peer_*.csv*"))
        if (times := _read_times(path, needed=False)) is not None
    ]
    model, gpu = found.text("model"), found.text("gpu")
    absolute = resolved(directory)
    return MeasuredRun(
        name=f"{absolute.parent.name}/{absolute.name}",
        settings=_settings(found),
        requests=None if measured is None else _read_times(measured, needed=True),
        peer=peers[0][1] if peers else None,
        peer_name=peers[0][0].name.split(".")[0].removeprefix("peer_") if peers else "",
        num_requests=found.whole("num_requests"),
        model=model,
        gpu=gpu,
        meta=meta,
    )


def read_settings(tree: Mapping[str, Any], path: Path) -> EngineSettings:
    """Read an engine's settings from a tree that was read from a path."""
    return _settings(_Found(tree, path))


@dataclass(frozen=True, slots=True)
class _Found:
    """Settings by our names, wherever in the tree of ``meta.json`` they stand; the shallowest wins."""

    tree: Mapping[str, Any]
    path: Path

    def value(self, name: str) -> Any:
        for known in _NAMES[name]:
            for key, value in _leaves(self.tree):
                if value not in (None, "auto") and f".{key}".endswith(f".{known}"):
                    return value
        return None

    def text(self, name: str) -> str | None:
        value = self.value(name)
        return value if isinstance(value, str) else None

    def number(self, name: str) -> float | None:
        value = self.value(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_COUNT:
            raise ConfigError(
                f"{self.path}: {_NAMES[name][0]} is {value!r:.60}; a number >= 0 is needed, up to "
                f"{MAX_COUNT:g}"
            )
        return float(value)

    def whole(self, name: str) -> int | None:
        value = self.number(name)
        if not value:
            return None  # engines write 0 for what they do not know
        if value != int(value):
            raise ConfigError(f"{self.path}: {_NAMES[name][0]} is {value:g}; a whole number >= 1 is needed")
        return int(value)

    def flag(self, name: str) -> bool | None:
        value = self.value(name)
        if value is None:
            return None
        known = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
        if known is None:
            raise ConfigError(f"{self.path}: {_NAMES[name][0]} is {value!r:.60}; true or false is needed")
        return known


def _settings(found: _Found) -> EngineSettings:
    notices = []
    memory_gib = found.number("memory_gib") or _data_sheet_gib(found.text("gpu"))
    is_large = memory_gib is not None and memory_gib >= 70
    # What vLLM takes where it is not told, by the memory of its GPU.
    defaults = {
        "max_num_seqs": 1024 if is_large else 256,
        "max_num_batched_tokens": 8192 if is_large else 2048,
    }
    limits: dict[str, int] = {}
    for name, default in defaults.items():
        limits[name] = found.whole(name) or default
        if found.whole(name) is None:
            notices.append(f"{name} is not recorded; vLLM's default of {default} is taken")
    version = found.text("version")
    engine_version = closest_known(version or "")
    if version is None:
        notices.append(f"version is not recorded; the rules of vLLM {engine_version} are followed")
    elif not version.lstrip("v").startswith(engine_version.removesuffix(".0")):
        notices.append(f"version {version!r:.60} is not known; the rules of {engine_version} are followed")
    prefix_caching, is_async = found.flag("prefix_caching"), found.flag("async_scheduling")
    block_size = found.whole("block_size") or 16
    num_kv_blocks, kv_tokens = found.whole("num_kv_blocks"), found.whole("kv_tokens")
    if num_kv_blocks is None and kv_tokens is not None:
        num_kv_blocks = kv_tokens // block_size
    utilization, share = found.number("memory_utilization"), found.number("weights_and_kv_share")
    link_gb_per_s, link_latency_ns = found.number("link_gb_per_s"), found.number("link_latency_ns")
    return EngineSettings(
        tensor_parallel=found.whole("tensor_parallel") or 1,
        data_parallel=found.whole("data_parallel") or 1,
        is_expert_parallel=bool(found.flag("is_expert_parallel")),
        max_num_seqs=limits["max_num_seqs"],
        max_num_batched_tokens=limits["max_num_batched_tokens"],
        block_size=block_size,
        num_kv_blocks=num_kv_blocks,
        memory_bytes=None if memory_gib is None else memory_gib * GIB,
        memory_utilization=utilization or _UTILIZATION,
        weights_and_kv_share=share if share and share != _UTILIZATION and not utilization else None,
        memory_bytes_per_s=(found.number("memory_gb_per_s") or 0.0) * 1e9 or None,
        prefix_caching=True if prefix_caching is None else prefix_caching,
        async_scheduling=_is_async_by_default(version) if is_async is None else is_async,
        engine_version=engine_version,
        link_bytes_per_s=link_gb_per_s * 1e9 if link_gb_per_s else None,
        link_latency_s=(link_latency_ns or 0.0) * 1e-9,
        notices=tuple(notices),
    )


def _data_sheet_gib(gpu: str | None) -> float | None:
    """Memory of a GPU that we have the data sheet of, however its name is spelt."""
    for name in ((gpu or "").lower(), (gpu or "").lower().replace(" ", "-")):
        with suppress(ConfigError):
            return load_gpu(name).memory_bytes / GIB
    return None


def _is_async_by_default(version: str | None) -> bool:
    try:
        major, minor = (int(part) for part in (version or "").lstrip("v").split(".")[:2])
    except ValueError:
        return True
    return (major, minor) >= (0, 14)


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys in small letters and values of a tree, level by level."""
    level: list[tuple[str, Any]] = [("", tree)]
    while level:
        below: list[tuple[str, Any]] = []
        for path, one in level:
            for key, value in one.items() if isinstance(one, Mapping) else ((path, value) for value in one):
                name = f"{path}.{key}" if isinstance(one, Mapping) else key
                if isinstance(value, Mapping | list):
                    below.append((name, value))
                else:
                    yield name.lower().replace("-", "_"), value
        level = below


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    tree: object = read_json(path)
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: holds {type(tree).__name__}; an object with the engine's settings is needed"
        )
    return tree


def _find(directory: Path, stem: str) -> Path | None:
    paths = (directory / f"{stem}{suffix}" for suffix in (".csv", ".csv.gz"))
    return next((path for path in paths if path.exists()), None)


_ALIASES = {
    "output_toks": "output_tokens",
    "finish_s": "last_token_s",
    "enqueued_s": "queued_s",
    "sent_s": "arrival_s",
}


def _read_times(path: Path, *, needed: bool) -> pd.DataFrame | None:
    """Times of requests that were served; None for another table, if it need not be one."""
    table = read_csv(path)
    found = table.frame.columns
    table = replace(
        table,
        frame=table.frame.rename(columns={old: new for old, new in _ALIASES.items() if new not in found}),
    )
    required = ("request_id", "output_tokens", "first_token_s", "last_token_s")
    missing = [name for name in required if name not in table.frame]
    if not missing and not {"arrival_s", "queued_s"} & set(table.frame):
        missing = ["arrival_s or queued_s"]
    if missing:
        if not needed:
            return None
        raise TraceError(f"{path}: column {', '.join(missing)} missing; found {', '.join(found):.400}")
    times = {name: _times(table, name) if name in table.frame else np.nan for name in _TIMES}
    output_tokens = table.recorded("output_tokens", lambda given: given.counts("output_tokens", least=0))
    result = pd.DataFrame({"request_id": table.words("request_id"), "output_tokens": output_tokens, **times})
    if result["request_id"].duplicated().any():
        raise TraceError(f"{path}: request_id must be unique")
    return result.dropna(subset=["output_tokens", "first_token_s", "last_token_s"]).reset_index(drop=True)


def _times(table: CsvTable, name: str) -> pd.Series[float]:
    return table.recorded(name, lambda given: given.numbers(name, -_MOST_S, _MOST_S))
