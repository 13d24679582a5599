"""Coefficients of a latency model as a file has them: each field as its annotation says, both ways.

===========================  =================================================================================
``float``, ``int``           a number, a whole number; what range it must be in is for the model to check
``str``, ``Literal``         text, one of these words
``tuple[X, ...]``            a list
a ``NamedTuple``             a list of as many entries as it has fields
``X | None``                 also null
``ModelSpec``, ``GPUSpec``   an object of its fields, or a name where that alone loads the same
===========================  =================================================================================

A field with a default may be left out of a file. Fields that are not arguments are no coefficients, nor are
`COMMON`: these stand beside them, the same in all families.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from batchsim.errors import ConfigError, nearest
from batchsim.files import MAX_COUNT
from batchsim.specs import GPUSpec, ModelSpec, load_gpu, load_model, parse_spec

#: Fields of models that have keys of their own in a file.
COMMON = ("domain", "iteration_domain", "info")


def read_coefficients(kind: type, tree: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Read the arguments of a model of this kind, except those in `COMMON`.

    Raises
    ------
    ConfigError
        If one is missing, unknown or of another type than the kind's annotation says.
    """
    known = {field.name: field for field in _coefficients(kind)}
    for name, field in known.items():
        if name not in tree and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"coefficient {name} of the family {family} is missing")
    for name in tree:
        if name not in known:
            raise ConfigError(
                f"unknown coefficient {name!r:.60} of the family {family}; {nearest(name[:60], known)}"
            )
    types = get_type_hints(kind)
    return {name: _read(types[name], value, name) for name, value in tree.items()}


def written_coefficients(model: Any) -> dict[str, Any]:
    """Coefficients of a model, as JSON can hold them."""
    values = {field.name: getattr(model, field.name) for field in _coefficients(type(model))}
    return {
        name: _written_spec(value) if isinstance(value, ModelSpec | GPUSpec) else value
        for name, value in values.items()
    }


def _coefficients(kind: type) -> list[Field[Any]]:
    return [field for field in fields(kind) if field.init and field.name not in COMMON]


def _read(kind: Any, value: Any, name: str) -> Any:
    """Read a value of an annotated type; ``name`` opens the sentence of a `ConfigError`."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (kind,) = (part for part in parts if part is not type(None))
        return None if value is None else _read(kind, value, name)
    if origin is tuple:
        entries = _list(value, name)
        if parts[0] is float and set(map(type, entries)) <= _SCALARS[float][0]:
            return tuple(entries)  # at once: tables hold many thousands
        return tuple(_read(parts[0], one, f"{name}[{i}]") for i, one in enumerate(entries))
    if origin is Literal:
        if value not in parts:
            raise ConfigError(f"{name} is {value!r:.60}; known: {', '.join(parts)}")
        return value
    if hasattr(kind, "_fields"):
        return _read_named_tuple(kind, value, name)
    if kind in (ModelSpec, GPUSpec):
        return _read_spec(kind, value, name)
    accepted, needed = _SCALARS[kind]
    if type(value) not in accepted or (kind is int and abs(value) > MAX_COUNT):
        raise ConfigError(f"{name} is {value!r:.60}; {needed} is needed")
    return value


#: Types that JSON has for an annotation (true and false are no numbers), and how a sentence names them.
_SCALARS: Mapping[type, tuple[set[type], str]] = {
    float: ({int, float}, "a number"),
    int: ({int}, f"a whole number up to {MAX_COUNT:g}"),
    str: ({str}, "text"),
}


def _read_named_tuple(kind: Any, value: Any, name: str) -> Any:
    entries = _list(value, name)
    if len(entries) != len(kind._fields):
        raise ConfigError(f"{name} is a list of {len(entries)}; [{', '.join(kind._fields)}] is needed")
    types = get_type_hints(kind)
    return kind(
        *(
            _read(types[field], one, f"{name}.{field}")
            for field, one in zip(kind._fields, entries, strict=True)
        )
    )


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{name} is {value!r:.60}; a list is needed")
    return value


def _read_spec(kind: type[ModelSpec] | type[GPUSpec], value: Any, name: str) -> ModelSpec | GPUSpec:
    if isinstance(value, str) and value.isprintable():
        return load_model(value) if kind is ModelSpec else load_gpu(value)
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is {value!r:.60}; a name or an object is needed")
    return parse_spec(ModelSpec, value, name) if kind is ModelSpec else parse_spec(GPUSpec, value, name)


def _written_spec(spec: ModelSpec | GPUSpec) -> str | dict[str, Any]:
    try:
        known = load_model(spec.name) if isinstance(spec, ModelSpec) else load_gpu(spec.name)
    except ConfigError:
        known = None
    return spec.name if known == spec else asdict(spec)
