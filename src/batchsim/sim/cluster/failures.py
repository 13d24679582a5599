"""Failures: replicas break down after random times, or at given instants, and are repaired."""

from __future__ import annotations

from collections.abc import Sequence

import simpy

from batchsim.sim.cluster.durations import Durations
from batchsim.sim.cluster.slots import Slot, Slots
from batchsim.sim.mailbox import ProcessGen, delay_until


class Wear:
    """Let one replica fail again and again.

    The time to its next failure counts from when it came on, and while it is up: a replica that was off or
    repaired is as new.
    """

    def __init__(
        self, env: simpy.Environment, slots: Slots, slot: Slot, between: Durations, repair: Durations
    ) -> None:
        self._env = env
        self._slots = slots
        self._slot = slot
        self._between = between
        self._repair = repair

    def run(self) -> ProcessGen:
        """Wait until it is up, and then until it fails, unless it goes before."""
        env, slot = self._env, self._slot
        while True:
            while not slot.is_up:
                yield slot.changed
            failure = simpy.Timeout(env, self._between.draw_s())
            while slot.is_up and not failure.processed:
                yield failure | slot.changed
            if slot.is_up:
                self._slots.fail(slot, self._repair.draw_s())


class Outages:
    """Let replicas fail at given instants; one that is not up then is left alone.

    Parameters
    ----------
    at
        Instants in seconds, and numbers of replicas.
    repair
        Of each replica.
    """

    def __init__(
        self,
        env: simpy.Environment,
        slots: Slots,
        at: Sequence[tuple[float, int]],
        repair: Sequence[Durations],
    ) -> None:
        self._env = env
        self._slots = slots
        self._at = sorted(at)
        self._repair = repair

    def run(self) -> ProcessGen:
        """Go through them in order of time."""
        for time_s, number in self._at:
            if time_s > self._env.now:
                yield self._env.timeout(delay_until(self._env.now, time_s))
            slot = self._slots.slots[number]
            if slot.is_up:
                self._slots.fail(slot, self._repair[number].draw_s())
