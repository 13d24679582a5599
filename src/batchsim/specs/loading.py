"""Reading specs: those that ship by their names, others from JSON files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from batchsim.errors import ConfigError, nearest
from batchsim.files import read_json
from batchsim.specs.gpu import GPUSpec
from batchsim.specs.hugging_face import from_hugging_face, is_hugging_face
from batchsim.specs.model import ModelSpec
from batchsim.specs.names import Kind, is_there, known_name, shipped

Spec = TypeVar("Spec", ModelSpec, GPUSpec)


def load_model(name: str | Path) -> ModelSpec:
    """Load a shipped model by name, or a JSON file: `ModelSpec`'s fields, or a Hugging Face ``config.json``.

    Names of Hugging Face are understood, ``Qwen/Qwen2.5-1.5B-Instruct``, where a spec of that shape ships; so
    is the folder of a ``config.json``.

    Raises
    ------
    ConfigError
        For an unknown name (with the nearest known ones) and for a file that does not hold such a model.
    """
    return read_model(*_read(name, "models", "model"))


def read_model(tree: Mapping[str, Any], where: str) -> ModelSpec:
    """The model that the content of such a file is of; ``where`` opens the sentence of a `ConfigError`."""
    if is_hugging_face(tree):
        tree = from_hugging_face({"name": str(tree.get("model_type", "model")), **tree}, where)
    return parse_spec(ModelSpec, tree, where)


def load_gpu(name: str | Path) -> GPUSpec:
    """Load a shipped GPU by its name or a driver's, or a JSON file with `GPUSpec`'s fields.

    Raises as `load_model` does.
    """
    return parse_spec(GPUSpec, *_read(name, "gpus", "GPU"))


def parse_spec(kind: type[Spec], tree: Mapping[str, Any], where: str) -> Spec:
    """Build a spec from the fields in ``tree``; ``where`` opens the sentence of a `ConfigError`."""
    known = {one.name: one for one in fields(kind)}
    for key in tree:
        if key not in known:
            raise ConfigError(f"{where}: unknown field {key!r:.60}; {nearest(key[:60], known)}")
    for key, one in known.items():
        if key not in tree and one.default is MISSING:
            raise ConfigError(f"{where}: {key} is missing")
    try:
        return kind(**tree)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def load_spec(name: str | Path) -> ModelSpec | GPUSpec:
    """Load a model or a GPU, whichever the name or the file is of; raises as `load_model` does."""
    if any(known_name(str(name), kind) for kind in ("models", "gpus")):
        return load_gpu(name) if known_name(str(name), "gpus") else load_model(name)
    if Path(name).suffix != ".json" and not is_there(Path(name)):
        raise ConfigError(_unknown("GPU or model", name, [*shipped("gpus"), *shipped("models")]))
    tree = read_json(_file(Path(name)))
    is_model = isinstance(tree, dict) and ("num_layers" in tree or is_hugging_face(tree))
    return load_model(name) if is_model else load_gpu(name)


def spec_files(name: str | Path) -> list[Path]:
    """The files that a path stands for: in a folder its config.json, and what lies beside."""
    path = _file(Path(name))
    beside = path.parent / _QUANTISED
    return [path, beside] if path.name == "config.json" and beside.is_file() else [path]


#: Where modelopt says what it quantised, if the config.json does not.
_QUANTISED = "hf_quant_config.json"


def _read(name: str | Path, kind: Kind, what: str) -> tuple[dict[str, Any], str]:
    known = known_name(str(name), kind)
    if known is not None:
        return json.loads(shipped(kind)[known].read_text(encoding="utf-8")), known
    path = Path(name)
    if path.suffix != ".json" and not is_there(path):
        raise ConfigError(_unknown(what, name, shipped(kind)))
    path = _file(path)
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: holds {type(tree).__name__}; an object with the fields of a {what} is needed"
        )
    for beside in spec_files(path)[1:]:
        quantised = read_json(beside)
        if "quantization_config" not in tree and isinstance(quantised, dict):
            tree = {**tree, "quantization_config": {"quant_method": "modelopt", **quantised}}
    named = path.parent.name if path.stem == "config" else path.stem
    return {"name": named or path.stem, **tree}, str(path)


def _file(path: Path) -> Path:
    """The file that is meant: in a folder its config.json."""
    inside = path / "config.json"
    return inside if inside.is_file() else path


def _unknown(what: str, name: str | Path, known: Iterable[str]) -> str:
    return (
        f"unknown {what} {str(name)!r:.60}; a JSON file or a name that `batchsim hardware` lists is needed; "
        f"{nearest(str(name)[:60], known)}"
    )
