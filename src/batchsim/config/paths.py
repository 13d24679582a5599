"""Where the files are that a file of settings names: in its own folder, wherever the command is called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchsim.specs.names import Kind, is_there, known_name

#: Settings that name a file, and those that may.
_FILE_KEYS = (
    "workload.trace",
    "latency.file",
    "cluster.replicas.latency_file",
    "engine.speculation.draft_latency_file",
)
_SPEC_KEYS: Mapping[str, Kind] = {
    "cluster.gpu": "gpus",
    "cluster.model": "models",
    "cluster.replicas.gpu": "gpus",
    "cluster.replicas.model": "models",
}


def anchored(key: str, value: Any, folder: Path) -> Any:
    """Return the value of a dotted key of a file in ``folder``, with the files it names sought from there.

    A GPU or model is a file where it ends in ``.json`` or names a folder, unless that is part of a name on
    Hugging Face; all others are shipped.
    """
    if key == "cluster.replicas" and isinstance(value, list):
        return [
            {name: anchored(f"{key}.{name}", one, folder) for name, one in replica.items()}
            if isinstance(replica, Mapping)
            else replica
            for replica in value
        ]
    is_file = isinstance(value, str) and (
        key in _FILE_KEYS
        or (key == "latency.model" and is_there(folder / value / "config.json"))
        or (key in _SPEC_KEYS and _is_spec_file(value, _SPEC_KEYS[key], folder))
    )
    return str(folder / value) if is_file else value


def _is_spec_file(name: str, kind: Kind, folder: Path) -> bool:
    if name.endswith(".json"):
        return True
    return Path(name).name != name and (is_there(folder / name) or known_name(name, kind) is None)
