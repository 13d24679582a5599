"""Arrival processes: when requests come, as small dataclasses that draw times from a generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from batchsim.workload.checks import positive, require


class Arrivals(Protocol):
    """When requests come."""

    def sample(self, num: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw ``num`` arrival times, seconds, non-decreasing, from 0 on."""


@dataclass(frozen=True, slots=True)
class Poisson:
    """Memoryless arrivals: exponential gaps, the first before the first request."""

    rate_per_s: float

    def __post_init__(self) -> None:
        positive(self, "rate_per_s")

    def sample(self, num: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw ``num`` arrival times, seconds."""
        return np.cumsum(rng.exponential(1 / self.rate_per_s, num))


@dataclass(frozen=True, slots=True)
class Gamma:
    """Independent Gamma gaps with shape ``1 / cv**2``: burstier than Poisson for ``cv`` above 1."""

    rate_per_s: float
    cv: float

    def __post_init__(self) -> None:
        positive(self, "rate_per_s", "cv")

    @classmethod
    def from_shape_scale(cls, alpha: float, beta: float) -> Gamma:
        """Gaps ~ Gamma(shape ``alpha``, scale ``beta`` s): mean ``alpha * beta``, CV ``1 / sqrt(alpha)``.

        BurstGPT's paper calls beta a rate in one section and a scale in another; here it is a scale.
        """
        return cls(rate_per_s=1 / (alpha * beta), cv=1 / math.sqrt(alpha))

    def sample(self, num: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw ``num`` arrival times, seconds."""
        shape = self.cv**-2
        return np.cumsum(rng.gamma(shape, 1 / (self.rate_per_s * shape), num))


@dataclass(frozen=True, slots=True)
class OnOff:
    """Poisson arrivals whose rate switches between two phases of fixed length, the busy one first.

    Attributes
    ----------
    rate_per_s
        Mean over both phases.
    on_s, off_s
        Lengths of the phases.
    off_share
        Share of the requests that arrive in off phases; 0 makes them silent.
    """

    rate_per_s: float
    on_s: float
    off_s: float
    off_share: float = 0.0

    def __post_init__(self) -> None:
        positive(self, "rate_per_s", "on_s", "off_s")
        require(self, "off_share", 0 <= self.off_share < 1, "a share in [0, 1)")

    def sample(self, num: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw ``num`` arrival times, seconds."""
        # a unit-rate process seen through the inverse of the expected number of arrivals up to each time
        period_s = self.on_s + self.off_s
        per_period = self.rate_per_s * period_s
        in_on = per_period * (1 - self.off_share)
        expected = np.cumsum(rng.exponential(1.0, num))
        period, within = np.divmod(expected, per_period)
        phase_s = np.interp(within, (0, in_on, per_period), (0, self.on_s, period_s))
        return np.asarray(period * period_s + phase_s)


@dataclass(frozen=True, slots=True)
class AllAtOnce:
    """Every request arrives at 0: what a batch job offers."""

    def sample(self, num: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw ``num`` arrival times, seconds."""
        return np.zeros(num)


ARRIVALS: Mapping[str, Callable[..., Arrivals]] = {
    "poisson": Poisson,
    "gamma": Gamma,
    "on_off": OnOff,
    "all_at_once": AllAtOnce,
}
