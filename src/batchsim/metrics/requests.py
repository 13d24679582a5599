"""Times of each request, in seconds: from a table of requests to a column, NaN where a time never came.

They need the columns of `records.REQUEST_COLUMNS` that they name, so they read a real server's log as well.
"""

from __future__ import annotations

import pandas as pd


def e2e_s(requests: pd.DataFrame) -> pd.Series[float]:
    """End-to-end time: finish - arrival."""
    return requests["finish_s"] - requests["arrival_s"]


def queueing_s(requests: pd.DataFrame) -> pd.Series[float]:
    """Time before the batch that served the request was launched: scheduled - arrival.

    For a request that was evicted, this includes its earlier, wasted runs.
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
    AIPerf. In a padded batch the last token comes back with the batch, so this counts the wait for the
    longest member.
    """
    later_tokens = requests["output_tokens"] - 1
    return (requests["finish_s"] - requests["first_token_s"]) / later_tokens.where(later_tokens > 0)


def normalized_latency_s(requests: pd.DataFrame) -> pd.Series[float]:
    """End-to-end time per output token, as in the Orca and vLLM papers."""
    return e2e_s(requests) / requests["output_tokens"]
