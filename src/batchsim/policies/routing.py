"""Which replica? For clusters where every GPU has a queue of its own instead of one central queue.

Most look at a load: ``requests`` counts those that wait or run, ``kv_blocks`` the KV blocks in use and those
that the waiting prompts will take. `CacheAware` and `LMetric` look at what the caches really hold. What is
seen may be `view_age_s` old, and then knows nothing of what was sent there since. `Central` is the other way
round: requests wait in one queue until a replica has room. If nothing else is said, ties go to the lowest
number. One that is off or gone has the load `CLOSED`; a policy that names it all the same is asked again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from batchsim.errors import ConfigError, nearest
from batchsim.policies.base import ReplicaView, Setting, WaitingRequest
from batchsim.policies.building_blocks import Answer

Load = Literal["requests", "kv_blocks"]

#: Load of a replica that cannot be chosen, where replicas come and go: more than any other.
CLOSED = 2**62


@dataclass(slots=True)
class _AtOnce(Answer):
    """What all routings share that bind a request to a replica as it comes."""

    @property
    def is_central(self) -> bool:
        """No."""
        return False

    def prepare(self, setting: Setting) -> None:
        """Nothing to take."""


@dataclass(slots=True)
class RoundRobin(_AtOnce):
    """Replicas in turn, whatever they have to do."""

    _next: int = field(default=0, init=False, repr=False, compare=False)

    @property
    def load(self) -> None:
        """It does not look."""

    @property
    def view_age_s(self) -> float:
        """It does not look."""
        return 0.0

    def choose(self, request: WaitingRequest, loads: Sequence[int]) -> int:
        """The one after the last."""
        chosen = self._next % len(loads)
        self._next = chosen + 1
        return chosen


@dataclass(slots=True)
class _ByLoad(_AtOnce):
    """What all routings that look at a load share."""

    by: Load = "requests"
    view_age_s: float = 0.0

    def __post_init__(self) -> None:
        _check_load(self.by)
        _check_at_least_0("view_age_s", self.view_age_s)

    @property
    def load(self) -> Load:
        """What it compares."""
        return self.by


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
    """The replica that had the session's earlier turns; the least loaded for a first turn or no session.

    Where that replica is off or gone, the session moves to the least loaded.
    """

    _replica_of: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def choose(self, request: WaitingRequest, loads: Sequence[int]) -> int:
        """The session's replica."""
        if request.session_id < 0:
            return _least(loads)
        chosen = self._replica_of.get(request.session_id)
        if chosen is None or loads[chosen] == CLOSED:
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


@dataclass(slots=True)
class _BySight(_AtOnce):
    """What all routings share that look at views, and take the replica with the smallest score."""

    view_age_s: float = 0.0

    def __post_init__(self) -> None:
        _check_at_least_0("view_age_s", self.view_age_s)

    @property
    def load(self) -> Literal["views"]:
        """It looks at everything."""
        return "views"

    def choose(self, request: WaitingRequest, loads: Sequence[ReplicaView]) -> int:
        """Index of the smallest score."""
        return _least([self.score(request, view) for view in loads])

    def score(self, request: WaitingRequest, view: ReplicaView) -> float:
        """What the request would cost there."""
        raise NotImplementedError


@dataclass(slots=True)
class CacheAware(_BySight):
    """The longest prefix in the replica's real cache, weighed against what it has to do.

    The smallest sum of prompt tokens to compute there (those that wait and the request's own, less those that
    the cache holds) and KV tokens in use or wanted. So follows NVIDIA Dynamo's KV router, which counts both
    in blocks, and departs from it: there, each worker's cache is known by its events and the load by what the
    router has sent, here both by one view of the replica.

    Attributes
    ----------
    prefill_weight
        Of the prompt tokens, against a KV token: more of it, and the cache decides; 0: only load does.
    view_age_s
        How old what it sees is, in seconds.
    """

    prefill_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least_0("prefill_weight", self.prefill_weight)

    def score(self, request: WaitingRequest, view: ReplicaView) -> float:
        """Tokens."""
        prefill_tokens = view.waiting_prompt_tokens + _new_tokens(request, view)
        return self.prefill_weight * prefill_tokens + view.kv_blocks * view.block_size


@dataclass(slots=True)
class LMetric(_BySight):
    """The smallest product of new prefill tokens and batch size (LMetric, arXiv 2603.15202).

    A product needs no weight: whatever unit either factor has cancels out where products are compared. The
    batch size counts the requests there, running or waiting, and the one that is to go there: an idle replica
    does not win whatever its cache lacks, and of idle ones the best cache does.

    Attributes
    ----------
    view_age_s
        How old what it sees is, in seconds.
    """

    def score(self, request: WaitingRequest, view: ReplicaView) -> float:
        """Tokens x requests."""
        return _new_tokens(request, view) * (view.num_requests + 1)


@dataclass(slots=True)
class Central(Answer):
    """One queue for all replicas, each of which gets a request only once it has room for it.

    So no request waits behind others at one replica while another is free. A replica has room where the
    request could join its next iteration: seats, KV blocks, and prompt tokens of no more than an iteration.
    Of several, it goes to the least loaded. The policy's queue discipline orders the one queue.
    """

    by: Load = "requests"

    def __post_init__(self) -> None:
        _check_load(self.by)

    @property
    def load(self) -> Load:
        """What it compares, of those with room."""
        return self.by

    @property
    def view_age_s(self) -> float:
        """Replicas ask for requests themselves."""
        return 0.0

    @property
    def is_central(self) -> bool:
        """Yes."""
        return True

    def prepare(self, setting: Setting) -> None:
        """Nothing to take."""

    def choose(self, request: WaitingRequest, loads: Sequence[int]) -> int:
        """Index of the smallest load."""
        return _least(loads)


def _least(loads: Sequence[float]) -> int:
    return loads.index(min(loads))


def _new_tokens(request: WaitingRequest, view: ReplicaView) -> int:
    """Prompt tokens that would have to be computed there, at least the last."""
    return request.prompt_tokens - view.cached_tokens(request)


def _check_load(by: object) -> None:
    known = get_args(Load)
    if by not in known:
        raise ConfigError(f"by is {by!r}; {nearest(str(by), known)}")


def _check_at_least_0(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name} is {value!r}; a number >= 0 is needed")
