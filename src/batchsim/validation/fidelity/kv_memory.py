"""KV blocks that an engine will have had, where nobody wrote them down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchsim.errors import ConfigError
from batchsim.files import read_json
from batchsim.specs import ModelSpec, Sharing, gpu_activation_bytes, gpu_weight_bytes, read_model
from batchsim.specs.sharing import gpu_kv_bytes
from batchsim.validation.fidelity.engine_run import GIB, EngineSettings

#: Tokens of the sequences that windows and states are told for, where a model has no longest one.
_SEQUENCE_TOKENS = 32_768


def read_model_config(path: str | Path) -> dict[str, Any]:
    """Read a model's ``config.json``.

    Raises
    ------
    ConfigError
        If it is no JSON object with layers in it.
    """
    tree = read_json(path)
    if not isinstance(tree, dict) or "num_hidden_layers" not in tree:
        raise ConfigError(f"{path}: no num_hidden_layers in it; a model's config.json is needed")
    return tree


def kv_blocks(settings: EngineSettings, model: Mapping[str, Any]) -> tuple[int, str]:
    """Blocks of one replica from the memory of its GPUs, and a sentence that says so.

    What its share of the memory leaves beside the weights and the largest activations of a pass, as vLLM
    does. A share that a simulator's cluster file names, other than vLLM's own 0.9, is what weights and KV
    have together: such files are set so that the blocks come out right.

    Raises
    ------
    ConfigError
        If the memory is not known either, the model is not, or nothing is left.
    """
    if settings.memory_bytes is None:
        raise ConfigError(
            "neither the number of KV blocks nor the memory of a GPU is recorded; name --num-kv-blocks "
            '(the engine\'s "GPU KV cache size" in tokens / block size)'
        )
    spec = read_model(model, "the model's config.json")
    sharing = _sharing(spec, settings)
    share, beside = settings.weights_and_kv_share, "weights"
    taken_bytes = weight_bytes = gpu_weight_bytes(spec, sharing)
    if share is None:
        share, beside = settings.memory_utilization, "weights and activations"
        taken_bytes += gpu_activation_bytes(
            spec, sharing, settings.max_num_batched_tokens, settings.max_num_seqs
        )
    length = spec.max_model_len or _SEQUENCE_TOKENS
    block_bytes = gpu_kv_bytes(spec, sharing, length) / length * settings.block_size
    blocks = int((share * settings.memory_bytes - taken_bytes) // block_bytes)
    if blocks < 2:  # one is the null block
        raise ConfigError(
            f"{share:.4g} of {settings.memory_bytes / GIB:g} GiB of GPU memory leave no KV block beside "
            f"{weight_bytes / GIB:.1f} GiB of weights; name --num-kv-blocks or more tensor parallelism"
        )
    notice = (
        f"the number of KV blocks is not recorded; {blocks} are taken, what {share:.4g} of "
        f"{settings.memory_bytes / GIB:g} GiB leaves beside {beside}"
    )
    return blocks, notice


def _sharing(spec: ModelSpec, settings: EngineSettings) -> Sharing:
    """How the GPUs share the model: replicas of one without experts share nothing."""
    if not spec.num_experts:
        return Sharing(settings.tensor_parallel)
    return Sharing(settings.tensor_parallel, 1, settings.data_parallel, settings.expert_parallel)
