"""What a person wants to know about a trace before using it, as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchsim.workload.request import Workload
from batchsim.workload.sessions import session_numbers


def trace_info(workload: Workload) -> dict[str, Any]:
    """Describe a workload.

    Returns
    -------
    dict
        ``name``, ``kind``, ``sha256``, ``rows``, ``dropped`` (by reason), ``notices``;
        ``sessions``, how many, None where the trace has none;
        ``span_s`` from first to last arrival and ``mean_rate_per_s``, ``(rows - 1) / span_s``;
        ``iat_cv``, the coefficient of variation of the gaps between arrivals;
        ``dispersion_1s``, variance / mean of the arrivals per second (1 for Poisson);
        ``busiest_minute_s``, its start, and ``busiest_minute_rate_per_s``;
        ``prompt_tokens`` and ``output_tokens`` with ``mean``, ``p50``, ``p90``, ``p99``, ``max``, and their
        ``length_correlation``. What too few requests, or all alike, cannot tell is None.
    """
    arrival_s = workload.arrival_s
    gaps_s = np.diff(arrival_s)
    since_first_s = arrival_s - arrival_s[0]
    minutes, per_minute = np.unique((arrival_s // 60).astype(np.int64), return_counts=True)
    busiest = int(np.argmax(per_minute))
    return {
        "name": workload.source.name,
        "kind": workload.source.kind,
        "sha256": workload.source.sha256,
        "rows": len(workload),
        "dropped": dict(workload.source.dropped),
        "notices": list(workload.source.notices),
        "sessions": int(session_numbers(workload).max()) + 1 or None,
        "span_s": float(since_first_s[-1]),
        "mean_rate_per_s": workload.mean_rate_per_s if since_first_s[-1] > 0 else None,
        "iat_cv": float(gaps_s.std() / gaps_s.mean()) if since_first_s[-1] > 0 else None,
        "dispersion_1s": _dispersion(since_first_s),
        "busiest_minute_s": float(minutes[busiest] * 60),
        "busiest_minute_rate_per_s": float(per_minute[busiest] / 60),
        "prompt_tokens": _spread(workload.prompt_tokens),
        "output_tokens": _spread(workload.output_tokens),
        "length_correlation": _correlation(workload.prompt_tokens, workload.output_tokens),
    }


def _dispersion(since_first_s: NDArray[np.float64]) -> float:
    # from the seconds that have arrivals only: an hour of silence needs no array
    num_seconds = int(since_first_s[-1]) + 1
    _, per_second = np.unique(since_first_s.astype(np.int64), return_counts=True)
    mean = len(since_first_s) / num_seconds
    return float(np.sum(per_second.astype(np.float64) ** 2) / num_seconds - mean**2) / mean


def _spread(tokens: NDArray[np.int64]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(tokens, (50, 90, 99))
    return {
        "mean": float(tokens.mean()),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": int(tokens.max()),
    }


def _correlation(first: NDArray[np.int64], second: NDArray[np.int64]) -> float | None:
    if first.min() == first.max() or second.min() == second.max():
        return None
    return float(np.corrcoef(first, second)[0, 1])
