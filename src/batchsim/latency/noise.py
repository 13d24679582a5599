"""Noise for single iterations; `latency.analytic.NoisyLatency` is that for whole batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from batchsim.latency.analytic import check_sigma, noise_factor
from batchsim.latency.base import (
    DecodeLine,
    IterationLatency,
    IterationShape,
    LatencyInfo,
    follows_longest,
)


@dataclass(frozen=True, slots=True)
class NoisyIterationLatency:
    """A model whose iterations are each multiplied by a lognormal factor with mean 1, as in `NoisyLatency`.

    Every iteration is drawn anew, so that none are alike and each is an event of its own.
    """

    model: IterationLatency
    sigma: float
    rng: np.random.Generator

    def __post_init__(self) -> None:
        check_sigma(self.sigma)

    @property
    def info(self) -> LatencyInfo:
        """That of the model."""
        return self.model.info

    @property
    def is_bounded(self) -> bool:
        """As the model is."""
        return self.model.is_bounded

    @property
    def follows_longest(self) -> bool:
        """As the model does."""
        return follows_longest(self.model)

    def covers(self, shape: IterationShape) -> bool:
        """As the model does."""
        return self.model.covers(shape)

    def iteration_s(self, shape: IterationShape) -> float:
        """Seconds of the model, times the next factor."""
        return self.model.iteration_s(shape) * noise_factor(self.sigma, self.rng)

    def decode_line(self, decode_seqs: int, context_tokens: int, longest_tokens: int = 0) -> DecodeLine:
        """Seconds of one decode iteration of the model, times the next factor."""
        model = self.model
        if follows_longest(model):
            first_s = model.decode_line(decode_seqs, context_tokens, longest_tokens).first_s
        else:
            first_s = model.decode_line(decode_seqs, context_tokens).first_s
        return DecodeLine(first_s * noise_factor(self.sigma, self.rng), 0.0, 1)
