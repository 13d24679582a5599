"""Shortest remaining processing time first: whoever has the fewest predicted tokens to go runs.

    PYTHONPATH=docs/examples batchsim run --policy srpt:srpt

A request that arrives takes the seat of one that has more to go, which is recomputed later. On one seat, with
true predictions and recomputation for nothing, no order has a smaller mean time in the system.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from batchsim.policies import RankedQueue
from batchsim.policies.base import WaitingRequest
from batchsim.policies.continuous import StallFree
from batchsim.policies.presets import Preset
from batchsim.policies.routing import LeastLoaded
from batchsim.policies.sizing import FixedSize
from batchsim.policies.steps import Step


def to_go(request: WaitingRequest) -> tuple[int, float, int]:
    """Predicted tokens still to come; of equals, the one that arrived first has fewer."""
    remaining = max(1, request.predicted_output_tokens - request.generated_tokens)
    return remaining, request.arrival_s, request.request_id


@dataclass(slots=True)
class ShortestRemaining(RankedQueue):
    """Next is whoever has the fewest predicted tokens to go."""

    def rank(self, request: WaitingRequest) -> tuple[int, float, int]:
        """Tokens to go."""
        return to_go(request)


@dataclass(frozen=True, slots=True)
class MakeWay(StallFree):
    """Sarathi-Serve's rule, but for seats: in each iteration, who has most to go may lose its own."""

    def plan(self, step: Step) -> None:
        """Make room for the decodes, then for the next, then go on as Sarathi-Serve."""
        while step.growth_blocks > step.free_blocks:
            step.preempt(max(step.running, key=to_go))
        is_full = step.num_running >= step.max_running
        if is_full and step.running and (first := step.next_waiting()):
            last = max(step.running, key=to_go)
            if to_go(last) > to_go(first):
                step.preempt(last)
        super().plan(step)

    @property
    def replans(self) -> bool:
        """An arrival may take a seat."""
        return True

    def iterations_to_decision(self, step: Step) -> float:
        """Never: who runs only comes nearer to the end while others wait."""
        return math.inf


srpt = Preset(
    ShortestRemaining(),
    FixedSize(128),
    MakeWay(),
    LeastLoaded(),
    paper="Schrage, A proof of the optimality of the shortest remaining processing time discipline, 1968",
    departs="what was computed of a preempted request is lost, unless the prefix cache still has it",
)
