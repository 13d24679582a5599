"""A template: an answer to each question, the smallest that can be; keep what you change.

    export PYTHONPATH=docs/examples
    batchsim compare --policy vllm_v1 --policy my_policy:mine --request-rate 3 --num-requests 20000
    batchsim run --policy my_policy:batches --request-rate 0.4 --num-requests 20000

An answer is a small dataclass, whose fields can be set from outside: ``--set policy.sizing.slow_s=0.1``. What
it keeps between questions is set up in `prepare`, or is a field with ``init=False``. It derives from a
shipped answer and changes a method, or has all that its Protocol in `batchsim.policies.base` asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from batchsim.policies import PlainRule, RankedQueue
from batchsim.policies.base import Decision, IterationReport, QueueDiscipline, Setting, Sizer, WaitingRequest
from batchsim.policies.batching import Greedy
from batchsim.policies.presets import Preset
from batchsim.policies.routing import LeastLoaded
from batchsim.policies.sizing import FixedSize
from batchsim.policies.steps import Step


@dataclass
class ShortPromptsFirst(RankedQueue):
    """Who is next? A ranked queue says only what to sort by; smallest goes first."""

    round_to_tokens: int = 128

    def rank(self, request: WaitingRequest) -> int:
        """Length of the prompt, roughly; the earlier of equals goes first."""
        return request.prompt_tokens // self.round_to_tokens


@dataclass
class FewerWhenSlow(FixedSize):
    """How many? Half as many as long as an iteration takes too long."""

    slow_s: float = 0.05
    _allowed: int = field(default=1, init=False, repr=False, compare=False)

    @property
    def adapts(self) -> bool:
        """What it observes changes its answer."""
        return True

    def prepare(self, setting: Setting) -> None:
        """Begin with all."""
        super().prepare(setting)
        self._allowed = self.size

    def batch_size(self, bin_: int, num_decoding: int = 0) -> int:
        """What is allowed now."""
        return self._allowed

    def observe_iterations(self, report: IterationReport) -> Sequence[Decision]:
        """Learn from iterations that ended; no decisions for the records."""
        is_slow = report.duration_s > self.slow_s * report.num_iterations
        self._allowed = max(1, self.size // 2) if is_slow else self.size
        return ()

    def iterations_to_decision(self) -> float:
        """Any iteration may change the answer."""
        return 1


@dataclass(frozen=True)
class OneAtATime(PlainRule):
    """What goes into this iteration? The decodes and one whole prompt."""

    def plan(self, step: Step) -> None:
        """Make room for the decodes, then admit the next if there is room for it beside them."""
        while step.growth_blocks > step.free_blocks:
            step.preempt(step.last_running())
        if step.num_running < step.max_running and (request := step.next_waiting()):
            step.admit(request, step.uncached_tokens(request), keep_free_blocks=step.growth_blocks)


@dataclass(frozen=True)
class LaunchPairs(Greedy):
    """What goes into this batch? Whatever waits, if it is two at least or nobody else will come."""

    def next_bin(
        self, queue: QueueDiscipline, sizer: Sizer, now_s: float, *, is_last_call: bool
    ) -> int | None:
        """The bin to launch, or None to wait."""
        bin_ = super().next_bin(queue, sizer, now_s, is_last_call=is_last_call)
        return bin_ if bin_ is None or is_last_call or queue.waiting(bin_) > 1 else None

    def num_missing(self, queue: QueueDiscipline, sizer: Sizer) -> int:
        """How many have to come before `next_bin` can answer otherwise."""
        return 1


@dataclass
class FirstOfTheIdle(LeastLoaded):
    """Which replica? The first that has nothing to do, else the one with the least."""

    def choose(self, request: WaitingRequest, loads: Sequence[int]) -> int:
        """Index of the replica."""
        return loads.index(0) if 0 in loads else super().choose(request, loads)


mine = Preset(ShortPromptsFirst(), FewerWhenSlow(64), OneAtATime(), FirstOfTheIdle(), paper="none yet")
batches = Preset(ShortPromptsFirst(), FixedSize(8), LaunchPairs(), paper="none yet")
