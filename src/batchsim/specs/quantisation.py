"""What a ``quantization_config`` of Hugging Face says of the bytes of a weight, class by class."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from batchsim.errors import ConfigError, nearest
from batchsim.files import MAX_COUNT
from batchsim.specs.model import Arithmetic

#: Bytes of what is not quantised, by ``dtype``.
PLAIN_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

#: Bytes of a number in a KV cache.
KV_BYTES = {"auto": None, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1}

#: Experts of mxfp4 lie in rows of a multiple of so many numbers, as vLLM pads them.
_MXFP4_ROW = 256


class Quantised(NamedTuple):
    """Bytes of a quantised weight, scales included; how it is multiplied; which modules are left alone."""

    bytes_per_weight: float
    arithmetic: Arithmetic
    left_alone: Sequence[str] = ()
    only_experts: bool = False
    kv_bytes: float | None = None

    def skips(self, module: str) -> bool:
        """Whether a module, as ``layers.0.self_attn.o_proj``, stays as it was."""
        return any(_names(pattern, module) for pattern in self.left_alone)


def read_quantisation(tree: Mapping[str, Any], hidden_size: int, where: str) -> Quantised:
    """Read a ``quantization_config``.

    Raises
    ------
    ConfigError
        For a method that is not known, and where it does not say what is needed.
    """
    method = tree.get("quant_method")
    if method is None and "quant_algo" in tree:
        method = "modelopt"
    if not isinstance(method, str) or method not in _METHODS:
        raise ConfigError(
            f"{where}: quant_method is {method!r:.60}; {nearest(str(method)[:60], _METHODS)}; a JSON file of "
            "the model's shapes, with bytes_per_weight, is the way round it"
        )
    try:
        quantised = _METHODS[method](tree, hidden_size)
        _check_patterns(quantised.left_alone)
    except ConfigError as error:
        raise ConfigError(f"{where}: quantization_config: {error}") from error
    return quantised


def _check_patterns(patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if pattern.startswith("re:"):
            try:
                re.compile(pattern[3:])
            except re.error:
                raise ConfigError(f"{pattern!r:.60} is no regular expression") from None


def _fp8(tree: Mapping[str, Any], _: int) -> Quantised:
    """Blocks of weights with a scale in 32 bit, or one scale for rows so long that it does not count."""
    block = tree.get("weight_block_size")
    scale = 0.0
    if isinstance(block, list) and len(block) == 2 and all(type(one) is int and one > 0 for one in block):
        scale = 4 / (block[0] * block[1])
    return Quantised(1 + scale, "fp8", _modules(tree, "modules_to_not_convert", "ignored_layers"))


def _modelopt(tree: Mapping[str, Any], _: int) -> Quantised:
    inner = tree.get("quantization", tree)
    inner = inner if isinstance(inner, dict) else tree
    algorithm = inner.get("quant_algo")
    known: Mapping[Any, tuple[float, Arithmetic]] = {
        "FP8": (1, "fp8"),
        "NVFP4": (0.5 + 1 / _whole(inner, "group_size", 16), "fp4"),
        "W4A16_AWQ": (0.5 + 2 / _whole(inner, "group_size", 128), "bf16"),
    }
    if not isinstance(algorithm, str) or algorithm not in known:
        raise ConfigError(f"quant_algo is {algorithm!r:.60}; known: {', '.join(known)}")
    bytes_per_weight, arithmetic = known[algorithm]
    kv = inner.get("kv_cache_quant_algo") or inner.get("kv_cache_scheme")
    is_fp8 = kv == "FP8" or (isinstance(kv, dict) and kv.get("num_bits") == 8)
    left_alone = _modules(inner, "exclude_modules", "ignore")
    return Quantised(bytes_per_weight, arithmetic, left_alone, kv_bytes=1 if is_fp8 else None)


def _compressed(tree: Mapping[str, Any], _: int) -> Quantised:
    groups = tree.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise ConfigError("config_groups must hold one group")
    (group,) = groups.values()
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise ConfigError("config_groups: weights is missing")
    bits, size = _whole(weights, "num_bits"), weights.get("group_size")
    is_float, activations = weights.get("type") == "float", group.get("input_activations")
    if bits not in (4, 8):
        raise ConfigError(f"num_bits is {bits}; known: 4, 8")
    per_group = 1 if bits == 4 and is_float else 2
    scale = per_group / size if isinstance(size, int) and size > 0 else 0.0
    arithmetic: Arithmetic = "bf16"
    if isinstance(activations, dict):  # products of int8 are as fast as those of fp8
        arithmetic = "fp4" if activations.get("num_bits") == 4 else "fp8"
    kv = tree.get("kv_cache_scheme")
    kv_bytes = 1 if isinstance(kv, dict) and kv.get("num_bits") == 8 else None
    return Quantised(bits / 8 + scale, arithmetic, _modules(tree, "ignore"), kv_bytes=kv_bytes)


def _mxfp4(tree: Mapping[str, Any], hidden_size: int) -> Quantised:
    padded = -(-hidden_size // _MXFP4_ROW) * _MXFP4_ROW / hidden_size
    left_alone = _modules(tree, "modules_to_not_convert")
    return Quantised((0.5 + 1 / 32) * padded, "bf16", left_alone, only_experts=True)


def _groups(tree: Mapping[str, Any], _: int) -> Quantised:
    """AWQ and GPTQ: a scale in 16 bit and a zero point for each group."""
    bits, size = _whole(tree, "bits"), tree.get("group_size", 128)
    if bits not in (2, 3, 4, 8):
        raise ConfigError(f"bits is {bits}; known: 2, 3, 4, 8")
    overhead = (2 + bits / 8) / size if isinstance(size, int) and size > 0 else 0.0
    dynamic = tree.get("dynamic")
    excluded = [key[2:] for key in dynamic if key.startswith("-:")] if isinstance(dynamic, dict) else []
    left_alone = [*_modules(tree, "modules_to_not_convert"), *(f"re:{one}" for one in excluded)]
    return Quantised(bits / 8 + overhead, "bf16", left_alone)


_METHODS: Mapping[str, Callable[[Mapping[str, Any], int], Quantised]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "mxfp4": _mxfp4,
    "awq": _groups,
    "gptq": _groups,
}


def _modules(tree: Mapping[str, Any], *keys: str) -> list[str]:
    for key in keys:
        given = tree.get(key)
        if given is None:
            continue
        if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
            raise ConfigError(f"{key} is {given!r:.60}; a list of names is needed")
        return given
    return []


def _whole(tree: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = tree.get(key, default)
    if value is None:
        raise ConfigError(f"{key} is missing")
    if type(value) is not int or not 1 <= value <= MAX_COUNT:
        raise ConfigError(f"{key} is {value!r:.60}; a whole number >= 1 is needed")
    return value


def _names(pattern: str, module: str) -> bool:
    """Whether a pattern names a module, or one that it lies in, whatever stands before its layers."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], f"model.{module}") is not None
    start = pattern.find("layers.")
    pattern = (
        pattern[start:] if start >= 0 else pattern.removeprefix("model.").removeprefix("language_model.")
    )
    if "*" in pattern:
        return fnmatchcase(module, pattern) or fnmatchcase(module, f"{pattern}.*")
    return f".{pattern}." in f".{module}."
