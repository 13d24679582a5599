"""What handing KV over costs requests, where prompts are computed on one replica and decoded on another."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from batchsim.metrics.load import Arrays
from batchsim.metrics.system import known, mean
from batchsim.records import Records, arrays


def transfer_parts(records: Records, finished: Arrays) -> dict[str, float]:
    """Parts of the time of those that were handed over, and what links carried; nothing where none was.

    From when its prompt is complete, a request waits for room on the replica that will decode it
    (``transfer_wait``), then for what is still to be carried (``transfer``); the next iteration there may
    take it in. Both are parts of its end-to-end time, and shared out over the tokens after the first, of its
    time per output token. The first token comes before either.

    Parameters
    ----------
    finished
        The finished requests that are covered.
    """
    transfers = arrays(records.transfers)
    if not len(transfers["request_id"]):
        return {}
    row = pd.Index(transfers["request_id"]).get_indexer(pd.Index(finished["request_id"]))
    was_handed = row >= 0
    start_s, ready_s, finish_s = (
        transfers[name][row[was_handed]] for name in ("start_s", "ready_s", "finish_s")
    )
    wait_s = np.maximum(start_s - ready_s, 0.0)
    carry_s = finish_s - np.maximum(start_s, ready_s)
    gaps = finished["output_tokens"][was_handed] - 1
    return {
        "transfer_wait_mean_s": mean(known(wait_s)),
        "transfer_mean_s": mean(known(carry_s)),
        "transfer_p99_s": float(np.percentile(carry_s, 99)) if len(carry_s) else math.nan,
        "tpot_transfer_mean_s": mean(known((wait_s + carry_s) / gaps)),
        "transferred_bytes": transfers["num_bytes"].sum(),
    }
