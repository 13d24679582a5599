"""What a latency model is: seconds for a batch (run to completion) or for an iteration (one forward pass)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, NoReturn, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from batchsim.errors import ConfigError

Provenance = Literal["measured", "derived", "synthetic"]
Floats = NDArray[np.float64]


class BatchShape(NamedTuple):
    """A padded run-to-completion batch: every member costs as much as the longest.

    ``prompt_tokens`` and ``output_tokens`` are the maxima over the batch.
    """

    batch_size: int
    prompt_tokens: int
    output_tokens: int


class BatchTime(NamedTuple):
    """When a batch that starts at zero gives its first token and when it ends, in seconds.

    ``first_token_s`` is NaN where the model does not tell phases apart.
    """

    first_token_s: float
    total_s: float


class IterationShape(NamedTuple):
    """One forward pass: prompt chunks and decoding sequences together.

    Attributes
    ----------
    prefill_tokens
        Prompt tokens processed, all chunks together.
    decode_seqs
        Sequences that decode one token each.
    context_tokens
        KV tokens that the decoding sequences attend to: the sum of their lengths before the pass.
    prefill_seqs
        Chunks the prompt tokens come from.
    prefill_pairs
        Pairs of a prompt token and a token it attends to: for each chunk, ``chunk * (tokens before it + chunk
        / 2)``.
    longest_tokens
        KV tokens of the decoding sequence that has most; 0 where nobody asks, see `UnevenIterationLatency`.
    """

    prefill_tokens: int
    decode_seqs: int
    context_tokens: int
    prefill_seqs: int = 0
    prefill_pairs: float = 0.0
    longest_tokens: int = 0


#: The fields that a recorded iteration has: sums over its sequences.
RECORDED_FIELDS = IterationShape._fields[:-1]


class DecodeLine(NamedTuple):
    """Seconds of pure decode iterations of one batch, which are linear in their number for a while.

    Iteration ``j`` of an unchanged batch takes ``first_s + j * growth_s`` for ``0 <= j < num_linear``.
    """

    first_s: float
    growth_s: float
    num_linear: float  # a whole number, or infinity


@dataclass(frozen=True, slots=True)
class Domain:
    """The range a model was measured on; every bound is inclusive, ``None`` means unbounded.

    Attributes
    ----------
    batch_size, prompt_tokens, output_tokens
        ``(low, high)``.
    length
        ``(low, high)`` of prompt + output tokens, for models that know only the sum.
    """

    batch_size: tuple[int, int] | None = None
    prompt_tokens: tuple[int, int] | None = None
    output_tokens: tuple[int, int] | None = None
    length: tuple[int, int] | None = None

    def contains(self, batch_size: int, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether a batch of this shape lies in the range."""
        return bool(self._contains(batch_size, prompt_tokens, output_tokens))

    def contains_all(
        self,
        batch_size: NDArray[np.int64],
        prompt_tokens: NDArray[np.int64],
        output_tokens: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Tell for each of many batches whether it lies in the range; arrays of shape ``(num_batches,)``."""
        inside = np.asarray(self._contains(batch_size, prompt_tokens, output_tokens), dtype=np.bool_)
        return np.broadcast_to(inside, np.shape(batch_size)).copy()

    def _contains(self, batch_size: Any, prompt_tokens: Any, output_tokens: Any) -> Any:
        inside: Any = True
        for bounds, value in (
            (self.batch_size, batch_size),
            (self.prompt_tokens, prompt_tokens),
            (self.output_tokens, output_tokens),
            (self.length, prompt_tokens + output_tokens),
        ):
            if bounds is not None:
                inside = inside & (bounds[0] <= value) & (value <= bounds[1])
        return inside


@dataclass(frozen=True, slots=True)
class IterationDomain:
    """The range of iterations a model was measured on: of fields of `IterationShape`.

    Every bound ``(low, high)`` is inclusive, ``None`` means unbounded.
    """

    prefill_tokens: tuple[int, int] | None = None
    decode_seqs: tuple[int, int] | None = None
    context_tokens: tuple[int, int] | None = None

    def contains(self, shape: IterationShape) -> bool:
        """Whether an iteration of this shape lies in the range."""
        for bounds, value in zip(
            (self.prefill_tokens, self.decode_seqs, self.context_tokens), shape, strict=False
        ):
            if bounds is not None and not bounds[0] <= value <= bounds[1]:
                return False
        return True


@dataclass(frozen=True, slots=True)
class LatencyInfo:
    """What is known about a model besides its coefficients; copied into every manifest.

    Attributes
    ----------
    name
        What a person calls it, e.g. ``qwen2.5-1.5b on rtx4080-laptop``.
    provenance
        ``measured`` only for times taken on real hardware.
    details
        GPU, dtype, date, fit quality ... as written in the latency file.
    """

    name: str = "unnamed"
    provenance: Provenance = "synthetic"
    details: dict[str, object] = field(default_factory=dict)


class BatchLatency(Protocol):
    """Seconds for a padded batch that runs to completion. The same shape always takes the same time."""

    @property
    def info(self) -> LatencyInfo:
        """Name and provenance."""

    @property
    def domain(self) -> Domain:
        """The range the model was measured on."""

    def batch_time(self, shape: BatchShape) -> BatchTime:
        """Seconds (> 0) from launch to first token and to the end of the batch."""


class IterationLatency(Protocol):
    """Seconds for one forward pass of an engine that batches at every iteration. Same shape, same time."""

    @property
    def info(self) -> LatencyInfo:
        """Name and provenance."""

    @property
    def is_bounded(self) -> bool:
        """Whether there are shapes that `covers` denies."""

    def covers(self, shape: IterationShape) -> bool:
        """Whether the shape lies in the range the model was measured on."""

    def iteration_s(self, shape: IterationShape) -> float:
        """Seconds (> 0) for one forward pass, host time between passes not included."""

    def decode_line(self, decode_seqs: int, context_tokens: int) -> DecodeLine:
        """Seconds of this and the following decode iterations of a batch; each adds a token a sequence.

        ``first_s`` equals ``iteration_s(IterationShape(0, decode_seqs, context_tokens))``, and so do the
        following ``num_linear - 1`` iterations, at ``context_tokens + j * decode_seqs``, to rounding. A model
        that is not linear in the context says 1: then every iteration is an event of its own.
        """


class UnevenIterationLatency(IterationLatency, Protocol):
    """One that tells decodes of one context from those of many; an engine keeps the longest for it alone."""

    @property
    def follows_longest(self) -> bool:
        """Whether `longest_tokens` makes a difference."""

    def decode_line(self, decode_seqs: int, context_tokens: int, longest_tokens: int = 0) -> DecodeLine:
        """As any model's; the longest context, too, grows by a token an iteration. 0: not known."""


def follows_longest(latency: IterationLatency) -> TypeGuard[UnevenIterationLatency]:
    """Whether the model asks for the longest context."""
    return bool(getattr(latency, "follows_longest", False))


class VerifyingLatency(IterationLatency, Protocol):
    """One that tells a decode of several tokens from several decodes."""

    def verification_s(self, shape: IterationShape, tokens_each: int) -> float:
        """Seconds of a pass in which each decode has so many tokens, as to verify drafts."""


def verifies(latency: IterationLatency) -> TypeGuard[VerifyingLatency]:
    """Whether the model knows of decodes of several tokens."""
    return hasattr(latency, "verification_s")


def decode_span_s(
    latency: IterationLatency, num_iterations: int, decode_seqs: int, context_tokens: int
) -> float:
    """Seconds for ``num_iterations`` decode iterations of an unchanged batch, line by line."""
    total_s = 0.0
    while num_iterations > 0:
        first_s, growth_s, num_linear = latency.decode_line(decode_seqs, context_tokens)
        num = int(min(num_linear, num_iterations))
        total_s += num * first_s + growth_s * (num * (num - 1) / 2)
        num_iterations -= num
        context_tokens += num * decode_seqs
    return total_s


def padded_batch_time(latency: IterationLatency, shape: BatchShape) -> BatchTime:
    """Run a padded batch to completion: its prompts in one pass, then a span of decode iterations."""
    batch_size, prompt_tokens, output_tokens = shape
    tokens = batch_size * prompt_tokens
    first_token_s = latency.iteration_s(IterationShape(tokens, 0, 0, batch_size, tokens * prompt_tokens / 2))
    return BatchTime(
        first_token_s, first_token_s + decode_span_s(latency, output_tokens - 1, batch_size, tokens)
    )


#: How to go on outside the range of a model: the end of a message.
EXTRAPOLATE = '--extrapolate (latency.outside = "extrapolate") goes on and counts what lies outside'


class OutsideRangeError(ConfigError):
    """A batch or an iteration lies outside the range of a latency model that must not be left."""


def refuse_outside(model: BatchLatency, shape: BatchShape) -> NoReturn:
    """Raise the `OutsideRangeError` for a batch outside the range of a model."""
    units = {"batch_size": "batch size", "length": "prompt + output tokens"}
    covered = [
        f"{units.get(name, name.replace('_', ' '))} {bounds[0]} to {bounds[1]}"
        for name, bounds in asdict(model.domain).items()
        if bounds is not None
    ]
    sizes = model.domain.batch_size
    smaller = ""
    if sizes is not None and shape.batch_size > sizes[1]:
        smaller = f"--batch-size {sizes[1]} keeps their size inside, and "
    raise OutsideRangeError(
        f"latency model {model.info.name} holds for {', '.join(covered)}; a batch of {shape.batch_size} with "
        f"{shape.prompt_tokens} prompt and {shape.output_tokens} output tokens lies outside: {smaller}"
        f"{EXTRAPOLATE}"
    )
