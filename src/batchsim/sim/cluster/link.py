"""Links that carry KV: what is sent shares their bandwidth, or waits its turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf
from operator import attrgetter
from typing import Any

import simpy

from batchsim.sim.mailbox import delay_until


class Transfer(simpy.Event):
    """Bytes on their way: an event that fires when the last link of the path has carried them.

    Attributes
    ----------
    start_s
        When the first of its links began to carry it.
    """

    __slots__ = ("_latency_s", "_num_left", "_silent", "start_s")

    def __init__(
        self, env: simpy.Environment, num_links: int, latency_s: float, silent: Sequence[Link] = ()
    ) -> None:
        super().__init__(env)
        self.start_s = inf
        self._num_left = num_links
        self._latency_s = latency_s
        self._silent = silent  # links that carry it, and say so only when asked

    def pass_link(self) -> None:
        """A link has carried it; after the last, and the latency, it is there."""
        self._num_left -= 1
        if self._silent:
            silent, self._silent = self._silent, ()
            for link in silent:
                link.look()
        elif not self._num_left:
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
    bytes_per_s, num_bytes
        Bandwidth, and what was sent so far.
    """

    def __init__(self, env: simpy.Environment, bytes_per_s: float, max_transfers: int | None = None) -> None:
        self._env = env
        self.bytes_per_s = bytes_per_s
        self._max_transfers = inf if max_transfers is None else max_transfers
        self._waiting: deque[tuple[Transfer, float]] = deque()
        self._under_way: list[tuple[float, int, Transfer]] = []
        self._given = 0.0  # bytes, to each that was under way all the time
        self._changed_s = 0.0
        self._next_s = inf  # when the alarm that is set rings
        self._num_sent = 0
        self.num_bytes = 0.0

    @property
    def backlog(self) -> int:
        """Transfers under way or waiting."""
        return len(self._under_way) + len(self._waiting)

    def carry(self, transfer: Transfer, num_bytes: float) -> None:
        """Let a transfer pass; it is told when it is through."""
        self.num_bytes += num_bytes
        self._catch_up()
        if len(self._under_way) >= self._max_transfers:
            self._waiting.append((transfer, num_bytes))
        else:
            self._start(transfer, num_bytes)
        self._set_alarm()  # if those under way are silent, there is none

    def carry_silently(self, transfer: Transfer, num_bytes: float) -> None:
        """The same of an idle link, without an alarm: the transfer looks when it may be through."""
        self.num_bytes += num_bytes
        self._changed_s = self._env.now
        self._start(transfer, num_bytes)

    def _start(self, transfer: Transfer, num_bytes: float) -> None:
        self._num_sent += 1
        heappush(self._under_way, (self._given + num_bytes, self._num_sent, transfer))
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
            self.look()

    def look(self) -> None:
        """Tell those that are through."""
        self._catch_up()
        under_way = self._under_way
        # One is through whose end is now, whatever the rounding of the bytes that it was given.
        within = self._given * (1 + 1e-12) + self._env.now * self.bytes_per_s * 4e-15
        while under_way and under_way[0][0] <= within:
            self._given = max(self._given, under_way[0][0])
            through = heappop(under_way)[2]
            if self._waiting:
                self._start(*self._waiting.popleft())
            through.pass_link()
        if under_way:
            self._set_alarm()
        else:
            self._given = 0.0  # whatever was lost to rounding is lost for good


def send(env: simpy.Environment, path: Sequence[Link], num_bytes: float, latency_s: float = 0.0) -> Transfer:
    """Send bytes over all links of a path at once; the event fires when the slowest has carried them.

    A transfer takes its share of each link whatever the others leave it, as if each could store what comes
    too early. Where one link of the paths is the bottleneck, which is usual, that is exact.
    """
    if len(path) > 1 and not any(link.backlog for link in path):
        # One alarm, of the slowest, will do until others come; they set their own.
        slowest = min(path, key=attrgetter("bytes_per_s"))
        silent = [link for link in path if link is not slowest]
        transfer = Transfer(env, len(path), latency_s, silent)
        for link in silent:
            link.carry_silently(transfer, num_bytes)
        slowest.carry(transfer, num_bytes)
        return transfer
    transfer = Transfer(env, max(1, len(path)), latency_s)
    for link in path:
        link.carry(transfer, num_bytes)
    if not path:
        transfer.start_s = env.now
        transfer.pass_link()
    return transfer
