"""What a rule sees of a replica while it puts an iteration together."""

from __future__ import annotations

from collections.abc import Sequence

from batchsim.sim.kv_cache import KVCache
from batchsim.sim.request import Request
from batchsim.sim.running import RunningSet
from batchsim.sim.waiting import WaitingLine


class StepView:
    """The part of `policies.steps.Step` that only looks: who runs, who waits, what is free."""

    __slots__ = ("_kv", "_prefilling", "_running", "_waiting")

    def __init__(self, waiting: WaitingLine, running: RunningSet, kv: KVCache) -> None:
        self._waiting = waiting
        self._running = running
        self._kv = kv
        self._prefilling: dict[int, Request] = {}

    @property
    def free_blocks(self) -> int:
        """Blocks that can be taken."""
        return self._kv.available

    @property
    def num_decoding(self) -> int:
        """Requests that decode."""
        return self._running.decoding.num

    @property
    def decode_tokens(self) -> int:
        """Tokens of those that decode."""
        decoding = self._running.decoding
        return decoding.num * decoding.tokens_each

    @property
    def num_running(self) -> int:
        """Requests that run."""
        return self._running.num

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return self._waiting.num

    @property
    def prefilling(self) -> Sequence[Request]:
        """Incomplete prompts."""
        return tuple(self._prefilling.values()) if self._prefilling else ()

    @property
    def prompt_tokens_left(self) -> int:
        """Tokens still to compute of incomplete prompts."""
        return sum(one.remaining_tokens for one in self._prefilling.values())

    @property
    def running(self) -> Sequence[Request]:
        """All that run."""
        retired = self._running.retired
        return tuple(one for one in self.holding if one.request_id not in retired)

    @property
    def growing(self) -> Sequence[Request]:
        """All that want blocks."""
        running = self._running
        return tuple(running.show(one) for one in running.requests.values() if running.grows(one))

    @property
    def holding(self) -> Sequence[Request]:
        """All that hold blocks."""
        running = self._running
        return tuple(map(running.show, running.requests.values()))

    @property
    def swapped(self) -> Sequence[Request]:
        """All that are swapped out."""
        swapped = self._running.swapped
        return tuple(swapped.values()) if swapped else ()
