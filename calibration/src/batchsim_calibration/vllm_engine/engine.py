"""vLLM in this process, its core driven one step at a time, as the loop of its server does."""

from __future__ import annotations

import copy
import inspect
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from batchsim.errors import ConfigError, nearest
from batchsim_calibration.serving.models import MODELS, has_bf16, prepare_device, shape_file
from batchsim_calibration.vllm_engine.passes import PassLog, logging_scheduler

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
#: What vLLM reads before it is imported; the caller's environment goes first.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
_CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",  # several threads share a core with whatever else runs there
    # A kernel is made for each number of tokens and kept; by default there is room for those of some 200.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "65536",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a scheduler may do; None is for what vLLM chooses."""

    max_num_seqs: int
    max_num_batched_tokens: int
    num_kv_blocks: int | None = None
    prefix_caching: bool = False


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """Which model vLLM runs, and where; see the options of the commands."""

    model: str = "tiny"
    random_weights: bool = False
    device: str = "cuda"
    dtype: str | None = None
    block_size: int | None = None
    async_scheduling: bool = False
    enforce_eager: bool = False
    seed: int = 0


class VllmEngine:
    """vLLM's engine core, with a scheduler that logs.

    Attributes
    ----------
    device
        Where it runs.
    version
        Of vLLM.
    block_size, num_kv_blocks
        Tokens in a block, and blocks that requests can have: vLLM keeps one for itself.
    limits
        Of the scheduler at work.
    identity
        What of model and engine bears on speed, for a provenance.
    """

    def __init__(self, settings: VllmSettings, limits: Limits, max_model_len: int) -> None:
        _prepare(settings.device)
        with _model_of(settings) as path:
            self._llm = _load(settings, limits, max_model_len, path)
        self._core: Any = self._llm.llm_engine.engine_core.engine_core
        config = self._llm.llm_engine.vllm_config
        self.device = torch.device(settings.device)
        self.version = vllm_version()
        self.vocab_size: int = config.model_config.get_vocab_size()
        self.block_size: int = config.cache_config.block_size
        self.num_kv_blocks: int = config.cache_config.num_gpu_blocks - 1
        self.is_async: bool = bool(config.scheduler_config.async_scheduling)
        self._hasher = self._core.request_block_hasher
        self.limits = limits
        self.identity = {
            "model": _name_of(settings.model),
            "weights": "random" if _has_random_weights(settings) else "real",
            "dtype": settings.dtype or _default_dtype(settings.device),
            "attention": f"vllm {self.version}",
            "execution": f"vLLM {self.version}, {'eager' if settings.enforce_eager else 'compiled'}, "
            f"{'asynchronous' if self.is_async else 'synchronous'} scheduling",
            "vllm": {
                "version": self.version,
                "block_size": self.block_size,
                "enforce_eager": settings.enforce_eager,
                "async_scheduling": self.is_async,
                "executor": type(self._core.model_executor).__name__,
                "environment": {
                    name: os.environ[name]
                    for name in (*_ENVIRONMENT, *_CPU_ENVIRONMENT)
                    if name in os.environ
                },
            },
        }

    @property
    def log(self) -> PassLog:
        """Passes of the scheduler at work."""
        log: PassLog = self._core.scheduler.log
        return log

    @property
    def has_work(self) -> bool:
        """Whether a step would do something, be it to forget who has finished."""
        return bool(self._core.scheduler.has_requests() or self._core.batch_queue)

    def request(self, request_id: str, token_ids: Sequence[int], num_output_tokens: int) -> Any:
        """Make a request whose answer is so long, ready to be added: what a server's front end would do."""
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=num_output_tokens, ignore_eos=True, detokenize=False, temperature=0.0
        )
        front: Any = self._llm.llm_engine
        process = (getattr(front, "input_processor", None) or front.processor).process_inputs
        more = {}
        if "supported_tasks" in inspect.signature(process).parameters:
            more["supported_tasks"] = self._core.get_supported_tasks()
        made = process(request_id, {"prompt_token_ids": list(token_ids)}, params, **more)
        request, _ = self._core.preprocess_add_request(made)
        return request

    def add(self, request: Any) -> None:
        """Let a request wait."""
        self._core.add_request(request, 0)

    def step(self) -> None:
        """Schedule a pass, run it, take in what it yields: one turn of the core's loop."""
        _, is_executed = self._core.step_fn()
        self._core.post_step(model_executed=is_executed)

    def drain(self) -> None:
        """Give up all requests."""
        self._core.abort_requests(list(self._core.scheduler.requests))
        while self.has_work:
            self.step()
        self.log.take()

    def limit(self, limits: Limits) -> None:
        """Put a new scheduler of the same class in the place of the idle one: nothing has to be loaded anew.

        Raises
        ------
        ConfigError
            If the engine was made for less.
        """
        old = self._core.scheduler
        args, kwargs = old.made_with
        given = inspect.signature(type(old).__mro__[2]).bind(*args, **kwargs).arguments
        blocks = limits.num_kv_blocks or self.num_kv_blocks
        if blocks > self.num_kv_blocks:
            raise ConfigError(f"{blocks} KV blocks were asked for; the engine has {self.num_kv_blocks}")
        config = copy.copy(given["vllm_config"])
        config.scheduler_config = copy.copy(config.scheduler_config)
        config.cache_config = copy.copy(config.cache_config)
        config.scheduler_config.max_num_seqs = limits.max_num_seqs
        config.scheduler_config.max_num_batched_tokens = limits.max_num_batched_tokens
        with suppress(AttributeError):  # older versions have no such limit
            config.scheduler_config.max_num_scheduled_tokens = None
        config.cache_config.num_gpu_blocks = blocks + 1
        config.cache_config.enable_prefix_caching = limits.prefix_caching
        given["vllm_config"] = config
        given["kv_cache_config"] = replace(given["kv_cache_config"], num_blocks=blocks + 1)
        self._core.scheduler = type(old)(**given)
        self._core.request_block_hasher = self._hasher if limits.prefix_caching else None
        self.limits = limits


