"""What vLLM's scheduler does, written down: a class to mix into the scheduler of whichever version.

Nothing here imports vLLM, so that the log can be read, and tested, without it.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

#: Names the file that passes are written to, one JSON object a line, where the engine is not ours to drive.
LOG_VARIABLE = "BATCHSIM_SCHEDULER_LOG"


class Share(NamedTuple):
    """What a pass does for one request.

    Attributes
    ----------
    num_tokens
        Computed by the pass.
    tokens_before
        Computed, or found in the prefix cache, before it.
    num_known
        Of prompt and answer when the pass was scheduled: one that comes up to them yields the next token.
    """

    request_id: str
    num_tokens: int
    tokens_before: int
    num_known: int

    @property
    def yields(self) -> bool:
        """Whether a token comes of it."""
        return self.tokens_before + self.num_tokens == self.num_known


class GaveWay(NamedTuple):
    """A preempted request, and the computed tokens it lost."""

    request_id: str
    lost_tokens: int


@dataclass(slots=True)
class Pass:
    """One iteration, by the clock of `time.perf_counter`.

    Attributes
    ----------
    start_s, scheduled_s
        Before and after ``schedule()``.
    finish_s
        After ``update_from_output()``; NaN until then.
    num_left
        Requests that are not finished, after that.
    """

    start_s: float
    scheduled_s: float
    shares: Sequence[Share]
    preempted: Sequence[GaveWay]
    num_running: int
    num_waiting: int
    free_blocks: int
    finish_s: float = float("nan")
    num_left: int = 0

    def to_json(self) -> dict[str, Any]:
        """One line of the log; of requests, their numbers alone."""
        return {
            "start_s": self.start_s,
            "scheduled_s": self.scheduled_s,
            "finish_s": self.finish_s,
            "shares": [list(share[1:]) for share in self.shares],
            "num_preempted": len(self.preempted),
            "num_running": self.num_running,
            "num_waiting": self.num_waiting,
            "free_blocks": self.free_blocks,
            "num_left": self.num_left,
        }


@dataclass(slots=True)
class PassLog:
    """Passes of a scheduler, as they are scheduled and as they end; vLLM ends them in order.

    Attributes
    ----------
    ended
        Since somebody last took them away.
    """

    ended: list[Pass] = field(default_factory=list)
    _under_way: deque[Pass] = field(default_factory=deque)
    _file: TextIO | None = None

    def schedule(self, one: Pass) -> None:
        """A pass was scheduled."""
        self._under_way.append(one)

    def end(self, finish_s: float, num_left: int) -> None:
        """The oldest pass under way has ended."""
        one = self._under_way.popleft()
        one.finish_s, one.num_left = finish_s, num_left
        if self._file is not None:
            self._file.write(json.dumps(one.to_json()) + "\n")
        else:
            self.ended.append(one)

    def take(self) -> list[Pass]:
        """Return those that ended since the last time."""
        taken, self.ended = self.ended, []
        return taken


def log_in(path: str | None) -> PassLog:
    """Make a log that is kept, or one that goes to a file, line by line."""
    if not path:
        return PassLog()
    # Open for as long as the server runs.
    return PassLog(_file=Path(path).open("a", encoding="utf-8", buffering=1))


class LogsPasses:
    """Goes before a scheduler of vLLM among the bases of a class, and keeps its passes in ``log``.

    Attributes
    ----------
    made_with
        Arguments of the scheduler, for another one of the same kind.
    """

    log: PassLog
    made_with: tuple[tuple[Any, ...], dict[str, Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made_with = args, kwargs
        self.log = log_in(os.environ.get(LOG_VARIABLE))
        self._gave_way: list[GaveWay] = []

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule a pass, and note it."""
        start_s = time.perf_counter()
        self._gave_way = []
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        scheduled_s = time.perf_counter()
        own: Any = self
        num_running, num_waiting = own.get_request_counts()
        shares = [_share(own.requests[name], num) for name, num in output.num_scheduled_tokens.items()]
        free_blocks = own.kv_cache_manager.block_pool.get_num_free_blocks()
        self.log.schedule(
            Pass(start_s, scheduled_s, shares, self._gave_way, num_running, num_waiting, free_blocks)
        )
        return output

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """Take in what a pass yielded, and note its end."""
        outputs = super().update_from_output(*args, **kwargs)  # type: ignore[misc]
        own: Any = self
        self.log.end(time.perf_counter(), own.get_num_unfinished_requests())
        return outputs

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self._gave_way.append(GaveWay(request.request_id, request.num_computed_tokens))
        return super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]


def logging_scheduler(base: type) -> type:
    """Make a subclass of a scheduler that logs its passes."""
    return type(f"Logging{base.__name__}", (LogsPasses, base), {})


def _share(request: Any, num_tokens: int) -> Share:
    """After scheduling a request counts the tokens as computed, and an answer's token under way as known."""
    under_way = getattr(request, "num_output_placeholders", 0)
    before = request.num_computed_tokens - num_tokens
    known = request.num_tokens + under_way
    # Asynchronous schedulers count the token that the pass itself yields among those under way.
    is_counted = bool(under_way) and request.num_computed_tokens < known
    return Share(request.request_id, num_tokens, before, known - is_counted)
