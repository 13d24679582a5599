"""The guards before answers about a whole cluster: which replica, and who is let in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from batchsim.policies.base import ReplicaView, WaitingRequest
from batchsim.policies.guards.checks import Guard, is_bool, is_number


class RoutingGuard(Guard):
    """Holds a routing to replicas that exist."""

    OPTIONAL = ("view_age_s", "is_central")

    @property
    def load(self) -> str | None:
        """One that is kept."""
        known = (None, "requests", "kv_blocks", "views")
        needed = "'requests', 'kv_blocks', 'views' or None"
        load: str | None = self._read("load", lambda load: load in known, needed)
        return load

    @property
    def view_age_s(self) -> float:
        """A time; 0 where it says nothing."""
        if not hasattr(self.guarded, "view_age_s"):
            return 0.0
        needed = "a number of seconds >= 0"
        return float(self._read("view_age_s", lambda age: is_number(age) and 0 <= age < math.inf, needed))

    @property
    def is_central(self) -> bool:
        """A claim; False where it says nothing."""
        if not hasattr(self.guarded, "is_central"):
            return False
        return bool(self._read("is_central", is_bool, "True or False"))

    def choose(self, request: WaitingRequest, loads: Sequence[Any]) -> int:
        """An index into `loads`."""
        last = len(loads) - 1
        answered = self._ask("choose", request, loads)
        return self._whole("choose", answered, 0, last, f"a replica from 0 to {last}", request)


class AdmissionGuard(Guard):
    """Holds an admission to reasons that can be read."""

    def refusal(self, request: WaitingRequest, replica: ReplicaView, now_s: float) -> str | None:
        """A reason, or None."""
        answered = self._ask("refusal", request, replica, now_s)
        if answered is not None and not (isinstance(answered, str) and answered.strip()):
            self._refuse("refusal", answered, "a reason that can be read, or None,", request)
        return answered

    def observe(self, request: WaitingRequest, now_s: float) -> None:
        """It learns what it likes."""
        self._ask("observe", request, now_s)
