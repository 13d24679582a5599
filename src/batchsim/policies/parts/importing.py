"""Policies from outside: imported by name."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def import_attribute(module: str, attribute: str) -> Any:
    """Import a module and return an attribute of it; raises whatever the module does.

    No compiled code of it is kept: that outlives a change of equal length within a second.
    """
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        return getattr(importlib.import_module(module), attribute)
    finally:
        sys.dont_write_bytecode = before
