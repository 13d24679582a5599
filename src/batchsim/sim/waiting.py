"""Who waits on a replica, as its queue discipline holds them."""

from __future__ import annotations

from collections.abc import Callable

from batchsim.errors import PlanError
from batchsim.policies.base import QueueDiscipline, ServiceMeter, WaitingRequest
from batchsim.sim.request import Request


class WaitingLine:
    """The waiting requests of a replica, and the KV blocks that they will want.

    The queue discipline says who is next; requests come in and go out only here, so that they are counted.

    Attributes
    ----------
    queue
        The discipline.
    num, blocks, tokens
        How many wait, the KV blocks that their prompts will take, and the tokens of these.
    head
        The one whose turn it is, as last asked for; None once it has gone.
    on_leave
        Called when one gives up waiting.
    meter
        Who is told what is served, if the discipline wants to know.
    """

    __slots__ = (
        "_block_size",
        "_has_one_bin",
        "_head_bin",
        "blocks",
        "head",
        "meter",
        "num",
        "on_leave",
        "queue",
        "tokens",
    )

    def __init__(self, queue: QueueDiscipline, block_size: int) -> None:
        self.queue = queue
        self.num = self.blocks = self.tokens = 0
        self.head: WaitingRequest | None = None
        self.on_leave: Callable[[], None] | None = None
        self.meter: ServiceMeter | None = getattr(queue, "meter", None)
        self._block_size = block_size
        self._has_one_bin = queue.num_bins == 1
        self._head_bin = 0

    def push(self, request: Request) -> None:
        """Let a request wait."""
        request.bin = self.queue.push(request)
        request.queue = self
        self.num += 1  # `_count`, without a call for every request
        self.blocks += -(-request.prompt_tokens // self._block_size)
        self.tokens += request.prompt_tokens

    def push_back(self, request: Request) -> None:
        """Let one that was preempted wait again."""
        self.queue.push_back(request, request.bin)
        self._count(request, 1)

    def discard(self, request: Request, bin_: int) -> None:
        """Forget a request that gave up."""
        self.queue.discard(request, bin_)
        self._count(request, -1)
        if self.on_leave is not None:
            self.on_leave()

    def find_head(self, now_s: float) -> Request:
        """Return whose turn it is now; somebody has to wait."""
        bin_ = 0 if self._has_one_bin else self.queue.next_bin()
        assert bin_ is not None, "somebody waits"
        self._head_bin = bin_
        self.head = head = self.queue.head(bin_, now_s)
        return head  # type: ignore[return-value]  # a queue hands back the requests it was given

    def pop_head(self, request: Request, now_s: float) -> None:
        """Let a request go; `PlanError` if it is not the head."""
        if request is not self.head:
            raise PlanError(f"request {request.request_id} was admitted, but it is not the next in the queue")
        if self.queue.pop(self._head_bin, now_s) is not request:
            raise PlanError(
                f"request {request.request_id} was admitted, but the queue handed over another than it had "
                "shown"
            )
        self.head = None
        self.num -= 1
        self.blocks -= -(-request.prompt_tokens // self._block_size)
        self.tokens -= request.prompt_tokens
        if self.meter is not None:
            is_computed = request.num_preemptions or request.kv_source is not None
            self.meter.admit(request, 0 if is_computed else request.prompt_tokens)

    def clear(self, now_s: float) -> list[Request]:
        """Forget all who wait; return them in the order in which it would have been their turn."""
        self.on_leave = None
        left = []
        while self.num:
            left.append(request := self.find_head(now_s))
            self.discard(request, request.bin)
        self.head = None
        return left

    def _count(self, request: Request, by: int) -> None:
        self.num += by
        self.blocks += by * -(-request.prompt_tokens // self._block_size)
        self.tokens += by * request.prompt_tokens
