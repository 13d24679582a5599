"""The points of a grid on vLLM, which cannot pretend that a sequence holds tokens: each is brought about.

The scheduler caches prefixes meanwhile, so that a sequence of any length is there after computing a block of
it at most. A point counts only if the pass that was timed is what the point says, to the token.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch

from batchsim.errors import PlanError
from batchsim.streams import stream
from batchsim_calibration.measuring.grid import Extent, Point, slots_of
from batchsim_calibration.serving.timing import Timing, clocked
from batchsim_calibration.vllm_engine.engine import Limits
from batchsim_calibration.vllm_engine.passes import PassLog, Share

#: Decode steps before the clock runs: those after a prompt take longer.
SETTLING = 2
#: Decode steps whose mean is one trial, around the context that is asked for.
TIMED = 3
#: Seconds without work after which caches have gone cold, and how often a pass is timed after them.
_REST_S, _NUM_RESTS = 0.1, 15
#: How often a point is set up until its prefixes are cached.
_MOST_SETUPS = 4


class Core(Protocol):
    """What is asked of an engine: see `VllmEngine`."""

    device: torch.device
    vocab_size: int
    block_size: int

    @property
    def log(self) -> PassLog:
        """Passes."""

    @property
    def has_work(self) -> bool:
        """Whether a step does something."""

    def request(self, request_id: str, token_ids: Sequence[int], num_output_tokens: int) -> Any:
        """Make a request."""

    def add(self, request: Any) -> None:
        """Let it wait."""

    def step(self) -> None:
        """Run a pass."""

    def drain(self) -> None:
        """Give up all requests."""

    @property
    def limits(self) -> Limits:
        """Limits of the scheduler at work."""

    def limit(self, limits: Limits) -> None:
        """Work under other limits."""


class VllmPoints:
    """Brings points about; `Measurable`.

    The time of a pass is that of one step of the engine's core: ``schedule()``, the pass, and
    ``update_from_output()``, up to where the next could be scheduled.

    Parameters
    ----------
    max_tokens
        Of the longest sequence.
    limits
        To go back to before each point, where other work changes them; those of the engine if left out.
    """

    def __init__(self, engine: Core, max_tokens: int, seed: int = 0, *, limits: Limits | None = None) -> None:
        self._engine = engine
        self._limits = limits
        self._rng = stream(seed, "prompts of points")
        self._max_tokens = max_tokens
        self._prefixes: list[list[int]] = []
        self._numbers = count()
        self.device = engine.device

    def time(self, point: Point) -> Timing:
        """Time a pass; of decodes, the mean of several."""
        if self._limits is not None and self._engine.limits != self._limits:
            self._engine.limit(self._limits)
        for _ in range(_MOST_SETUPS):
            try:
                timing = self._attempt(point)
            finally:
                self._engine.drain()
            if timing is not None:
                return timing
        raise PlanError(
            f"{tuple(point)}: vLLM schedules it otherwise, {_MOST_SETUPS} times over; are its KV blocks, "
            "max_num_seqs and max_num_batched_tokens enough?"
        )

    def wake_s(self, points: Sequence[Point]) -> float:
        """How much longer a pass takes after a rest: the median of a prompt of middling length."""
        prompts = sorted(point for point in points if point.kind == "prefill" and point.batch_size == 1)
        point, longer_s = prompts[len(prompts) // 2], []
        for _ in range(_NUM_RESTS):
            usual_s = self.time(point).wall_s
            time.sleep(_REST_S)
            longer_s.append(self.time(point).wall_s - usual_s)
        return max(float(np.median(longer_s)), 0.0)

    def release(self) -> None:
        """Give up all requests."""
        self._engine.drain()

    def _attempt(self, point: Point) -> Timing | None:
        if point.kind in ("prefill", "chunk"):
            return self._prompts(point)
        decoding, context = self._decoding(point)
        for _ in range(SETTLING):
            self._engine.step()
        if point.kind == "mixed":
            self._add(self._random(point.prompt_tokens), 2)
            return self._timed((point.prompt_tokens, 0, len(decoding), len(decoding) * context), decoding)
        timings = []
        for step in range(TIMED):
            shape = (0, 0, len(decoding), len(decoding) * (context + step))
            if (timing := self._timed(shape, decoding)) is None:
                return None
            timings.append(timing)
        return Timing(*np.mean(timings, axis=0).tolist())

    def _prompts(self, point: Point) -> Timing | None:
        num, length, depth = point.batch_size, point.prompt_tokens, point.context_tokens
        for slot in range(num):
            self._add([*self._prefix(slot)[:depth], *self._random(length)], 2)
        return self._timed((num * length, num * depth, 0, 0), frozenset())

    def _decoding(self, point: Point) -> tuple[frozenset[str], int]:
        """Let sequences decode; return them, and the tokens that each holds once it has settled."""
        ahead = SETTLING + (TIMED // 2 if point.kind == "decode" else 0)
        length = max(point.context_tokens - ahead, 1)
        # One token more than is asked of them: whoever ends costs something, too.
        answer = 1 + ahead + TIMED + 1
        names = {self._add(self._prefix(slot)[:length], answer) for slot in range(point.batch_size)}
        complete: set[str] = set()
        while complete < names:
            self._engine.step()
            for one in self._engine.log.take():
                complete |= {share.request_id for share in one.shares if share.yields}
        return frozenset(names), length + SETTLING

    def _timed(self, wanted: tuple[int, ...], decoding: frozenset[str]) -> Timing | None:
        """Time a step; None unless the pass was of the shape wanted, see `shape_of`."""
        self._engine.log.take()
        timing = Timing(*clocked(self._engine.step), math.nan)
        (one,) = self._engine.log.take()
        return timing if shape_of(one.shares, decoding) == wanted else None

    def _add(self, token_ids: Sequence[int], num_output_tokens: int) -> str:
        name = f"point-{next(self._numbers)}"
        self._engine.add(self._engine.request(name, token_ids, num_output_tokens))
        return name

    def _prefix(self, slot: int) -> list[int]:
        while len(self._prefixes) <= slot:
            self._prefixes.append(self._random(self._max_tokens))
        return self._prefixes[slot]

    def _random(self, num_tokens: int) -> list[int]:
        tokens: list[int] = self._rng.integers(self._engine.vocab_size, size=num_tokens).tolist()
        return tokens


def shape_of(shares: Iterable[Share], decoding: frozenset[str]) -> tuple[int, ...]:
    """Prompt tokens of a pass and those before them, decodes and those before them."""
    decodes = [share for share in shares if share.request_id in decoding]
    chunks = [share for share in shares if share.request_id not in decoding]
    return (
        sum(share.num_tokens for share in chunks),
        sum(share.tokens_before for share in chunks),
        len(decodes),
        sum(share.tokens_before for share in decodes),
    )


def limits_for(points: Sequence[Point], block_size: int) -> tuple[Limits, Extent]:
    """Return the limits under which vLLM can bring points about, and the extent of their sequences."""
    slots = slots_of(points)
    most_tokens = max(
        point.prompt_tokens * (1 if point.kind == "mixed" else point.batch_size) + point.batch_size
        for point in points
    )
    budget = max(most_tokens, slots.batch_size * (block_size + 1))
    longest = slots.tokens + SETTLING + 2 * TIMED
    blocks_of_one = -(-longest // block_size)
    blocks = slots.batch_size * (blocks_of_one + 1) + 2 * -(-budget // block_size)
    return Limits(slots.batch_size, budget, blocks, prefix_caching=True), Extent(slots.batch_size, longest)
