"""The autoscaler: asks for replicas and lets them go, as a scaling rule answers."""

from __future__ import annotations

import simpy

from batchsim.policies.reports import ClusterReport
from batchsim.policies.scaling import Scaling
from batchsim.sim.cluster.slots import OFF, ON, STARTING, Slots
from batchsim.sim.mailbox import ProcessGen


class Autoscaler:
    """Decide every so many seconds how many replicas are to be on or starting.

    More: those that are off and have the lowest numbers are asked for. Fewer: first those that start go, then
    those with the fewest requests, of equals the highest number; what drains is not called back. One that
    failed is not counted until it is repaired, so that another may stand in for it.

    Parameters
    ----------
    rule
        Answers how many are wanted.
    interval_s
        Between decisions.
    least
        So many are wanted in any case; 0: none may be there while nobody asks.
    """

    def __init__(
        self, env: simpy.Environment, slots: Slots, rule: Scaling, interval_s: float, least: int
    ) -> None:
        self._env = env
        self._slots = slots
        self._rule = rule
        self._interval_s = interval_s
        self._least = least
        self._num_seen = 0  # arrivals, at the last decision

    def run(self) -> ProcessGen:
        """Wait, look, decide, repeat."""
        while True:
            yield self._env.timeout(self._interval_s)
            report = self._look()
            least = max(self._least, min(1, self._slots.num_held))
            self._bring_to(max(least, self._rule.wanted(report)))

    def _look(self) -> ClusterReport:
        slots, now_s = self._slots, self._env.now
        on = slots.of_state(ON)
        looks = [slot.look(now_s) for slot in on]
        on_s, busy_s = (sum(part) for part in zip(*looks, strict=True)) if looks else (0.0, 0.0)
        num_new, self._num_seen = slots.num_arrived - self._num_seen, slots.num_arrived
        return ClusterReport(
            now_s=now_s,
            elapsed_s=self._interval_s,
            num_on=len(on),
            num_starting=len(slots.of_state(STARTING)),
            num_arrived=num_new,
            num_waiting=slots.num_held + sum(slot.replica.counts().num_waiting for slot in on),
            num_requests=slots.num_held + sum(slot.replica.num_requests for slot in on),
            busy_fraction=busy_s / on_s if on_s > 0 else 0.0,
            kv_use=sum(slot.replica.kv_share for slot in on) / len(on) if on else 0.0,
        )

    def _bring_to(self, wanted: int) -> None:
        """Ask for as many as lack, or let as many go as are too many."""
        slots = self._slots
        starting, on = slots.of_state(STARTING), slots.of_state(ON)
        num_lacking = wanted - len(starting) - len(on)
        for slot in slots.of_state(OFF)[: max(num_lacking, 0)]:
            slots.start(slot)
        by_load = sorted(on, key=lambda slot: (slot.replica.num_requests, -slot.number))
        for slot in [*reversed(starting), *by_load][: max(-num_lacking, 0)]:
            slots.let_go(slot)
