"""Times of each request, in seconds: from a table of requests to a column, NaN where a time never came.

They need the columns of `records.REQUEST_COLUMNS` that they name, so they read a real server's log as well.
At the iteration level, the time to first token has three parts: `queueing_s` + `prefill_s` + `host_s`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd


def e2e_s(requests: pd.DataFrame) -> pd.Series[float]:
    """End-to-end time: finish - arrival."""
    return requests["finish_s"] - requests["arrival_s"]


def queueing_s(requests: pd.DataFrame) -> pd.Series[float]:
    """Time before an engine admitted the request, or its batch was launched: scheduled - arrival.

    For a request that was evicted, this includes its earlier, wasted runs; waiting after a preemption is not
    included.
    """
    return requests["scheduled_s"] - requests["arrival_s"]


def ttft_s(requests: pd.DataFrame) -> pd.Series[float]:
    """Time to first token: first token - arrival, queueing included, network not.

    NaN where the latency model does not tell when a first token comes.
    """
    return requests["first_token_s"] - requests["arrival_s"]


def tpot_s(requests: pd.DataFrame) -> pd.Series[float]:
    """Time per output token after the first; NaN for one-token answers.

    (finish - first token) / (output tokens - 1): TPOT in vLLM and inference-perf, inter-token latency in
    AIPerf. It is the mean of the gaps between the request's tokens (`tokens.itl`), stalls and preemptions
    included. In a padded batch the last token comes back with the batch, so there it counts the wait for the
    longest member.
    """
    later_tokens = requests["output_tokens"] - 1
    return (requests["finish_s"] - requests["first_token_s"]) / later_tokens.where(later_tokens > 0)


def normalized_latency_s(requests: pd.DataFrame) -> pd.Series[float]:
    """End-to-end time per output token, as in the Orca and vLLM papers."""
    return e2e_s(requests) / requests["output_tokens"]


def host_s(requests: pd.DataFrame, iterations: pd.DataFrame) -> pd.Series[float]:
    """Part of the time to first token in which the replica's GPU waited for the host.

    Of the iterations that end after the request was scheduled, up to its first token, whoever they served.
    """
    waited_s = pd.Series(np.nan, requests.index, name="host_s")
    of_replica = dict(iter(iterations[["gpu_id", "finish_s", "host_s"]].groupby("gpu_id")))
    for gpu_id, some in requests[["gpu_id", "scheduled_s", "first_token_s"]].groupby("gpu_id"):
        if gpu_id in of_replica:
            spans = of_replica[gpu_id]
            up_to_s = np.concatenate([[0.0], spans["host_s"].cumsum()])
            first, stop = (
                np.searchsorted(spans["finish_s"], some[time], side="right")
                for time in ("scheduled_s", "first_token_s")
            )
            waited_s[some.index] = up_to_s[stop] - up_to_s[first]
    return waited_s.where(requests["first_token_s"].notna())


def prefill_s(requests: pd.DataFrame, iterations: pd.DataFrame) -> pd.Series[float]:
    """Part of the time to first token that is left: iterations from admission to the prompt's completion.

    Those of others that ran in between, and a preemption before the first token, are included.
    """
    return requests["first_token_s"] - requests["scheduled_s"] - host_s(requests, iterations)


#: The times that have statistics and limits, by the names of their keys.
TIMES: Mapping[str, Callable[[pd.DataFrame], pd.Series[float]]] = {
    "e2e": e2e_s,
    "queueing": queueing_s,
    "ttft": ttft_s,
    "tpot": tpot_s,
}
