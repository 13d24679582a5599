"""The control plane: the processes by which replicas come, go and fail, and what they are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import simpy

from batchsim.policies.scaling import Scaling
from batchsim.sim.cluster.autoscaler import Autoscaler
from batchsim.sim.cluster.durations import Durations
from batchsim.sim.cluster.failures import Outages, Wear
from batchsim.sim.cluster.slots import Rescue, Slots
from batchsim.sim.recording.iteration_recorder import IterationRecorder
from batchsim.sim.replica import Replica


@dataclass(frozen=True, slots=True)
class Scaler:
    """What an autoscaler goes by.

    Attributes
    ----------
    rule
        How many replicas are wanted.
    interval_s
        Between decisions.
    least, at_start
        So many are wanted in any case, and are on when the run begins.
    cold_start
        From when a replica is asked for until it is on.
    """

    rule: Scaling
    interval_s: float
    least: int
    at_start: int
    cold_start: Durations


@dataclass(frozen=True, slots=True)
class Breakdowns:
    """How replicas fail.

    Attributes
    ----------
    between
        Time to the next failure of each replica; none: only at the instants.
    repair
        Of each replica, from a failure until it is on again.
    at
        Instants in seconds, and numbers of replicas.
    rescue
        What becomes of the requests.
    """

    between: Sequence[Durations]
    repair: Sequence[Durations]
    at: Sequence[tuple[float, int]]
    rescue: Rescue


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """Whether replicas come and go, and whether they fail: one of them at least."""

    scaler: Scaler | None = None
    breakdowns: Breakdowns | None = None

    def slots(
        self, env: simpy.Environment, replicas: Sequence[Replica], recorder: IterationRecorder
    ) -> Slots:
        """Make the slots of these replicas."""
        scaler, breakdowns = self.scaler, self.breakdowns
        return Slots(
            env,
            replicas,
            recorder,
            len(replicas) if scaler is None else scaler.at_start,
            Durations(0.0) if scaler is None else scaler.cold_start,
            Rescue() if breakdowns is None else breakdowns.rescue,
            scales=scaler is not None,
        )

    def processes(self, env: simpy.Environment, slots: Slots) -> list[Slots | Autoscaler | Wear | Outages]:
        """What runs beside the replicas."""
        processes: list[Slots | Autoscaler | Wear | Outages] = [slots]
        if (scaler := self.scaler) is not None:
            processes.append(Autoscaler(env, slots, scaler.rule, scaler.interval_s, scaler.least))
        if (failing := self.breakdowns) is not None:
            laws = zip(slots.slots, failing.between, failing.repair, strict=False)  # maybe none of between
            processes += [Wear(env, slots, slot, between, repair) for slot, between, repair in laws]
            processes.append(Outages(env, slots, failing.at, failing.repair))
        return processes
