"""What a latency model is: seconds for a batch (run to completion) or for an iteration (one forward pass)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Provenance = Literal["measured", "derived", "synthetic"]


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
    """One forward pass: prompt tokens processed, sequences decoded, KV tokens those sequences attend to."""

    prefill_tokens: int
    decode_seqs: int
    context_tokens: int


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
    """Seconds for one forward pass of an engine that batches at every iteration."""

    def iteration_s(self, shape: IterationShape) -> float:
        """Seconds (> 0) for one forward pass."""


def decode_span_s(
    latency: IterationLatency, num_iterations: int, decode_seqs: int, context_tokens: int
) -> float:
    """Seconds for ``num_iterations`` decode iterations of an unchanged batch, each adding a token a sequence.

    The default for models without a closed form: one evaluation per iteration, summed. ``context_tokens`` is
    the KV length of the whole batch before the first iteration.
    """
    return float(
        np.sum(
            [
                latency.iteration_s(IterationShape(0, decode_seqs, context_tokens + step * decode_seqs))
                for step in range(num_iterations)
            ]
        )
    )
