"""The four questions a scheduler answers, as Protocols, and the little each answer may know.

No policy has a clock, a Store, or a true output length: time comes as an argument, lengths as predictions,
and what a batch really took as a `BatchReport` after it ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from batchsim.policies.reports import BatchReport, Decision, IterationReport

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class WaitingRequest(Protocol):
    """What a policy sees of a request. One that is sent again is another, with the same id."""

    request_id: int
    arrival_s: float
    prompt_tokens: int
    predicted_output_tokens: int
    priority: int  # smaller goes first, where a policy looks at it
    session_id: int  # -1: none
    prefix_ids: Sequence[int]  # one per full block of the prompt; equal ids, equal prompt up to there

    @property
    def generated_tokens(self) -> int:
        """Tokens of its answer so far: 0 unless it was preempted; of one that runs, as a step shows it."""


def arrival_order(request: WaitingRequest) -> tuple[float, int]:
    """What to sort by for first come, first served; ids break ties."""
    return request.arrival_s, request.request_id


def _no_tokens() -> NDArray[np.int64]:
    import numpy as np

    return np.empty(0, dtype=np.int64)


def _any_rng() -> np.random.Generator:
    import numpy as np

    return np.random.default_rng()


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """What every answer is told once, before the first request.

    Attributes
    ----------
    kv_capacity_tokens
        KV tokens that fit one GPU.
    training_prompt_tokens, training_output_tokens
        True lengths of requests that are *not* evaluated, int64, shape ``(num_training,)``, maybe empty.
    training_bins
        The bin of the queue each of them falls into; empty while the queue itself is prepared.
    num_bins
        Bins of the queue; sizers with a state per bin keep that many.
    batch_size
        The largest batch the sizer will ever allow: what boundaries are optimised for.
    slo_tpot_s, slo_e2e_s
        The run's limits, if it has any: targets of a controller that was given none.
    rng
        For the few answers that draw lots.
    """

    kv_capacity_tokens: int
    training_prompt_tokens: NDArray[np.int64] = field(default_factory=_no_tokens)
    training_output_tokens: NDArray[np.int64] = field(default_factory=_no_tokens)
    training_bins: NDArray[np.int64] = field(default_factory=_no_tokens)
    num_bins: int = 1
    batch_size: int = 1
    slo_tpot_s: float | None = None
    slo_e2e_s: float | None = None
    rng: np.random.Generator = field(default_factory=_any_rng)


class QueueDiscipline(Protocol):
    """Who is next? Owns the waiting requests, in one line per bin."""

    @property
    def num_bins(self) -> int:
        """Lines that requests wait in."""

    @property
    def learns(self) -> bool:
        """Whether `prepare` needs training lengths."""

    @property
    def edges(self) -> Sequence[float]:
        """The ``num_bins - 1`` lengths at which one bin ends and the next begins; known after `prepare`."""

    def prepare(self, setting: Setting) -> None:
        """Fit what must be fitted; called once, before any request."""

    def bin_of(self, output_tokens: int) -> int:
        """The bin of a (predicted) output length."""

    def push(self, request: WaitingRequest) -> int:
        """Take a request in and return its bin."""

    def push_back(self, request: WaitingRequest, bin_: int) -> None:
        """Put a request that was popped back to the head of its bin."""

    def waiting(self, bin_: int) -> int:
        """How many wait in a bin."""

    def head(self, bin_: int, now_s: float) -> WaitingRequest:
        """The next of a bin that is not empty."""

    def pop(self, bin_: int, now_s: float) -> WaitingRequest:
        """Hand over the next of a bin that is not empty."""

    def oldest(self, bin_: int) -> WaitingRequest:
        """The one that has waited longest in a bin that is not empty."""

    def nth(self, bin_: int, position: int) -> WaitingRequest:
        """The request that made the bin ``position + 1`` long, by arrival, of those still there."""

    def take(self, bin_: int, num: int, now_s: float) -> list[WaitingRequest]:
        """Hand over the next `num` of a bin that has as many."""

    def oldest_bin(self) -> int | None:
        """The bin whose oldest request arrived first; None if all are empty."""

    def discard(self, request: WaitingRequest, bin_: int) -> None:
        """Forget a waiting request that gave up."""

    def next_bin(self) -> int | None:
        """The bin that hands over the next request where they join one by one; None if all are empty."""

    @property
    def is_fifo(self) -> bool:
        """Whether a request that arrives never gets ahead of one that waits."""

    def head_changes_s(self, now_s: float) -> float:
        """When, after now, the next request is another one though none came or went; mostly infinity."""


class Sizer(Protocol):
    """How many may run together?"""

    @property
    def max_batch_size(self) -> int:
        """The largest batch it will ever allow."""

    @property
    def adapts(self) -> bool:
        """Whether what it observes can change its answer."""

    def prepare(self, setting: Setting) -> None:
        """Set up the state; called once, before any batch."""

    def batch_size(self, bin_: int, num_decoding: int = 0) -> int:
        """Largest batch allowed now, at least 1 and not below ``num_decoding``, what already runs."""

    def observe(self, report: BatchReport) -> Sequence[Decision]:
        """Learn from a batch that ended; return the decisions this led to, if any."""

    def observe_iterations(self, report: IterationReport) -> Sequence[Decision]:
        """Learn from iterations that ended; return the decisions this led to, if any."""

    def iterations_to_decision(self) -> float:
        """After how many more decode iterations the answer may change by itself; infinity if never."""


class LaunchRule(Protocol):
    """Which bin, if any, launches a batch now? Frozen: all it knows is in the arguments."""

    @property
    def strands(self) -> bool:
        """Whether requests may stay unserved on purpose when no more come."""

    def next_bin(
        self, queue: QueueDiscipline, sizer: Sizer, now_s: float, *, is_last_call: bool
    ) -> int | None:
        """Return the bin to launch from, or None to wait; ``is_last_call``: no more requests will come."""

    def num_missing(self, queue: QueueDiscipline, sizer: Sizer) -> int:
        """How many requests have to come, at least 1, before `next_bin` can answer otherwise."""

    def wake_s(self, queue: QueueDiscipline) -> float:
        """When to ask again if nothing arrives; infinity for a rule without a timer."""


class RunningRequest(WaitingRequest, Protocol):
    """What a policy sees of a request that was admitted.

    How far its answer is, `generated_tokens`, is up to date when a step shows it: in `Step.running`, say.
    """

    @property
    def remaining_tokens(self) -> int:
        """Prompt tokens still to be computed; after a preemption, those of the answer so far count too.

        At least 1: a sequence that decodes computes the token that it generated last.
        """

    @property
    def is_running(self) -> bool:
        """Whether it holds KV blocks: admitted, and not preempted since."""


class Step(Protocol):
    """The next iteration of a replica while a rule puts it together.

    All running sequences whose prompt is complete decode one token each, unless `hold_decodes` or `sit_out`
    is called. The rule adds prompt chunks, of running requests and of waiting ones that it admits, and makes
    room by preempting. What does not fit raises `PlanError`.
    """

    @property
    def now_s(self) -> float:
        """The time: the iteration begins now."""

    @property
    def num_blocks(self) -> int:
        """KV blocks of the replica."""

    @property
    def block_size(self) -> int:
        """Tokens per KV block."""

    @property
    def free_blocks(self) -> int:
        """KV blocks that can be taken now."""

    @property
    def growth_blocks(self) -> int:
        """KV blocks that the decoding sequences are still to take in this iteration."""

    @property
    def num_decoding(self) -> int:
        """Running sequences whose prompt is complete."""

    @property
    def num_running(self) -> int:
        """Running sequences."""

    @property
    def num_waiting(self) -> int:
        """Waiting requests."""

    @property
    def max_running(self) -> int:
        """What the sizer allows to run."""

    @property
    def num_preempted(self) -> int:
        """Requests preempted in this iteration."""

    @property
    def prefilling(self) -> Sequence[RunningRequest]:
        """Running requests whose prompt is not complete, in order of admission."""

    @property
    def running(self) -> Sequence[RunningRequest]:
        """All running requests, in order of admission."""

    @property
    def growing(self) -> Sequence[RunningRequest]:
        """Those whose prompt is not complete, and those that take a KV block to decode; in one order."""

    @property
    def holding(self) -> Sequence[RunningRequest]:
        """Those, and others that hold blocks until the engine knows of their last token; in one order."""

    @property
    def swapped(self) -> Sequence[RunningRequest]:
        """Requests whose KV lies in host memory, in order of preemption."""

    def next_waiting(self) -> RunningRequest | None:
        """The waiting request whose turn it is, as the queue discipline has it."""

    def uncached_tokens(self, request: RunningRequest, *, after_growth: bool = False) -> int:
        """Tokens of a waiting request that the prefix cache does not hold; at least 1.

        `after_growth`: once the decodes have taken their blocks, which may have held some of them.
        """

    def last_running(self) -> RunningRequest:
        """The last of those that hold blocks."""

    def admit(
        self,
        request: RunningRequest,
        num_tokens: int,
        *,
        blocks_for_tokens: int | None = None,
        room_for_tokens: int = 0,
        keep_free_blocks: int = 0,
    ) -> bool:
        """Let a waiting request run, with a first chunk, if its KV blocks can be had.

        Parameters
        ----------
        num_tokens
            Size of the chunk, beyond what the prefix cache holds.
        blocks_for_tokens
            Take blocks for so many tokens, cached ones included; as many as the chunk needs if left out.
        room_for_tokens
            Only where blocks for so many tokens, cached ones included, could be had; they are not taken.
        keep_free_blocks
            So many blocks must stay free.
        """

    def grow(self) -> int:
        """Let the decodes take their blocks now, else they do so at the end; return how many lack."""

    def take(self, request: RunningRequest, num_tokens: int) -> bool:
        """Let a running request take its blocks now, if they can be had: of a chunk, or to decode into."""

    def prefill(self, request: RunningRequest, num_tokens: int) -> None:
        """Process another chunk of a running request."""

    def preempt(self, request: RunningRequest, *, swap: bool = False) -> None:
        """Take a running request's KV away, drop it or copy it to the host, and let it wait at the head."""

    def swap_in(self, request: RunningRequest, *, keep_free_blocks: int = 0) -> bool:
        """Bring a swapped request back if its blocks can be had; it decodes in this iteration.

        `keep_free_blocks`: so many must stay free.
        """

    def sit_out(self, request: RunningRequest) -> None:
        """Let a running request, if it decodes, sit this iteration out."""

    def hold_decodes(self) -> None:
        """Let the decoding sequences sit this iteration out, if it has a prompt chunk."""


