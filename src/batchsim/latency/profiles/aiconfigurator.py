"""NVIDIA's measured operator times, by the package `aiconfigurator-core`, as tables of ours.

How it adds them up: `profiles.aiconfigurator_passes`. It is an extra, `pip install 'batchsim[hardware]'`, and
imported nowhere but in functions of this module.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from batchsim.errors import ConfigError, nearest
from batchsim.latency.base import LatencyInfo
from batchsim.latency.passes import PassTableLatency
from batchsim.latency.profiles.aiconfigurator_passes import OperatorEstimator
from batchsim.latency.profiles.pass_sampling import Range, sample_passes

INSTALL = "aiconfigurator-core is not installed; `pip install 'batchsim[hardware]'` does so"
_PACKAGE = "aiconfigurator_core"
#: The largest pass that memory must hold: vLLM's limits on large GPUs.
_PASS_TOKENS, _PASS_SEQS = 8192, 1024


@dataclass(frozen=True, slots=True)
class SetUp:
    """What is estimated: a model, by its name on Hugging Face or a folder with its config.json, and on what.

    Attributes
    ----------
    version
        Of the backend: ``current``, ``previous``, ``next``, or one of those that they stand for.
    expert_parallel
        GPUs that share out whole experts; the others hold slices of the same ones.
    pipeline_parallel
        Stages, which a pass goes through one after the other; other passes meanwhile are not thought of.
    data_parallel
        Groups of ``tensor_parallel`` GPUs with attention of their own that share the experts. The model is of
        one of them, with all others as loaded as it is.
    """

    system: str
    model: str
    backend: str = "vllm"
    version: str = "current"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    data_parallel: int = 1


class Known(NamedTuple):
    """What the package has: versions by system, backend and what they are called, and names of models."""

    versions: Mapping[str, Mapping[str, Mapping[str, str]]]
    models: tuple[str, ...]


def is_installed() -> bool:
    """Whether the extra is there."""
    return importlib.util.find_spec(_PACKAGE) is not None


def package_version() -> str:
    """Version of the package; `ConfigError` where it is not installed."""
    if not is_installed():
        raise ConfigError(INSTALL)
    return version("aiconfigurator-core")


@cache
def known() -> Known:
    """List what can be asked for; `ConfigError` where the package is not installed."""
    package_version()
    from aiconfigurator_core.sdk import common, perf_database

    with _messages():
        versions = {
            system: {backend: perf_database.get_version_slots(system, backend) or {} for backend in backends}
            for system, backends in sorted(perf_database.get_supported_databases().items())
        }
    return Known(versions, tuple(sorted(common.DefaultHFModels)))


def support() -> list[Mapping[str, str]]:
    """What the package's authors tried: rows with model, system, backend, version and `source` of the times.

    ``measured``: tables of this very model's shapes and precisions; ``transferred``: some are scaled from
    those of other precisions; ``none``: it cannot be estimated.
    """
    package_version()
    from aiconfigurator_core.sdk import common

    names = {"silicon": "measured", "": "measured"}
    return [
        {
            "model": row["HuggingFaceID"],
            "system": row["System"],
            "backend": row["Backend"],
            "version": row["Version"],
            "source": names.get(row["Source"], "transferred") if "PASS" in row["Status"] else "none",
        }
        for row in common.get_support_matrix()
        if row["Mode"] == "agg"
    ]


@cache
def aiconfigurator_latency(set_up: SetUp, most: Range | None = None) -> PassTableLatency:
    """Make the tables of a set-up, once in a process.

    Raises
    ------
    ConfigError
        If the package is not installed, or knows none of that name, or has no times of it.
    """
    release = package_version()
    set_up = _checked(set_up)
    with _messages() as messages:
        try:
            estimator, assumed = _estimator(set_up)
            low_fidelity = assumed + estimator.doubts() + _fallbacks(messages, estimator.words)
            details = _details(set_up, release, estimator, low_fidelity)
            info = LatencyInfo(_name(set_up), "derived", details)
            return sample_passes(estimator, most or Range(), info)
        except Exception as error:  # assertions, missing tables and files, errors of several libraries
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"aiconfigurator-core has no times of {_name(set_up)}: {reason:.200}"
            ) from error


def _checked(set_up: SetUp) -> SetUp:
    """The set-up with a version and the model's folder; `ConfigError` for what the package does not know."""
    versions, models = known()
    if set_up.system not in versions:
        raise ConfigError(
            f"aiconfigurator-core knows no system {set_up.system!r}; {nearest(set_up.system, versions)}"
        )
    backends = versions[set_up.system]
    if set_up.backend not in backends:
        raise ConfigError(
            f"aiconfigurator-core knows no backend {set_up.backend!r} on {set_up.system}; "
            f"{nearest(set_up.backend, backends)}"
        )
    slots = backends[set_up.backend]
    literal = slots.get(set_up.version, set_up.version)
    if literal not in slots.values():
        told = ", ".join(f"{slot} ({number})" for slot, number in slots.items())
        raise ConfigError(
            f"aiconfigurator-core has no version {set_up.version!r} of {set_up.backend} on {set_up.system}; "
            f"known: {told}"
        )
    model = model_folder(set_up.model)
    if model is None and set_up.model not in models:
        raise ConfigError(
            f"aiconfigurator-core knows no model {set_up.model!r}; {nearest(set_up.model, models)} "
            "(or a folder that holds its config.json)"
        )
    gpus = set_up.tensor_parallel * set_up.data_parallel
    if gpus % set_up.expert_parallel:
        raise ConfigError(
            f"expert_parallel is {set_up.expert_parallel}; it must divide the {gpus} GPUs of tensor_parallel "
            "and data_parallel"
        )
    return SetUp(**(asdict(set_up) | {"version": literal, "model": model or set_up.model}))


