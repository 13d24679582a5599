"""Distributions of a run's times in a few hundred numbers, so that they can be drawn without its requests."""

from __future__ import annotations

import numpy as np

from batchsim.metrics.requests import TIMES
from batchsim.metrics.system import known
from batchsim.metrics.tokens import itl
from batchsim.metrics.weighted import Floats, Weighted, expand
from batchsim.records import FINISHED, Records, arrays, has_status, rows

#: Every per cent, every tenth of one from 90 on, every hundredth from 99 on, and as close to the end.
PROBABILITIES: Floats = np.unique(
    np.round(
        np.concatenate(
            [
                np.arange(0, 90) / 100,
                np.arange(900, 990, 2) / 1000,
                np.arange(9900, 9991, 2) / 10_000,
                [0.9991, 0.9992, 0.9993, 0.9994, 0.9995, 0.9996, 0.9997, 0.9998, 0.9999, 1.0],
            ]
        ),
        4,
    )
)
#: How many values at most stand for the gaps of a row of `Weighted`.
_POINTS = 4


def sketch(records: Records, num_warmup: int) -> dict[str, Floats]:
    """Quantiles of the times that a summary has percentiles of, over the same requests.

    Returns
    -------
    dict
        For each time that the run has, ``e2e_s`` say, its value at each of `PROBABILITIES`. The first is the
        least, the last the greatest.
    """
    covered = rows(arrays(records.requests), slice(num_warmup, None))
    finished = rows(covered, has_status(covered, FINISHED))
    quantiles = {f"{name}_s": _quantiles(known(time(finished))) for name, time in TIMES.items()}
    if records.is_iteration_level:
        quantiles["itl_s"] = _of_gaps(itl(finished, arrays(records.iterations), arrays(records.preemptions)))
    return {name: values for name, values in quantiles.items() if values is not None}


def _quantiles(values: Floats) -> Floats | None:
    """By numpy's linear rule, without the quarter of a millisecond that `numpy.quantile` takes."""
    if not len(values):
        return None
    return np.interp(PROBABILITIES * (len(values) - 1), np.arange(len(values)), np.sort(values))


def _of_gaps(gaps: Weighted) -> Floats | None:
    """Quantiles of gaps, each row of which grows so slowly that a few of its values stand for all.

    Exact ones (`Weighted.percentiles`) take half as long as the simulation itself, for a thousandth of their
    value.
    """
    if not len(gaps.first):
        return None
    num = np.minimum(gaps.num, _POINTS)
    row, index = expand(num)
    each = (gaps.num / num)[row]  # values that one point stands for, in whose middle it lies
    values = gaps.first[row] + gaps.growth[row] * ((index + 0.5) * each - 0.5)
    order = np.argsort(values)
    upto = np.cumsum((each * gaps.weight[row])[order])
    places = np.searchsorted(upto, PROBABILITIES * upto[-1])
    quantiles: Floats = values[order][np.minimum(places, len(values) - 1)]
    return quantiles
