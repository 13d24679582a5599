"""Views of replicas for routers: as they are, or as they were some time ago."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import takewhile

import simpy

from batchsim.errors import ConfigError
from batchsim.policies.base import WaitingRequest
from batchsim.sim.cluster.outlook import Counts, Outlook
from batchsim.sim.request import Counter


class LiveView:
    """A replica as it is."""

    __slots__ = ("_replica", "counter")

    def __init__(self, replica: Outlook) -> None:
        self._replica = replica
        self.counter: Counter = replica

    @property
    def num_requests(self) -> int:
        """Routed there, not ended."""
        return self._replica.num_requests

    @property
    def num_running(self) -> int:
        """With KV blocks."""
        return self._replica.counts().num_running

    @property
    def num_waiting(self) -> int:
        """Without."""
        return self._replica.counts().num_waiting

    @property
    def waiting_prompt_tokens(self) -> int:
        """Still to compute."""
        return self._replica.counts().prompt_tokens

    @property
    def kv_blocks(self) -> int:
        """In use or wanted."""
        return self._replica.kv_blocks()

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self._replica.kv.block_size

    def cached_tokens(self, request: WaitingRequest) -> int:
        """What the cache holds."""
        self._replica.catch_up()
        return self._replica.kv.usable_tokens(len(self._replica.cached_ids(request)), request.prompt_tokens)


class PastView:
    """A replica as it was `age_s` seconds ago; before the run it was empty.

    It is told of each change, and keeps those that are not yet so old. Counts are logged at iteration
    boundaries and wherever a request comes or goes; blocks also as decodes take them; the cache id by id,
    copy by copy.

    Attributes
    ----------
    counter
        What requests that are routed there are counted by.
    at_s
        When what it is told happened; None: now.
    """

    __slots__ = (
        "_age_s",
        "_blocks",
        "_blocks_log",
        "_cached",
        "_cached_log",
        "_counts",
        "_counts_log",
        "_env",
        "_replica",
        "at_s",
        "counter",
    )

    def __init__(self, env: simpy.Environment, replica: Outlook, age_s: float) -> None:
        self._env = env
        self._replica = replica
        self._age_s = age_s
        self.at_s: float | None = None
        self._counts, self._blocks = Counts(), 0
        self._cached: dict[int, int] = {}  # copies, by id
        self._counts_log: deque[tuple[float, Counts]] = deque()
        self._blocks_log: deque[tuple[float, int]] = deque()
        self._cached_log: deque[tuple[float, int, int]] = deque()
        self.counter: Counter = _Tally(self)
        replica.observer = replica.kv.observer = self

    # What it is told

    def note(self) -> None:
        """The replica has decided, or been given, something."""
        self._replica.catch_up()
        self._counts_log.append((self._env.now, self._replica.counts()))
        self.note_blocks()

    def note_blocks(self) -> None:
        """Blocks were taken."""
        self._blocks_log.append((self._time_s(), self._replica.kv.used))

    def cached(self, ids: Sequence[int]) -> None:
        """The cache has these, or once more."""
        time_s = self._time_s()
        self._cached_log.extend((time_s, id_, 1) for id_ in ids)

    def lost(self, id_: int) -> None:
        """It has a copy less."""
        self._cached_log.append((self._time_s(), id_, -1))

    # What it shows

    @property
    def num_requests(self) -> int:
        """Routed there, not ended."""
        return self._then().num_requests

    @property
    def num_running(self) -> int:
        """With KV blocks."""
        return self._then().num_running

    @property
    def num_waiting(self) -> int:
        """Without."""
        return self._then().num_waiting

    @property
    def waiting_prompt_tokens(self) -> int:
        """Still to compute."""
        return self._then().prompt_tokens

    @property
    def kv_blocks(self) -> int:
        """In use or wanted."""
        wanted = self._then().wanted_blocks
        return self._blocks + wanted

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self._replica.kv.block_size

    def cached_tokens(self, request: WaitingRequest) -> int:
        """What the cache held."""
        self._then()
        num = sum(1 for _ in takewhile(self._cached.__contains__, request.prefix_ids))
        return self._replica.kv.usable_tokens(num, request.prompt_tokens)

    def _then(self) -> Counts:
        """Forget what was changed before then, and return the counts."""
        self._replica.catch_up()
        then_s = self._env.now - self._age_s
        log, blocks_log, cached_log, cached = (
            self._counts_log,
            self._blocks_log,
            self._cached_log,
            self._cached,
        )
        while log and log[0][0] <= then_s:
            self._counts = log.popleft()[1]
        while blocks_log and blocks_log[0][0] <= then_s:
            self._blocks = blocks_log.popleft()[1]
        while cached_log and cached_log[0][0] <= then_s:
            _, id_, more = cached_log.popleft()
            num = cached.get(id_, 0) + more
            if num:
                cached[id_] = num
            else:
                del cached[id_]
        return self._counts

    def _time_s(self) -> float:
        return self._env.now if self.at_s is None else self.at_s


class _Tally:
    """Counts requests on a replica, and has each change noted."""

    __slots__ = ("_view",)

    def __init__(self, view: PastView) -> None:
        self._view = view

    @property
    def num_requests(self) -> int:
        """As they are."""
        return self._view._replica.num_requests

    @num_requests.setter
    def num_requests(self, num: int) -> None:
        self._view._replica.num_requests = num
        self._view.note()


def view_of(env: simpy.Environment, queue: object, age_s: float) -> LiveView | PastView:
    """How a routing sees a queue; `ConfigError` if that is of batches that run to completion."""
    if not isinstance(queue, Outlook):
        raise ConfigError(
            "queues of batches that run to completion know their load in requests only, and as it is now"
        )
    return PastView(env, queue, age_s) if age_s else LiveView(queue)
