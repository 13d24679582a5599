"""One calibration from end to end: load a model, choose the points, measure, say where it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from batchsim.errors import ConfigError
from batchsim_calibration.measuring.grid import (
    Extent,
    Profile,
    budget_of,
    extent_of,
    points_of,
    slots_of,
    trials_of,
)
from batchsim_calibration.measuring.operations import EnginePoints
from batchsim_calibration.measuring.outcome import Outcome
from batchsim_calibration.measuring.protocol import OnProgress, calibrate_latency_grid
from batchsim_calibration.provenance import device_state, machine, model_identity, provenance, slug
from batchsim_calibration.serving.engine import Chunk, Engine, is_out_of_memory
from batchsim_calibration.serving.models import MODELS, LoadedModel, has_bf16, load_model, prepare_device

#: Share of the memory that is free beside the weights which the KV cache may take; the rest is for passes.
_KV_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class MeasureSettings:
    """What to measure on what; None is for the default of the device or profile."""

    device: str = "cuda"
    model: str | None = None
    random_weights: bool = False
    dtype: str | None = None
    attention: str = "sdpa"
    profile: Profile = "full"
    num_trials: int | None = None
    budget_s: float | None = None
    max_batch_size: int | None = None
    max_tokens: int | None = None
    seed: int = 0


def measure(
    settings: MeasureSettings,
    output_dir: Path,
    *,
    name: str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
    on_progress: OnProgress = lambda *_: None,
) -> tuple[Path, Outcome]:
    """Measure into ``output_dir``; return the table's path and how steady the machine was.

    Raises
    ------
    ConfigError
        If the device, the model, or a grid of this extent cannot be had, or the table is there already.
    """
    loaded = load(settings)
    device = loaded.device.type
    points = points_of(settings.profile, device, _extent(settings, loaded))
    num_trials, max_extra_trials = trials_of(settings.profile, device)
    num_trials = settings.num_trials or num_trials
    budget_s = settings.budget_s or budget_of(settings.profile, device)
    identity = {**model_identity(loaded), **machine(loaded.device)}
    path = output_dir / f"{name or automatic_name(identity)}.csv"
    configuration = {
        "profile": settings.profile,
        "num_trials": num_trials,
        "seed": settings.seed,
        "num_points": len(points),
        "num_slots": slots_of(points).batch_size,
        "max_tokens": slots_of(points).tokens,
    }
    say(f"{identity['model']} ({loaded.weights} weights, {loaded.dtype}) on {identity['gpu']}")
    until = "" if budget_s == math.inf else f", no repeats after {_duration(budget_s)}"
    say(f"{len(points)} points, {num_trials} trials each{until}, into {path.name}")
    state_before = device_state(loaded.device)
    outcome = calibrate_latency_grid(
        EnginePoints(engine_for(loaded, slots_of(points))),
        points,
        path,
        num_trials=num_trials,
        max_extra_trials=max_extra_trials,
        budget_s=budget_s,
        configuration={**identity, **configuration},
        seed=settings.seed,
        overwrite=overwrite,
        describe=lambda outcome: provenance(
            identity, loaded.device, outcome, configuration=configuration, state_before=state_before
        ),
        on_estimate=lambda seconds: say(f"about {_duration(seconds)} to go, more where other work disturbs"),
        on_progress=on_progress,
    )
    return path, outcome


def load(settings: MeasureSettings) -> LoadedModel:
    """Load the model asked for, or the one that suits the device."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "no CUDA device was found; --device cpu (DEVICE=cpu with make) measures a tiny model on this CPU "
            "instead, see docs/calibration.md for setting CUDA up"
        )
    is_cuda = settings.device.startswith("cuda")
    name = settings.model or ("qwen2.5-1.5b" if is_cuda else "tiny")
    default = ("bf16" if has_bf16() else "fp16") if is_cuda else "fp32"
    loaded = load_model(
        name,
        random_weights=settings.random_weights or name in MODELS,  # for shipped shapes there are no others
        dtype=settings.dtype or default,
        attention=settings.attention,
        device=settings.device,
        seed=settings.seed,
    )
    prepare_device(loaded.device)
    return loaded


def engine_for(loaded: LoadedModel, slots: Extent) -> Engine:
    """Make an engine; raise `ConfigError` if its KV cache does not fit the device."""
    try:
        engine = Engine(loaded, num_slots=slots.batch_size, max_tokens=slots.tokens)
        engine.step(
            [Chunk(0, torch.ones(1, dtype=torch.int64), completes=True)], ()
        )  # the first pass allocates
        engine.clear(0)
        return engine
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"a KV cache of {slots.batch_size} sequences of {slots.tokens} tokens does not fit the device; "
            "give a smaller --max-batch-size or --max-tokens"
        ) from error


def automatic_name(identity: dict[str, str]) -> str:
    """Return model, device and dtype, such as ``qwen2.5-1.5b_rtx4080-laptop_fp16``."""
    attention = "" if identity["attention"] == "sdpa" else f"_{identity['attention']}"
    return f"{identity['model']}_{slug(identity['gpu'])}_{identity['dtype']}{attention}"


def _extent(settings: MeasureSettings, loaded: LoadedModel) -> Extent:
    kv_tokens = None
    if loaded.device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(loaded.device)
        kv_tokens = int(_KV_SHARE * free_bytes) // kv_bytes_per_token(loaded)
    return extent_of(
        settings.profile,
        loaded.device.type,
        max_batch_size=settings.max_batch_size,
        max_tokens=settings.max_tokens,
        kv_tokens=kv_tokens,
    )


def kv_bytes_per_token(loaded: LoadedModel) -> int:
    """Keys and values of all layers."""
    config = loaded.model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    num_values = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
    return int(num_values * next(loaded.model.parameters()).element_size())


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"
