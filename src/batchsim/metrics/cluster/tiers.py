"""What tiers below GPUs hold for requests, and what bringing it costs them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from batchsim.metrics.load import Arrays
from batchsim.metrics.system import known, mean, ratio
from batchsim.records import Records, arrays


def tier_use(records: Records, covered: Arrays, finished: Arrays) -> dict[str, Any]:
    """Hit rates and bytes moved by tier, and what requests waited for; nothing where there are no tiers.

    A request waits from its admission, when it has blocks, until the last of what it found below is there;
    the next iteration takes it in. That is part of its time to first token.

    Parameters
    ----------
    covered, finished
        The covered requests, and those of them that finished.
    """
    if not records.tiers:
        return {}
    copies = arrays(records.kv_copies)
    is_up = copies["request_id"] >= 0
    row = pd.Index(covered["request_id"]).get_indexer(pd.Index(copies["request_id"]))
    # of those on first admission, as prefix_hit_rate is; others follow preemptions
    is_first = is_up & (row >= 0)
    is_first[is_first] = copies["start_s"][is_first] == covered["scheduled_s"][row[is_first]]
    prompt_tokens = covered["prompt_tokens"][~np.isnan(covered["scheduled_s"])].sum()
    use: dict[str, Any] = {}
    for tier, name in enumerate(records.tiers):
        is_here = copies["tier"] == tier
        use |= {
            f"tier_{name}_hit_rate": ratio(
                float(copies["num_tokens"][is_here & is_first].sum()), float(prompt_tokens)
            ),
            f"tier_{name}_read_bytes": copies["num_bytes"][is_here & is_up].sum(),
            f"tier_{name}_written_bytes": copies["num_bytes"][is_here & ~is_up].sum(),
        }
    waited_s = np.zeros(len(covered["request_id"]))
    np.maximum.at(waited_s, row[is_first], (copies["finish_s"] - copies["start_s"])[is_first])
    of_finished_s = waited_s[pd.Index(covered["request_id"]).get_indexer(pd.Index(finished["request_id"]))]
    return {
        **use,
        "num_tier_waits": np.count_nonzero(of_finished_s),
        "tier_wait_mean_s": mean(known(of_finished_s[of_finished_s > 0])),
        "ttft_tier_mean_s": mean(known(of_finished_s)),
    }
