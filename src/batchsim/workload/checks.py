"""Range checks of parameters that come from a config file."""

from __future__ import annotations

import math

from batchsim.errors import ConfigError


def positive(law: object, *names: str) -> None:
    """Require these fields to be finite numbers above 0."""
    for name in names:
        value = getattr(law, name)
        require(law, name, is_number(value) and value > 0, "a number > 0")


def whole(law: object, *names: str) -> None:
    """Require these fields to be whole numbers from 1 on."""
    for name in names:
        require(law, name, is_whole(getattr(law, name)), "a whole number >= 1")


def require(law: object, name: str, fits: bool, needed: str) -> None:
    """Raise `ConfigError` about one field unless it fits."""
    if not fits:
        raise ConfigError(f"{type(law).__name__}: {name} is {getattr(law, name)!r}; {needed} is needed")


def is_number(value: object) -> bool:
    """Whether it is a finite int or float (not a bool)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> bool:
    """Whether it is an int >= 1 (not a bool)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
