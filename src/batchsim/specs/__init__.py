"""What a model and a GPU are to the simulator: a handful of numbers, shipped as JSON or read from a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from batchsim.errors import ConfigError, nearest
from batchsim.files import read_json
from batchsim.specs.names import Kind, is_there, known_name, shipped


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A dense decoder with grouped-query attention and a gated feed-forward block (Llama, Qwen).

    Biases and the norms of single heads, below 0.1 % of the weights, are left out everywhere. ``source`` says
    where the numbers come from; ``max_model_len``, most tokens of a sequence, is ``None`` where not known.
    """

    name: str
    num_layers: int
    hidden_size: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool
    bytes_per_weight: float = 2
    bytes_per_kv: float = 2
    max_model_len: int | None = None
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def num_layer_parameters(self) -> int:
        """Weights each token is multiplied with: those of all layers."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_query_heads + 2 * self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def num_head_parameters(self) -> int:
        """Weights of the output head: multiplied with a token whose successor is asked for."""
        return self.hidden_size * self.vocab_size

    @property
    def num_multiplied_parameters(self) -> int:
        """Weights of all layers and the output head, not of the input embedding."""
        return self.num_layer_parameters + self.num_head_parameters

    @property
    def flop_per_token(self) -> int:
        """Two for each weight of the layers."""
        return 2 * self.num_layer_parameters

    @property
    def flop_per_sample(self) -> int:
        """Two for each weight of the output head."""
        return 2 * self.num_head_parameters

    @property
    def flop_per_pair(self) -> int:
        """For each token that a token attends to: scores and values, over all layers and query heads."""
        return 4 * self.num_layers * self.num_query_heads * self.head_dim

    @property
    def multiplied_bytes(self) -> float:
        """Weights that a forward pass reads, whatever the batch."""
        return self.num_multiplied_parameters * self.bytes_per_weight

    @property
    def num_parameters(self) -> int:
        """All weights that lie in memory: also the layer norms and, unless tied, the input embedding."""
        norms = (2 * self.num_layers + 1) * self.hidden_size
        embedding = 0 if self.tied_embeddings else self.hidden_size * self.vocab_size
        return self.num_multiplied_parameters + norms + embedding

    @property
    def weight_bytes(self) -> int:
        """Memory the weights take."""
        return math.ceil(self.num_parameters * self.bytes_per_weight)

    @property
    def kv_bytes_per_token(self) -> int:
        """Memory that keys and values of one token take, over all layers."""
        return math.ceil(2 * self.num_layers * self.num_kv_heads * self.head_dim * self.bytes_per_kv)


@dataclass(frozen=True, slots=True)
class GPUSpec:
    """A GPU as its data sheet has it.

    Attributes
    ----------
    flop_per_s
        Peak of dense (not sparse) bf16 products.
    memory_bytes_per_s
        Peak memory bandwidth.
    link_bytes_per_s
        Peak rate at which it sends to the other GPUs of its machine, one direction; ``None``: not known.
    link_latency_s
        Seconds of an all-reduce between these GPUs besides its transfers.
    fp8_flop_per_s
        Peak of dense fp8 products; ``None``: it has none, or not known.
    source
        Where the numbers come from, and which of them nobody has confirmed.
    """

    name: str
    memory_bytes: int
    flop_per_s: float
    memory_bytes_per_s: float
    source: str = ""
    link_bytes_per_s: float | None = None
    link_latency_s: float | None = None
    fp8_flop_per_s: float | None = None

    def __post_init__(self) -> None:
        _check(self)


Spec = TypeVar("Spec", ModelSpec, GPUSpec)


def load_model(name: str | Path) -> ModelSpec:
    """Load a shipped model by name, or a JSON file: `ModelSpec`'s fields, or a Hugging Face ``config.json``.

    Names of Hugging Face are understood, ``Qwen/Qwen2.5-1.5B-Instruct``, where a spec of that shape ships.

    Raises
    ------
    ConfigError
        For an unknown name (with the nearest known ones) and for a file that does not hold such a model.
    """
    tree, where = _read(name, "models", "model")
    if "num_hidden_layers" in tree:
        tree = _from_hugging_face(tree, where)
    return parse_spec(ModelSpec, tree, where)


def load_gpu(name: str | Path) -> GPUSpec:
    """Load a shipped GPU by its name or a driver's, or a JSON file with `GPUSpec`'s fields.

    Raises as `load_model` does.
    """
    return parse_spec(GPUSpec, *_read(name, "gpus", "GPU"))


def parse_spec(kind: type[Spec], tree: Mapping[str, Any], where: str) -> Spec:
    """Build a spec from the fields in ``tree``; ``where`` opens the sentence of a `ConfigError`."""
    known = {one.name: one for one in fields(kind)}
    for key in tree:
        if key not in known:
            raise ConfigError(f"{where}: unknown field {key!r:.60}; {nearest(key[:60], known)}")
    for key, one in known.items():
        if key not in tree and one.default is MISSING:
            raise ConfigError(f"{where}: {key} is missing")
    try:
        return kind(**tree)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def in_fp8(model: ModelSpec, gpu: GPUSpec) -> tuple[ModelSpec, GPUSpec]:
    """Quantise the weights of all layers to fp8; the output head and the KV stay as they are.

    All arithmetic is counted at the GPU's fp8 rate, that of attention and of the head too: the specs know one
    rate for a model.

    Raises
    ------
    ConfigError
        If the GPU has no known fp8 rate.
    """
    if gpu.fp8_flop_per_s is None:
        raise ConfigError(f"GPU {gpu.name} must have fp8_flop_per_s for weights in fp8")
    share = model.num_head_parameters / model.num_multiplied_parameters
    bytes_per_weight = (1 - share) * 1 + share * model.bytes_per_weight
    return replace(model, bytes_per_weight=bytes_per_weight), replace(gpu, flop_per_s=gpu.fp8_flop_per_s)


def kv_capacity_tokens(model: ModelSpec, gpu: GPUSpec, margin: float) -> int:
    """How many tokens of KV fit beside the weights when the share ``margin`` of the memory is kept free.

    Raises
    ------
    ConfigError
        If not even one does.
    """
    if not 0 <= margin < 1:
        raise ConfigError(f"memory margin is {margin!r}; a share of at least 0 and below 1 is needed")
    usable_bytes = gpu.memory_bytes * (1 - margin)
    tokens = math.floor((usable_bytes - model.weight_bytes) / model.kv_bytes_per_token)
    if tokens < 1:
        raise ConfigError(
            f"{model.name} does not fit {gpu.name}: its weights take {model.weight_bytes / 2**30:.1f} GiB, a "
            f"margin of {margin:.0%} leaves {usable_bytes / 2**30:.1f} GiB; more GPUs a replica "
            "(cluster.tensor_parallel), a GPU with more memory, a smaller model or an explicit KV capacity "
            "is needed"
        )
    return tokens


def load_spec(name: str | Path) -> ModelSpec | GPUSpec:
    """Load a model or a GPU, whichever the name or the file is of; raises as `load_model` does."""
    if any(known_name(str(name), kind) for kind in ("models", "gpus")):
        return load_gpu(name) if known_name(str(name), "gpus") else load_model(name)
    if Path(name).suffix != ".json" and not is_there(Path(name)):
        raise ConfigError(_unknown("GPU or model", name, [*shipped("gpus"), *shipped("models")]))
    tree = read_json(name)
    is_model = isinstance(tree, dict) and {"num_layers", "num_hidden_layers"} & tree.keys()
    return load_model(name) if is_model else load_gpu(name)


def _read(name: str | Path, kind: Kind, what: str) -> tuple[dict[str, Any], str]:
    known = known_name(str(name), kind)
    if known is not None:
        return json.loads(shipped(kind)[known].read_text(encoding="utf-8")), known
    path = Path(name)
    if path.suffix != ".json" and not is_there(path):
        raise ConfigError(_unknown(what, name, shipped(kind)))
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: holds {type(tree).__name__}; an object with the fields of a {what} is needed"
        )
    named = path.parent.name if path.stem == "config" else path.stem
    return {"name": named or path.stem, **tree}, str(path)


def _unknown(what: str, name: str | Path, known: Iterable[str]) -> str:
    return (
        f"unknown {what} {str(name)!r:.60}; a JSON file or a name that `batchsim hardware` lists is needed; "
        f"{nearest(str(name)[:60], known)}"
    )


_HUGGING_FACE = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_query_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "tied_embeddings": "tie_word_embeddings",
}
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def _from_hugging_face(tree: Mapping[str, Any], where: str) -> dict[str, Any]:
    for key in ("quantization_config", "num_experts", "num_local_experts", "n_routed_experts"):
        if tree.get(key):
            raise ConfigError(
                f"{where}: {key} is set; only dense models with weights of one plain type are known"
            )
    dtype = tree.get("dtype", tree.get("torch_dtype", "bfloat16"))
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise ConfigError(f"{where}: dtype is {dtype!r:.60}; known: {', '.join(_BYTES)}")
    heads = tree.get("num_attention_heads")
    tree = {"num_key_value_heads": heads, **tree}
    if (
        tree.get("head_dim") is None
        and isinstance(heads, int)
        and heads
        and isinstance(tree.get("hidden_size"), int)
    ):
        tree["head_dim"] = tree["hidden_size"] // heads
    for key in _HUGGING_FACE.values():
        if tree.get(key) is None:
            raise ConfigError(f"{where}: {key} is missing")
    found = {ours: tree[theirs] for ours, theirs in _HUGGING_FACE.items()}
    if _keeps_its_length(tree):
        found["max_model_len"] = tree["max_position_embeddings"]
    return {"name": tree["name"], **found, "bytes_per_weight": _BYTES[dtype], "bytes_per_kv": _BYTES[dtype]}


def _keeps_its_length(tree: Mapping[str, Any]) -> bool:
    """Whether ``max_position_embeddings`` is what the model takes: some ways of scaling stretch it."""
    scaling = tree.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, dict) else None
    return tree.get("max_position_embeddings") is not None and kind in ("default", "llama3")


#: What numbers of data sheets are measured in, and where they lie: one outside is in other units.
_MAGNITUDES = {
    "memory_bytes": ("bytes", 1e8, 1e14),
    "flop_per_s": ("FLOP per second", 1e10, 1e19),
    "fp8_flop_per_s": ("FLOP per second", 1e10, 1e19),
    "memory_bytes_per_s": ("bytes per second", 1e9, 1e18),
    "link_bytes_per_s": ("bytes per second", 1e6, 1e18),
    "link_latency_s": ("seconds", 1e-9, 5e-3),
    "bytes_per_weight": ("bytes", 0.05, 4),
    "bytes_per_kv": ("bytes", 0.05, 4),
}


def check_magnitude(name: str, value: float) -> None:
    """Raise `ConfigError` for a number of this name that can only be one in other units, as GB/s."""
    if name not in _MAGNITUDES:
        return
    unit, low, high = _MAGNITUDES[name]
    if not low <= value <= high:
        raise ConfigError(
            f"{name} is {value:.6g}; it is measured in {unit}: from {low:g} to {high:g} is plausible"
        )


def _check(spec: ModelSpec | GPUSpec) -> None:
    """Hold every field to its annotation; whole numbers and reals must be positive, and in their units."""
    for one in fields(spec):
        value = getattr(spec, one.name)
        if value is None and one.default is None:
            continue
        kind = str(one.type).removesuffix(" | None")
        if kind == "str":
            fits, needed = isinstance(value, str) and value.isprintable(), "one line of text"
        elif kind == "bool":
            fits, needed = isinstance(value, bool), "true or false"
        elif isinstance(value, bool) or not isinstance(value, int | float):
            fits, needed = False, "a number"
        elif kind == "int":
            fits, needed = isinstance(value, int) and 1 <= value <= 10**18, "a whole number >= 1 (up to 1e18)"
        else:
            fits, needed = 1e-12 <= value <= 1e24, "a finite number > 0 (1e-12 to 1e24)"
        if not fits:
            raise ConfigError(f"{one.name} is {value!r:.60}; {needed} is needed")
        check_magnitude(one.name, value)
