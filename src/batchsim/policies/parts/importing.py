"""Policies from outside: imported by name."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from batchsim.errors import ConfigError


def import_attribute(name: str, what: str) -> Any:
    """Import a module and return an attribute of it, named ``module:attribute``.

    No compiled code of it is kept: that outlives a change of equal length within a second.

    Raises
    ------
    ConfigError
        Whatever the module does when it is imported; ``what`` says what was to be.
    """
    module, _, attribute = name.partition(":")
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        is_gone = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        told = "; the folder that it lies in has to be on the Python path, e.g. PYTHONPATH=." * is_gone
        raise ConfigError(f"{what} cannot be imported ({type(error).__name__}: {error}){told}") from error
    finally:
        sys.dont_write_bytecode = before
