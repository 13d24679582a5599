"""Who is next? Queue disciplines own the waiting requests and hand them over one by one.

Every operation is O(log n) or better, also when requests give up: those are only marked and skipped later, so
a queue of a million is never scanned.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from batchsim.errors import ConfigError
from batchsim.policies.base import Setting, WaitingRequest, arrival_order
from batchsim.policies.building_blocks import Answer, OneBin, RankedQueue
from batchsim.policies.parts.lines import Line
from batchsim.policies.parts.parameters import check_by_name, is_whole

#: Far more than there are lengths to tell apart; every decision looks at each bin.
MOST_BINS = 1000


@dataclass(slots=True)
class Fifo(OneBin):
    """Next is the request that arrived first."""

    _line: Line = field(default_factory=Line, init=False, repr=False, compare=False)

    @property
    def is_fifo(self) -> bool:
        """Yes."""
        return True

    def push(self, request: WaitingRequest) -> int:
        """Take a request in."""
        self._line.append(request)
        return 0

    def push_back(self, request: WaitingRequest, bin_: int) -> None:
        """Put a request back to the head."""
        self._line.appendleft(request)

    def waiting(self, bin_: int) -> int:
        """How many wait."""
        return self._line.num_waiting

    def head(self, bin_: int, now_s: float) -> WaitingRequest:
        """The one that arrived first."""
        return self._line[0]

    def pop(self, bin_: int, now_s: float) -> WaitingRequest:
        """Hand over the one that arrived first."""
        return self._line.pop_head()

    def oldest(self, bin_: int) -> WaitingRequest:
        """The one that arrived first."""
        return self._line[0]

    def nth(self, bin_: int, position: int) -> WaitingRequest:
        """The request at a position in the line."""
        return self._line.nth(position)

    def take(self, bin_: int, num: int, now_s: float) -> list[WaitingRequest]:
        """Hand over those that arrived first."""
        return self._line.take(num)

    def oldest_bin(self) -> int | None:
        """The only one, if anyone waits."""
        return 0 if self._line else None

    next_bin = oldest_bin

    def discard(self, request: WaitingRequest, bin_: int) -> None:
        """Forget a request that gave up."""
        self._line.discard(request)


@dataclass(slots=True)
class MultiBin(Answer):
    """One first-come-first-served line per range of predicted output lengths (arXiv 2412.04504).

    Bin ``i`` holds predictions in ``[edges[i-1], edges[i])``; the outer bins are open. Edges are given, or
    fitted on the training part of the workload by a rule of `workload.boundaries` (never on the requests
    being served).

    Attributes
    ----------
    num_bins
        At least 1; one bin is a plain FIFO.
    boundaries
        ``equal_mass`` (the paper's choice for LLM lengths), ``uniform``, ``exponential`` (its Lemma A.1),
        ``optimal`` (a dynamic programme), or the ``num_bins - 1`` inner edges themselves.
    turn
        Where requests join one by one: how many a bin hands over in a row before the turn goes to the bin
        whose head arrived first, so that requests of one bin run, and end, together. The paper has no such
        world; with 1 the bins make no difference there.
    """

    num_bins: int = 4
    boundaries: str | Sequence[float] = "equal_mass"
    turn: int = 8
    edges: Sequence[float] = field(default=(), init=False)
    _lines: list[Line] = field(default_factory=list, init=False, repr=False, compare=False)
    _current: int | None = field(default=None, init=False, repr=False, compare=False)
    _num_left: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not is_whole(self.num_bins, 1) or self.num_bins > MOST_BINS:
            raise ConfigError(
                f"num_bins is {self.num_bins!r}; a whole number from 1 to {MOST_BINS} is needed"
            )
        if not is_whole(self.turn, 1):
            raise ConfigError(f"turn is {self.turn!r}; a whole number >= 1 is needed")
        if not isinstance(self.boundaries, str):
            edges = [float(edge) for edge in self.boundaries]
            if len(edges) != self.num_bins - 1:
                raise ConfigError(
                    f"boundaries has {len(edges)} edges; {self.num_bins} bins need "
                    f"{self.num_bins - 1} inner edges"
                )
            if not all(map(math.isfinite, edges)) or any(low >= high for low, high in pairwise(edges)):
                raise ConfigError(f"boundaries is {edges}; edges must rise")

    @property
    def learns(self) -> bool:
        """Whether the edges are fitted on the training part."""
        return isinstance(self.boundaries, str) and self.num_bins > 1

    def prepare(self, setting: Setting) -> None:
        """Fit the edges; `ConfigError` without training lengths, or with fewer distinct ones than bins."""
        self._lines = [Line() for _ in range(self.num_bins)]
        if not isinstance(self.boundaries, str):
            self.edges = [float(edge) for edge in self.boundaries]
        elif self.num_bins == 1:
            self.edges = []
        elif len(setting.training_output_tokens) == 0:
            raise ConfigError(
                f"boundaries {self.boundaries!r} are fitted on a training part, which is empty: set "
                "workload.training_fraction above 0 or give the edges themselves"
            )
        else:
            from batchsim.workload.boundaries import fit_boundaries

            self.edges = fit_boundaries(
                self.boundaries, setting.training_output_tokens, self.num_bins, setting.batch_size
            ).tolist()

    def bin_of(self, output_tokens: int) -> int:
        """The bin of a length: how many edges lie at or below it."""
        return bisect_right(self.edges, output_tokens)

    def push(self, request: WaitingRequest) -> int:
        """Take a request into the line of its predicted length."""
        bin_ = self.bin_of(request.predicted_output_tokens)
        self._lines[bin_].append(request)
        return bin_

    def push_back(self, request: WaitingRequest, bin_: int) -> None:
        """Put a request back to the head of its bin, whose turn it is now."""
        self._lines[bin_].appendleft(request)
        self._current, self._num_left = bin_, self._num_left + 1 if self._current == bin_ else 1

    def waiting(self, bin_: int) -> int:
        """How many wait in a bin."""
        return self._lines[bin_].num_waiting

    def next_bin(self) -> int | None:
        """The bin whose turn it is, as long as requests wait in it, else the one whose head arrived first."""
        if self._current is None or not self._num_left or not self._lines[self._current]:
            self._current, self._num_left = self.oldest_bin(), self.turn
        return self._current

    @property
    def is_fifo(self) -> bool:
        """Only with one bin."""
        return self.num_bins == 1

    def head_changes_s(self, now_s: float) -> float:
        """Never by itself."""
        return math.inf

    def head(self, bin_: int, now_s: float) -> WaitingRequest:
        """The one of this bin that arrived first."""
        return self._lines[bin_][0]

    def pop(self, bin_: int, now_s: float) -> WaitingRequest:
        """Hand over the one of this bin that arrived first."""
        self._num_left -= 1
        return self._lines[bin_].pop_head()

    def oldest(self, bin_: int) -> WaitingRequest:
        """The one of this bin that arrived first."""
        return self._lines[bin_][0]

    def nth(self, bin_: int, position: int) -> WaitingRequest:
        """The request at a position in the line of a bin."""
        return self._lines[bin_].nth(position)

    def take(self, bin_: int, num: int, now_s: float) -> list[WaitingRequest]:
        """Hand over those of this bin that arrived first."""
        return self._lines[bin_].take(num)

    def oldest_bin(self) -> int | None:
        """The bin whose head arrived first."""
        occupied = [(arrival_order(line[0]), bin_) for bin_, line in enumerate(self._lines) if line]
        return min(occupied)[1] if occupied else None

    def discard(self, request: WaitingRequest, bin_: int) -> None:
        """Forget a request that gave up."""
        self._lines[bin_].discard(request)


@dataclass(slots=True)
class ShortestFirst(RankedQueue):
    """Next is the waiting request with the fewest predicted output tokens.

    Long requests can starve under sustained load, unless `promote_after_s` puts one that waited longer at the
    head. Ties go to the earlier arrival.
    """

    promote_after_s: float = math.inf

    def __post_init__(self) -> None:
        if not self.promote_after_s > 0:
            raise ConfigError(f"promote_after_s is {self.promote_after_s!r}; a number > 0 is needed")

    def rank(self, request: WaitingRequest) -> float:
        """Predicted output tokens."""
        return request.predicted_output_tokens

    def head(self, bin_: int, now_s: float) -> WaitingRequest:
        """The shortest, or the oldest once it has waited too long."""
        oldest = self._ranked.oldest()
        if now_s - oldest.arrival_s > self.promote_after_s:
            return oldest
        return self._ranked.smallest()

    def head_changes_s(self, now_s: float) -> float:
        """When the oldest will have waited too long."""
        if self.promote_after_s == math.inf or not self._ranked:
            return math.inf
        due_s = self._ranked.oldest().arrival_s + self.promote_after_s
        return due_s if due_s >= now_s else math.inf


@dataclass(slots=True)
class EarliestDeadline(RankedQueue):
    """Next is the earliest deadline, ``arrival + slack_s + per_token_s * predicted output tokens``.

    With ``per_token_s = 0`` this is first come, first served, within a class.

    Attributes
    ----------
    class_slack_s
        The slack of requests of a class (``slo_class``), by name; left out: the class's limit on the time to
        first token, where it has one, else `slack_s`.
    """

    slack_s: float = 0.0
    per_token_s: float = 0.05
    class_slack_s: Mapping[str, float] = field(default_factory=dict)
    _slacks_s: Mapping[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("slack_s", "per_token_s"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; a finite number is needed")
        check_by_name("class_slack_s", self.class_slack_s, "a finite number", math.isfinite)
        self._slacks_s = self.class_slack_s

    def prepare(self, setting: Setting) -> None:
        """Learn the limits of classes."""
        self._slacks_s = {**setting.class_ttft_s, **self.class_slack_s}

    def rank(self, request: WaitingRequest) -> float:
        """The deadline in seconds."""
        slack_s = self._slacks_s.get(request.slo_class, self.slack_s) if self._slacks_s else self.slack_s
        return request.arrival_s + slack_s + self.per_token_s * request.predicted_output_tokens


@dataclass(slots=True)
class HighestPriority(RankedQueue):
    """Next is the smallest `priority`, of equals the one that arrived first (vLLM's priority scheduling).

    Attributes
    ----------
    class_priority
        The priority of requests of a class (``slo_class``), by name; others have that of the trace.
    """

    class_priority: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_by_name("class_priority", self.class_priority, "a finite number", math.isfinite)

    def rank(self, request: WaitingRequest) -> float:
        """The priority."""
        if self.class_priority:
            return self.class_priority.get(request.slo_class, request.priority)
        return request.priority
