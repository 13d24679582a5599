"""The four exceptions users meet, and how they suggest a name.

Each takes one ready message and nothing else: SimPy rebuilds an exception from its ``args`` when a process
dies.
"""

import difflib
from collections.abc import Iterable


class BatchsimError(Exception):
    """Base of all errors this package raises on purpose; its text is one clear sentence for the user."""


class ConfigError(BatchsimError):
    """A setting, a policy parameter or a latency model cannot be used as given."""


class TraceError(BatchsimError):
    """A data file (request trace, calibration table) is missing, broken or holds senseless values."""


class PlanError(BatchsimError):
    """A policy asked for something its limits forbid (too large a batch, an unknown request)."""


class StalledSimulation(BatchsimError):  # noqa: N818 -- the name states what happened
    """Nothing can happen any more although requests are unfinished; the message names who waits for what."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names come near a misspelt one, or list them all: the end of a message."""
    known = list(known)
    if not known:
        return "there are none"
    close = difflib.get_close_matches(name, known, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
