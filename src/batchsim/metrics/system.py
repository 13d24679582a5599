"""What the cluster did in a window of time: throughput, load, waste, goodput.

A request or batch counts for a window by its finish, ends included; a time average weighs each batch (or span
of iterations) by the part of its running time that lies inside. A value that cannot be told is NaN.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from batchsim.config import SloConfig
from batchsim.errors import TraceError
from batchsim.metrics.requests import e2e_s, tpot_s, ttft_s
from batchsim.records import FINISHED, STRANDED

# Pairwise sums of any number of rows, each rounded once or twice, stay within.
_ROUNDING = 64 * math.ulp(1.0)


class Window(NamedTuple):
    """From when to when, in seconds; ends included."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """Seconds; NaN for a window without any, so that rates over it are NaN."""
        return self.end_s - self.start_s if self.end_s > self.start_s else math.nan


class Throughput(NamedTuple):
    """What finished per second: requests, their output tokens, their prompt and output tokens."""

    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float


def finished_in(table: pd.DataFrame, window: Window) -> pd.DataFrame:
    """Rows of a table of requests or batches that finish inside the window."""
    return table[table["finish_s"].between(window.start_s, window.end_s)]


def throughput(requests: pd.DataFrame, window: Window) -> Throughput:
    """Return requests and tokens per second of the window, counted when a request finishes."""
    is_inside = requests["finish_s"].between(*window).to_numpy()
    output_tokens = int(requests["output_tokens"].to_numpy()[is_inside].sum())
    total_tokens = output_tokens + int(requests["prompt_tokens"].to_numpy()[is_inside].sum())
    counts = (np.count_nonzero(is_inside), output_tokens, total_tokens)
    return Throughput(*(count / window.length_s for count in counts))


def busy_fraction(batches: pd.DataFrame, num_replicas: int, window: Window) -> float:
    """Share of all replicas' time in the window that a batch (or iteration) ran, well filled or not."""
    share = float(running_s(batches, window).sum()) / (num_replicas * window.length_s)
    return at_most_one(share, clock_error(batches, window), "busy fraction", "rows of a GPU overlap")


def running_s(batches: pd.DataFrame, window: Window) -> pd.Series[float]:
    """Seconds of the window in which each batch (or span of iterations) was running."""
    return inside_s(batches["start_s"], batches["finish_s"], window)


def inside_s(start_s: pd.Series[float], end_s: pd.Series[float], window: Window) -> pd.Series[float]:
    """Seconds of each interval that lie in the window."""
    return (end_s.clip(upper=window.end_s) - start_s.clip(lower=window.start_s)).clip(lower=0)


def waits_until_s(requests: pd.DataFrame) -> pd.Series[float]:
    """When each request stopped to wait: scheduled, given up, or never (infinity) if it was stranded.

    Refused requests do not wait, nor do abandoned ones in a log that does not say when they left.
    """
    is_known = requests["status"].isin([FINISHED, STRANDED])
    until_s = requests["scheduled_s"].where(is_known | requests["scheduled_s"].notna(), requests["arrival_s"])
    if "left_s" in requests:
        until_s = until_s.mask(requests["left_s"].notna(), requests["left_s"])
    return until_s.fillna(math.inf)


def waiting_mean(requests: pd.DataFrame, num_replicas: int, window: Window) -> float:
    """Time average of the requests that wait to be scheduled first, per replica.

    Those that wait again after a preemption are not in it.
    """
    waited_s = inside_s(requests["arrival_s"], waits_until_s(requests), window)
    return float(waited_s.sum()) / (num_replicas * window.length_s)


def batch_fill(batches: pd.DataFrame, window: Window) -> float:
    """Time average, over running batches, of batch size / size allowed."""
    weight_s = running_s(batches, window)
    filled_s = weight_s * batches["batch_size"] / batches["size_limit"]
    fill = ratio(float(filled_s.sum()), float(weight_s.sum()))
    return at_most_one(fill, 0.0, "batch fill", "batches are larger than their size_limit")


