"""Cut a workload and change its pace: each function returns another `Workload`, provenance kept."""

from __future__ import annotations

import math

import numpy as np

from batchsim.errors import ConfigError
from batchsim.workload.request import Workload


def filter_rows(workload: Workload, model: str | None = None, log_type: str | None = None) -> Workload:
    """Keep the requests of one model, one log type, or both; times stay as they are.

    Raises
    ------
    ConfigError
        If the workload has no such column, or nothing matches; the message lists the values present.
    """
    for column, wanted in (("model", model), ("log_type", log_type)):
        if wanted is None:
            continue
        name = workload.source.name
        if column not in workload.extra:
            raise ConfigError(f"{column} is {wanted!r}, but {name} has no {column} column")
        matches = workload.extra[column] == wanted
        if not matches.any():
            present = ", ".join(sorted({repr(str(value)) for value in workload.extra[column]}))
            raise ConfigError(
                f"{column} is {wanted!r}, but no request of {name} has it; present are {present}"
            )
        workload = workload.take(matches)
    return workload


def window(workload: Workload, start_s: float, end_s: float) -> Workload:
    """Keep arrivals in ``[start_s, end_s)``, shifted so that ``start_s`` becomes 0.

    Raises
    ------
    ConfigError
        If no request arrives in the window.
    """
    first, last = np.searchsorted(workload.arrival_s, (start_s, end_s), side="left")
    if first >= last:
        raise ConfigError(
            f"window [{start_s:g}, {end_s:g}) s holds no request of {workload.source.name}, "
            f"whose arrivals span {workload.arrival_s[0]:g} to {workload.arrival_s[-1]:g} s"
        )
    inside = workload.take(slice(first, last))
    return inside.with_arrivals(inside.arrival_s - start_s)


def rescale_time(workload: Workload, factor: float) -> Workload:
    """Compress time: every arrival happens ``factor`` times as early (2 doubles the rate)."""
    if not (factor > 0 and math.isfinite(factor)):
        raise ConfigError(f"rate scale is {factor:g}; a number > 0 is needed")
    return workload.with_arrivals(workload.arrival_s / factor)


def rescale_to_rate(workload: Workload, rate_per_s: float) -> Workload:
    """Compress or stretch time to this mean rate, ``(n - 1) / (last - first arrival)``.

    Raises
    ------
    ConfigError
        If all requests arrive at one instant: no factor gives them a rate.
    """
    mean_rate_per_s = workload.mean_rate_per_s
    if math.isnan(mean_rate_per_s):
        raise ConfigError(
            f"request rate {rate_per_s:g} per s cannot be reached: the {len(workload)} requests of "
            f"{workload.source.name} arrive at one instant"
        )
    return rescale_time(workload, rate_per_s / mean_rate_per_s)


def split_training(workload: Workload, fraction: float) -> tuple[Workload, Workload]:
    """Set the first requests in time aside for training.

    Parameters
    ----------
    workload
        All requests.
    fraction
        Share in [0, 1) to set aside, rounded to whole requests and at least one unless it is 0.

    Returns
    -------
    training, evaluated
        Where any are set aside, the evaluated requests are shifted so that the first arrives at 0.

    Raises
    ------
    ConfigError
        If nothing is left to evaluate.
    """
    num_training = max(1, round(fraction * len(workload))) if fraction > 0 else 0
    if num_training >= len(workload):
        raise ConfigError(
            f"training fraction {fraction:g} of the {len(workload)} requests of {workload.source.name} "
            "leaves none to evaluate"
        )
    return split_at(workload, num_training)


def split_at(workload: Workload, num_training: int) -> tuple[Workload, Workload]:
    """Set exactly the first ``num_training`` requests aside; see `split_training`."""
    training, evaluated = workload.take(slice(0, num_training)), workload.take(slice(num_training, None))
    if num_training:
        evaluated = evaluated.with_arrivals(evaluated.arrival_s - evaluated.arrival_s[0])
    return training, evaluated
