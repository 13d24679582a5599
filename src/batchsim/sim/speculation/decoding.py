"""Sequences that decode several tokens at once, each as many as its drafts are accepted."""

from __future__ import annotations

from operator import attrgetter

from batchsim.errors import ConfigError
from batchsim.policies.base import ServiceMeter
from batchsim.sim.decoding import Decoding
from batchsim.sim.recording.step_log import StepLog
from batchsim.sim.request import Request
from batchsim.sim.speculation.acceptance import Speculation

_ADMISSION = attrgetter("admission")


class SpeculativeDecoding(Decoding):
    """Running sequences whose prompt is complete, each of which grows by its own number of tokens.

    No two iterations are alike, so that a span is one iteration, and every sequence is looked at in each.
    ``offset`` and ``finish_step`` of a request are moved so that the tokens it has stored, ``offset + step``,
    and those that it has left, ``finish_step - step``, are what they are in `Decoding`.

    A step writes KV for all tokens that it verifies: a sequence needs the blocks of its drafts as well, but
    no more than its whole answer has. What rejected drafts leave, it keeps for the next step, as in vLLM. The
    blocks it holds are in ``request.blocks``, but for those of `taken`.

    Parameters
    ----------
    log, replica_id
        Where steps are written down, and as whose.
    """

    __slots__ = ("_accepted", "_finished", "_follows_longest", "_last", "_log", "_replica_id", "_speculation",
                 "_wanted")  # fmt: skip

    def __init__(
        self,
        block_size: int,
        speculation: Speculation,
        log: StepLog,
        replica_id: int,
        *,
        follows_longest: bool = False,
    ) -> None:
        super().__init__(block_size)
        self._speculation = speculation
        self._log = log
        log.drafted = speculation.num_tokens
        self._replica_id = replica_id
        self._follows_longest = follows_longest
        self._accepted: dict[Request, bytes] = {}  # of those that decode
        self._finished: list[Request] = []
        self._last: dict[Request, int] = {}  # tokens of the last iteration
        self._wanted = 0  # blocks of the next iteration, `taken` ones included
        self.tokens_each = speculation.num_tokens + 1
        self.blocks_each = -(-self.tokens_each // block_size)

    def join(self, request: Request, stored_tokens: int, num_left: int) -> None:
        """Let a sequence decode `num_left` more tokens, at least 1."""
        request.offset, request.finish_step = stored_tokens - self.step, self.step + num_left
        request.is_growing = False
        self.num += 1
        self.context_tokens += stored_tokens
        # The last token of an answer is never stored, and its first comes from the prompt.
        num_starts = stored_tokens - request.prompt_tokens + num_left
        self._accepted[request] = self._speculation.accepted(request.request_id, num_starts)
        self._last.pop(request, None)
        self._wanted += self.blocks_needed(request)

    def leave(self, request: Request) -> int:
        """Take a sequence out; return its stored tokens, and leave in `request.blocks` what it holds."""
        stored_tokens = request.offset + self.step
        blocks = self.blocks_needed(request)
        self.num -= 1
        self.context_tokens -= stored_tokens
        self._wanted -= blocks
        if self.taken:
            if request.request_id in self._took:
                self._took.discard(request.request_id)
                own = blocks
            else:  # what the others do not need was taken for it
                own = max(0, self.taken - self._wanted)
            request.blocks += own
            self.taken -= own
        request.finish_step = -1
        del self._accepted[request]
        return stored_tokens

    def take_finished(self) -> list[Request]:
        """Take out the sequences that have decoded their last token, in order of admission."""
        finished, self._finished = sorted(self._finished, key=_ADMISSION), []
        for request in finished:
            self.leave(request)
        return finished

    def iterations_to_change(self) -> int:
        """One: who ends next, only the step itself tells."""
        return 1

    def iterations_to_growth(self) -> int:
        """One, as for all that is known."""
        return 1

    def iterations_within(self, num_blocks: int, num_iterations: int) -> int:
        """Whether so many free blocks last for the next iteration: as 1 or 0."""
        return int(self._wanted - self.taken <= num_blocks)

    def longest_tokens(self) -> int:
        """Stored tokens of the sequence that has most; 0 where there are none, or nobody wants to know."""
        if not self._follows_longest or not self._accepted:
            return 0
        return self.step + max(request.offset for request in self._accepted)

    def growth(self) -> int:
        """Blocks that the next iteration is still to take."""
        return self._wanted - self.taken

    def blocks_needed(self, request: Request) -> int:
        """Blocks that the next iteration takes for a sequence, or has taken."""
        stored_tokens, num_left = request.offset + self.step, request.finish_step - self.step
        blocks = -(-(stored_tokens + min(self.tokens_each, num_left)) // self._block_size)
        return max(0, blocks - request.blocks)

    def last_tokens(self, request: Request) -> int:
        """Tokens that the last iteration gave a sequence which decoded in it."""
        return self._last.get(request, 1)

    def lasts(self, num_blocks: int, num_iterations: int) -> bool:
        """Whether so many free blocks last for the next iteration."""
        return self.growth() <= num_blocks

    def advance(self, num_iterations: int) -> int:
        """Every sequence takes a step; return the blocks that are still to be taken."""
        blocks, step, block_size, tokens_each = self.growth(), self.step, self._block_size, self.tokens_each
        steps, last = self._log.steps, dict[Request, int]()
        self.taken = wanted = 0
        self._took.clear()
        for request, accepted in self._accepted.items():
            stored_tokens, num_left = request.offset + step, request.finish_step - step
            ahead = tokens_each if tokens_each < num_left else num_left
            held = -(-(stored_tokens + ahead) // block_size)
            if held < request.blocks:
                held = request.blocks
            else:
                request.blocks = held
            num_accepted = accepted[stored_tokens - request.prompt_tokens]
            last[request] = tokens = num_accepted + 1 if num_accepted < num_left else num_left
            steps[request.request_id] += bytes((num_accepted, tokens))
            request.offset += tokens - 1
            request.finish_step -= tokens - 1
            num_left -= tokens
            if num_left:
                ahead = tokens_each if tokens_each < num_left else num_left
                needed = -(-(stored_tokens + tokens + ahead) // block_size)
                if needed > held:
                    wanted += needed - held
            else:
                self._finished.append(request)
        self._last, self._wanted = last, wanted
        given = sum(last.values())
        self._log.tokens[self._replica_id].append(given)
        self.step = step + 1
        self.context_tokens += given
        return blocks


def make_decoding(
    block_size: int,
    speculation: Speculation | None,
    log: StepLog,
    replica_id: int,
    *,
    follows_longest: bool,
    meter: ServiceMeter | None = None,
) -> Decoding:
    """The sequences of a replica that decode together, a token each or several."""
    if speculation is None:
        return Decoding(block_size, follows_longest=follows_longest, meter=meter)
    if meter is not None:
        raise ConfigError(
            "a queue that counts what tenants are served counts a token an iteration, but engine.speculation "
            "gives several: leave one of them out"
        )
    return SpeculativeDecoding(block_size, speculation, log, replica_id, follows_longest=follows_longest)
