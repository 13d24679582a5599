"""Which spec a name from elsewhere means: that of a Hugging Face model, or what a driver calls a GPU."""

from __future__ import annotations

import re
from importlib.resources import files

#: What publishers add to a model's name without a change of its shape.
_ADDED = re.compile(r"^meta-|-(hf|base|instruct|chat|v0\.1)$")


def known_model(name: str) -> str | None:
    """Name of the shipped spec of ``Qwen/Qwen2.5-1.5B-Instruct`` and the like; None where there is none."""
    short, before = name.strip().rsplit("/", 1)[-1].lower(), ""
    while short != before:
        short, before = _ADDED.sub("", short), short
    return short if short in _shipped("models") else None


def known_gpu(name: str) -> str | None:
    """Name of the shipped spec of ``NVIDIA A100-SXM4-80GB`` and the like; None where there is none.

    Each part of the spec's name must stand in the given one: a memory size that only the spec has, or a name
    that goes on, is another GPU.
    """
    given = name.strip().lower()
    fitting = [one for one in _shipped("gpus") if all(_stands_in(part, given) for part in one.split("-"))]
    return max(fitting, key=len, default=None)


def _stands_in(part: str, given: str) -> bool:
    letters, digits, rest = re.fullmatch(r"([a-z]*)(\d*)(.*)", part).groups()  # type: ignore[union-attr]
    pattern = f"{letters}[ -]?{digits}{rest}" if letters and digits else f"{digits}{rest}{letters}"
    unit = "(i?b)?" if digits and rest == "g" else ""
    return re.search(rf"(?<![a-z0-9]){pattern}{unit}(?![a-z0-9])", given) is not None


def _shipped(folder: str) -> list[str]:
    entries = (files("batchsim.specs") / folder).iterdir()
    return [entry.name.removesuffix(".json") for entry in entries if entry.name.endswith(".json")]
