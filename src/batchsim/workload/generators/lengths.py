"""Length laws: how many tokens prompts and answers have, as small dataclasses that draw from a generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from batchsim.errors import ConfigError
from batchsim.workload.checks import is_number, is_whole, positive, require, whole

#: A law any wider has no mean that a sample would show.
_MOST_SIGMA = 10
#: Lengths that a law may list one by one.
_MOST_LISTED = 10**7


class Lengths(Protocol):
    """How many tokens a prompt or an answer has."""

    def sample(self, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw ``num`` lengths, at least 1 each."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same length."""

    tokens: int

    def __post_init__(self) -> None:
        whole(self, "tokens")

    def sample(self, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw ``num`` lengths, tokens."""
        return np.full(num, self.tokens, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class UniformLength:
    """Every whole number from ``low`` to ``high``, both included, equally likely."""

    low: int
    high: int

    def __post_init__(self) -> None:
        whole(self, "low", "high")
        require(self, "high", self.high >= self.low, f"a whole number >= low ({self.low})")

    def sample(self, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw ``num`` lengths, tokens."""
        return rng.integers(self.low, self.high, num, endpoint=True, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class LognormalLength:
    """Lognormal, rounded to whole tokens; give the mean or the median.

    Attributes
    ----------
    sigma
        Standard deviation of the logarithm.
    mean, median
        Of the law before ``max_tokens``.
    max_tokens
        Longer draws stop there, as answers do at a server's own ``max_tokens``.
    """

    sigma: float
    mean: float | None = None
    median: float | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        fits = is_number(self.sigma) and 0 <= self.sigma <= _MOST_SIGMA
        require(self, "sigma", fits, f"a number >= 0, up to {_MOST_SIGMA},")
        if (self.mean is None) == (self.median is None):
            raise ConfigError("lognormal: give either mean or median")
        positive(self, "mean" if self.median is None else "median")
        if self.max_tokens is not None:
            whole(self, "max_tokens")

    def sample(self, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw ``num`` lengths, tokens."""
        if self.median is not None:
            log_median = math.log(self.median)
        else:
            assert self.mean is not None
            log_median = math.log(self.mean) - self.sigma**2 / 2
        return _tokens(rng.lognormal(log_median, self.sigma, num), self.max_tokens)


@dataclass(frozen=True, slots=True)
class ExponentialLength:
    """Memoryless: geometric on 1, 2, ..., with exactly this mean unless ``max_tokens`` cuts it."""

    mean: float
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        require(self, "mean", is_number(self.mean) and self.mean >= 1, "a number >= 1")
        if self.max_tokens is not None:
            whole(self, "max_tokens")

    def sample(self, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw ``num`` lengths, tokens."""
        return _tokens(rng.geometric(1 / self.mean, num), self.max_tokens)


@dataclass(frozen=True, slots=True)
class Zipf:
    """``P(l) ~ l**-theta`` on 1..``max_tokens``; without an end there is no law for ``theta`` up to 1."""

    theta: float
    max_tokens: int

    def __post_init__(self) -> None:
        require(self, "theta", is_number(self.theta) and self.theta >= 0, "a number >= 0")
        whole(self, "max_tokens")
        fits = self.max_tokens <= _MOST_LISTED
        require(
            self, "max_tokens", fits, f"a whole number up to {_MOST_LISTED:,}, each of which has a weight,"
        )

    def sample(self, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw ``num`` lengths, tokens."""
        weights = np.arange(1, self.max_tokens + 1, dtype=np.float64) ** -self.theta
        return rng.choice(self.max_tokens, num, p=weights / weights.sum()).astype(np.int64) + 1


@dataclass(frozen=True, slots=True)
class Empirical:
    """Drawn from these values with replacement."""

    values: Sequence[int] = field(repr=False)

    def __post_init__(self) -> None:
        fits = len(self.values) > 0 and all(is_whole(value) for value in self.values)
        require(self, "values", fits, "a list of whole numbers >= 1")

    def sample(self, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw ``num`` lengths, tokens."""
        return rng.choice(np.asarray(self.values, dtype=np.int64), num)


LENGTHS: Mapping[str, Callable[..., Lengths]] = {
    "fixed": Fixed,
    "uniform": UniformLength,
    "lognormal": LognormalLength,
    "exponential": ExponentialLength,
    "zipf": Zipf,
    "empirical": Empirical,
}


def _tokens(draws: NDArray[np.float64] | NDArray[np.int64], max_tokens: int | None) -> NDArray[np.int64]:
    return np.clip(np.rint(draws), 1, max_tokens or np.iinfo(np.int32).max).astype(np.int64)
