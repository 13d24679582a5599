"""Limits as requirements on many requests: shares, percentiles and means, each as a score per request."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from batchsim.config import SloConfig
from batchsim.metrics.requests import e2e_s, tpot_s, ttft_s
from batchsim.metrics.system import is_good
from batchsim.metrics.weighted import Floats
from batchsim.records import FINISHED

_TIMES: Mapping[str, Callable[[pd.DataFrame], pd.Series[float]]] = {
    "e2e": e2e_s,
    "ttft": ttft_s,
    "tpot": tpot_s,
}


def requirement_scores(requests: pd.DataFrame, slo: SloConfig, share: float) -> dict[str, Floats]:
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
        scores["good"] = np.asarray(good, dtype=np.float64) - share
    finished = (requests["status"] == FINISHED).to_numpy()
    for name, limit_s in slo.statistics_s.items():
        metric, statistic = name.split("_")
        values_s = _TIMES[metric](requests).to_numpy(dtype=np.float64)
        if statistic == "mean":
            left = np.where(finished, (limit_s - values_s) / limit_s, -1.0)
            scores[name] = np.nan_to_num(left, nan=0.0)  # a one-token answer has no TPOT
        else:
            within = finished & ~(values_s > limit_s)
            scores[name] = within.astype(np.float64) - float(statistic[1:]) / 100
    return scores
