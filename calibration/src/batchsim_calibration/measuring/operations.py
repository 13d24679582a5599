"""What can be measured at points; and what each kind of point makes our own engine do.

`Measurable` is all that the protocol knows of an engine, so that another one can stand behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from batchsim.errors import ConfigError
from batchsim_calibration.measuring.grid import Point, slots_of
from batchsim_calibration.serving.engine import Chunk, Engine
from batchsim_calibration.serving.timing import Timing, timed, undisturbed


class Measurable(Protocol):
    """An engine that can be brought to a point and run there under the clock, any number of times."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    def time(self, point: Point) -> Timing:
        """Set a point up, run it and time that; a `RuntimeError` may say that the memory does not do."""

    def release(self) -> None:
        """Let go of what a point that did not fit has left."""


class EnginePoints:
    """The points of our own engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.device = engine.device

    def time(self, point: Point) -> Timing:
        """Time one pass, or one whole batch."""
        prepare, run = operation(self._engine, point)
        prepare()
        return timed(self.device, run)

    def release(self) -> None:
        """Let all slots hold nothing."""
        for slot in range(self._engine.num_slots):
            self._engine.clear(slot)


class Operation(NamedTuple):
    """Two things to do, the second under the clock; any number of times."""

    prepare: Callable[[], None]
    run: Callable[[], object]


def operation(engine: Engine, point: Point) -> Operation:
    """Return what a point stands for.

    Raises
    ------
    ConfigError
        If the engine has too few slots, or too little room in them.
    """
    needed = slots_of([point])
    if needed.batch_size > engine.num_slots or needed.tokens > engine.max_tokens:
        raise ConfigError(
            f"{tuple(point)} needs {needed.batch_size} slots of {needed.tokens} tokens; "
            f"the engine has {engine.num_slots} of {engine.max_tokens}"
        )
    rows = range(point.batch_size)
    prompt_slots = {"decode": range(0), "mixed": range(point.batch_size, point.batch_size + 1)}
    chunks = [
        Chunk(slot, _prompt(engine, point.prompt_tokens, slot), completes=True)
        for slot in prompt_slots.get(point.kind, rows)
    ]
    decodes_in_first = list(rows) if point.context_tokens else []
    num_more = max(point.output_tokens - 1, 0)

    def prepare() -> None:
        for slot in range(engine.num_slots):
            engine.clear(slot)
        for slot in decodes_in_first:
            engine.pretend(slot, point.context_tokens)

    def run() -> None:
        engine.step(chunks, decodes_in_first)
        for _ in range(num_more):
            engine.step((), rows)

    return Operation(prepare, run)


def measure_point(engine: Engine, point: Point, num_trials: int = 7) -> list[Timing]:
    """Time one point, after one run that is not counted."""
    points = EnginePoints(engine)
    with undisturbed():
        return [points.time(point) for _ in range(1 + num_trials)][1:]


def measure_batch_latency(
    engine: Engine, batch_size: int, prompt_tokens: int, output_tokens: int, num_trials: int = 7
) -> list[Timing]:
    """Time whole batches: prompts of one length, answers of another, none of which stops early.

    Raises
    ------
    ConfigError
        If the engine has too few slots, or too little room in them.
    """
    return measure_point(engine, Point("batch", batch_size, prompt_tokens, output_tokens), num_trials)


def _prompt(engine: Engine, num_tokens: int, slot: int) -> torch.Tensor:
    """Token ids, seeded by the slot; on the device, as a server's would be by the time a pass starts."""
    generator = torch.Generator().manual_seed(slot)
    return torch.randint(engine.vocab_size, (num_tokens,), generator=generator).to(engine.device)
