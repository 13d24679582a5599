"""Limits as requirements on many requests: shares, percentiles and means, each as a score per request."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from batchsim.config import SloConfig
from batchsim.errors import ConfigError
from batchsim.metrics.requests import TIMES
from batchsim.metrics.system import is_good, known
from batchsim.metrics.weighted import Floats
from batchsim.records import FINISHED, Columns, has_status

#: What a mean of scores may be off by.
_ROUNDING = 1e-12


def requirement_scores(requests: Columns[Any], slo: SloConfig, share: float) -> dict[str, Floats]:
    """Score each request by each requirement; one is met where the mean of its scores is at least 0.

    Parameters
    ----------
    requests
        Finished or not; one that did not finish misses every limit.
    share
        Of requests that must meet all limits per request.

    Returns
    -------
    dict
        Arrays of shape ``(num_requests,)`` by name. Limits per request, as ``good``: 1 - share for a good
        one, else -share. A percentile, as ``ttft_p95``: likewise, with 0.95. A mean, as ``e2e_mean``: what is
        left of the limit, as a share of it; -1 for one that did not finish.
    """
    scores: dict[str, Floats] = {}
    good = is_good(requests, slo)
    if good is not None:
        scores["good"] = good.astype(np.float64) - share
    finished = has_status(requests, FINISHED)
    for name, limit_s in slo.statistics_s.items():
        metric, statistic = name.split("_")
        values_s = np.asarray(TIMES[metric](requests), dtype=np.float64)
        if statistic == "mean":
            left = np.where(finished, (limit_s - values_s) / limit_s, -1.0)
            scores[name] = np.nan_to_num(left, nan=0.0)  # a one-token answer has no TPOT
        else:
            within = finished & ~(values_s > limit_s)
            scores[name] = within.astype(np.float64) - float(statistic[1:]) / 100
    return scores


def judged_scores(requests: Columns[Any], slo: SloConfig, share: float) -> dict[str, Floats]:
    """Score by all requirements, as `requirement_scores`.

    Raises
    ------
    ConfigError
        If a limit per request cannot be judged: a run whose latency model does not tell when first tokens
        come.
    """
    scores = requirement_scores(requests, slo, share)
    if slo.told_ms and "good" not in scores:
        raise ConfigError(
            f"a limit on {', '.join(slo.told_ms)} cannot be judged: the latency model does not tell when "
            "first tokens come; one on E2E can"
        )
    return scores


def limited_statistics(requests: Columns[Any], slo: SloConfig) -> dict[str, float | bool | None]:
    """Statistics that have a limit, and whether it holds, as entries of a summary.

    Returns
    -------
    dict
        ``ttft_p95_s`` and the like, over the requests that finished; ``slo_met_ttft_p95``: whether the limit
        holds (see `requirement_scores`: a request that did not finish is beyond any limit); ``slo_met``:
        whether all of them do. None for what cannot be told, as without limits or requests.
    """
    if not slo.statistics_s:
        return {"slo_met": None}
    finished = has_status(requests, FINISHED)
    scores = requirement_scores(requests, slo, 0.0)
    values: dict[str, float | bool | None] = {}
    met: dict[str, bool | None] = {}
    for name in slo.statistics_s:
        metric, statistic = name.split("_")
        times_s = known(np.asarray(TIMES[metric](requests))[finished])
        is_known = len(times_s) > 0 or (len(finished) > 0 and not finished.any())
        met[f"slo_met_{name}"] = bool(scores[name].mean() >= -_ROUNDING) if is_known else None
        if not len(times_s):
            values[f"{name}_s"] = math.nan
        elif statistic == "mean":
            values[f"{name}_s"] = float(times_s.mean())
        else:
            values[f"{name}_s"] = float(np.percentile(times_s, float(statistic[1:])))
    is_open = None in met.values() and False not in met.values()
    return {**values, **met, "slo_met": None if is_open else all(met.values())}
