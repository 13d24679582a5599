"""Slots: the replicas that may ever exist, and what each is at the time: off, starting, on, draining, failed.

All are wired from the start. Who asks for them to come, go or fail stands in `sim.cluster.autoscaler` and
`sim.cluster.failures`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
import simpy

from batchsim.errors import StalledSimulation
from batchsim.records import FAILED, REPLICA_STATE_COLUMNS, REPLICA_STATES, table
from batchsim.sim.cluster.durations import Durations
from batchsim.sim.mailbox import ProcessGen
from batchsim.sim.recording.iteration_recorder import IterationRecorder
from batchsim.sim.replica import Replica
from batchsim.sim.request import Request

OFF, STARTING, ON, DRAINING, DOWN = REPLICA_STATES

#: What becomes of requests that ran where a replica fails: they end there, begin anew elsewhere, or go on.
OnFailure = Literal["lose", "retry", "resume"]

#: Where nothing has gone on for so long, nothing will.
_STALLED_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Rescue:
    """What becomes of requests whose replica fails.

    Those that only waited there go elsewhere, whatever it says.

    Attributes
    ----------
    how
        Of those that ran: ``lose`` ends them as failed; ``retry`` begins them anew, without the tokens they
        had; ``resume`` goes on after these, whose KV is computed again.
    max_retries
        One that ran when its replica failed more often than that has failed.
    """

    how: OnFailure = "resume"
    max_retries: int = 10


class Slot:
    """A replica and what it is at the time.

    Attributes
    ----------
    state, since_s
        One of `records.REPLICA_STATES`, and when that began.
    changed
        Fires when the state changes, and is another then.
    """

    __slots__ = ("_seen_idle_s", "_seen_s", "changed", "number", "replica", "since_s", "state")

    def __init__(self, env: simpy.Environment, number: int, replica: Replica, state: str) -> None:
        self.number = number
        self.replica = replica
        self.state = state
        self.since_s = self._seen_s = self._seen_idle_s = 0.0
        self.changed = simpy.Event(env)

    @property
    def is_up(self) -> bool:
        """Whether it runs requests."""
        return self.state in (ON, DRAINING)

    def look(self, now_s: float) -> tuple[float, float]:
        """Return the seconds since the last look, or since it came on, and in how many of them it ran."""
        seconds, idle_s = now_s - self._seen_s, self.replica.idle_s - self._seen_idle_s
        self._seen_s, self._seen_idle_s = now_s, self.replica.idle_s
        return seconds, max(seconds - idle_s, 0.0)


class Slots:
    """Turn replicas on and off, and hold requests while none is on.

    A replica that is asked for is on after its cold start. One that is let go is given no new requests and
    is off when the last of its own has ended, its KV cache gone. One that fails loses what is in memory, its
    requests go as `rescue` says, and it is on again when it is repaired; if it was to go, or never is
    repaired, it is off.

    Parameters
    ----------
    num_on
        So many, those with the lowest numbers, are on from the start.
    cold_start
        From when a replica is asked for until it is on.
    scales
        Whether somebody asks for replicas: then one that is off may come. A request that finds none on or
        starting asks for one itself.

    Attributes
    ----------
    slots
        By the numbers of their replicas.
    is_on
        Of each, whether it may be given requests.
    num_arrived
        Requests that came from outside.
    place
        Hands a request to one of the replicas that are on, or to `admits`; set by the router.
    on_open
        Called when one more is on.
    """

    place: Callable[[Request], None]
    on_open: Callable[[], None] | None = None

    def __init__(
        self,
        env: simpy.Environment,
        replicas: Sequence[Replica],
        recorder: IterationRecorder,
        num_on: int,
        cold_start: Durations,
        rescue: Rescue,
        *,
        scales: bool,
    ) -> None:
        self._env = env
        self._recorder = recorder
        self._cold_start = cold_start
        self._rescue = rescue
        self._scales = scales
        self._rows: list[tuple[int, str, float, float]] = []
        self._held: dict[Request, None] = {}  # in order
        self._num_crashes: Counter[Request] = Counter()
        self.slots = [
            Slot(env, number, replica, ON if number < num_on else OFF)
            for number, replica in enumerate(replicas)
        ]
        self.is_on = [slot.state == ON for slot in self.slots]
        self.num_arrived = 0
        for slot in self.slots:
            slot.replica.on_idle = partial(self._turn_off_if_empty, slot)

    @property
    def num_held(self) -> int:
        """Requests for which no replica is on."""
        return len(self._held)

    def of_state(self, *states: str) -> list[Slot]:
        """Those in one of these states."""
        return [slot for slot in self.slots if slot.state in states]

    def run(self) -> ProcessGen:
        """Notice where nothing will go on, though replicas still come and go."""
        progress = (-1, -1)
        while True:
            yield self._env.timeout(_STALLED_S)
            before, progress = progress, (self._recorder.num_ended, self._recorder.spans.num_bytes)
            if progress == before and self._is_quiet():
                queues = "; ".join(
                    f"replica {slot.number}: {slot.replica.describe_waiting()}"
                    for slot in self.of_state(ON, DRAINING)
                )
                raise StalledSimulation(
                    f"nothing has happened before {self._env.now:.0f} s for a day, but "
                    f"{self._recorder.num_requests - self._recorder.num_ended} requests are unfinished: "
                    f"{self.num_held} wait for a replica; {queues}"
                )

    def admits(self, request: Request) -> bool:
        """Whether a replica is on for a request; else it is held, or has failed where none can come."""
        if any(self.is_on):
            return True
        self._held[request] = None
        request.queue = self
        off = self.of_state(OFF)
        if self._scales and off and not self.of_state(STARTING):
            self.start(off[0])
        self._give_up_if_none_comes()
        return False

    def discard(self, request: Request, bin_: int) -> None:
        """Forget one that is held, and gave up."""
        del self._held[request]

    def start(self, slot: Slot) -> None:
        """Ask for one that is off."""
        self._change(slot, STARTING)
        self._turn_on_after(slot, self._cold_start.draw_s())

    def let_go(self, slot: Slot) -> None:
        """Let one go that is on, once its requests have ended, or one that starts, at once."""
        self._change(slot, DRAINING if slot.state == ON else OFF)
        self._turn_off_if_empty(slot)

    def fail(self, slot: Slot, repair_s: float) -> None:
        """Let one fail that is up, for so many seconds."""
        returns = slot.state == ON and repair_s < math.inf
        self._change(slot, DOWN)
        ran, waited = slot.replica.crash(keeps_tokens=self._rescue.how == "resume")
        for request in (*ran, *waited):
            request.uncount()
        if returns:
            self._turn_on_after(slot, repair_s)
        else:
            self._change(slot, OFF)
        self._num_crashes.update(ran)
        for request in ran:
            if self._rescue.how == "lose" or self._num_crashes[request] > self._rescue.max_retries:
                self._recorder.end(request, FAILED)
            else:
                self._place(request)
        for request in waited:
            self._place(request)
        self._give_up_if_none_comes()

    def states(self) -> pd.DataFrame:
        """Table of `REPLICA_STATE_COLUMNS` up to now."""
        now_s = self._env.now
        rows = [*self._rows, *((slot.number, slot.state, slot.since_s, now_s) for slot in self.slots)]
        columns: dict[str, Any] = dict(zip(REPLICA_STATE_COLUMNS, zip(*rows, strict=True), strict=True))
        columns["state"] = pd.Categorical(columns["state"], categories=list(REPLICA_STATES))
        return table(REPLICA_STATE_COLUMNS, columns)

    def _place(self, request: Request) -> None:
        request.known_s = self._env.now
        self.place(request)

    def _change(self, slot: Slot, state: str) -> None:
        now_s = self._env.now
        self._rows.append((slot.number, slot.state, slot.since_s, now_s))
        slot.state, slot.since_s = state, now_s
        self.is_on[slot.number] = state == ON
        changed, slot.changed = slot.changed, simpy.Event(self._env)
        changed.succeed()

    def _turn_on_after(self, slot: Slot, seconds: float) -> None:
        """Unless it becomes something else before."""
        change = slot.changed

        def turn_on(_: simpy.Event) -> None:
            if slot.changed is change:
                self._change(slot, ON)
                slot.look(self._env.now)
                held, self._held = self._held, {}
                for request in held:
                    request.queue = None
                    self._place(request)
                if self.on_open is not None:
                    self.on_open()

        simpy.Timeout(self._env, seconds).callbacks.append(turn_on)

    def _turn_off_if_empty(self, slot: Slot) -> None:
        if slot.state == DRAINING and not slot.replica.num_requests:
            self._change(slot, OFF)
            slot.replica.crash(keeps_tokens=True)  # and with it the prefix cache

    def _give_up_if_none_comes(self) -> None:
        """End those that are held if no replica will ever be on."""
        coming = (ON, STARTING, DOWN, *((OFF, DRAINING) if self._scales else ()))
        if self._held and not self.of_state(*coming):
            held, self._held = self._held, {}
            for request in held:
                self._recorder.end(request, FAILED)

    def _is_quiet(self) -> bool:
        """Whether nobody comes any more, and no replica does or runs anything."""
        is_closed = all(slot.replica.inbox.is_closed for slot in self.slots)
        return is_closed and not any(
            slot.state in (STARTING, DOWN) or slot.replica.is_running for slot in self.slots
        )
