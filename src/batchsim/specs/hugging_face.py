"""Reading a ``config.json`` of Hugging Face: a model's shapes, experts, windows, latents, quantisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, NoReturn

from batchsim.errors import ConfigError, nearest
from batchsim.files import MAX_COUNT
from batchsim.specs.quantisation import KV_BYTES, PLAIN_BYTES, Quantised, read_quantisation

Layer = Literal["full", "window", "linear"]

#: Architectures of one kind of layer, and no experts.
_DENSE = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "olmo2",
    "granite",
    "internlm2",
    "internlm3",
    "smollm3",
    "exaone4",
    "glm4",
)
#: Every so many layers of a model attends to all tokens where the config does not list its layers.
_FULL_EVERY = {"gemma2": 2, "gemma3_text": 6, "qwen3_next": 4, "qwen3_5_text": 4, "qwen3_5_moe_text": 4}
_EXPERTS = (
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_5_moe_text",
    "qwen3_vl_moe_text",
    "deepseek_v2",
    "deepseek_v3",
    "kimi_k2",
    "gpt_oss",
    "glm4_moe",
    "minimax_m2",
)
#: Those of them that have no other width than that of their experts.
_ONE_WIDTH = ("mixtral", "gpt_oss", "minimax_m2", None)
_KNOWN = (
    *_DENSE,
    "gemma2",
    "gemma3_text",
    "qwen3_5_text",
    "qwen3_vl_text",
    *_EXPERTS,
)


class _Config(NamedTuple):
    """A ``config.json``, and what opens the sentence of an error in it."""

    tree: Mapping[str, Any]
    where: str

    def refuse(self, reason: str) -> NoReturn:
        raise ConfigError(f"{self.where}: {reason}")

    def whole(self, *keys: str, default: int | None = None) -> int:
        """The first of these that is given; 0 is how some say that they have none."""
        for key in keys:
            value = self.tree.get(key)
            if value is None:
                continue
            if type(value) is not int or not 0 <= value <= MAX_COUNT:
                self.refuse(f"{key} is {value!r:.60}; a whole number is needed")
            return value
        if default is None:
            self.refuse(f"{' or '.join(keys)} is missing")
        return default


def is_hugging_face(tree: Mapping[str, Any]) -> bool:
    """Whether this is a ``config.json``, rather than the fields of a spec."""
    return any(key in tree for key in ("num_hidden_layers", "model_type", "architectures", "text_config"))


def from_hugging_face(tree: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of a `ModelSpec` from a ``config.json``.

    Raises
    ------
    ConfigError
        If it lacks a field, or is of an architecture or a quantisation that is not known.
    """
    outer, tree = tree, _text(tree)
    config = _Config(tree, where)
    kind = tree.get("model_type")
    if kind is not None and (not isinstance(kind, str) or kind not in _KNOWN):
        near = nearest(str(kind)[:60], _KNOWN)
        config.refuse(f"model_type is {kind!r:.60}; {near}; a JSON file of its shapes is the way round it")
    layers = _layers(config)
    found = {
        "name": outer["name"],
        "num_layers": config.whole("num_hidden_layers"),
        "hidden_size": config.whole("hidden_size"),
        "num_query_heads": config.whole("num_attention_heads"),
        "vocab_size": config.whole("vocab_size"),
        "tied_embeddings": _is_tied(config, outer),
        **_attention(config),
        **_feed_forward(config),
        **_other_layers(config, layers),
    }
    found |= _bytes(config, outer, found, layers)
    length = _longest(config)
    if length is not None:
        found["max_model_len"] = length
    return found


