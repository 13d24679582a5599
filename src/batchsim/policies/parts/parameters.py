"""Parameters of answers, as a configuration gives them: checked by name and by type, then by the answer."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from batchsim.errors import ConfigError, nearest
from batchsim.policies.base import Sizer

#: The largest whole number that a parameter may have, either way.
MOST = 2**31 - 1


def parameters_of(kind: type) -> list[str]:
    """The names of an answer's parameters."""
    return [item.name for item in fields(kind) if item.init] if is_dataclass(kind) else []


def check_names(kind: type, parameters: Mapping[str, Any], where: str) -> None:
    """Raise `ConfigError`, with the nearest names, for a parameter that an answer does not have."""
    known = parameters_of(kind)
    for key in parameters:
        if key not in known:
            raise ConfigError(f"{where}.{key} is no parameter of {kind.__name__}; {nearest(str(key), known)}")


def construct(make: Callable[..., Any], kind: type, parameters: Mapping[str, Any], where: str) -> Any:
    """Call with parameters of an answer; `ConfigError` names the one that has the wrong type or value."""
    hints = _hints(kind)
    for name, value in parameters.items():
        needed = _needed(value, hints.get(name, Any))
        if needed is not None:
            raise ConfigError(f"{where}.{name} is {reprlib.repr(value)}; {needed} is needed")
    try:
        return make(**parameters)
    except ConfigError as error:
        if str(error).partition(" ")[0] in parameters_of(kind):
            raise ConfigError(f"{where}.{error}") from error
        raise
    except (Exception, SystemExit) as error:  # whatever an answer from outside does
        given = ", ".join(f"{name} = {reprlib.repr(value)}" for name, value in parameters.items())
        refusal = f"{kind.__name__} ({type(error).__name__}: {error})"
        raise ConfigError(f"{where} ({given}) is refused by {refusal}") from error


def _hints(kind: type) -> dict[str, Any]:
    try:
        return get_type_hints(kind)
    except Exception:  # of an answer from outside, which may write into its annotations what it likes
        return {}


def _needed(value: Any, hint: Any) -> str | None:
    """What is needed instead of a value; None if it will do, or the annotation does not tell."""
    if get_origin(hint) in (Union, UnionType):
        needed = [_needed(value, one) for one in get_args(hint) if one is not NoneType]
        fits = None in needed or (value is None and NoneType in get_args(hint))
        return None if fits else " or ".join(map(str, needed))
    if get_origin(hint) is Literal:
        names = get_args(hint)
        return None if value in names else f"one of {', '.join(map(repr, names))}"
    if get_origin(hint) is Sequence and get_args(hint) == (float,):
        fits = isinstance(value, list | tuple) and all(map(_is_number, value))
        return None if fits else "a list of numbers"
    fits, needs = {
        int: (is_whole(value), f"a whole number of at most {MOST}"),
        float: (_is_number(value), "a number"),
        bool: (isinstance(value, bool), "true or false"),
        str: (isinstance(value, str), "a name"),
        Sizer: (hasattr(value, "batch_size"), "a table with the kind of a sizer"),
    }.get(hint, (True, ""))
    return None if fits else needs


def check_by_name(name: str, given: Any, needed: str, fits: Callable[[float], bool]) -> None:
    """Raise `ConfigError` unless a parameter is a table of names to numbers that fit."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{name} is {reprlib.repr(given)}; a table of names to numbers is needed")
    for key, value in given.items():
        if not _is_number(value) or not fits(value):
            raise ConfigError(f"{name} is {reprlib.repr(value)} for {key}; {needed} is needed")


def is_whole(value: object, least: int = -MOST) -> bool:
    """Whether it is a whole number, from the least allowed up to `MOST`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= MOST if isinstance(value, int) else not math.isnan(value)
