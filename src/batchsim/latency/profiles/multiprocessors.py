"""Multiprocessors of GPUs, by name: over how many of them a kernel's blocks are spread."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from batchsim.errors import TraceError
from batchsim.files import MAX_COUNT

#: By what a name holds, as the makers have it.
MULTIPROCESSORS: Mapping[str, int] = {
    "a100": 108,
    "a40": 84,
    "rtx a6000|a6000": 84,
    "b200|gb200": 148,
    "h100|gh200|h200": 132,
    "h100 pcie": 114,
    "h20": 78,
    "l4": 58,
    "l40|l40s": 142,
    "rtx ?3090": 82,
    "rtx ?4080 laptop": 58,
    "rtx ?4090": 128,
    "rtx ?5090": 170,
    "rtx ?6000 ada": 142,
    "rtx ?pro ?6000": 188,
}


def multiprocessors(meta: Mapping[str, Any]) -> int | None:
    """Return those of the GPU of a profile: as its ``meta.json`` says, or by its name; ``None``: not known.

    Raises
    ------
    TraceError
        If it says what is no number of them.
    """
    given = meta.get("multiprocessors")
    if given is not None:
        if type(given) is not int or not 1 <= given <= MAX_COUNT:
            raise TraceError(
                f"meta.json: multiprocessors is {given!r:.60}; a whole number >= 1 is needed, "
                "those of one GPU"
            )
        return given
    for key in ("gpu", "hardware"):
        words = " ".join(re.findall("[a-z0-9]+", str(meta.get(key)).lower()))
        lengths = {
            match.end() - match.start(): number
            for pattern, number in MULTIPROCESSORS.items()
            if ("laptop" in pattern) == ("laptop" in words)
            and (match := re.search(rf"\b({pattern})\b", words))
        }
        if lengths:
            return lengths[max(lengths)]
    return None
