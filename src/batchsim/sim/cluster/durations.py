"""How long what happens to replicas takes: laws of random durations."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Law = Literal["fixed", "exponential", "lognormal", "uniform"]


@dataclass(frozen=True, slots=True)
class Durations:
    """A law, from which one duration after the other is drawn.

    Attributes
    ----------
    mean_s
        Infinity: what is waited for never comes.
    cv
        Coefficient of variation, standard deviation / mean, of ``lognormal`` and ``uniform``; a uniform law
        has at most ``1 / sqrt(3)``, where it begins at 0.
    rng
        What is drawn from.
    """

    mean_s: float
    law: Law = "fixed"
    cv: float = 0.5
    rng: np.random.Generator = field(default_factory=np.random.default_rng)

    def draw_s(self) -> float:
        """The next one, in seconds."""
        mean_s, rng = self.mean_s, self.rng
        if self.law == "fixed" or mean_s == math.inf or not mean_s:
            return mean_s
        if self.law == "exponential":
            return float(rng.exponential(mean_s))
        if self.law == "uniform":
            half_s = math.sqrt(3) * self.cv * mean_s
            return float(rng.uniform(mean_s - half_s, mean_s + half_s))
        sigma = math.sqrt(math.log1p(self.cv**2))
        return float(rng.lognormal(math.log(mean_s) - sigma**2 / 2, sigma))
