"""Dotted keys: how options, grids and messages name a setting inside nested tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from batchsim.errors import ConfigError

#: What parts a dotted key; a number may have one of its own, as in ``slo.ttft_p99.9_ms``.
_DOT = re.compile(r"\.(?!\d)")


def set_dotted(tree: dict[str, Any], key: str, value: object) -> None:
    """Set ``tree["a"]["b"] = value`` for the key ``a.b``, making tables on the way."""
    *parents, last = _DOT.split(key)
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{key}: {parent} is a value, not a table")
    tree[last] = value


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested tables into dotted keys: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves
