"""Times of each request, in seconds: from a table of requests to a column, NaN where a time never came.

Of a DataFrame the column is a Series, of `records.arrays` an array, both of shape ``(num_requests,)``. They
need the columns of `records.REQUEST_COLUMNS` that they name, so they read a real server's log as well.
At the iteration level, the time to first token has three parts: `queueing_s` + `prefill_s` + `host_s`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from batchsim.metrics.weighted import Floats
from batchsim.records import Columns

if TYPE_CHECKING:
    import pandas as pd

Times = TypeVar("Times", "pd.Series[float]", Floats)


def e2e_s(requests: Columns[Times]) -> Times:
    """End-to-end time: finish - arrival."""
    return requests["finish_s"] - requests["arrival_s"]


def queueing_s(requests: Columns[Times]) -> Times:
    """Time before an engine admitted the request, or its batch was launched: scheduled - arrival.

    For a request that was evicted, this includes its earlier, wasted runs; waiting after a preemption is not
    included.
    """
    return requests["scheduled_s"] - requests["arrival_s"]


def ttft_s(requests: Columns[Times]) -> Times:
    """Time to first token: first token - arrival, queueing included, network not.

    NaN where the latency model does not tell when a first token comes.
    """
    return requests["first_token_s"] - requests["arrival_s"]


def tpot_s(requests: Columns[Times]) -> Times:
    """Time per output token after the first; NaN for one-token answers.

    (finish - first token) / (output tokens - 1): TPOT in vLLM and inference-perf, inter-token latency in
    AIPerf. It is the mean of the gaps between the request's tokens (`tokens.itl`), stalls and preemptions
    included. With drafts it is shorter than these, which are then between steps of several tokens. In a
    padded batch the last token comes back with the batch, so there it counts the wait for the longest member.
    """
    later_tokens = np.asarray(requests["output_tokens"]) - 1
    return (requests["finish_s"] - requests["first_token_s"]) / np.where(
        later_tokens > 0, later_tokens, np.nan
    )


def normalized_latency_s(requests: Columns[Times]) -> Times:
    """End-to-end time per output token, as in the Orca and vLLM papers."""
    return e2e_s(requests) / requests["output_tokens"]


def host_s(requests: Columns[Any], iterations: Columns[Any]) -> Floats:
    """Part of the time to first token in which the replica's GPU waited for the host, ``(num_requests,)``.

    Of the iterations that end after the request was scheduled, up to its first token, whoever they served.
    """
    scheduled_s, first_token_s = np.asarray(requests["scheduled_s"]), np.asarray(requests["first_token_s"])
    of_request, of_span = np.asarray(requests["gpu_id"]), np.asarray(iterations["gpu_id"])
    finish_s, spent_s = np.asarray(iterations["finish_s"]), np.asarray(iterations["host_s"])
    waited_s = np.full(len(of_request), np.nan)
    for gpu_id in np.unique(of_span):
        spans, served = of_span == gpu_id, np.flatnonzero((of_request == gpu_id) & ~np.isnan(first_token_s))
        up_to_s = np.concatenate([[0.0], np.cumsum(spent_s[spans])])
        first, stop = (
            np.searchsorted(finish_s[spans], time_s[served], side="right")
            for time_s in (scheduled_s, first_token_s)
        )
        waited_s[served] = up_to_s[stop] - up_to_s[first]
    return waited_s


def prefill_s(requests: Columns[Any], iterations: Columns[Any]) -> Floats:
    """Part of the time to first token that is left: iterations from admission to the prompt's completion.

    Those of others that ran in between, and a preemption before the first token, are included.
    """
    return np.asarray(requests["first_token_s"] - requests["scheduled_s"]) - host_s(requests, iterations)


#: The times that have statistics and limits, by the names of their keys.
TIMES: Mapping[str, Callable[[Any], Any]] = {
    "e2e": e2e_s,
    "queueing": queueing_s,
    "ttft": ttft_s,
    "tpot": tpot_s,
}
