"""When the requests of a benchmark were sent, where it tells only how it paced them."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.streams import stream
from batchsim.workload.columns import numbers


def derived_arrivals(
    tree: Mapping[str, Any], latency_s: NDArray[np.float64], where: str
) -> tuple[NDArray[np.float64], str, bool]:
    """Derive them from what vLLM's and SGLang's benchmarks say of their pace.

    Gaps at ``request_rate`` are gamma distributed with shape ``burstiness``, 1 for a Poisson process
    (`get_request` in both); at most ``max_concurrency`` requests are under way, first come, first served.

    Returns
    -------
    arrival_s, notice, is_exact
        Seconds since the first; what was done, in words; whether chance had no part in it.

    Raises
    ------
    TraceError
        If the pace is not told, or senseless.
    """
    is_unlimited = str(tree.get("request_rate")).lower() in ("inf", "infinity")
    due_s, pace = np.zeros(len(latency_s)), "all requests at once"
    if not is_unlimited:
        per_s = _number({"request_rate": None, **tree}, "request_rate", where, 1e-6, 1e6)
        shape = _number({"burstiness": 1.0, **tree}, "burstiness", where, 1e-2, 1e6)
        gaps_s = stream(0, "measured").gamma(shape, 1 / (per_s * shape), len(latency_s))
        due_s, pace = np.cumsum(gaps_s) - gaps_s[0], f"arrivals are drawn at request_rate {per_s:g}/s"
    if tree.get("max_concurrency") is not None:
        most = int(_number(tree, "max_concurrency", where, 1, 1e9))
        due_s, pace = held_back(due_s, latency_s, most), f"{pace}, held back by max_concurrency {most}"
    if not is_unlimited:
        pace = f"{pace}, so that neither single requests nor throughput are compared"
    return due_s, f"{where}: no start_times; {pace}", is_unlimited


def held_back(due_s: NDArray[np.float64], latency_s: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """When requests are sent of which only so many may be under way, first come, first served."""
    ends_s: list[float] = []
    sent_s = np.empty(len(due_s))
    for place, (one_due_s, takes_s) in enumerate(zip(due_s.tolist(), latency_s.tolist(), strict=True)):
        sent_s[place] = max(one_due_s, heapq.heappop(ends_s)) if len(ends_s) >= most else one_due_s
        heapq.heappush(ends_s, sent_s[place] + takes_s)
    return sent_s


def _number(tree: Mapping[str, Any], name: str, where: str, least: float, most: float) -> float:
    table = pd.DataFrame({name: [tree[name]]}, index=pd.Index(["with the settings"]), dtype=object)
    return float(numbers(table, name, f"{where}, without start_times", least, most)[0])
