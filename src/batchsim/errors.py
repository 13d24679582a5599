"""The four exceptions users meet, how they suggest a name, and what of a text may stand on a line of output.

Each takes one ready message and nothing else: SimPy rebuilds an exception from its ``args`` when a process
dies.
"""

import difflib
import re
from collections.abc import Iterable

#: What parts words and is no plain space.
_BREAKS = re.compile(r"[^\S ]+")


def printable(text: str) -> str:
    """Return text of a file, an option or a policy on one line, without what steers a terminal."""
    line = " ".join(filter(None, (part.strip(" ") for part in _BREAKS.split(text))))
    return line if line.isprintable() else "".join(char if char.isprintable() else "?" for char in line)


class BatchsimError(Exception):
    """Base of all errors this package raises on purpose; its text is one clear sentence for the user.

    Whatever names and values the message repeats, it is printable and stands on one line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


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
