"""Since which version vLLM's V1 scheduler does what it does, as far as a schedule shows it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from batchsim.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EngineRules:
    """What versions differ in.

    Attributes
    ----------
    checks_whole_prompt
        Whether a request is admitted only where its whole prompt fits (``scheduler_reserve_full_isl``).
    frees_partial_first
        Whether blocks that come back without a hash, as they are not full, are the next to be taken.
    spares_single
        Whether a request that nobody runs or waits beside is held to no `long_prefill_threshold`.
    """

    checks_whole_prompt: bool = False
    frees_partial_first: bool = False
    spares_single: bool = False


#: What holds from a version on, until the next.
RULES = {
    (0, 8): EngineRules(),
    (0, 19): EngineRules(checks_whole_prompt=True),
    (0, 24): EngineRules(checks_whole_prompt=True, frees_partial_first=True),
    (0, 32): EngineRules(checks_whole_prompt=True, frees_partial_first=True, spares_single=True),
}

#: The last version that was looked at.
NEWEST = "0.32.0"
_FIRST, _LAST = min(RULES), tuple(map(int, NEWEST.split(".")[:2]))


def rules_of(version: str) -> EngineRules:
    """What a version does; `ConfigError` for one that is not known."""
    match = re.fullmatch(r"v?(\d{1,4})\.(\d{1,4})(\.\w+)*", version)
    release = tuple(map(int, match.groups()[:2])) if match else ()
    if not _FIRST <= release <= _LAST:
        raise ConfigError(
            f"engine_version is {version!r}; a version of vLLM from {_FIRST[0]}.{_FIRST[1]}.0 to {NEWEST}, "
            "the last that is known, is needed"
        )
    return RULES[max(since for since in RULES if since <= release)]


def closest_known(version: str) -> str:
    """The version to follow for one that an engine told of itself; the newest if it is no version."""
    match = re.match(r"v?(\d{1,4})\.(\d{1,4})(?!\d)", version)
    if match is None:
        return NEWEST
    major, minor = min(max(tuple(map(int, match.groups())), _FIRST), _LAST)
    return f"{major}.{minor}.0"
