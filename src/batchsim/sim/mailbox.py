"""An unbounded Store whose putters never wait, and a timeout that lets arrivals of its instant go first."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any

import simpy
from simpy.events import EventPriority
from simpy.resources.store import StoreGet, StorePut

ProcessGen = Generator[simpy.Event, Any, None]

#: After everything else of the same instant (SimPy: URGENT 0, NORMAL 1).
LATE = EventPriority(2)


class Mailbox(simpy.Store):
    """A Store without capacity: `deliver` puts without an event, `take_all` hands over everything there is.

    An unbounded Store never makes a putter wait, so the event that tells it may go on says nothing; leaving
    it out halves the price of a hand-over. Plain `put` and `get` work as in any Store.
    """

    if TYPE_CHECKING:
        items: list[Any]

    def __init__(self, env: simpy.Environment) -> None:
        super().__init__(env)
        self._env = env
        self._watch: simpy.Event | None = None
        self._num_watched = 1
        self._need: simpy.Event | None = None
        self._sleep: simpy.Event | None = None  # of one who waits for what is due then
        self.is_closed = False
        self.bring: Callable[[], None] | None = None  # set by one who fills it on demand
        self.next_s = math.inf  # when there is something to bring
        self.alert: Callable[[], None] | None = None  # called after each item that is delivered by itself

    def deliver(self, item: object) -> None:
        """Put one item now."""
        self.items.append(item)
        if self._watch is not None or self.get_queue:
            self._wake()
        if self.alert is not None:
            self.alert()

    def deliver_all(self, items: Iterable[object]) -> None:
        """Put several items now, in order."""
        self.items.extend(items)
        self._wake()

    def close(self) -> None:
        """Say that no more will come from outside: whoever waits need not wait for more than there is."""
        self.is_closed = True
        if self._watch is not None:
            self._watch.succeed()
            self._watch = None

    def when(self, num: int = 1) -> simpy.Event:
        """Event that fires, taking nothing, once this many items are there; in a closed one, the first.

        Where it is known when the next item comes, that is when it fires for one who wants no more. Else all
        who wait share one event, which fires at the smallest number that any of them asked for.
        """
        if self.bring is not None:
            if self.next_s <= self._env.now:
                self.bring()
            elif num == 1 and not self.items and self.next_s < math.inf:
                self._sleep = simpy.Timeout(self._env, delay_until(self._env.now, self.next_s))
                return self._sleep
        num = 1 if self.is_closed else num
        if self._watch is None:
            watch = simpy.Event(self._env)
            if len(self.items) >= num:
                return watch.succeed()
            self._watch, self._num_watched = watch, num
            if self._need is not None:
                self._need.succeed()
                self._need = None
        self._num_watched = min(self._num_watched, num)
        return self._watch

    @property
    def is_watched(self) -> bool:
        """Whether anybody waits for something to come."""
        return self._watch is not None

    def when_watched(self) -> simpy.Event:
        """Event that fires once somebody waits for something to come: for the one who fills it on demand."""
        need = simpy.Event(self._env)
        if self.is_watched:
            return need.succeed()
        self._need = need
        return need

    def take_all(self) -> list[Any]:
        """Take what is there now, maybe nothing, without waiting."""
        if self.bring is not None and self.next_s <= self._env.now:
            self.bring()
        items = self.items
        self.items = []
        return items

    def nudge(self) -> None:
        """Wake who waits though nothing has come: something else has changed."""
        if self._watch is not None:
            self._watch.succeed()
            self._watch = None
        elif self._sleep is not None and self._sleep.callbacks:
            # Whoever waits for that time now waits for this; the timeout fires in vain.
            awake = simpy.Event(self._env)
            awake.callbacks, self._sleep.callbacks = self._sleep.callbacks, []
            awake.succeed()

    def _wake(self) -> None:
        if self._watch is not None and len(self.items) >= self._num_watched:
            self._watch.succeed()
            self._watch = None
        if self.get_queue:
            self._trigger_get(None)

    def _do_get(self, event: StoreGet) -> bool | None:
        super()._do_get(event)
        return event.triggered  # go on to the next in line: `deliver_all` may have brought it something too

    def _do_put(self, event: StorePut) -> bool | None:
        done = super()._do_put(event)
        if self._watch is not None:
            self._wake()
        return done


class LateTimeout(simpy.Event):
    """A timeout that fires after all ordinary events of its instant.

    A GPU that ends a batch at the very instant of an arrival thus finds that arrival in the queue: ties
    between arrivals and completions go to the arrival, whatever the order in which they were scheduled.
    """

    def __init__(self, env: simpy.Environment, delay_s: float) -> None:
        self.env = env  # what `simpy.Event` would set, without the detour: one of these is made per event
        self.callbacks = []
        self._ok = True
        self._value = None
        env.schedule(self, LATE, delay_s)


def delay_until(now_s: float, at_s: float) -> float:
    """Delay that brings the clock from `now_s` to `at_s`, never to the float below."""
    delay_s = at_s - now_s
    while now_s + delay_s < at_s:
        delay_s = math.nextafter(delay_s, math.inf)
    return delay_s