def vllm_version() -> str:
    """Version of the installed vLLM, whatever its distribution is called.

    Raises
    ------
    ConfigError
        If there is none.
    """
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return version(name).partition("+")[0]
    raise ConfigError(
        "vLLM is not installed here; `make validate-vllm` makes an environment that has it for a processor, "
        "and docs/calibration.md says how to add this package to one of your own"
    )


def _prepare(device: str) -> None:
    vllm_version()
    on_cpu = device == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        raise ConfigError("no CUDA device was found; --device cpu runs vLLM on this processor")
    for name, value in {**_ENVIRONMENT, **(_CPU_ENVIRONMENT if on_cpu else {})}.items():
        os.environ.setdefault(name, value)
    prepare_device(torch.device(device))


def _load(settings: VllmSettings, limits: Limits, max_model_len: int, path: str) -> Any:
    from vllm import LLM
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    given: dict[str, Any] = {
        "load_format": "dummy" if _has_random_weights(settings) else "auto",
        "skip_tokenizer_init": True,
        "dtype": _DTYPES[settings.dtype or _default_dtype(settings.device)],
        "enforce_eager": settings.enforce_eager,
        "seed": settings.seed,
        "max_model_len": max_model_len,
        "max_num_seqs": limits.max_num_seqs,
        "max_num_batched_tokens": limits.max_num_batched_tokens,
        "enable_prefix_caching": limits.prefix_caching,
        "async_scheduling": settings.async_scheduling,
        "scheduler_cls": logging_scheduler(AsyncScheduler if settings.async_scheduling else Scheduler),
    }
    if settings.block_size is not None:
        given["block_size"] = settings.block_size
    if limits.num_kv_blocks is not None:
        given["num_gpu_blocks_override"] = limits.num_kv_blocks + 1
    try:
        return LLM(path, **given)
    except (ValueError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(f"vLLM does not start: {lines[0] if lines else type(error).__name__}") from error


@contextmanager
def _model_of(settings: VllmSettings) -> Iterator[str]:
    """The model by a name that vLLM takes: of a mere configuration, a folder that holds it."""
    name = settings.model
    path = shape_file(name) if name in MODELS else Path(name)
    if path.suffix != ".json":
        if settings.random_weights or path.exists() or "/" in name:
            yield name
            return
        raise ConfigError(
            f"model {name!r} is no shape of ours, no file and no owner/name of the Hugging Face Hub; "
            f"{nearest(name, MODELS)}"
        )
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; a config.json is needed")
    with TemporaryDirectory() as folder:
        shutil.copy(path, Path(folder) / "config.json")
        yield folder


def _has_random_weights(settings: VllmSettings) -> bool:
    return settings.random_weights or settings.model in MODELS or settings.model.endswith(".json")


def _name_of(model: str) -> str:
    path = Path(model)
    if path.name == "config.json":
        path = path.resolve().parent
    return (path.stem if path.suffix == ".json" else path.name).lower()


def _default_dtype(device: str) -> str:
    if device == "cpu":
        return "fp32"
    return "bf16" if has_bf16() else "fp16"
