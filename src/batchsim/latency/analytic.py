"""Whole-batch models with a few coefficients, which `latency.fitting` finds, and noise for whole batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from batchsim.errors import ConfigError
from batchsim.latency.base import BatchLatency, BatchShape, BatchTime, Domain, LatencyInfo

#: Which tokens the length ``L`` of a whole batch counts.
Length = Literal["output", "prompt+output"]
LENGTHS: tuple[Length, ...] = ("output", "prompt+output")


#: The largest coefficient, thirty years where it is in seconds: beyond it times lose all meaning.
MOST = 1e9
#: The largest sigma of noise: half of the factors are then below 4e-6.
MOST_SIGMA = 5


@dataclass(frozen=True, slots=True)
class AffineBatchLatency:
    """``T(b, L) = alpha + beta * L * (1 + gamma * (b - 1) / b)``.

    Kept to repeat older studies: it saturates at ``alpha + beta * L * (1 + gamma)`` however large the batch,
    and cannot tell the first token from the last (its first token is NaN).

    Attributes
    ----------
    alpha_s
        Seconds per batch.
    beta_s_per_token
        Seconds per token of the longest member, alone in its batch.
    gamma
        Share by which a token of an infinitely large batch takes longer.
    length
        ``output``: L is the longest answer (arXiv 2412.04504); ``prompt+output``: a prompt token costs as
        much as an output token.
    """

    alpha_s: float
    beta_s_per_token: float
    gamma: float
    length: Length
    domain: Domain = field(default_factory=Domain)
    info: LatencyInfo = field(default_factory=LatencyInfo)

    def __post_init__(self) -> None:
        check_number("alpha_s", self.alpha_s)
        check_number("beta_s_per_token", self.beta_s_per_token)
        check_number("gamma", self.gamma)
        if self.alpha_s == self.beta_s_per_token == 0:
            raise ConfigError("alpha_s and beta_s_per_token are both 0; a batch must take time")
        if self.length not in LENGTHS:
            raise ConfigError(f"length is {self.length!r}; known: {', '.join(LENGTHS)}")

    def batch_time(self, shape: BatchShape) -> BatchTime:
        """Seconds to the end of the batch."""
        batch_size, prompt_tokens, output_tokens = shape
        length = output_tokens if self.length == "output" else prompt_tokens + output_tokens
        growth = 1 + self.gamma * (batch_size - 1) / batch_size
        return BatchTime(math.nan, self.alpha_s + self.beta_s_per_token * length * growth)


@dataclass(frozen=True, slots=True)
class PhaseBatchLatency:
    """A prefill of the padded batch, then one decode step for each further output token.

    ``prefill(b, prompt) = p0 + p1 * b * prompt + p2 * b * prompt^2`` and
    ``decode(b, kv) = d0 + d1 * [b > 1] + d2 * b + d3 * kv``, ``kv`` being the tokens that the whole batch
    holds before the step. The prefill gives the first output token; the first step finds the prompts in the
    cache.

    Attributes
    ----------
    prefill_s, prefill_s_per_token, prefill_s_per_token2
        p0, p1, p2.
    decode_s, decode_s_if_batched, decode_s_per_seq, decode_s_per_kv_token
        d0, d1, d2, d3.
    """

    prefill_s: float
    prefill_s_per_token: float
    prefill_s_per_token2: float
    decode_s: float
    decode_s_if_batched: float
    decode_s_per_seq: float
    decode_s_per_kv_token: float
    domain: Domain = field(default_factory=Domain)
    info: LatencyInfo = field(default_factory=LatencyInfo)

    def __post_init__(self) -> None:
        for name in PHASE_COEFFICIENTS:
            check_number(name, getattr(self, name))
        if self.prefill_s == self.prefill_s_per_token == self.prefill_s_per_token2 == 0:
            raise ConfigError("all prefill coefficients are 0; a batch must take time")

    def batch_time(self, shape: BatchShape) -> BatchTime:
        """Seconds to the first token and to the end of the batch."""
        batch_size, prompt_tokens, output_tokens = shape
        first_token_s = self.prefill_s + batch_size * prompt_tokens * (
            self.prefill_s_per_token + self.prefill_s_per_token2 * prompt_tokens
        )
        steps = output_tokens - 1
        step_s = self.decode_s + self.decode_s_per_seq * batch_size
        if batch_size > 1:
            step_s += self.decode_s_if_batched
        kv_tokens = batch_size * steps * (prompt_tokens + (steps - 1) / 2)  # summed over the steps
        return BatchTime(
            first_token_s, first_token_s + steps * step_s + self.decode_s_per_kv_token * kv_tokens
        )


PREFILL_COEFFICIENTS = ("prefill_s", "prefill_s_per_token", "prefill_s_per_token2")
DECODE_COEFFICIENTS = ("decode_s", "decode_s_if_batched", "decode_s_per_seq", "decode_s_per_kv_token")
PHASE_COEFFICIENTS = PREFILL_COEFFICIENTS + DECODE_COEFFICIENTS


@dataclass(frozen=True, slots=True)
class NoisyLatency:
    """A model whose times are multiplied by a lognormal factor with mean 1, drawn anew for every batch.

    Not a pure function: the same shape takes another time at each call, and calls move `rng` on. The factor
    is ``exp(sigma * Z - sigma^2 / 2)``, the same for the first token and the end of a batch.
    """

    model: BatchLatency
    sigma: float
    rng: np.random.Generator

    def __post_init__(self) -> None:
        check_sigma(self.sigma)

    @property
    def info(self) -> LatencyInfo:
        """That of the model."""
        return self.model.info

    @property
    def domain(self) -> Domain:
        """That of the model."""
        return self.model.domain

    def batch_time(self, shape: BatchShape) -> BatchTime:
        """Seconds of the model, times the next factor."""
        factor = noise_factor(self.sigma, self.rng)
        first_token_s, total_s = self.model.batch_time(shape)
        return BatchTime(first_token_s * factor, total_s * factor)


def noise_factor(sigma: float, rng: np.random.Generator) -> float:
    """Draw a lognormal factor with mean 1: ``exp(sigma * Z - sigma^2 / 2)``."""
    return math.exp(sigma * rng.standard_normal() - sigma**2 / 2)


def check_sigma(sigma: float) -> None:
    """Raise `ConfigError` for more noise than leaves times a meaning: from some 30 on, factors overflow."""
    check_number("noise sigma", sigma)
    if sigma > MOST_SIGMA:
        raise ConfigError(f"noise sigma is {sigma!r}; a number from 0 to {MOST_SIGMA} is needed")


def check_number(name: str, value: Any, above: float | None = None) -> None:
    """Raise `ConfigError` unless ``value`` is a number up to `MOST` that is >= 0, or > ``above`` if given."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (value >= 0 if above is None else value > above) or value > MOST:
        least = ">= 0" if above is None else f"> {above:g}"
        raise ConfigError(f"{name} is {value!r:.60}; a finite number {least} is needed, up to {MOST:g}")
