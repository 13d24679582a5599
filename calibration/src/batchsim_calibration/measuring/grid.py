"""Which points a profile measures: whole batches, prefills, decode steps, mixed iterations and chunks.

Decodes and whole batches fill complete grids, as tables over them need; mixed points lie on the grid of the
decodes. Batch sizes 1, 2 and 3 are among them, since kernels often change there, and the extremes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple, get_args

from batchsim.errors import ConfigError

Profile = Literal["smoke", "quick", "full"]
PROFILES: tuple[Profile, ...] = get_args(Profile)


class Point(NamedTuple):
    """What is timed; token counts are per sequence, and 0 where the kind has none.

    ``batch``: prefill of all and ``output_tokens - 1`` decode steps of all. ``prefill``: one pass of whole
    prompts. ``decode``: one step of sequences that hold ``context_tokens`` each. ``mixed``: such a step and
    one whole prompt in one pass. ``chunk``: ``prompt_tokens`` that follow ``context_tokens`` of their prompt.
    """

    kind: str
    batch_size: int
    prompt_tokens: int = 0
    output_tokens: int = 0
    context_tokens: int = 0

    def is_at_least(self, other: Point) -> bool:
        """Whether it is of the same kind and nowhere smaller."""
        return self.kind == other.kind and all(
            mine >= its for mine, its in zip(self[1:], other[1:], strict=True)
        )


class Extent(NamedTuple):
    """The largest batch, and the most tokens that one sequence holds."""

    batch_size: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Axes:
    """Values along each axis; the last of ``batch_sizes`` and ``contexts`` give the extent.

    Sums of ``batch_prompts`` and ``batch_outputs`` all differ, so that a table over prompt + output can be
    made. A prefill of more than ``max_pass_tokens`` in all is left out. ``budget_s``: see `Measurement`.
    """

    num_trials: int
    max_extra_trials: int
    batch_sizes: Sequence[int]
    prompts: Sequence[int]
    contexts: Sequence[int]
    max_pass_tokens: int
    mixed_sizes: Sequence[int]
    mixed_contexts: Sequence[int]
    mixed_prompts: Sequence[int]
    whole_sizes: Sequence[int]
    batch_prompts: Sequence[int]
    batch_outputs: Sequence[int]
    budget_s: float = math.inf


_SMOKE = Axes(
    num_trials=2,
    max_extra_trials=0,
    batch_sizes=(1, 2, 4),
    prompts=(8, 32, 96),
    contexts=(16, 48, 128),
    max_pass_tokens=192,
    mixed_sizes=(1, 4),
    mixed_contexts=(16, 128),
    mixed_prompts=(8, 96),
    whole_sizes=(1, 2, 4),
    batch_prompts=(8, 40),
    batch_outputs=(2, 6),
)
_AXES: dict[tuple[Profile, str], Axes] = {
    ("smoke", "cpu"): _SMOKE,
    ("smoke", "cuda"): _SMOKE,
    ("quick", "cpu"): Axes(
        num_trials=5,
        max_extra_trials=4,
        batch_sizes=(1, 2, 3, 4, 8, 16),
        prompts=(16, 64, 128, 256, 512),
        contexts=(16, 128, 512, 1024),
        max_pass_tokens=2048,
        mixed_sizes=(1, 4, 16),
        mixed_contexts=(128, 1024),
        mixed_prompts=(16, 64, 256),
        whole_sizes=(1, 2, 3, 4, 8, 16),
        batch_prompts=(16, 128),
        batch_outputs=(8, 24, 64),
        budget_s=240.0,
    ),
    ("full", "cpu"): Axes(
        num_trials=7,
        max_extra_trials=8,
        batch_sizes=(1, 2, 3, 4, 6, 8, 12, 16),
        prompts=(8, 16, 32, 64, 128, 256, 512, 1024),
        contexts=(16, 64, 128, 256, 512, 1024),
        max_pass_tokens=4096,
        mixed_sizes=(1, 2, 4, 8, 16),
        mixed_contexts=(16, 256, 1024),
        mixed_prompts=(16, 64, 256, 512),
        whole_sizes=(1, 2, 3, 4, 8, 12, 16),
        batch_prompts=(16, 64, 256),
        batch_outputs=(8, 32, 128),
    ),
    ("quick", "cuda"): Axes(
        num_trials=5,
        max_extra_trials=4,
        batch_sizes=(1, 2, 3, 4, 8, 16, 32, 64, 128, 256),
        prompts=(16, 64, 256, 1024, 4096),
        contexts=(16, 256, 1024, 4096),
        max_pass_tokens=16384,
        mixed_sizes=(1, 8, 64, 256),
        mixed_contexts=(256, 4096),
        mixed_prompts=(64, 256, 1024),
        whole_sizes=(1, 2, 4, 16, 64, 256),
        batch_prompts=(64, 512),
        batch_outputs=(8, 32, 96),
    ),
    ("full", "cuda"): Axes(
        num_trials=7,
        max_extra_trials=8,
        batch_sizes=(1, 2, 3, 4, 8, 16, 32, 64, 128, 256),
        prompts=(16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
        contexts=(16, 128, 512, 1024, 2048, 4096, 8192),
        max_pass_tokens=32768,
        mixed_sizes=(1, 2, 8, 32, 128, 256),
        mixed_contexts=(128, 1024, 4096),
        mixed_prompts=(16, 64, 256, 512, 1024, 2048),
        whole_sizes=(1, 2, 3, 4, 8, 16, 32, 64, 128, 256),
        batch_prompts=(64, 256, 1024),
        batch_outputs=(8, 40, 160),
    ),
}


def trials_of(profile: Profile, device: str) -> tuple[int, int]:
    """How often the profile measures each point, and how often more if its trials spread widely."""
    return _AXES[profile, device].num_trials, _AXES[profile, device].max_extra_trials


def budget_of(profile: Profile, device: str) -> float:
    """Seconds after which the profile does not repeat points any more."""
    return _AXES[profile, device].budget_s


def extent_of(
    profile: Profile,
    device: str,
    *,
    max_batch_size: int | None = None,
    max_tokens: int | None = None,
    kv_tokens: int | None = None,
) -> Extent:
    """Where the profile's grid ends: at its own edges or the limits given.

    Where the edges leave more than ``kv_tokens`` in all, which is what the device has room for, they are
    halved in turn, towards 32 sequences of 2048 tokens.
    """
    axes = _AXES[profile, device]
    batch_size = max_batch_size or axes.batch_sizes[-1]
    tokens = max_tokens or axes.contexts[-1]
    while kv_tokens is not None and batch_size * tokens > max(kv_tokens, 1):
        if batch_size / 32 >= tokens / 2048:
            batch_size //= 2
        else:
            tokens //= 2
    return Extent(batch_size, tokens)


def points_of(profile: Profile, device: str, extent: Extent) -> list[Point]:
    """Return the points of a profile that lie in the extent, whose own values are on the axes.

    Raises
    ------
    ConfigError
        If the extent leaves fewer than two lengths or batch sizes.
    """
    axes = _AXES[profile, device]
    sizes, contexts = _up_to(axes.batch_sizes, extent.batch_size), _up_to(axes.contexts, extent.tokens)
    prompts = _up_to(axes.prompts, extent.tokens)
    outputs = _inside(axes.batch_outputs, extent.tokens - axes.batch_prompts[0])
    batch_prompts = _inside(axes.batch_prompts, extent.tokens - max(outputs, default=0))
    if len(sizes) < 2 or len(contexts) < 2 or not outputs:
        needed = axes.batch_prompts[0] + axes.batch_outputs[0]
        raise ConfigError(
            f"batches to {extent.batch_size} of {extent.tokens} tokens make no grid; "
            f"at least 2 and {max(needed, axes.contexts[0] + 1)} are needed"
        )
    points = [Point("decode", b, context_tokens=c) for b, c in product(sizes, contexts)]
    points += [
        Point("prefill", b, prompt_tokens=length)
        for b, length in product(sizes, prompts)
        if b * length <= axes.max_pass_tokens or length == prompts[0] or b == sizes[0]
    ]
    points += [
        Point("mixed", b, prompt_tokens=length, context_tokens=c)
        for b, c, length in product(
            _inside(axes.mixed_sizes, extent.batch_size),
            _inside(axes.mixed_contexts, extent.tokens),
            _inside(axes.mixed_prompts, extent.tokens),
        )
    ]
    points += [
        Point("batch", b, prompt_tokens=length, output_tokens=n)
        for b, length, n in product(_up_to(axes.whole_sizes, extent.batch_size), batch_prompts, outputs)
    ]
    return points


def chunks_of(profile: Profile, device: str, extent: Extent, block_size: int) -> list[Point]:
    """Return chunks deep in a prompt, as far as they lie in the extent; they begin where a KV block does."""
    axes = _AXES[profile, device]
    depths = sorted({context // block_size * block_size for context in axes.contexts} - {0})
    return [
        Point("chunk", 1, prompt_tokens=length, context_tokens=depth)
        for depth, length in product(depths, axes.mixed_prompts)
        if depth + length <= extent.tokens
    ]


def slots_of(points: Iterable[Point]) -> Extent:
    """Return the slots, and the tokens in each, that an engine needs for these points."""
    points = list(points)
    return Extent(
        max(point.batch_size + (point.kind == "mixed") for point in points),
        max(
            # The last token of an answer is never stored; a decode step stores one more.
            point.prompt_tokens + point.context_tokens
            if point.kind == "chunk"
            else max(
                point.prompt_tokens + max(point.output_tokens - 1, 0),
                point.context_tokens + (point.context_tokens > 0),
            )
            for point in points
        ),
    )


def reference_of(points: Sequence[Point]) -> Point:
    """Return a point of medium size, quick to repeat: what tells whether the machine drifts."""
    decodes = sorted(point for point in points if point.kind == "decode") or sorted(points)
    return decodes[len(decodes) // 2]


def _up_to(axis: Sequence[int], limit: int) -> list[int]:
    return [*(value for value in axis if value < limit), limit]


def _inside(axis: Sequence[int], limit: int) -> list[int]:
    return [value for value in axis if value <= limit]
