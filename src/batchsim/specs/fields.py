"""What the fields of a spec may hold: positive numbers, in the units that their names say."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

from batchsim.errors import ConfigError

#: What numbers of data sheets are measured in, and where they lie: one outside is in other units.
_MAGNITUDES = {
    "memory_bytes": ("bytes", 1e8, 1e14),
    "flop_per_s": ("FLOP per second", 1e10, 1e19),
    "fp8_flop_per_s": ("FLOP per second", 1e10, 1e19),
    "fp4_flop_per_s": ("FLOP per second", 1e10, 1e19),
    "memory_bytes_per_s": ("bytes per second", 1e9, 1e18),
    "link_bytes_per_s": ("bytes per second", 1e6, 1e18),
    "link_latency_s": ("seconds", 1e-9, 5e-3),
    "power_watts": ("watts", 5, 1e4),
    "bytes_per_weight": ("bytes", 0.05, 4),
    "bytes_per_attention_weight": ("bytes", 0.05, 4),
    "bytes_per_expert_weight": ("bytes", 0.05, 4),
    "bytes_per_kept_weight": ("bytes", 0.05, 4),
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


def check_fields(spec: Any) -> None:
    """Hold every field to its annotation; numbers must be positive, or 0 where that is the default."""
    for one in fields(spec):
        value = getattr(spec, one.name)
        if value is None and one.default is None:
            continue
        fits, needed = _fits(one, value)
        if not fits:
            raise ConfigError(f"{one.name} is {value!r:.60}; {needed} is needed")
        check_magnitude(one.name, value)


def _fits(one: Field[Any], value: Any) -> tuple[bool, str]:
    kind = str(one.type).removesuffix(" | None")
    if kind == "str":
        return isinstance(value, str) and value.isprintable(), "one line of text"
    if kind == "Arithmetic":
        return value in ("bf16", "fp8", "fp4"), "bf16, fp8 or fp4"
    if kind == "bool":
        return isinstance(value, bool), "true or false"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False, "a number"
    if kind == "int":
        least = 0 if one.default == 0 else 1
        return isinstance(value, int) and least <= value <= 10**18, f"a whole number >= {least} (up to 1e18)"
    return 1e-12 <= value <= 1e24, "a finite number > 0 (1e-12 to 1e24)"
