"""Packages that show what they offer and import it when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any


def lazy(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make a package's ``__getattr__`` and ``__dir__`` (PEP 562) from its imports ``if TYPE_CHECKING``.

    Those are read where they stand, so that there is one list: what a type checker sees is what there is.
    """

    @cache
    def homes() -> dict[str, str]:
        return dict(_imports_for_types(package))

    def get(name: str) -> Any:
        # Python asks for names such as __path__ itself; they are not worth reading a file.
        home = None if name.startswith("__") else homes().get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        is_room = home == package
        value = import_module(f"{package}.{name}") if is_room else getattr(import_module(home), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes()})

    return get, names


def _imports_for_types(package: str) -> Iterator[tuple[str, str]]:
    """Each name, and the module that it comes from."""
    import ast

    spec: Any = sys.modules[package].__spec__
    for block in ast.parse(spec.loader.get_source(package)).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for line in block.body:
                if isinstance(line, ast.ImportFrom) and line.module:
                    yield from ((one.name, line.module) for one in line.names)
