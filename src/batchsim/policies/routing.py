"""Which replica? For clusters where every GPU has a queue of its own instead of one central queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from batchsim.policies.base import Setting, WaitingRequest


@dataclass(slots=True)
class RoundRobin:
    """Replicas in turn, whatever they have to do."""

    _next: int = field(default=0, init=False, repr=False, compare=False)

    def prepare(self, setting: Setting) -> None:
        """Nothing to take."""

    def choose(self, request: WaitingRequest, loads: Sequence[int]) -> int:
        """The one after the last."""
        chosen = self._next % len(loads)
        self._next = chosen + 1
        return chosen


@dataclass(slots=True)
class LeastLoaded:
    """The replica with the fewest requests waiting or running; ties go to the lowest number."""

    def prepare(self, setting: Setting) -> None:
        """Nothing to take."""

    def choose(self, request: WaitingRequest, loads: Sequence[int]) -> int:
        """Index of the smallest load."""
        return loads.index(min(loads))


@dataclass(slots=True)
class PowerOfTwo:
    """The less loaded of two replicas drawn at random (Mitzenmacher, 2001)."""

    _rng: np.random.Generator = field(
        default_factory=np.random.default_rng, init=False, repr=False, compare=False
    )

    def prepare(self, setting: Setting) -> None:
        """Take the run's random stream."""
        self._rng = setting.rng

    def choose(self, request: WaitingRequest, loads: Sequence[int]) -> int:
        """Index of the smaller of two loads; of equals, the first drawn."""
        if len(loads) == 1:
            return 0
        first, second = (int(index) for index in self._rng.choice(len(loads), size=2, replace=False))
        return first if loads[first] <= loads[second] else second
