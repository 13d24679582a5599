"""What a model and a GPU are to the simulator: a handful of numbers, shipped as JSON or read from a file."""

from __future__ import annotations

from dataclasses import replace

from batchsim.errors import ConfigError
from batchsim.specs.fields import check_magnitude
from batchsim.specs.gpu import GPUSpec
from batchsim.specs.loading import load_gpu, load_model, load_spec, parse_spec, read_model, spec_files
from batchsim.specs.model import Arithmetic, ModelSpec
from batchsim.specs.sharing import (
    Sharing,
    gpu_activation_bytes,
    gpu_attention_parameters,
    gpu_weight_bytes,
    kv_capacity_tokens,
)

__all__ = [
    "Arithmetic",
    "GPUSpec",
    "ModelSpec",
    "Sharing",
    "check_magnitude",
    "gpu_activation_bytes",
    "gpu_attention_parameters",
    "gpu_weight_bytes",
    "in_fp8",
    "kv_capacity_tokens",
    "load_gpu",
    "load_model",
    "load_spec",
    "parse_spec",
    "read_model",
    "spec_files",
]


def in_fp8(model: ModelSpec, gpu: GPUSpec) -> ModelSpec:
    """Quantise the weights of all layers to fp8; embedding, output head and KV stay as they are.

    Raises
    ------
    ConfigError
        If the GPU has no known fp8 rate.
    """
    if gpu.fp8_flop_per_s is None:
        raise ConfigError(f"GPU {gpu.name} must have fp8_flop_per_s for weights in fp8")
    return replace(model, bytes_per_weight=1, bytes_per_kept_weight=model.kept_bytes, arithmetic="fp8")
