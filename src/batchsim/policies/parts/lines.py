"""What queue disciplines keep requests in; those that give up are marked and skipped later, never sought.

They are marked by identity: who gives up may come again under the same number while the first still lies
here.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from itertools import islice
from typing import Any

from batchsim.policies.base import WaitingRequest


class Line(deque[WaitingRequest]):
    """First come, first served, with a way back to the head and a way out.

    A deque of those that wait and of some that gave up, which are never at its head: its own methods append,
    look at the head, and tell whether anybody waits.
    """

    __slots__ = ("_gone",)

    def __init__(self) -> None:
        super().__init__()
        self._gone: set[int] = set()

    @property
    def num_waiting(self) -> int:
        """Those that did not give up."""
        return len(self) - len(self._gone)

    def pop_head(self) -> WaitingRequest:
        """Hand over the first."""
        request = self.popleft()
        if self._gone:
            self._drop_gone_heads()
        return request

    def take(self, num: int) -> list[WaitingRequest]:
        """Hand over the first `num`."""
        if self._gone:
            return [self.pop_head() for _ in range(num)]
        popleft = self.popleft
        return [popleft() for _ in range(num)]

    def nth(self, position: int) -> WaitingRequest:
        """The one at a position, counting from 0."""
        if not self._gone:
            return self[position]
        present = (request for request in self if id(request) not in self._gone)
        return next(islice(present, position, None))

    def discard(self, request: WaitingRequest) -> None:
        """Forget one that gave up."""
        self._gone.add(id(request))
        self._drop_gone_heads()

    def _drop_gone_heads(self) -> None:
        while self and id(self[0]) in self._gone:
            self._gone.remove(id(self.popleft()))


class RankedLine:
    """The smallest key first, and the order of arrival beside it."""

    __slots__ = ("_arrivals", "_heap", "_keys")

    def __init__(self) -> None:
        self._heap: list[tuple[Any, float, int, WaitingRequest]] = []
        self._arrivals: list[tuple[float, int, WaitingRequest]] = []
        self._keys: dict[int, Any] = {}  # of those present; other entries of both heaps are stale

    def __len__(self) -> int:
        return len(self._keys)

    def push(self, key: Any, request: WaitingRequest) -> None:
        """Take a request in under a key, anew if it was there before."""
        heappush(self._heap, (key, request.arrival_s, request.request_id, request))
        heappush(self._arrivals, (request.arrival_s, request.request_id, request))
        self._keys[id(request)] = key

    def smallest(self) -> WaitingRequest:
        """The one with the smallest key."""
        while self._keys.get(id(self._heap[0][3])) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][3]

    def oldest(self) -> WaitingRequest:
        """The one that arrived first."""
        while id(self._arrivals[0][2]) not in self._keys:
            heappop(self._arrivals)
        return self._arrivals[0][2]

    def nth(self, position: int) -> WaitingRequest:
        """The one at a position in order of arrival; O(n log n)."""
        present = {
            (arrival_s, request_id): request
            for arrival_s, request_id, request in self._arrivals
            if id(request) in self._keys
        }
        return present[sorted(present)[position]]

    def remove(self, request: WaitingRequest) -> None:
        """Let one go."""
        del self._keys[id(request)]
