"""The question of engines that batch at every iteration, as a Protocol, and the iteration it is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from batchsim.policies.base import WaitingRequest


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
    def decode_tokens(self) -> int:
        """Tokens they have in this iteration: one each, with speculative decoding their drafts besides."""

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
        """Running requests whose prompt is not complete, in order of admission.

        Also of a rule that admits whole prompts: where the first tokens of one were brought from elsewhere.
        """

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
        """Tokens of a waiting request that are to be computed, prefix hits taken off; 0 if its KV is to come.

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
