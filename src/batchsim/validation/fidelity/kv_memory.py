"""KV blocks that an engine will have had, where nobody wrote them down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchsim.errors import ConfigError
from batchsim.specs import ModelSpec, parse_spec
from batchsim.validation.fidelity.engine_run import GIB, EngineSettings

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
#: Of a card's memory, as engines see it: 79.14 of 80 GiB, 23.64 of 24.
_SEEN = 0.985
#: Of each logit, while vLLM draws tokens to see what it needs: as float32, sorted, its place, probabilities
#: and their sums. Its logs tell of peaks of 1.2 to 1.4 GiB for 256 sequences and 128,000 to 152,000 tokens.
_LOGIT_BYTES = 32
_CUDA_BYTES = GIB / 10  # that PyTorch does not know of; 0.05 to 0.2 GiB in such logs


def read_model_config(path: str | Path) -> dict[str, Any]:
    """Read a model's ``config.json``.

    Raises
    ------
    ConfigError
        If it is no JSON object with layers in it.
    """
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); a model's config.json is needed"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from error
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
        activation_bytes += sequences * spec.vocab_size * _LOGIT_BYTES
        usable_bytes = _SEEN * settings.memory_bytes * settings.memory_utilization * settings.tensor_parallel
        other_bytes = (activation_bytes + _CUDA_BYTES) * settings.tensor_parallel
        left_bytes = usable_bytes - spec.weight_bytes - other_bytes
    blocks = int(left_bytes // (spec.kv_bytes_per_token * settings.block_size))
    if blocks < 1:
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
    experts = int(model.get("num_experts_per_tok") or 1)
    return int(model.get("moe_intermediate_size") or model["intermediate_size"]) * experts


def _spec(model: Mapping[str, Any], settings: EngineSettings) -> ModelSpec:
    """The model as a dense one that has as many weights on its GPUs: all experts, or its share of them."""
    experts = next((int(model[key]) for key in ("num_experts", "num_local_experts") if model.get(key)), 1)
    width = int(model.get("moe_intermediate_size") or model.get("intermediate_size") or 0) * experts
    if experts > 1:  # replicas share them
        width //= settings.data_parallel
    heads = model.get("num_attention_heads")
    dtype = str(model.get("dtype", model.get("torch_dtype", "bfloat16")))
    weight_bytes = _BYTES.get(dtype, 2)
    missing = [key for key in ("hidden_size", "num_attention_heads", "vocab_size") if not model.get(key)]
    if missing or not width:
        raise ConfigError(f"the model's config.json has no {(missing or ['intermediate_size'])[0]}")
    tree = {
        "name": str(model.get("model_type", "model")),
        "num_layers": model["num_hidden_layers"],
        "hidden_size": model["hidden_size"],
        "num_query_heads": heads,
        "num_kv_heads": model.get("num_key_value_heads") or heads,
        "head_dim": model.get("head_dim") or model["hidden_size"] // model["num_attention_heads"],
        "intermediate_size": width,
        "vocab_size": model["vocab_size"],
        "tied_embeddings": bool(model.get("tie_word_embeddings")),
        "bytes_per_weight": weight_bytes,
        "bytes_per_kv": weight_bytes,
    }
    return parse_spec(ModelSpec, tree, "the model's config.json")
