"""What goes into this batch? Run to completion: when a batch is launched, and from which bin.

The batch itself is always the head of that bin, up to the size that the sizer allows and memory holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from batchsim.errors import ConfigError
from batchsim.policies.base import QueueDiscipline, Sizer, arrival_order
from batchsim.policies.building_blocks import Answer


def _occupied(queue: QueueDiscipline) -> Iterator[int]:
    return (bin_ for bin_ in range(queue.num_bins) if queue.waiting(bin_))


def _missing_to_full(queue: QueueDiscipline, sizer: Sizer) -> int:
    """Requests that the fullest bin lacks to be full, at least 1."""
    lacking = (sizer.batch_size(bin_) - queue.waiting(bin_) for bin_ in range(queue.num_bins))
    return max(1, min(lacking))


@dataclass(frozen=True, slots=True)
class Greedy(Answer):
    """Launch whatever waits as soon as a GPU is idle; of several bins, serve by `order`.

    Attributes
    ----------
    order
        ``oldest``: the bin whose oldest request arrived first; ``longest``: the bin with most requests
        waiting.
    """

    order: Literal["oldest", "longest"] = "oldest"

    def __post_init__(self) -> None:
        if self.order not in ("oldest", "longest"):
            raise ConfigError(f"order is {self.order!r}; 'oldest' or 'longest' is needed")

    @property
    def strands(self) -> bool:
        """Nobody is left behind."""
        return False

    def next_bin(
        self, queue: QueueDiscipline, sizer: Sizer, now_s: float, *, is_last_call: bool
    ) -> int | None:
        """The bin to serve, if anyone waits."""
        if self.order == "longest":
            return max(_occupied(queue), key=queue.waiting, default=None)
        return queue.oldest_bin()

    def num_missing(self, queue: QueueDiscipline, sizer: Sizer) -> int:
        """Any will do."""
        return 1

    def wake_s(self, queue: QueueDiscipline) -> float:
        """Never by itself."""
        return math.inf


@dataclass(frozen=True, slots=True)
class FullBatch(Answer):
    """Launch full batches only, in the order in which they became full (arXiv 2412.04504).

    A batch of a bin became full when the request arrived that made the line as long as the sizer allows. When
    no more requests come, up to ``num_bins * (size - 1)`` are left that will never fill a batch; the paper
    does not say what becomes of them.

    Attributes
    ----------
    leftovers
        ``flush``: serve them as partial batches, oldest first, and count them; ``strand``: leave them
        unserved, and count them.
    """

    leftovers: Literal["flush", "strand"] = "flush"

    def __post_init__(self) -> None:
        if self.leftovers not in ("flush", "strand"):
            raise ConfigError(f"leftovers is {self.leftovers!r}; 'flush' or 'strand' is needed")

    @property
    def strands(self) -> bool:
        """As `leftovers` says."""
        return self.leftovers == "strand"

    def next_bin(
        self, queue: QueueDiscipline, sizer: Sizer, now_s: float, *, is_last_call: bool
    ) -> int | None:
        """The bin whose next batch became full first; at the last call, then the oldest leftovers."""
        first, first_full = None, (math.inf, 0)
        for bin_ in range(queue.num_bins):
            size = sizer.batch_size(bin_)
            if queue.waiting(bin_) >= size:
                if queue.num_bins == 1:
                    return bin_
                became_full = arrival_order(queue.nth(bin_, size - 1))
                if became_full < first_full:
                    first, first_full = bin_, became_full
        if first is None and is_last_call and self.leftovers == "flush":
            return queue.oldest_bin()
        return first

    def num_missing(self, queue: QueueDiscipline, sizer: Sizer) -> int:
        """What the fullest bin lacks."""
        return _missing_to_full(queue, sizer)

    def wake_s(self, queue: QueueDiscipline) -> float:
        """Never by itself."""
        return math.inf


@dataclass(frozen=True, slots=True)
class Timer(Answer):
    """Launch a bin when it is full or its oldest request has waited `max_wait_s`; the oldest goes first.

    The practical option that the Multi-Bin Batching paper names and does not analyse.
    """

    max_wait_s: float = 1.0

    def __post_init__(self) -> None:
        if not self.max_wait_s >= 0:
            raise ConfigError(f"max_wait_s is {self.max_wait_s!r}; a number >= 0 is needed")

    @property
    def strands(self) -> bool:
        """Nobody is left behind."""
        return False

    def next_bin(
        self, queue: QueueDiscipline, sizer: Sizer, now_s: float, *, is_last_call: bool
    ) -> int | None:
        """The oldest bin that is full, or due, or any at the last call."""
        ready = [
            bin_
            for bin_ in _occupied(queue)
            if is_last_call
            or queue.waiting(bin_) >= sizer.batch_size(bin_)
            or now_s >= queue.oldest(bin_).arrival_s + self.max_wait_s
        ]
        return min(ready, key=lambda bin_: arrival_order(queue.oldest(bin_)), default=None)

    def num_missing(self, queue: QueueDiscipline, sizer: Sizer) -> int:
        """What the fullest bin lacks; the first to come to an empty queue sets the timer."""
        return _missing_to_full(queue, sizer) if queue.oldest_bin() is not None else 1

    def wake_s(self, queue: QueueDiscipline) -> float:
        """When the oldest waiting request is due."""
        arrivals = (queue.oldest(bin_).arrival_s for bin_ in _occupied(queue))
        return min(arrivals, default=math.inf) + self.max_wait_s
