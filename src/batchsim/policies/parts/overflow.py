"""How many requests fit memory at a given risk: the arithmetic of Algorithm 1 (arXiv 2503.05248)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import mul


@lru_cache
def normal_quantile(probability: float) -> float:
    """Theta: the standard normal law lies below it with this probability."""
    from scipy.special import ndtri

    return float(ndtri(probability))


def largest_batch(
    capacity_tokens: float, mean_tokens: float, std_tokens: float, overflow_probability: float
) -> float:
    """Largest real ``b`` with ``P(sum of b lengths > capacity) <= overflow_probability``, by the normal law.

    ``mean_tokens`` and ``std_tokens`` are those of one request's prompt + output. The positive root of ``mean
    * b + theta * std * sqrt(b) = capacity``, ``theta`` the normal quantile of ``1 - overflow_probability``
    (arXiv 2503.05248 eqs 7-12, with per-request moments: with the batch-level ones that it prints, the
    dimensions do not agree).
    """
    spread = normal_quantile(1 - overflow_probability) * std_tokens
    return ((math.sqrt(spread**2 + 4 * mean_tokens * capacity_tokens) - spread) / (2 * mean_tokens)) ** 2


@dataclass(slots=True)
class Lengths:
    """Running moments of total tokens a request, and what the rules of Algorithm 1 keep between steps."""

    num: int = 0
    sum: int = 0
    sum_squares: int = 0
    size: int = 0
    buffer_tokens: float = 0.0
    num_batches: int = 0

    def add(self, total_tokens: Sequence[int]) -> None:
        """Learn of more requests."""
        self.num += len(total_tokens)
        self.sum += sum(total_tokens)
        self.sum_squares += sum(map(mul, total_tokens, total_tokens))

    @property
    def mean(self) -> float:
        """Mean tokens of a request."""
        return self.sum / self.num

    @property
    def std(self) -> float:
        """Standard deviation of the tokens of a request."""
        return math.sqrt(max(0.0, self.sum_squares / self.num - self.mean**2))
