"""Randomness: one seed per run, split by name, so that a new consumer never shifts what another draws."""

from __future__ import annotations

from zlib import crc32

import numpy as np


def stream(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """Return the generator of this name; the same seed and name always give the same draws.

    `numbers` tell apart many of one name: one for each request, say, whose draws nothing else shifts.
    """
    return np.random.default_rng([seed, crc32(name.encode()), *numbers])
