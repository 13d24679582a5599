"""Tiers below the KV cache of a GPU: host memory, a disk, a pool that all replicas share.

What the cache of a replica loses goes down into the first tier, what that loses into the next, and what is
found there comes up when somebody is admitted who wants it. All of it takes its share of a link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import simpy

from batchsim.errors import PlanError
from batchsim.policies.eviction import Eviction
from batchsim.sim.cluster.link import Link, send
from batchsim.sim.mailbox import Mailbox
from batchsim.sim.recording.iteration_recorder import IterationRecorder
from batchsim.sim.request import Request


@dataclass(frozen=True, slots=True)
class TierPlan:
    """A tier, as each replica has one, or all together.

    Attributes
    ----------
    capacity_bytes, capacity_tokens
        What it holds; one of them is None.
    read_bytes_per_s, write_bytes_per_s
        Of its links, up and down.
    latency_s
        Of a copy, once.
    max_transfers
        So many copies share a link, the others wait in order of arrival; None: all share it.
    is_shared
        Whether all replicas have it in common.
    eviction
        Makes the answer to who goes.
    """

    name: str
    capacity_bytes: float | None
    capacity_tokens: int | None
    read_bytes_per_s: float
    write_bytes_per_s: float
    latency_s: float
    max_transfers: int | None
    is_shared: bool
    eviction: Callable[[], Eviction]

    def num_ids(self, id_tokens: int, token_bytes: float) -> int:
        """How many ids of so many tokens it holds."""
        if self.capacity_tokens is not None:
            return self.capacity_tokens // id_tokens
        assert self.capacity_bytes is not None, "one of the two is given"
        return int(self.capacity_bytes // (id_tokens * token_bytes))


@dataclass(frozen=True, slots=True)
class TierPlans:
    """The tiers of a cluster, the fastest first.

    Attributes
    ----------
    kv_bytes_per_token
        Of the model of each replica.
    """

    tiers: Sequence[TierPlan]
    kv_bytes_per_token: Sequence[float]


class Tier:
    """A store of ids, with a link that leads in and one that leads out.

    Room is made when a copy begins, and an id can be found when the copy is there; so no more are on their
    way than it holds. What gives up its room does so at once: who still reads it has it in a buffer.

    Parameters
    ----------
    num_ids
        How many it holds.
    id_tokens
        Tokens of each.

    Attributes
    ----------
    write, read
        The links.
    latency_s
        Of a copy, once.
    """

    def __init__(
        self,
        num_ids: int,
        id_tokens: int,
        eviction: Eviction,
        write: Link,
        read: Link,
        latency_s: float = 0.0,
        name: str = "tier",
    ) -> None:
        self._num_ids = num_ids
        self._id_tokens = id_tokens
        self._eviction = eviction
        self._held: set[int] = set()
        self._coming: set[int] = set()
        self.write, self.read = write, read
        self.latency_s = latency_s
        self._name = name

    def __contains__(self, id_: int) -> bool:
        return id_ in self._held

    @property
    def used(self) -> int:
        """Ids that have their room here."""
        return len(self._held) + len(self._coming)

    def use(self, ids: Iterable[int]) -> None:
        """Somebody wants these, in the order of the prompt.

        Its beginning counts as used last: without that the rest is of no use.
        """
        held, use = self._held, self._eviction.use
        for id_ in reversed([id_ for id_ in ids if id_ in held]):
            use(id_)

    def make_room(self, ids: Iterable[int]) -> tuple[list[int], list[int]]:
        """Make room for what is to come; return those of the ids that have it now, and those that went.

        What is here already is used once more. Where all that has room is still on its way, none is left.
        """
        come, gone = list[int](), list[int]()
        held, coming = self._held, self._coming
        for id_ in ids:
            if id_ in held:
                self._eviction.use(id_)
            elif id_ not in coming:
                if len(held) + len(coming) >= self._num_ids:
                    if not held:
                        continue
                    gone.append(self._evict())
                coming.add(id_)
                come.append(id_)
        return come, gone

    def hold(self, ids: Iterable[int]) -> None:
        """These are there now."""
        for id_ in ids:
            self._coming.remove(id_)
            self._held.add(id_)
            self._eviction.add(id_, self._id_tokens)

    def _evict(self) -> int:
        id_ = self._eviction.pop()
        if id_ not in self._held:
            raise PlanError(f"{self._name}: {type(self._eviction).__name__} let {id_} go, which is not there")
        self._held.remove(id_)
        return id_


class Tiers:
    """The tiers below one replica: a `KVStore`, which takes what the cache loses and brings it back.

    An id that comes up stays below as well, and needs no copy when it goes down again. What lies deep passes
    the reading links of all tiers above it. Tiers may be those of other replicas, too.

    Parameters
    ----------
    id_tokens, id_bytes
        Of each id.
    inbox
        Of the replica.
    """

    def __init__(
        self,
        env: simpy.Environment,
        replica_id: int,
        tiers: Sequence[Tier],
        id_tokens: int,
        id_bytes: float,
        inbox: Mailbox,
        recorder: IterationRecorder,
    ) -> None:
        self._env = env
        self._replica_id = replica_id
        self._tiers = tiers
        self._id_tokens = id_tokens
        self._id_bytes = id_bytes
        self._inbox = inbox
        self._recorder = recorder
        self._num_left: dict[int, list[int]] = {}  # copies that requests still wait for, in one number each

    def num_held(self, ids: Sequence[int]) -> int:
        """How many of these, from the first on, lie here."""
        tiers = self._tiers
        for num, id_ in enumerate(ids):
            if not any(id_ in tier for tier in tiers):
                return num
        return len(ids)

    def use(self, ids: Sequence[int]) -> None:
        """A request with this prefix is admitted, wherever it finds that."""
        for tier in self._tiers:
            tier.use(ids)

    def take(self, ids: Sequence[int]) -> None:
        """The cache has lost these."""
        self._put(0, ids)

    def fetch(self, request: Request) -> None:
        """Bring what the request found here."""
        first = request.num_hits
        by_level: dict[int, int] = {}
        for id_ in request.prefix_ids[first : first + request.num_below]:
            level = next(level for level, tier in enumerate(self._tiers) if id_ in tier)
            by_level[level] = by_level.get(level, 0) + 1
        num_left = self._num_left[request.request_id] = [len(by_level)]
        for level, num in by_level.items():
            path = [tier.read for tier in self._tiers[: level + 1]]
            copy = send(self._env, path, num * self._id_bytes, self._tiers[level].latency_s)
            copy.callbacks.append(partial(self._arrive, request, num_left, level, num, self._env.now))

    def call_off(self) -> None:
        """Nobody waits any more: the replica has failed. What lies below outlives it."""
        self._num_left.clear()

    def carry_swapped(self, num_tokens: int, *, is_out: bool) -> simpy.Event:
        """KV of one that is preempted passes a link of the first tier; it has room of its own in the host."""
        first = self._tiers[0]
        num_bytes = num_tokens / self._id_tokens * self._id_bytes
        return send(self._env, [first.write if is_out else first.read], num_bytes, first.latency_s)

    def _put(self, level: int, ids: Sequence[int]) -> None:
        tier = self._tiers[level]
        come, gone = tier.make_room(ids)
        if come:
            copy = send(self._env, [tier.write], len(come) * self._id_bytes, tier.latency_s)
            copy.callbacks.append(partial(self._hold, level, come, self._env.now))
        if gone and level + 1 < len(self._tiers):
            self._put(level + 1, gone)

    def _hold(self, level: int, ids: Sequence[int], asked_s: float, _: simpy.Event) -> None:
        self._tiers[level].hold(ids)
        self._record(-1, level, len(ids), asked_s)

    def _arrive(
        self, request: Request, num_left: list[int], level: int, num: int, asked_s: float, _: simpy.Event
    ) -> None:
        """A copy is there; with the last, the request comes once more."""
        request_id = request.request_id
        self._record(request_id, level, num, asked_s)
        num_left[0] -= 1
        if not num_left[0] and self._num_left.get(request_id) is num_left:
            del self._num_left[request_id]
            request.known_s = self._env.now
            self._inbox.deliver(request)
            self._inbox.nudge()

    def _record(self, request_id: int, level: int, num: int, asked_s: float) -> None:
        rows = self._recorder.kv_copies
        num_bytes = num * self._id_bytes
        rows.add(
            rows.pack(
                request_id, self._replica_id, level, num * self._id_tokens, num_bytes, asked_s, self._env.now
            )
        )


class Storage:
    """Builds the tiers of replicas: their own for each, shared ones once.

    Parameters
    ----------
    id_tokens
        Tokens of an id of the workload's prefixes.
    """

    def __init__(
        self, env: simpy.Environment, plans: TierPlans, id_tokens: int, recorder: IterationRecorder
    ) -> None:
        self._env = env
        self._plans = plans
        self._id_tokens = id_tokens
        self._recorder = recorder
        self._shared: dict[str, Tier] = {}
        recorder.tiers = tuple(plan.name for plan in plans.tiers)

    def below(self, replica_id: int, inbox: Mailbox) -> Tiers:
        """Build what lies below a replica."""
        token_bytes = self._plans.kv_bytes_per_token[replica_id]
        tiers = [self._tier(plan, token_bytes) for plan in self._plans.tiers]
        id_bytes = self._id_tokens * token_bytes
        return Tiers(self._env, replica_id, tiers, self._id_tokens, id_bytes, inbox, self._recorder)

    def _tier(self, plan: TierPlan, token_bytes: float) -> Tier:
        if plan.name in self._shared:
            return self._shared[plan.name]
        write, read = (
            Link(self._env, bytes_per_s, plan.max_transfers)
            for bytes_per_s in (plan.write_bytes_per_s, plan.read_bytes_per_s)
        )
        num_ids = plan.num_ids(self._id_tokens, token_bytes)
        tier = Tier(num_ids, self._id_tokens, plan.eviction(), write, read, plan.latency_s, plan.name)
        if plan.is_shared:
            self._shared[plan.name] = tier
        return tier
