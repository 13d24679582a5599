"""KV blocks that an engine will have had, where nobody wrote them down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchsim.errors import ConfigError
from batchsim.files import MAX_COUNT, read_json
from batchsim.specs import ModelSpec, parse_spec
from batchsim.specs.sharing import CUDA_BYTES, LOGIT_BYTES
from batchsim.validation.fidelity.engine_run import GIB, EngineSettings

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
#: Of a card's memory, as engines see it: 79.14 of 80 GiB, 23.64 of 24.
_SEEN = 0.985


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
        If the memory is not known either, or nothing is left.
    """
    if settings.memory_bytes is None:
        raise ConfigError(
            "neither the number of KV blocks nor the memory of a GPU is recorded; name --num-kv-blocks "
            '(the engine\'s "GPU KV cache size" in tokens / block size)'
        )
    spec = _spec(model, settings)
    tokens, sequences = settings.max_num_batched_tokens, settings.max_num_seqs
    if settings.weights_and_kv_share is not None:
        usable_bytes = settings.memory_bytes * settings.weights_and_kv_share * settings.tensor_parallel
        left_bytes = usable_bytes - spec.weight_bytes
    else:
        width = 3 * _active_width(model) // settings.tensor_parallel
        activation_bytes = tokens * (4 * spec.hidden_size + width) * spec.bytes_per_kv
        activation_bytes += sequences * spec.vocab_size * LOGIT_BYTES
        usable_bytes = _SEEN * settings.memory_bytes * settings.memory_utilization * settings.tensor_parallel
        other_bytes = (activation_bytes + CUDA_BYTES) * settings.tensor_parallel
        left_bytes = usable_bytes - spec.weight_bytes - other_bytes
    blocks = int(left_bytes // (spec.kv_bytes_per_token * settings.block_size))
    if blocks < 2:  # one is the null block
        raise ConfigError(
            f"{usable_bytes / GIB:.1f} GiB of GPU memory leave no KV block beside "
            f"{spec.weight_bytes / GIB:.1f} GiB of weights; name --num-kv-blocks or more tensor parallelism"
        )
    share, beside = settings.memory_utilization, "weights and activations"
    if settings.weights_and_kv_share is not None:
        share, beside = settings.weights_and_kv_share, "weights"
    notice = (
        f"the number of KV blocks is not recorded; {blocks} are taken, what {share:.4g} of "
        f"{settings.memory_bytes / GIB:g} GiB leaves beside {beside}"
    )
    return blocks, notice


def _active_width(model: Mapping[str, Any]) -> int:
    width = _count(model, "moe_intermediate_size", "intermediate_size") or 0
    return width * (_count(model, "num_experts_per_tok") or 1)


def _spec(model: Mapping[str, Any], settings: EngineSettings) -> ModelSpec:
    """The model as a dense one that has as many weights on its GPUs: all experts, or its share of them."""
    experts = _count(model, "num_experts", "num_local_experts") or 1
    width = (_count(model, "moe_intermediate_size", "intermediate_size") or 0) * experts
    if experts > 1:  # replicas share them
        width //= settings.data_parallel
    hidden_size, heads = _count(model, "hidden_size"), _count(model, "num_attention_heads")
    vocab_size = _count(model, "vocab_size")
    needed = {
        "hidden_size": hidden_size,
        "num_attention_heads": heads,
        "vocab_size": vocab_size,
        "intermediate_size": width,
    }
    missing = [key for key, value in needed.items() if not value]
    if missing or hidden_size is None or heads is None:
        raise ConfigError(f"the model's config.json has no {missing[0]}")
    weight_bytes = _BYTES.get(str(model.get("dtype", model.get("torch_dtype", "bfloat16"))), 2)
    tree = {
        "name": str(model.get("model_type", "model")),
        "num_layers": model["num_hidden_layers"],
        "hidden_size": hidden_size,
        "num_query_heads": heads,
        "num_kv_heads": model.get("num_key_value_heads") or heads,
        "head_dim": model.get("head_dim") or hidden_size // heads,
        "intermediate_size": width,
        "vocab_size": vocab_size,
        "tied_embeddings": bool(model.get("tie_word_embeddings")),
        "bytes_per_weight": weight_bytes,
        "bytes_per_kv": weight_bytes,
    }
    return parse_spec(ModelSpec, tree, "the model's config.json")


def _count(model: Mapping[str, Any], *keys: str) -> int | None:
    """The first of these that the model has; 0 is how some say that they have none."""
    for key in keys:
        value = model.get(key)
        if value is None or value == 0:
            continue
        if type(value) is not int or not 1 <= value <= MAX_COUNT:
            raise ConfigError(
                f"the model's config.json: {key} is {value!r:.60}; a whole number >= 1 is needed"
            )
        return value
    return None
