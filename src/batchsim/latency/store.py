"""Latency models as JSON files: family, provenance, name, coefficients, domain and details."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NoReturn, cast

from batchsim.errors import ConfigError, nearest
from batchsim.files import write_whole
from batchsim.latency.analytic import AffineBatchLatency, PhaseBatchLatency
from batchsim.latency.base import (
    BatchLatency,
    BatchShape,
    Domain,
    IterationDomain,
    IterationLatency,
    LatencyInfo,
)
from batchsim.latency.grid import TableLatency
from batchsim.latency.iteration_grid import TableIterationLatency
from batchsim.latency.linear import LinearIterationLatency
from batchsim.latency.operators import TABLES, Lag, OperatorTable, OperatorTableLatency
from batchsim.latency.roofline import RooflineLatency
from batchsim.latency.table import PROVENANCES
from batchsim.specs import GPUSpec, ModelSpec, load_gpu, load_model, parse_spec

Model = (
    AffineBatchLatency
    | PhaseBatchLatency
    | TableLatency
    | RooflineLatency
    | LinearIterationLatency
    | TableIterationLatency
    | OperatorTableLatency
)

FAMILIES: Mapping[str, type[Model]] = {
    "affine": AffineBatchLatency,
    "phase": PhaseBatchLatency,
    "table": TableLatency,
    "roofline": RooflineLatency,
    "linear": LinearIterationLatency,
    "iteration_table": TableIterationLatency,
    "operators": OperatorTableLatency,
}

#: What `load_latency` gives when no file is named.
DEFAULT_NAME = "qwen2.5-1.5b_rtx4080-laptop_roofline.json"

#: Keys of a file besides the coefficients, and the fields of a model that hold ranges.
_KEYS = ("family", "provenance", "name", "coefficients", "domain", "iteration_domain", "details")
_DOMAINS: Mapping[str, type[Domain | IterationDomain]] = {
    "domain": Domain,
    "iteration_domain": IterationDomain,
}


def save_latency(model: BatchLatency | IterationLatency, path: str | Path) -> None:
    """Write a model so that `load_latency` gives an equal one; the file appears whole or not at all.

    Raises
    ------
    ConfigError
        If the model is of no family that has a file form, or the file cannot be written.
    """
    path = Path(path)
    family = next((name for name, kind in FAMILIES.items() if type(model) is kind), None)
    if family is None:
        raise ConfigError(f"{type(model).__name__} has no file form; known: {', '.join(FAMILIES)}")
    tree = {
        "family": family,
        "provenance": model.info.provenance,
        "name": model.info.name,
        "coefficients": {
            name: _written_spec(value) if isinstance(value, ModelSpec | GPUSpec) else value
            for name in _coefficient_names(FAMILIES[family])
            for value in (getattr(model, name),)
        },
        **{
            key: {name: bounds for name, bounds in asdict(getattr(model, key)).items() if bounds is not None}
            for key in _DOMAINS
            if hasattr(model, key)
        },
        "details": model.info.details,
    }
    try:
        text = json.dumps(tree, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:  # details that JSON cannot hold
        raise ConfigError(f"{path}: latency model {model.info.name} cannot be written ({error})") from error
    write_whole(path, text + "\n")


def load_latency(path: str | Path | None = None) -> BatchLatency:
    """Read a model; without a path, the packaged default (derived from data sheets, not measured).

    Raises
    ------
    ConfigError
        If the file is absent, or what it holds is no such model.
    """
    if path is None:
        with as_file(files("batchsim.latency") / "data" / DEFAULT_NAME) as packaged:
            return load_latency(packaged)
    path = Path(path)
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); a latency file is needed") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from error
    try:
        return _parse(tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def default_latency(model: ModelSpec, gpu: GPUSpec, tensor_parallel: int = 1) -> RooflineLatency:
    """The packaged default, or the same roofline for other hardware: derived, as uncalibrated as it."""
    packaged = load_latency(None)
    assert isinstance(packaged, RooflineLatency), "the packaged default is a roofline"
    if (model, gpu, tensor_parallel) == (packaged.model, packaged.gpu, packaged.tensor_parallel):
        return packaged
    return RooflineLatency(
        model,
        gpu,
        packaged.compute_efficiency,
        packaged.bandwidth_efficiency,
        packaged.overhead_s,
        tensor_parallel,
    )


def as_iteration_latency(model: BatchLatency | IterationLatency) -> IterationLatency:
    """Return the model as one of iterations; `ConfigError` if it tells the time of whole batches only."""
    return cast("IterationLatency", _with("decode_line", model, "whole batches", "single iterations"))


def as_batch_latency(model: BatchLatency | IterationLatency) -> BatchLatency:
    """Return the model as one of whole batches; `ConfigError` if it tells the time of iterations only."""
    return cast("BatchLatency", _with("batch_time", model, "single iterations", "whole batches"))


def refuse_outside(model: BatchLatency, shape: BatchShape) -> NoReturn:
    """Raise the `ConfigError` for a batch outside the range of a model."""
    units = {"batch_size": "batch size", "length": "prompt + output tokens"}
    covered = [
        f"{units.get(name, name.replace('_', ' '))} {bounds[0]} to {bounds[1]}"
        for name, bounds in asdict(model.domain).items()
        if bounds is not None
    ]
    raise ConfigError(
        f"latency model {model.info.name} holds for {', '.join(covered)}; a batch of {shape.batch_size} with "
        f"{shape.prompt_tokens} prompt and {shape.output_tokens} output tokens lies outside: choose another "
        'model, smaller batches, or latency.outside = "extrapolate"'
    )


def _with(method: str, model: BatchLatency | IterationLatency, told: str, wanted: str) -> object:
    if not hasattr(model, method):
        capable = ", ".join(name for name, kind in FAMILIES.items() if hasattr(kind, method))
        raise ConfigError(
            f"latency model {model.info.name} tells the time of {told} only; this policy needs that of "
            f"{wanted}: choose a model of one of the families {capable}"
        )
    return model


def _parse(tree: Any) -> Model:
    tree = _object(tree, "the file")
    for key in tree:
        if key not in _KEYS:
            raise ConfigError(f"unknown key {key!r}; {nearest(key, _KEYS)}")
    for key in ("family", "provenance", "coefficients"):
        if key not in tree:
            raise ConfigError(f"{key} is missing")
    family, provenance = tree["family"], tree["provenance"]
    if family not in FAMILIES:
        raise ConfigError(f"unknown family {family!r}; {nearest(str(family), FAMILIES)}")
    if provenance not in PROVENANCES:
        raise ConfigError(f"provenance is {provenance!r}; known: {', '.join(PROVENANCES)}")
    kind = FAMILIES[family]
    coefficients = _object(tree["coefficients"], "coefficients")
    names = _coefficient_names(kind)
    optional = {field.name for field in fields(kind) if field.default is not MISSING}
    for name in names:
        if name not in coefficients and name not in optional:
            raise ConfigError(f"coefficient {name} of the family {family} is missing")
    for name in coefficients:
        if name not in names:
            raise ConfigError(f"unknown coefficient {name!r} of the family {family}; {nearest(name, names)}")
    values: dict[str, Any] = {name: _READ.get(name, _as_is)(value) for name, value in coefficients.items()}
    fillable = {field.name for field in fields(kind) if field.init}
    for key, domain in _DOMAINS.items():
        if key in fillable:  # else the axes of a table are its range
            values[key] = _domain(domain, _object(tree.get(key, {}), key))
        elif key in tree and not hasattr(kind, key):
            raise ConfigError(f"the family {family} has no {key}")
    name = tree.get("name", family)
    if not isinstance(name, str):
        raise ConfigError(f"name is {name!r}; text is needed")
    return kind(**values, info=LatencyInfo(name, provenance, _object(tree.get("details", {}), "details")))


def _coefficient_names(kind: type) -> list[str]:
    return [field.name for field in fields(kind) if field.init and field.name not in (*_DOMAINS, "info")]


def _domain(kind: type[Domain | IterationDomain], tree: dict[str, Any]) -> Domain | IterationDomain:
    known = [field.name for field in fields(kind)]
    least = 1 if kind is Domain else 0  # an iteration may hold no prompt, or no decode
    for name, bounds in tree.items():
        if name not in known:
            raise ConfigError(f"unknown domain {name!r}; {nearest(name, known)}")
        is_pair = (
            isinstance(bounds, list) and len(bounds) == 2 and all(type(bound) is int for bound in bounds)
        )
        if not is_pair or not least <= bounds[0] <= bounds[1]:
            raise ConfigError(
                f"domain of {name} is {bounds!r}; [low, high] with whole {least} <= low <= high is needed"
            )
    return kind(**{name: (low, high) for name, (low, high) in tree.items()})


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{what} holds {value!r:.60}; an object is needed")
    return value


def _written_spec(spec: ModelSpec | GPUSpec) -> str | dict[str, Any]:
    """Write the name alone where that loads the same spec."""
    try:
        known = load_model(spec.name) if isinstance(spec, ModelSpec) else load_gpu(spec.name)
    except ConfigError:
        known = None
    return spec.name if known == spec else asdict(spec)


def _as_is(value: Any) -> Any:
    return value


def _axes(value: Any) -> tuple[Any, ...]:
    return tuple(map(_tuple, _tuple(value)))


def _tuple(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{value!r:.60} stands where a list is needed")
    return tuple(value)


def _operator_table(value: Any) -> OperatorTable:
    axes, seconds = _tuple(value) if isinstance(value, list) and len(value) == 2 else ([], [])
    return OperatorTable(_axes(axes), _tuple(seconds))


def _lag(value: Any) -> Lag | None:
    if value is None:
        return None
    seqs, share = _tuple(value) if isinstance(value, list) and len(value) == 2 else ([], [])
    return Lag(_tuple(seqs), _tuple(share))


def _model(value: Any) -> ModelSpec:
    return (
        load_model(value)
        if isinstance(value, str)
        else parse_spec(ModelSpec, _object(value, "model"), "model")
    )


def _gpu(value: Any) -> GPUSpec:
    return load_gpu(value) if isinstance(value, str) else parse_spec(GPUSpec, _object(value, "gpu"), "gpu")


#: Coefficients that JSON holds in another form.
_READ: Mapping[str, Callable[[Any], Any]] = {
    "axes": _axes,
    **dict.fromkeys(("total_s", "grid_s", "prefill_tokens", "decode_seqs", "mean_context_tokens"), _tuple),
    **dict.fromkeys(TABLES, _operator_table),
    **dict.fromkeys(("decode_lag", "mixed_lag"), _lag),
    "model": _model,
    "gpu": _gpu,
}