def model_folder(model: str) -> str | None:
    """The folder that a model's name is, with its config.json; None where it is a name on Hugging Face."""
    path = Path(model)
    folder = path.parent if path.name == "config.json" else path
    return str(folder.absolute()) if (folder / "config.json").is_file() else None


def _estimator(set_up: SetUp) -> tuple[OperatorEstimator, list[str]]:
    """The estimator, and what had to be assumed for it."""
    from aiconfigurator_core.sdk.errors import PerfDataNotAvailableError

    assumed, quantisation = [], {}
    if set_up.pipeline_parallel > 1:
        assumed.append("passes in other pipeline stages are not thought of")
    if kv_capacity_tokens(set_up) is None:
        assumed.append("the package finds no memory for KV beside the weights")
    if set_up.backend == "vllm" and _is_in_blocks(set_up.model):
        # In its tables for vLLM, products in blocks of fp8 take 8 to 23 times as long as those of SGLang or
        # TensorRT-LLM, or scaled by tensor, whatever their size: the times are those of launching them, which
        # a CUDA graph does not do.
        assumed.append("products in blocks of fp8 take the times of those that are scaled by tensor")
        quantisation["gemm_quant_mode"] = "fp8"
    try:
        return OperatorEstimator(_engine(set_up, **quantisation)), assumed
    except PerfDataNotAvailableError:  # engines without attention in 8 bits run it in 16
        assumed.append("attention of prompts is that in 16 bits, as there are no times in fewer")
        return OperatorEstimator(_engine(set_up, **quantisation, fmha_quant_mode="bfloat16")), assumed


def kv_capacity_tokens(set_up: SetUp, gpu_memory_utilization: float = 0.9) -> int | None:
    """KV tokens of a replica, as the package estimates them; None where nothing is left for them."""
    from aiconfigurator_core.sdk.memory import estimate_kv_cache

    kind = "of_free" if set_up.backend == "trtllm" else "of_total"  # what the engine's setting is a share of
    try:
        estimate = estimate_kv_cache(
            set_up.model,
            set_up.system,
            set_up.backend,
            set_up.version,
            max_num_tokens=_PASS_TOKENS,
            max_batch_size=_PASS_SEQS,
            memory_fraction_kind=kind,
            memory_fraction_value=gpu_memory_utilization,
            **_parallel(set_up),
        )
    except Exception:  # as the package says that nothing is left, or that it cannot tell
        return None
    return int(estimate["total_kv_size_tokens"])


def _is_in_blocks(model: str) -> bool:
    from aiconfigurator_core.sdk.utils import get_model_config_from_model_path

    quantisation = get_model_config_from_model_path(model)["raw_config"].get("quantization_config") or {}
    return "weight_block_size" in quantisation


def _engine(set_up: SetUp, **quantisation: str) -> Any:
    from aiconfigurator_core.sdk.engine import EngineHandle

    return EngineHandle.compile(
        set_up.model,
        set_up.system,
        set_up.backend,
        backend_version=set_up.version,
        **_parallel(set_up),
        **quantisation,
    )


def _parallel(set_up: SetUp) -> dict[str, Any]:
    """How the GPUs share the work, as the package's functions take it."""
    return {
        "tp_size": set_up.tensor_parallel,
        "pp_size": set_up.pipeline_parallel,
        "attention_dp_size": set_up.data_parallel,
        "moe_tp_size": set_up.tensor_parallel * set_up.data_parallel // set_up.expert_parallel,
        "moe_ep_size": set_up.expert_parallel,
    }


def _details(
    set_up: SetUp, release: str, estimator: OperatorEstimator, low_fidelity: list[str]
) -> dict[str, object]:
    return {
        "gpu": set_up.system,
        "model": set_up.model,
        "engine": f"{set_up.backend} {set_up.version}",
        "tensor_parallel": set_up.tensor_parallel,
        "pipeline_parallel": set_up.pipeline_parallel,
        "expert_parallel": set_up.expert_parallel,
        "data_parallel": set_up.data_parallel,
        "imported_as": "aiconfigurator",
        "package": f"aiconfigurator-core {release}",
        "attention": {
            "prompts": sorted(estimator.prefill_attention),
            "decodes": sorted(estimator.decode_attention),
        },
        "kv_capacity_tokens": kv_capacity_tokens(set_up),
        "sources": estimator.sources(),
        "energy": "given by the package, not kept"
        if estimator.gives_energy()
        else "not given by the package",
        "low_fidelity": low_fidelity,
    }


def _name(set_up: SetUp) -> str:
    sizes = {
        "tp": set_up.tensor_parallel,
        "pp": set_up.pipeline_parallel,
        "ep": set_up.expert_parallel,
        "dp": set_up.data_parallel,
    }
    parallel = "".join(f" {name}{size}" for name, size in sizes.items() if size > 1)
    return f"{Path(set_up.model).name} on {set_up.system}{parallel}, {set_up.backend} {set_up.version}"


def _fallbacks(messages: Sequence[str], words: set[str]) -> list[str]:
    """Tables of other backends that stand in for this one's, as far as this model's operators use them."""
    tables = [
        message.split(" for ", 1)[1].split(" from ", 1)[0].removesuffix(".parquet")
        for message in messages
        if message.startswith("Loading low-fidelity fallback rows for ")
    ]
    return [
        f"{table} comes in part from another backend"
        for table in dict.fromkeys(tables)
        if table.split("_")[0] in words
    ]


@contextmanager
def _messages() -> Iterator[list[str]]:
    """Collect what the package logs, instead of letting it on the user's screen."""
    collected: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            collected.append(record.getMessage())

    logger, handler = logging.getLogger(_PACKAGE), Collector()
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield collected
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
