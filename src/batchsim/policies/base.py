"""The four questions a scheduler answers, as Protocols, and the little each answer may know.

No policy has a clock, a Store, or a true output length: time comes as an argument, lengths as predictions,
and what a batch really took as a `BatchReport` after it ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

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
    tenant: str  # whose it is; empty: not known
    slo_class: str  # what limits hold for it, by name; empty: those of the run
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
    class_ttft_s
        The limit on the time to first token of each class that has one.
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
    class_ttft_s: Mapping[str, float] = field(default_factory=dict)
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


class ServiceMeter(Protocol):
    """What a queue discipline whose head depends on what was served has as ``meter``; others have none.

    It is told of tokens as they are computed. Where batches run to completion, it counts what `take` hands
    over as served, answers as long as predicted, and is put right by `settle`.
    """

    def admit(self, request: WaitingRequest, prompt_tokens: int) -> None:
        """A request that was popped begins to run; so many tokens of its prompt are to be computed for it."""

    def first_token(self, request: WaitingRequest) -> None:
        """A prompt, or what was computed again after a preemption, is complete and yields a token."""

    def join(self, request: WaitingRequest) -> None:
        """A request begins to decode."""

    def leave(self, request: WaitingRequest) -> None:
        """It stops: finished, preempted or paused."""

    def advance(self, num_iterations: int) -> None:
        """Each that decodes has made so many tokens."""

    def iterations_to_other_head(self) -> float:
        """After how many more decode iterations, at least 1, another request is the head; infinity: never."""

    def settle(self, requests: Sequence[WaitingRequest], total_tokens: Sequence[int]) -> None:
        """A batch has ended: tokens of those that finished, prompt and answer; the rest were thrown out."""


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


class ReplicaView(Protocol):
    """What a router knows of a replica: as it is, or as it was some time ago."""

    @property
    def num_requests(self) -> int:
        """Requests routed there that have not ended."""

    @property
    def num_running(self) -> int:
        """Requests that hold KV blocks there."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait there, those included that came while an iteration was under way."""

    @property
    def waiting_prompt_tokens(self) -> int:
        """Prompt tokens still to compute: of who waits, whatever is cached, and of prompts under way."""

    @property
    def kv_blocks(self) -> int:
        """KV blocks in use, or wanted by the prompts that wait."""

    @property
    def block_size(self) -> int:
        """Tokens of a KV block."""

    def cached_tokens(self, request: WaitingRequest) -> int:
        """Tokens of its prompt that the cache holds, and that need not be computed."""


class Routing(Protocol):
    """Which replica? Sees only how much each has to do, or what else a view shows."""

    @property
    def load(self) -> str | None:
        """What the loads are: ``requests``, ``kv_blocks``, ``views``, or None if it does not look."""

    @property
    def view_age_s(self) -> float:
        """How old what it sees is; an own routing may leave this out for 0."""

    @property
    def is_central(self) -> bool:
        """Whether requests wait in one queue, and it chooses among replicas that have room for the next.

        An own routing may leave this out for False.
        """

    def prepare(self, setting: Setting) -> None:
        """Take what it needs of the setting; called once."""

    def choose(self, request: WaitingRequest, loads: Sequence[Any]) -> int:
        """Index of the replica; ``loads`` holds for each what `load` says, waiting or running."""


class Admission(Protocol):
    """May it come in? Asked about each request when its replica is chosen; each replica has its own."""

    def prepare(self, setting: Setting) -> None:
        """Take what it needs of the setting; called once."""

    def refusal(self, request: WaitingRequest, replica: ReplicaView, now_s: float) -> str | None:
        """Why the request is refused, for a person to read; None to let it in.

        Where requests wait in one queue, the view is of all replicas and that queue together.
        """

    def observe(self, request: WaitingRequest, now_s: float) -> None:
        """The first token of one that was let in has come."""
