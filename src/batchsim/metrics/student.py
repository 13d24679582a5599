"""Student's t law: scipy has it too, but takes longer to load than a short run takes."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist


@cache
def t_quantile(probability: float, degrees: int) -> float:
    """Where the law with so many degrees of freedom reaches a probability of at least one half.

    Newton's method from the normal quantile, which lies to the left: the distribution is concave from 0 on,
    so that no step goes too far. The work grows with the degrees.
    """
    log_norm = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(degrees * math.pi) / 2
    t = NormalDist().inv_cdf(probability)
    step = math.inf
    while abs(step) > 1e-9 * t:  # the next one would be of the square of this
        density = math.exp(log_norm - (degrees + 1) / 2 * math.log1p(t * t / degrees))
        step = (probability - 0.5 - _mass_from_0(t, degrees)) / density
        t += step
    return t


def two_sided_p(t: float, degrees: int) -> float:
    """Probability that the law with so many degrees of freedom lies at least as far from 0 as ``t``."""
    return min(max(1 - 2 * _mass_from_0(abs(t), degrees), 0.0), 1.0)


def _mass_from_0(t: float, degrees: int) -> float:
    """Probability of values from 0 to t: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    is_odd = degrees % 2
    term, total = (math.cos(angle) if is_odd else 1.0), 0.0
    for power in range(1 + is_odd, degrees, 2):  # none for one degree
        total += term
        term *= math.cos(angle) ** 2 * power / (power + 1)
    series = math.sin(angle) * total
    return (angle + series) / math.pi if is_odd else series / 2
