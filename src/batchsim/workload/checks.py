"""Range checks of parameters that come from a config file."""

from __future__ import annotations

import math

from batchsim.errors import ConfigError
from batchsim.workload.columns import MOST_TOKENS

#: Beyond these, rates and times lose their meaning, then overflow.
_LEAST, _MOST = 1e-9, 1e9


def positive(law: object, *names: str) -> None:
    """Require these fields to be numbers above 0 that are neither tiny nor huge."""
    for name in names:
        value = getattr(law, name)
        fits = is_number(value) and _LEAST <= value <= _MOST
        require(law, name, fits, f"a number > 0, from {_LEAST:g} to {_MOST:g},")


def whole(law: object, *names: str) -> None:
    """Require these fields to be whole numbers from 1 on, as many as a request may have tokens."""
    for name in names:
        require(law, name, is_whole(getattr(law, name)), f"a whole number >= 1, up to {MOST_TOKENS:,},")


def require(law: object, name: str, fits: bool, needed: str) -> None:
    """Raise `ConfigError` about one field unless it fits."""
    if not fits:
        raise ConfigError(f"{type(law).__name__}: {name} is {getattr(law, name)!r}; {needed} is needed")


def is_number(value: object) -> bool:
    """Whether it is a finite int or float (not a bool)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> bool:
    """Whether it is an int from 1 to `MOST_TOKENS` (not a bool)."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_TOKENS
