"""From when on a system that began empty is as full as its load keeps it: where a window begins.

What fills are the requests in service. After ``t`` seconds of arrivals at a steady rate there are, of those
that will be in service, the share ``E[min(service, t)] / E[service]``: it depends on how long service takes
alone, not on what a run happened to be busy with, so a cut by it favours neither calm nor busy beginnings.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from batchsim.metrics.system import Window
from batchsim.metrics.weighted import Floats
from batchsim.records import Columns

_FILLED = 0.95
_SHARE_OF_ARRIVALS = 1 / 3  # filling may take at most so much of the time in which requests arrive
_TYPICAL = 4.0  # requests in service on average, up to which none of them is nothing unusual
_FEWEST_REQUESTS = 200
_SAMPLE = 20_000
_SHORTEST_S = 1e-9  # arrivals within less come at once


class Filling(NamedTuple):
    """How a run fills.

    Attributes
    ----------
    fill_s
        Seconds from the first arrival until the requests in service have built up to 95 %; 0 where so few
        are in service that an empty system is nothing unusual.
    service_mean_s
        Finish - scheduled.
    window
        From then on to the last arrival; None where the run is too short for it.
    """

    fill_s: float
    service_mean_s: float
    window: Window | None


def filling(requests: Columns[Any]) -> Filling:
    """Find the window in which a run's system is filled; ``requests`` must be in order of arrival."""
    service_s = np.asarray(requests["finish_s"] - requests["scheduled_s"])
    return fill(np.asarray(requests["arrival_s"]), service_s)


def fill(arrivals_s: Floats, service_s: Floats) -> Filling:
    """Find it from arrivals in order and times of service, NaN for those not served."""
    span_s = float(arrivals_s[-1] - arrivals_s[0]) if len(arrivals_s) else 0.0
    served_s = service_s[~np.isnan(service_s)]
    mean_s = float(served_s.mean()) if len(served_s) else 0.0
    if not span_s > _SHORTEST_S:
        return Filling(math.inf, mean_s, None)
    is_few = len(served_s) * mean_s <= _TYPICAL * span_s
    fill_s = 0.0 if is_few else _filled_s(served_s)
    is_too_short = len(arrivals_s) < _FEWEST_REQUESTS or max(fill_s, mean_s) > _SHARE_OF_ARRIVALS * span_s
    window = None if is_too_short else Window(float(arrivals_s[0]) + fill_s, float(arrivals_s[-1]))
    return Filling(fill_s, mean_s, window)


def num_settling(requests: Columns[Any]) -> int:
    """Requests that a queue needs to forget that it began empty, at most a tenth of all.

    Where ``L`` wait on average these are about ``4 L**2``: M/M/1's relaxation time near saturation is ``4 /
    (1 - rho)**2`` services. An empty beginning of a short queue is as typical as the rest: 0.
    """
    arrival_s = np.asarray(requests["arrival_s"])
    waited_s = float(np.nansum(requests["scheduled_s"] - arrival_s))
    span_s = float(arrival_s[-1] - arrival_s[0])
    return int(min(4 * (waited_s / span_s) ** 2, len(arrival_s) / 10))


def _filled_s(service_s: Floats) -> float:
    """Seconds ``t`` at which ``E[min(service, t)]`` is 95 % of ``E[service]``."""
    ordered = np.concatenate([[0.0], np.sort(service_s[:: len(service_s) // _SAMPLE + 1])])
    # Sum of min(service, t), at t = each of the times in turn.
    sums = np.cumsum(np.diff(ordered, prepend=0.0) * np.arange(len(ordered), 0, -1))
    return float(np.interp(_FILLED * sums[-1], sums, ordered))
