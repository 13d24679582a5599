"""Latency models as JSON files: family, provenance, name, coefficients, domain and details.

How a family's coefficients are written is for the family to say: see `families`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, cast

from batchsim.errors import ConfigError, nearest
from batchsim.files import MAX_COUNT, read_json, write_whole
from batchsim.latency.base import BatchLatency, Domain, IterationDomain, IterationLatency, LatencyInfo
from batchsim.latency.coefficients import read_coefficients, written_coefficients
from batchsim.latency.families import FAMILIES
from batchsim.latency.roofline import RooflineLatency
from batchsim.latency.tables.table import PROVENANCES
from batchsim.specs import GPUSpec, ModelSpec, Sharing

Model = BatchLatency | IterationLatency

#: What `load_latency` gives when no file is named.
DEFAULT_NAME = "qwen2.5-1.5b_rtx4080-laptop_roofline.json"

#: Keys of a file besides the coefficients, and the fields of a model that hold ranges.
_KEYS = ("family", "provenance", "name", "coefficients", "domain", "iteration_domain", "details")
_DOMAINS: Mapping[str, type[Domain | IterationDomain]] = {
    "domain": Domain,
    "iteration_domain": IterationDomain,
}


def save_latency(model: Model, path: str | Path) -> None:
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
        "coefficients": written_coefficients(model),
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
    if _is_table(Path(path)):
        raise ConfigError(
            f"{path}: is a table, no latency model; `batchsim fit {path} -o latency.json` makes one of it"
        )
    tree = read_json(path)
    try:
        return _parse(tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def default_latency(
    model: ModelSpec, gpu: GPUSpec, tensor_parallel: int = 1, sharing: Sharing | None = None
) -> RooflineLatency:
    """The packaged default, or the same roofline for other hardware: derived, as uncalibrated as it."""
    packaged = load_latency(None)
    assert isinstance(packaged, RooflineLatency), "the packaged default is a roofline"
    sharing = sharing or Sharing(tensor_parallel)
    if (model, gpu, sharing) == (packaged.model, packaged.gpu, packaged.sharing):
        return packaged
    return RooflineLatency(
        model,
        gpu,
        packaged.compute_efficiency,
        packaged.bandwidth_efficiency,
        packaged.overhead_s,
        **asdict(sharing),
    )


def _is_table(path: Path) -> bool:
    return path.name.lower().endswith((".csv", ".csv.gz")) and path.is_file()


def _parse(tree: Any) -> BatchLatency:
    tree = _object(tree, "the file")
    if "family" not in tree:
        raise ConfigError("no latency file, as `batchsim fit` writes it: family is missing")
    for key in tree:
        if key not in _KEYS:
            raise ConfigError(f"unknown key {key!r:.60}; {nearest(key[:60], _KEYS)}")
    for key in ("family", "provenance", "coefficients"):
        if key not in tree:
            raise ConfigError(f"{key} is missing")
    family, provenance = tree["family"], tree["provenance"]
    if not isinstance(family, str) or family not in FAMILIES:
        raise ConfigError(f"unknown family {family!r:.60}; {nearest(str(family)[:60], FAMILIES)}")
    if provenance not in PROVENANCES:
        raise ConfigError(f"provenance is {provenance!r:.60}; known: {', '.join(PROVENANCES)}")
    kind = FAMILIES[family]
    values = read_coefficients(kind, _object(tree["coefficients"], "coefficients"), family)
    fillable = {field.name for field in fields(cast(Any, kind)) if field.init}
    for key, domain in _DOMAINS.items():
        if key in fillable:  # else the axes of a table are its range
            values[key] = _domain(domain, _object(tree.get(key, {}), key))
        elif key in tree and not hasattr(kind, key):
            raise ConfigError(f"the family {family} has no {key}")
    name = tree.get("name", family)
    if not isinstance(name, str) or not name.isprintable():
        raise ConfigError(f"name is {name!r:.60}; one line of text is needed")
    info = LatencyInfo(name, provenance, _object(tree.get("details", {}), "details"))
    return cast("Callable[..., BatchLatency]", kind)(**values, info=info)


def _domain(kind: type[Domain | IterationDomain], tree: dict[str, Any]) -> Domain | IterationDomain:
    known = [field.name for field in fields(kind)]
    least = 1 if kind is Domain else 0  # an iteration may hold no prompt, or no decode
    for name, bounds in tree.items():
        if name not in known:
            raise ConfigError(f"unknown domain {name!r:.60}; {nearest(name[:60], known)}")
        is_pair = (
            isinstance(bounds, list) and len(bounds) == 2 and all(type(bound) is int for bound in bounds)
        )
        if not is_pair or not least <= bounds[0] <= bounds[1] <= MAX_COUNT:
            raise ConfigError(
                f"domain of {name} is {bounds!r:.60}; [low, high] with whole {least} <= low <= high is "
                f"needed, up to {MAX_COUNT:g}"
            )
    return kind(**{name: (low, high) for name, (low, high) in tree.items()})


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{what} holds {value!r:.60}; an object is needed")
    return value
