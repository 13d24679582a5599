"""May it come in? Asked at the door of the cluster; who is refused there is shed, and never waits.

Of one queue for all replicas, the view is of them all; else of the replica that was chosen, and as old as
what the routing sees.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from batchsim.errors import ConfigError
from batchsim.policies.base import ReplicaView, Setting, WaitingRequest
from batchsim.policies.building_blocks import Answer


@dataclass(slots=True)
class AdmitAll(Answer):
    """Whoever comes."""

    def prepare(self, setting: Setting) -> None:
        """Nothing to take."""

    def refusal(self, request: WaitingRequest, replica: ReplicaView, now_s: float) -> str | None:
        """Never."""
        return None

    def observe(self, request: WaitingRequest, now_s: float) -> None:
        """Nothing to learn."""


@dataclass(slots=True)
class QueueLimit(AdmitAll):
    """Whoever finds fewer than so many waiting, or nobody there at all.

    Who came while an iteration is under way waits for its end, and counts.

    Attributes
    ----------
    max_waiting
        Requests that may wait, the new one included.
    """

    max_waiting: int = 100

    def __post_init__(self) -> None:
        if self.max_waiting < 0:
            raise ConfigError(f"max_waiting is {self.max_waiting!r}; a whole number >= 0 is needed")

    def refusal(self, request: WaitingRequest, replica: ReplicaView, now_s: float) -> str | None:
        """Where as many wait as may."""
        num_waiting = replica.num_waiting
        if num_waiting < self.max_waiting or not replica.num_requests:
            return None
        return f"{num_waiting} requests wait, and QueueLimit lets {self.max_waiting} wait"


@dataclass(slots=True)
class PredictedTTFT(AdmitAll):
    """Whoever is predicted to have a first token in time, or finds nobody there.

    Predicted are the seconds that the prompt tokens before it and its own, less those cached, take at the
    rate at which prompt tokens became first tokens lately. That rate is measured on requests that were let
    in, from the tokens they found and the time they took, so that it holds for what else the replica does.
    Nothing is known of answers, and before the first token has come everybody is let in.

    Attributes
    ----------
    limit_s
        Seconds from the door to the first token.
    memory
        Requests that the measured rate is a mean of: the weight of older ones fades.
    """

    limit_s: float = 1.0
    memory: float = 50.0
    _tokens: float = field(default=0.0, init=False, repr=False, compare=False)
    _seconds: float = field(default=0.0, init=False, repr=False, compare=False)
    _let_in: dict[int, tuple[float, int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.limit_s > 0:
            raise ConfigError(f"limit_s is {self.limit_s!r}; a number of seconds > 0 is needed")
        if not self.memory >= 1:
            raise ConfigError(f"memory is {self.memory!r}; a number of requests >= 1 is needed")

    def refusal(self, request: WaitingRequest, replica: ReplicaView, now_s: float) -> str | None:
        """Where the first token would come too late."""
        own_tokens = request.prompt_tokens - replica.cached_tokens(request)
        tokens = replica.waiting_prompt_tokens + own_tokens
        if self._tokens and replica.num_requests:
            predicted_s = tokens * self._seconds / self._tokens
            if predicted_s > self.limit_s:
                return (
                    f"a first token after {predicted_s:.3g} s is predicted, and PredictedTTFT lets requests "
                    f"wait {self.limit_s:g} s for it"
                )
        self._let_in[request.request_id] = now_s, tokens
        return None

    def observe(self, request: WaitingRequest, now_s: float) -> None:
        """Learn how long the tokens took that it found."""
        let_in_s, tokens = self._let_in.pop(request.request_id, (now_s, 0))
        kept = 1 - 1 / self.memory
        self._tokens = kept * self._tokens + tokens
        self._seconds = kept * self._seconds + now_s - let_in_s
