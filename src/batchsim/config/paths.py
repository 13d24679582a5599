"""Where the files are that a file of settings names: in its own folder, wherever the command is called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Settings that name a file, and those that may.
_FILE_KEYS = ("workload.trace", "latency.file", "cluster.replicas.latency_file")
_SPEC_KEYS = ("cluster.gpu", "cluster.model", "cluster.replicas.gpu", "cluster.replicas.model")


def anchored(key: str, value: Any, folder: Path) -> Any:
    """Return the value of a dotted key of a file in ``folder``, with the files it names sought from there.

    A GPU or model is a file where it ends in ``.json`` or names a folder; all others are shipped.
    """
    if key == "cluster.replicas" and isinstance(value, list):
        return [
            {name: anchored(f"{key}.{name}", one, folder) for name, one in replica.items()}
            if isinstance(replica, Mapping)
            else replica
            for replica in value
        ]
    names_spec = key in _SPEC_KEYS and isinstance(value, str)
    is_file = key in _FILE_KEYS or (names_spec and (value.endswith(".json") or Path(value).name != value))
    return str(folder / value) if is_file and isinstance(value, str) else value