class IterationRule(Protocol):
    """What goes into this iteration? Frozen: all it knows is in the step.

    It is asked only where there is something to decide: requests wait, prompts are incomplete, or the
    decoding sequences lack KV blocks. Otherwise those decode.

    Until somebody can be admitted, equal iterations pass as one, without a question. A rule that could decide
    otherwise meanwhile `replans`, and says when. One that brings a `plan` of its own and says neither is
    asked at every iteration, which is right for any rule, and slow.
    """

    @property
    def caches_prefixes(self) -> bool:
        """Whether the engine it follows finds the KV of earlier prompts again if nothing is configured."""

    @property
    def frees_partial_first(self) -> bool:
        """Whether KV blocks that come back before they are full are the next to be taken."""

    @property
    def spare_blocks(self) -> int:
        """KV blocks that must be left for the decodes beyond what they take, else the rule is asked."""

    def plan(self, step: Step) -> None:
        """Put the iteration together."""

    def usable_blocks(self, num_blocks: int) -> int:
        """The most KV blocks a single request may come to hold; a request that needs more is refused."""

    def reserved_tokens(self, request: WaitingRequest) -> int:
        """Tokens that blocks are reserved for at admission, beyond the prompt; 0 where they grow."""

    @property
    def replans(self) -> bool:
        """Whether it may plan otherwise though nobody left: as requests arrive, answers grow, time passes."""

    def iterations_to_decision(self, step: Step) -> float:
        """After how many more decode iterations it may plan otherwise though nobody came or went.

        Asked of one that `replans`, after `plan`; at least 1, and infinity if that is only with arrivals.
        """


class Routing(Protocol):
    """Which replica? Sees only how much each has to do."""

    @property
    def load(self) -> str | None:
        """What the loads are: ``requests``, ``kv_blocks``, or None if it does not look."""

    def prepare(self, setting: Setting) -> None:
        """Take what it needs of the setting; called once."""

    def choose(self, request: WaitingRequest, loads: Sequence[int]) -> int:
        """Index of the replica; ``loads`` holds for each what `load` says, waiting or running."""
