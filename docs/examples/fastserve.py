"""A skip-join multi-level feedback queue: who has had much waits for who has had little.

PYTHONPATH=docs/examples batchsim run --policy fastserve:fastserve
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from batchsim.policies import RankedQueue
from batchsim.policies.base import WaitingRequest
from batchsim.policies.continuous import StallFree
from batchsim.policies.presets import Preset
from batchsim.policies.routing import LeastLoaded
from batchsim.policies.sizing import FixedSize
from batchsim.policies.steps import Step


@dataclass(frozen=True)
class Levels:
    """Which level a request is on: 0 goes first. No prediction is needed.

    Level ``i`` grants ``quantum_tokens * 2**i`` tokens of an answer, then its request is demoted to the next.
    A request skips the levels whose quantum is less than its first iteration is worth, which is
    ``prompt_tokens / prompt_tokens_per_token``.
    """

    quantum_tokens: int = 16
    prompt_tokens_per_token: int = 64
    num_levels: int = 8

    def entry(self, request: WaitingRequest) -> int:
        """The level it joins."""
        worth = request.prompt_tokens / self.prompt_tokens_per_token
        return min(self.num_levels - 1, max(0, math.ceil(math.log2(worth / self.quantum_tokens))))

    def of(self, request: WaitingRequest) -> int:
        """The level it is on."""
        return self._place(request)[0]

    def tokens_left(self, request: WaitingRequest) -> float:
        """How many more tokens until it is demoted; infinity on the last level."""
        return self._place(request)[1]

    def _place(self, request: WaitingRequest) -> tuple[int, float]:
        level, used = self.entry(request), request.generated_tokens
        while level < self.num_levels - 1:
            quantum = self.quantum_tokens * 2**level
            if used < quantum:
                return level, quantum - used
            level, used = level + 1, used - quantum
        return level, math.inf


@dataclass(slots=True)
class FeedbackQueue(RankedQueue):
    """Next is who is on the highest level; who waited `promote_after_s` since the arrival goes before all."""

    levels: Levels = field(default_factory=Levels)
    promote_after_s: float = math.inf

    def rank(self, request: WaitingRequest) -> int:
        """Its level."""
        return self.levels.of(request)

    def head(self, bin_: int, now_s: float) -> WaitingRequest:
        """The one of the highest level, or the oldest once it is too old."""
        oldest = self.oldest(bin_)
        return oldest if now_s - oldest.arrival_s > self.promote_after_s else super().head(bin_, now_s)

    def head_changes_s(self, now_s: float) -> float:
        """When the oldest will be too old."""
        due_s = self.oldest(0).arrival_s + self.promote_after_s if self.waiting(0) else math.inf
        return due_s if due_s >= now_s else math.inf


@dataclass(frozen=True)
class Feedback(StallFree):
    """Sarathi-Serve's rule, but for seats: a request on a lower level loses its own to one on a higher."""

    levels: Levels = field(default_factory=Levels)

    def plan(self, step: Step) -> None:
        """Make room for the decodes, then for a seat, then go on as Sarathi-Serve."""
        while step.growth_blocks > step.free_blocks:
            step.preempt(max(step.running, key=self._order))
        is_full = step.num_running >= step.max_running
        if is_full and step.running and (first := step.next_waiting()):
            last = max(step.running, key=self._order)
            if self.levels.of(last) > self.levels.of(first):
                step.preempt(last)
        super().plan(step)

    @property
    def replans(self) -> bool:
        """An arrival may take a seat, and so may one that waits, once somebody is demoted."""
        return True

    def iterations_to_decision(self, step: Step) -> float:
        """When the next of those that run is demoted."""
        return min(map(self.levels.tokens_left, step.running), default=math.inf)

    def _order(self, request: WaitingRequest) -> tuple[int, float, int]:
        return self.levels.of(request), request.arrival_s, request.request_id


fastserve = Preset(
    FeedbackQueue(),
    FixedSize(128),
    Feedback(),
    LeastLoaded(),
    paper="Wu et al., Fast Distributed Inference Serving for Large Language Models, arXiv 2305.05920",
    departs="levels count tokens, not seconds; who runs keeps its seat before others of its level; a "
    "preempted request is recomputed, not swapped ahead of time",
)
