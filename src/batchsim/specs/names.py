"""Which spec a name means: its own, that of a Hugging Face model, or what a driver calls a GPU."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

Kind = Literal["models", "gpus"]

#: How others write the name of a family that a number follows.
_UNHYPHENATED = re.compile(r"^(llama|mistral)(?=\d)")
#: What publishers add to a model's name without a change of its shape.
_ADDED = re.compile(r"^meta-|-(hf|base|instruct|chat|v0\.1|dynamic)$|-instruct(?=-fp8$)")
#: What tells a slower card from the one of the same name that ships, unless the spec's name has it as well.
_SLOWER = re.compile(r"laptop|mobile|max-q|h[12]00.*(pcie|nvl)")


@cache
def shipped(kind: Kind) -> dict[str, Traversable]:
    """The package's own specs, by name."""
    entries = (files("batchsim.specs") / kind).iterdir()
    named = {entry.name.removesuffix(".json"): entry for entry in entries if entry.name.endswith(".json")}
    return dict(sorted(named.items()))


def known_name(name: str, kind: Kind) -> str | None:
    """Name of the shipped spec that a setting means; None where it names a file, or nothing that is known."""
    if name in shipped(kind):
        return name
    if name.endswith(".json") or is_there(Path(name)):
        return None
    return known_model(name) if kind == "models" else known_gpu(name)


def known_model(name: str) -> str | None:
    """Name of the shipped spec of ``Qwen/Qwen2.5-1.5B-Instruct`` and the like; None where there is none."""
    short, before = name.strip().rsplit("/", 1)[-1].lower(), ""
    while short != before:
        short, before = _ADDED.sub("", short), short
    short = _UNHYPHENATED.sub(r"\1-", short)
    return short if short in shipped("models") else None


def known_gpu(name: str) -> str | None:
    """Name of the shipped spec of ``NVIDIA A100-SXM4-80GB`` and the like; None where there is none.

    Each part of the spec's name must stand in the given one: a memory size that only the spec has, or a name
    that goes on, is another GPU; so is one that says that it is slower.
    """
    given = name.strip().lower()
    fitting = [one for one in shipped("gpus") if all(_stands_in(part, given) for part in one.split("-"))]
    best = max(fitting, key=len, default="")
    return None if not best or any(word[0] not in best for word in _SLOWER.finditer(given)) else best


def is_there(path: Path) -> bool:
    """Whether a file or folder is; a name that none can have is not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _stands_in(part: str, given: str) -> bool:
    letters, digits, rest = re.fullmatch(r"([a-z]*)(\d*)(.*)", part).groups()  # type: ignore[union-attr]
    pattern = f"{letters}[ -]?{digits}{rest}" if letters and digits else f"{digits}{rest}{letters}"
    unit = "(i?b)?" if digits and rest == "g" else ""
    return re.search(rf"(?<![a-z0-9]){pattern}{unit}(?![a-z0-9])", given) is not None
