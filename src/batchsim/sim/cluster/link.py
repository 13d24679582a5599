"""Links that carry KV: what is sent shares their bandwidth, or waits its turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf
from typing import Any

import simpy

from batchsim.sim.mailbox import delay_until


class Transfer(simpy.Event):
    """Bytes on their way: an event that fires when the last link of the path has carried them.

    Attributes
    ----------
    start_s
        When the first of its links began to carry it.
    num_bytes
        Of it.
    """

    __slots__ = ("_latency_s", "_num_left", "_path", "num_bytes", "start_s")

    def __init__(
        self, env: simpy.Environment, path: Sequence[Link], num_bytes: float, latency_s: float
    ) -> None:
        super().__init__(env)
        self.start_s = inf
        self.num_bytes = num_bytes
        self._path = path
        self._num_left = len(path)
        self._latency_s = latency_s

    def pass_idle(self) -> None:
        """Have all links, which are idle, to itself: until others come, one alarm for the slowest will do."""
        env = self.env
        self.start_s = now_s = env.now
        slowest_bytes_per_s = inf
        for link in self._path:
            link.sole = self
            if link.bytes_per_s < slowest_bytes_per_s:
                slowest_bytes_per_s = link.bytes_per_s
        at_s = now_s + self.num_bytes / slowest_bytes_per_s
        simpy.Timeout(env, delay_until(now_s, at_s)).callbacks.append(self._pass_alone)

    def _pass_alone(self, _: simpy.Event) -> None:
        """The slowest would have carried it by now; where others came, that link says so itself."""
        num_alone = 0
        for link in self._path:
            if link.sole is self:
                link.sole = None
                num_alone += 1
        if num_alone:
            self.pass_links(num_alone)

    def pass_links(self, num: int = 1) -> None:
        """So many links have carried it; after the last, and the latency, it is there."""
        self._num_left -= num
        if not self._num_left:
            if self._latency_s:
                simpy.Timeout(self.env, self._latency_s).callbacks.append(self._arrive)
            else:
                self._arrive()

    def _arrive(self, _: simpy.Event | None = None) -> None:
        """Fire now, without a turn of the kernel."""
        callbacks = self.callbacks
        self._ok, self._value = True, None
        self.callbacks = None  # type: ignore[assignment]  # SimPy's own mark of a processed event
        for callback in callbacks:
            callback(self)


class Link:
    """A limited processor-sharing queue: up to `max_transfers` share the bandwidth equally, the rest wait.

    In order of arrival: with one transfer at a time a link is an M/G/1 queue where arrivals are random,
    without a limit a processor-sharing one. What each transfer under way has been given is the same for all
    that were under way since; so who is through next is the top of a heap, and a change costs O(log n).

    Parameters
    ----------
    bytes_per_s
        Bandwidth.
    max_transfers
        So many are under way at once; 1: first come, first served; None: all.

    Attributes
    ----------
    bytes_per_s
        Bandwidth.
    sole
        The one that has the link to itself, until another comes; it sees to its end.
    """

    def __init__(self, env: simpy.Environment, bytes_per_s: float, max_transfers: int | None = None) -> None:
        self._env = env
        self.bytes_per_s = bytes_per_s
        self._max_transfers = inf if max_transfers is None else max_transfers
        self._waiting: deque[Transfer] = deque()
        self._under_way: list[tuple[float, int, Transfer]] = []
        self._given = 0.0  # bytes, to each that was under way all the time
        self._changed_s = 0.0
        self._next_s = inf  # when the alarm that is set rings
        self._num_sent = 0
        self.sole: Transfer | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way or waits."""
        return self.sole is None and not self._under_way and not self._waiting

    def carry(self, transfer: Transfer) -> None:
        """Let a transfer pass; it is told when it is through."""
        if self.sole is not None:
            self._share_with_sole(self.sole)
        self._catch_up()
        if len(self._under_way) >= self._max_transfers:
            self._waiting.append(transfer)
        else:
            self._start(transfer)
        self._set_alarm()

    def _share_with_sole(self, sole: Transfer) -> None:
        """Count the one that had the link to itself among those under way, since it began."""
        self.sole = None
        self._changed_s = sole.start_s
        self._start(sole)

    def _start(self, transfer: Transfer) -> None:
        self._num_sent += 1
        heappush(self._under_way, (self._given + transfer.num_bytes, self._num_sent, transfer))
        if transfer.start_s == inf:
            transfer.start_s = self._env.now

    def _catch_up(self) -> None:
        """Give those under way what they are due since the last change."""
        now_s = self._env.now
        if self._under_way:
            self._given += (now_s - self._changed_s) * self.bytes_per_s / len(self._under_way)
        self._changed_s = now_s

    def _set_alarm(self) -> None:
        """Be woken when the next is through, unless an alarm rings before that."""
        under_way = self._under_way
        left = under_way[0][0] - self._given
        at_s = self._changed_s + (left if left > 0.0 else 0.0) * len(under_way) / self.bytes_per_s
        if at_s < self._next_s:
            self._next_s = at_s
            simpy.Timeout(self._env, delay_until(self._changed_s, at_s), at_s).callbacks.append(self._ring)

    def _ring(self, alarm: Any) -> None:
        if alarm.value == self._next_s:  # else another was set for an earlier time
            self._next_s = inf
            self._look()

    def _look(self) -> None:
        """Tell those that are through."""
        self._catch_up()
        under_way = self._under_way
        # One is through whose end is now, whatever the rounding of the bytes that it was given.
        within = self._given * (1 + 1e-12) + self._env.now * self.bytes_per_s * 4e-15
        while under_way and under_way[0][0] <= within:
            self._given = max(self._given, under_way[0][0])
            through = heappop(under_way)[2]
            if self._waiting:
                self._start(self._waiting.popleft())
            through.pass_links()
        if under_way:
            self._set_alarm()
        else:
            self._given = 0.0  # whatever was lost to rounding is lost for good


def send(env: simpy.Environment, path: Sequence[Link], num_bytes: float, latency_s: float = 0.0) -> Transfer:
    """Send bytes over all links of a path at once; the event fires when the slowest has carried them.

    A transfer takes its share of each link whatever the others leave it, as if each could store what comes
    too early. Where one link of the paths is the bottleneck, which is usual, that is exact.
    """
    transfer = Transfer(env, path, num_bytes, latency_s)
    if not path:
        transfer.start_s = env.now
        transfer.pass_links(0)
        return transfer
    for link in path:
        if not link.is_idle:
            break
    else:
        transfer.pass_idle()
        return transfer
    for link in path:
        link.carry(transfer)
    return transfer