def _text(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language half of a model that has others."""
    inner = tree.get("text_config")
    if not isinstance(inner, dict):
        return tree
    return {**inner, "name": tree["name"]}


def _is_tied(config: _Config, outer: Mapping[str, Any]) -> Any:
    """As given, for the spec to check; left out, what the library takes for the architecture."""
    for tree in (config.tree, outer):
        given = tree.get("tie_word_embeddings")
        if given is not None:
            return given
    if str(config.tree.get("model_type")).startswith("gemma"):
        return True
    if config.tree.get("model_type") is None:
        config.refuse("tie_word_embeddings is missing, and model_type, which would tell")
    return False


def _attention(config: _Config) -> dict[str, int]:
    heads = config.whole("num_attention_heads")
    rank = config.whole("kv_lora_rank", default=0)
    if rank:
        rope = config.whole("qk_rope_head_dim")
        return {
            "num_kv_heads": 1,
            "head_dim": config.whole("qk_nope_head_dim") + rope,
            "kv_lora_rank": rank,
            "q_lora_rank": config.whole("q_lora_rank", default=0),
            "qk_rope_head_dim": rope,
            "v_head_dim": config.whole("v_head_dim"),
        }
    head_dim = config.whole("head_dim", default=0)
    if not head_dim:
        head_dim = config.whole("hidden_size") // max(heads, 1)
    found = {"num_kv_heads": config.whole("num_key_value_heads", default=heads), "head_dim": head_dim}
    kind = str(config.tree.get("model_type"))
    if config.tree.get("attn_output_gate", kind.startswith(("qwen3_next", "qwen3_5"))) is True:
        found["gated_attention"] = True
    return found


def _feed_forward(config: _Config) -> dict[str, int]:
    experts = config.whole("num_experts", "num_local_experts", "n_routed_experts", default=0)
    kind = config.tree.get("model_type")
    if not experts:
        return {"intermediate_size": config.whole("intermediate_size")}
    if kind is not None and kind not in _EXPERTS:
        config.refuse(f"it has {experts} experts, and a {kind} with experts is not known")
    width = config.whole("moe_intermediate_size", *(["intermediate_size"] if kind in _ONE_WIDTH else []))
    shared = config.whole("shared_expert_intermediate_size", default=0)
    shared = shared or config.whole("n_shared_experts", default=0) * width
    return {
        "intermediate_size": config.whole("intermediate_size", default=width),
        "num_experts": experts,
        "experts_per_token": config.whole("num_experts_per_tok", "experts_per_token"),
        "expert_intermediate_size": width,
        "shared_intermediate_size": shared,
        "num_dense_layers": sum(_is_dense(config, layer) for layer in range(_num_layers(config))),
    }


def _is_dense(config: _Config, layer: int) -> bool:
    """Whether a layer of a model with experts has none."""
    if layer < config.whole("first_k_dense_replace", default=0):
        return True
    step = config.tree.get("decoder_sparse_step", config.tree.get("moe_layer_freq", 1))
    dense = config.tree.get("mlp_only_layers") or []
    if type(step) is not int or step < 1:
        config.refuse(f"decoder_sparse_step or moe_layer_freq is {step!r:.60}; a whole number >= 1 is needed")
    if not isinstance(dense, list):
        config.refuse(f"mlp_only_layers is {dense!r:.60}; a list is needed")
    offset = 1 if "decoder_sparse_step" in config.tree else 0
    return layer in dense or (layer + offset) % step != 0


def _num_layers(config: _Config) -> int:
    layers = config.whole("num_hidden_layers")
    if not 1 <= layers <= 10_000:
        config.refuse(f"num_hidden_layers is {layers}; 1 to 10000 are possible")
    return layers


_LAYER_TYPES: Mapping[str, Layer] = {
    "full_attention": "full",
    "sliding_attention": "window",
    "linear_attention": "linear",
}


def _layers(config: _Config) -> list[Layer]:
    """What each layer attends to."""
    tree, num_layers = config.tree, _num_layers(config)
    kind, listed = tree.get("model_type"), tree.get("layer_types")
    if listed is not None:
        if not isinstance(listed, list) or len(listed) != num_layers or not set(listed) <= set(_LAYER_TYPES):
            config.refuse(
                f"layer_types must hold {num_layers} of {', '.join(_LAYER_TYPES)}, one for each layer"
            )
        return [_LAYER_TYPES[one] for one in listed]
    other: Layer = "linear" if config.whole("linear_num_value_heads", default=0) else "window"
    every = _FULL_EVERY.get(str(kind))
    if every is not None:
        every = config.whole("full_attention_interval", "sliding_window_pattern", default=every)
        return ["full" if (layer + 1) % every == 0 else other for layer in range(num_layers)]
    if not tree.get("sliding_window") or tree.get("use_sliding_window") is False:
        return ["full"] * num_layers
    if kind in ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"):  # the layers above so many slide
        first = config.whole("max_window_layers", default=num_layers)
        return ["window" if layer >= first else "full" for layer in range(num_layers)]
    return ["window"] * num_layers


def _other_layers(config: _Config, layers: list[Layer]) -> dict[str, int]:
    found = {}
    if "window" in layers:
        found["num_window_layers"] = layers.count("window")
        found["window_tokens"] = config.whole("sliding_window")
    if "linear" in layers:
        keys = config.whole("linear_num_key_heads") * config.whole("linear_key_head_dim")
        heads = config.whole("linear_num_value_heads")
        values = heads * config.whole("linear_value_head_dim")
        kept = config.whole("linear_conv_kernel_dim") - 1
        state_bytes = PLAIN_BYTES.get(str(config.tree.get("mamba_ssm_dtype", "bfloat16")), 2)
        of_one = kept * (2 * keys + values) * 2
        of_one += values * config.whole("linear_key_head_dim") * state_bytes
        found["num_linear_layers"] = layers.count("linear")
        found["linear_layer_parameters"] = config.whole("hidden_size") * (2 * keys + 3 * values + 2 * heads)
        found["linear_state_bytes"] = found["num_linear_layers"] * of_one
    return found


def _bytes(
    config: _Config, outer: Mapping[str, Any], found: Mapping[str, Any], layers: list[Layer]
) -> dict[str, Any]:
    """Bytes of weights and of KV."""
    tree = config.tree
    dtype = tree.get(
        "dtype", tree.get("torch_dtype", outer.get("dtype", outer.get("torch_dtype", "bfloat16")))
    )
    if not isinstance(dtype, str) or dtype not in PLAIN_BYTES:
        config.refuse(f"dtype is {dtype!r:.60}; known: {', '.join(PLAIN_BYTES)}")
    plain, given = PLAIN_BYTES[dtype], tree.get("quantization_config") or outer.get("quantization_config")
    kv_dtype = tree.get("kv_cache_dtype", "auto")
    if not isinstance(kv_dtype, str) or kv_dtype not in KV_BYTES:
        config.refuse(f"kv_cache_dtype is {kv_dtype!r:.60}; known: {', '.join(KV_BYTES)}")
    if not given:
        return {"bytes_per_weight": plain, "bytes_per_kv": KV_BYTES[kv_dtype] or plain}
    if not isinstance(given, dict):
        config.refuse(f"quantization_config is {given!r:.60}; an object is needed")
    quantised = read_quantisation(given, found["hidden_size"], config.where)
    attention, dense, experts = _shares_left_alone(config, quantised, layers)
    shares = {"bytes_per_weight": dense, "bytes_per_attention_weight": attention}
    if found.get("num_experts"):
        shares["bytes_per_expert_weight"] = experts
    return {
        **{key: share * plain + (1 - share) * quantised.bytes_per_weight for key, share in shares.items()},
        "bytes_per_kept_weight": plain,
        "arithmetic": quantised.arithmetic,
        "bytes_per_kv": KV_BYTES[kv_dtype] or quantised.kv_bytes or plain,
    }


def _shares_left_alone(
    config: _Config, quantised: Quantised, layers: list[Layer]
) -> tuple[float, float, float]:
    """Shares of the layers whose attention, feed-forward block and experts are not quantised."""
    if quantised.only_experts:
        return 1.0, 1.0, 0.0
    attention, dense, experts = [], [], []
    for layer, kind in enumerate(layers):
        before = f"layers.{layer}."
        mixer = "linear_attn.out_proj" if kind == "linear" else "self_attn.o_proj"
        attention.append(quantised.skips(before + mixer))
        if _is_dense(config, layer) or not _has_experts(config):
            dense.append(quantised.skips(before + "mlp.down_proj"))
        else:
            shared = ("mlp.shared_experts.down_proj", "mlp.shared_expert.down_proj")
            dense.append(any(quantised.skips(before + one) for one in shared))
            names = ("mlp.experts.0.down_proj", "block_sparse_moe.experts.0.w2")
            experts.append(any(quantised.skips(before + one) for one in names))
    means = (sum(flags) / len(flags) if flags else 0.0 for flags in (attention, dense, experts))
    return tuple(means)  # type: ignore[return-value]


def _has_experts(config: _Config) -> bool:
    return config.whole("num_experts", "num_local_experts", "n_routed_experts", default=0) > 0


def _longest(config: _Config) -> int | None:
    """Most tokens of a sequence; None where positions are stretched by a rule that is not known here."""
    scaling = config.tree.get("rope_scaling") or config.tree.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, dict) else None
    if kind == "yarn":
        length, factor = scaling.get("original_max_position_embeddings"), scaling.get("factor")
        if type(length) is int and isinstance(factor, int | float) and 1 <= length * factor <= MAX_COUNT:
            return int(length * factor)
    if kind not in ("default", "llama3") or config.tree.get("max_position_embeddings") is None:
        return None
    return config.whole("max_position_embeddings")