def padding_waste_output(batches: pd.DataFrame) -> float:
    """Share of output slots that are padding: 1 - tokens wanted / (size * longest answer), batches pooled."""
    slots = (batches["batch_size"] * batches["max_output_tokens"]).sum()
    return 1 - ratio(float(batches["sum_output_tokens"].sum()), float(slots))


def padding_waste_prompt(batches: pd.DataFrame) -> float:
    """Share of prompt slots that are padding: 1 - tokens given / (size * longest prompt), batches pooled."""
    slots = (batches["batch_size"] * batches["max_prompt_tokens"]).sum()
    return 1 - ratio(float(batches["sum_prompt_tokens"].sum()), float(slots))


def kv_use(batches: pd.DataFrame, num_replicas: int, capacity_tokens: int, window: Window) -> float:
    """Time average over all replicas of KV tokens / capacity, idle time counted as empty.

    A batch counts with what it holds at its end, so this is an upper bound while answers grow.
    """
    held = float((running_s(batches, window) * batches["kv_tokens"]).sum())
    use = held / (num_replicas * capacity_tokens * window.length_s)
    return at_most_one(use, clock_error(batches, window), "use of KV memory", "batches overlap or do not fit")


def slo_met(requests: pd.DataFrame, slo: SloConfig) -> pd.DataFrame:
    """Whether each request meets each limit that is given: boolean columns out of ``e2e, ttft, tpot``.

    A request that did not finish meets none. A one-token answer meets any TPOT limit, as in vLLM's
    benchmark. A limit is left out where a finished request's time is not known (no first-token times).
    """
    is_finished = requests["status"] == FINISHED
    one_token = requests["output_tokens"] == 1
    limits = {
        "e2e": (slo.e2e_ms, e2e_s(requests)),
        "ttft": (slo.ttft_ms, ttft_s(requests)),
        "tpot": (slo.tpot_ms, tpot_s(requests).mask(one_token, 0.0)),
    }
    return pd.DataFrame(
        {
            name: is_finished & (value_s <= limit_ms / 1000)
            for name, (limit_ms, value_s) in limits.items()
            if limit_ms is not None and not (is_finished & value_s.isna()).any()
        },
        index=requests.index,
    )


def is_good(requests: pd.DataFrame, slo: SloConfig) -> pd.Series[bool] | None:
    """Whether each request meets all limits; None where there is no limit or one cannot be judged."""
    met = slo_met(requests, slo)
    return met.all(axis=1) if slo.per_request_ms and len(slo.per_request_ms) == met.shape[1] else None


def slo_attainment(requests: pd.DataFrame, slo: SloConfig) -> float:
    """Goodput as a fraction: share of all requests given, finished or not, that meet all limits."""
    good = is_good(requests, slo)
    return math.nan if good is None or good.empty else float(good.mean())


def goodput_requests_per_s(requests: pd.DataFrame, slo: SloConfig, window: Window) -> float:
    """Goodput as a rate: requests per second of the window that finish in it and meet all limits."""
    good = is_good(requests, slo)
    if good is None:
        return math.nan
    return float((good & requests["finish_s"].between(*window)).sum()) / window.length_s


def clock_error(rows: pd.DataFrame, window: Window) -> float:
    """Share of the window by which rows that follow each other may overlap, as their times are rounded."""
    return len(rows) * math.ulp(window.end_s) / window.length_s


def at_most_one(share: float, error: float, name: str, cause: str) -> float:
    """Return a share of time without what rounding added to 1; `TraceError` with the cause if it is more.

    Allowed for are the sum's rounding and an ``error`` of its terms.
    """
    if share > 1 + _ROUNDING + error:
        raise TraceError(f"the {name} is {share!r}, more than 1: {cause}")
    return 1.0 if share > 1 else share


def ratio(part: float, whole: float) -> float:
    """Return part / whole, NaN of nothing."""
    return part / whole if whole > 0 else math.nan
