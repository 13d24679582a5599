"""All that leaves a simulation: tables of requests, batches and controller decisions, as columns.

`sim` fills them, `metrics` reads them; neither knows the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

FINISHED, ABANDONED, REFUSED, STRANDED = "finished", "abandoned", "refused", "stranded"
STATUSES = (FINISHED, ABANDONED, REFUSED, STRANDED)

#: One row per request, in arrival order. Times are seconds since the start of the trace, NaN where they never
#: came; ``bin``, ``gpu_id``, ``batch_id`` and ``batch_size`` are -1 (0) for a request that never ran.
REQUEST_COLUMNS: Mapping[str, Any] = {
    "request_id": np.int64,
    "arrival_s": np.float64,
    "prompt_tokens": np.int64,
    "output_tokens": np.int64,
    "predicted_output_tokens": np.int64,
    "bin": np.int16,  # the bin its batch came from (by its predicted length)
    "gpu_id": np.int16,
    "batch_id": np.int64,
    "batch_size": np.int32,
    "scheduled_s": np.float64,
    "first_token_s": np.float64,
    "finish_s": np.float64,
    "num_evictions": np.int16,  # times it was thrown out of a batch that outgrew memory
    "status": "category",  # one of STATUSES
}

#: One row per batch, in order of completion; ``batch_id`` numbers them so.
BATCH_COLUMNS: Mapping[str, Any] = {
    "batch_id": np.int64,
    "gpu_id": np.int16,
    "bin": np.int16,
    "batch_size": np.int32,  # members that ran to completion
    "num_evicted": np.int32,  # members thrown out because the batch outgrew memory
    "size_limit": np.int32,  # what the sizer allowed when the batch was formed
    "is_flush": np.bool_,  # launched short of full only because no more requests come
    "start_s": np.float64,
    "first_token_s": np.float64,
    "finish_s": np.float64,
    "max_prompt_tokens": np.int64,
    "max_output_tokens": np.int64,
    "sum_prompt_tokens": np.int64,
    "sum_output_tokens": np.int64,
    "kv_tokens": np.int64,  # held at the end, by the cluster's layout
    "is_extrapolated": np.bool_,  # its shape lies outside the range of the latency model
}

#: One row per decision of a sizer that has a trajectory.
CONTROLLER_COLUMNS: Mapping[str, Any] = {
    "time_s": np.float64,
    "controller": "category",
    "bin": np.int16,  # -1: shared by all bins
    "batch_size": np.int32,  # the size decided
    "low": np.float64,
    "high": np.float64,
    "measured": np.float64,  # the controlled metric, seconds
}


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """The tables of one run, with columns and dtypes as above.

    Attributes
    ----------
    requests, batches, controllers
        See `REQUEST_COLUMNS`, `BATCH_COLUMNS`, `CONTROLLER_COLUMNS`.
    num_gpus
        GPUs in the cluster, busy or not.
    kv_capacity_tokens
        KV tokens that fit one GPU.
    refusals
        Reason of each refused request, by request id.
    """

    requests: pd.DataFrame
    batches: pd.DataFrame
    controllers: pd.DataFrame
    num_gpus: int
    kv_capacity_tokens: int
    refusals: Mapping[int, str]


def table(columns: Mapping[str, Any], values: Mapping[str, Any]) -> pd.DataFrame:
    """Build a table with exactly these columns and dtypes; ``category`` columns keep pandas categories."""
    return pd.DataFrame({name: pd.Series(values[name]).astype(dtype) for name, dtype in columns.items()})
