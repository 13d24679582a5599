"""Which replica? For clusters where every GPU has a queue of its own instead of one central queue.

All but `RoundRobin` look at a load: ``requests`` counts those that wait or run, ``kv_blocks`` the KV blocks
in use and those that the waiting prompts will take. If nothing else is said, ties go to the lowest number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from batchsim.errors import ConfigError, nearest
from batchsim.policies.base import Setting, WaitingRequest
from batchsim.policies.building_blocks import Answer

Load = Literal["requests", "kv_blocks"]


@dataclass(slots=True)
class RoundRobin(Answer):
    """Replicas in turn, whatever they have to do."""

    _next: int = field(default=0, init=False, repr=False, compare=False)

    @property
    def load(self) -> None:
        """It does not look."""

    def prepare(self, setting: Setting) -> None:
        """Nothing to take."""

    def choose(self, request: WaitingRequest, loads: Sequence[int]) -> int:
        """The one after the last."""
        chosen = self._next % len(loads)
        self._next = chosen + 1
        return chosen


@dataclass(slots=True)
class _ByLoad(Answer):
    """What all routings that look at a load share."""

    by: Load = "requests"

    def __post_init__(self) -> None:
        known = get_args(Load)
        if self.by not in known:
            raise ConfigError(f"by is {self.by!r}; {nearest(str(self.by), known)}")

    @property
    def load(self) -> Load:
        """What it compares."""
        return self.by

    def prepare(self, setting: Setting) -> None:
        """Nothing to take."""


@dataclass(slots=True)
class LeastLoaded(_ByLoad):
    """The replica with the smallest load."""

    def choose(self, request: WaitingRequest, loads: Sequence[int]) -> int:
        """Index of the smallest load."""
        return _least(loads)


@dataclass(slots=True)
class PowerOfTwo(_ByLoad):
    """The less loaded of two replicas drawn at random (Mitzenmacher, 2001)."""

    _rng: Any = field(init=False, repr=False, compare=False)

    def prepare(self, setting: Setting) -> None:
        """Take the run's random stream."""
        self._rng = setting.rng

    def choose(self, request: WaitingRequest, loads: Sequence[int]) -> int:
        """Index of the smaller of two loads; of equals, the first drawn."""
        if len(loads) == 1:
            return 0
        first, second = (int(index) for index in self._rng.choice(len(loads), size=2, replace=False))
        return first if loads[first] <= loads[second] else second


@dataclass(slots=True)
class SessionAffinity(_ByLoad):
    """The replica that had the session's earlier turns; the least loaded for a first turn or no session."""

    _replica_of: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def choose(self, request: WaitingRequest, loads: Sequence[int]) -> int:
        """The session's replica."""
        if request.session_id < 0:
            return _least(loads)
        chosen = self._replica_of.get(request.session_id)
        if chosen is None:
            chosen = self._replica_of[request.session_id] = _least(loads)
        return chosen


@dataclass(slots=True)
class PrefixAffinity(_ByLoad):
    """The replica that last got the longest known prefix of the prompt, unless it has too much to do.

    A new prefix goes to the least loaded replica, and so does one whose replica has more than `max_imbalance`
    more to do than that. Follows the cache-aware policy of SGLang's router, and departs from it. There, load
    decides for all requests as long as the fullest replica is that far, and by a factor, ahead of the least
    loaded; a match counts only from some share of the prompt on; a new prefix goes to the replica that was
    sent the fewest distinct prefixes; and the oldest are forgotten, here none, even if the cache dropped it.

    Attributes
    ----------
    by
        The load that counts.
    max_imbalance
        In units of that load; the default is that of SGLang's router, for requests.
    """

    max_imbalance: float = 64
    _replica_of: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.max_imbalance >= 0:
            raise ConfigError(f"max_imbalance is {self.max_imbalance!r}; a number >= 0 is needed")

    def choose(self, request: WaitingRequest, loads: Sequence[int]) -> int:
        """The prefix's replica, or the least loaded."""
        ids, replica_of = request.prefix_ids, self._replica_of
        least = _least(loads)
        chosen = next((replica_of[id_] for id_ in reversed(ids) if id_ in replica_of), least)
        if loads[chosen] - loads[least] > self.max_imbalance:
            chosen = least
        replica_of.update(dict.fromkeys(ids, chosen))
        return chosen


def _least(loads: Sequence[int]) -> int:
    return loads.index(min(loads))
