"""The arithmetic of sequences that decode together: who ends when, and when their KV blocks run out.

It makes a span of iterations cost as much as one: nothing here is done per token.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import sqrt

from batchsim.policies.base import ServiceMeter
from batchsim.sim.request import Request


class Decoding:
    """Running sequences whose prompt is complete.

    `step` counts the iterations in which they decoded. A sequence that joins with ``c`` stored tokens has ``c
    + (step - step then)`` of them later, so it needs a new block when that is a multiple of the block size:
    always the sequences of one residue class of ``c - step then``, and `_growing` counts those per class.

    Attributes
    ----------
    num, context_tokens
        Sequences, and the tokens they have stored together.
    taken
        KV blocks that they need for the next iteration and hold already.
    tokens_each, blocks_each
        Tokens of each sequence in an iteration, and the most blocks that one takes for it: 1.
    next_end
        No sequence ends before this step.
    """

    __slots__ = (
        "_block_size",
        "_finishes",
        "_growing",
        "_longest",
        "_meter",
        "_num_growing",
        "_outgrow",
        "_took",
        "blocks_each",
        "context_tokens",
        "next_end",
        "num",
        "step",
        "taken",
        "tokens_each",
    )

    def __init__(
        self, block_size: int, *, follows_longest: bool = False, meter: ServiceMeter | None = None
    ) -> None:
        self._meter = meter
        self._longest: list[tuple[int, int, Request]] | None = [] if follows_longest else None
        self._block_size = block_size
        self._growing = [0] * block_size
        self._num_growing = 0
        self._finishes: list[tuple[int, int, Request]] = []
        self._outgrow: list[tuple[int, int, Request]] = []
        self._took: set[int] = set()  # those who hold theirs of `taken` by themselves
        self.num = 0
        self.context_tokens = 0
        self.taken = 0
        self.step = 0
        self.next_end = 0
        self.tokens_each = self.blocks_each = 1

    def join(self, request: Request, stored_tokens: int, num_left: int) -> None:
        """Let a sequence decode `num_left` more tokens, at least 1; it holds `request.blocks`."""
        step, block_size = self.step, self._block_size
        request.offset = offset = stored_tokens - step
        request.finish_step = finish_step = step + num_left
        heappush(self._finishes, (finish_step, request.admission, request))
        if not self.num or finish_step < self.next_end:
            self.next_end = finish_step
        self.num += 1
        self.context_tokens += stored_tokens
        if self._longest is not None:
            heappush(self._longest, (-offset, request.request_id, request))
        room = request.blocks * block_size - stored_tokens
        request.is_growing = is_growing = room < block_size
        if is_growing:
            self._growing[offset % block_size] += 1
            self._num_growing += 1
        elif room < num_left:
            heappush(self._outgrow, (step + room, request.request_id, request))
        if self._meter is not None:
            self._meter.join(request)

    def leave(self, request: Request) -> int:
        """Take a sequence out; return its stored tokens, and leave in `request.blocks` what it holds."""
        stored_tokens = request.offset + self.step
        self.num -= 1
        self.context_tokens -= stored_tokens
        if request.is_growing:
            request.blocks = -(-stored_tokens // self._block_size)
            if self.taken and self.has_taken(request):
                request.blocks += 1
                self.taken -= 1
                self._took.discard(request.request_id)
            request.is_growing = False
            self._growing[request.offset % self._block_size] -= 1
            self._num_growing -= 1
        request.finish_step = -1
        if self._meter is not None:
            self._meter.leave(request)
        return stored_tokens

    def take_back(self, num_iterations: int) -> None:
        """Undo so many iterations, but for who needs blocks: all are about to be cleared."""
        self.step -= num_iterations
        self.context_tokens -= num_iterations * self.num

    def clear(self) -> None:
        """Forget who has left; nobody decodes any more."""
        assert not self.num, "somebody decodes"
        for heap in (self._finishes, self._outgrow, self._longest or []):
            heap.clear()
        self._took.clear()
        self.taken = 0

    def blocks_over(self, num_iterations: int) -> int:
        """Blocks that the next iterations are still to take."""
        return self._growth_over(num_iterations) - self.taken

    def take_finished(self) -> list[Request]:
        """Take out the sequences that have decoded their last token, in order of admission."""
        finishes, step = self._finishes, self.step
        finished: list[Request] = []
        while finishes and finishes[0][0] <= step:
            finish_step, _, request = heappop(finishes)
            if request.finish_step == finish_step:
                self.leave(request)
                finished.append(request)
        self.next_end = finishes[0][0] if finishes else step
        return finished

    def iterations_to_change(self) -> int:
        """Until the next sequence ends or outgrows its reservation; there must be one."""
        finishes, outgrow = self._finishes, self._outgrow
        while finishes[0][2].finish_step != finishes[0][0]:
            heappop(finishes)  # left early
        self.next_end = first = finishes[0][0]
        return (min(first, outgrow[0][0]) if outgrow else first) - self.step

    def longest_tokens(self) -> int:
        """Stored tokens of the sequence that has most; 0 where there are none, or nobody wants to know."""
        longest = self._longest
        while longest:
            negated_offset, _, request = longest[0]
            if request.finish_step >= 0 and request.offset == -negated_offset:
                return self.step - negated_offset
            heappop(longest)  # left, and maybe came back with other tokens
        return 0

    def growth(self) -> int:
        """Blocks that the next iteration is still to take."""
        return self._growing[-self.step % self._block_size] - self.taken

    def take(self, request: Request) -> None:
        """Let a sequence hold the blocks now that it needs for the next iteration."""
        self.taken += self.blocks_needed(request)
        self._took.add(request.request_id)

    def blocks_needed(self, request: Request) -> int:
        """Blocks that the next iteration takes for a sequence, or has taken."""
        return int(request.is_growing and (request.offset + self.step) % self._block_size == 0)

    def has_taken(self, request: Request) -> bool:
        """Whether a sequence holds the blocks already that it needs for the next iteration."""
        return self.blocks_needed(request) > 0 and (request.request_id in self._took or not self.growth())

    def last_tokens(self, request: Request) -> int:
        """Tokens that the last iteration gave a sequence which decoded in it."""
        return 1

    def iterations_to_growth(self) -> int:
        """Until the next iteration but one or later takes blocks, counted from the next; at most a cycle."""
        growing, first = self._growing, -self.step % self._block_size
        num = 1
        while num < self._block_size and not growing[first - num]:
            num += 1
        return num

    def _growth_over(self, num_iterations: int) -> int:
        """Blocks that the next iterations take."""
        cycles, rest = divmod(num_iterations, self._block_size)
        first = -self.step % self._block_size
        growing, after = self._growing, first + 1
        if rest <= after:
            return sum(growing[after - rest : after], cycles * self._num_growing)
        return sum(growing[:after], sum(growing[after - rest :], cycles * self._num_growing))

    def iterations_within(self, num_blocks: int, num_iterations: int) -> int:
        """How many of the next iterations so many free blocks last for."""
        num_blocks += self.taken
        if self._num_growing * (num_iterations // self._block_size + 1) <= num_blocks:
            return num_iterations
        if self._growth_over(num_iterations) <= num_blocks:
            return num_iterations
        cycles, num_blocks = divmod(num_blocks, self._num_growing)
        num = cycles * self._block_size
        residue = -self.step % self._block_size
        while num_blocks >= self._growing[residue]:
            num_blocks -= self._growing[residue]
            residue = residue - 1 if residue else self._block_size - 1
            num += 1
        return num

    def lasts(self, num_blocks: int, num_iterations: int) -> bool:
        """Whether so many free blocks surely last for the next iterations: the most they could take."""
        return self._num_growing * (num_iterations // self._block_size + 1) <= num_blocks

    def advance(self, num_iterations: int) -> int:
        """Every sequence decodes so many tokens more; return the blocks that are still to be taken."""
        step = self.step
        if num_iterations == 1:
            blocks = self._growing[-step % self._block_size]
        else:
            blocks = self._growth_over(num_iterations)
        if self.taken:
            blocks -= self.taken
            self.taken = 0
            self._took.clear()
        self.step = step = step + num_iterations
        self.context_tokens += num_iterations * self.num
        if self._meter is not None:
            self._meter.advance(num_iterations)
        outgrow = self._outgrow
        while outgrow and outgrow[0][0] <= step:
            at_step, _, request = heappop(outgrow)
            # A request that left and came back may stand here twice.
            is_due = request.finish_step > at_step == request.blocks * self._block_size - request.offset
            if is_due and not request.is_growing:
                request.is_growing = True
                self._growing[request.offset % self._block_size] += 1
                self._num_growing += 1
        return blocks


def iterations_by(elapsed_s: float, first_s: float, growth_s: float) -> int:
    """The first iteration end, counted from 1, at or after `elapsed_s` seconds into a span.

    Iteration ``j`` takes ``first_s + j * growth_s``, so ``m`` of them take ``m * first_s + growth_s * m * (m
    - 1) / 2``; the root is refined by one step each way, as its rounding may cross a whole number.
    """
    half = growth_s / 2
    base = first_s - half
    root = base + sqrt(max(0.0, base * base + 2 * growth_s * elapsed_s))
    num = max(1, round(2 * elapsed_s / root))
    while num > 1 and (num - 1) * (base + half * (num - 1)) >= elapsed_s:
        num -= 1
    while num * (base + half * num) < elapsed_s:
        num += 1
    return num
