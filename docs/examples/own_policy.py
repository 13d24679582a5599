# %% [markdown]
# # An own policy against the one it replaces
#
# Short answers first, as far as a predictor can tell, and how much of the gain survives a poor predictor.

# %%
from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd

from batchsim.policies import ChunkedPrefill, FixedSize, Preset, RankedQueue
from batchsim.policies.base import WaitingRequest
from batchsim.study.compare import compare


@dataclass
class ByMagnitude(RankedQueue):
    """First who is predicted to need fewer tokens, by powers of two; of equals, who came first."""

    def rank(self, request: WaitingRequest) -> int:
        """Bits of the predicted length."""
        return int(request.predicted_output_tokens).bit_length()


magnitude = Preset(ByMagnitude(), FixedSize(16), ChunkedPrefill(), paper="this one")

# %% [markdown]
# A preset is named after its module; that of a notebook is `__main__`. Both policies meet the same requests,
# so that differences are theirs.

# %%
NAME = f"{__name__}:magnitude"
TRAFFIC = {
    "policy": {"batch_size": 16},
    "workload": {
        "num_requests": 2000,
        "request_rate": 5.0,
        "generator": {
            "kind": "gamma",
            "rate_per_s": 1.0,
            "cv": 2.0,
            "prompt": {"kind": "lognormal", "mean": 600, "sigma": 1.0, "max_tokens": 4000},
            "output": {"kind": "lognormal", "mean": 150, "sigma": 0.8, "max_tokens": 1000},
        },
    },
}
PREDICTORS = [{"kind": "oracle"}, {"kind": "lognormal", "sigma": 0.5}, {"kind": "constant", "tokens": 100}]

rows = []
for predictor in PREDICTORS:
    comparison = compare({**TRAFFIC, "predictor": predictor}, ["vllm_v1", NAME])
    base, own = (comparison.results[name].summary for name in ("vllm_v1", NAME))
    rows.append(
        {
            "predictor": predictor["kind"],
            "kendall_tau": own["kendall_tau"],
            "vllm_v1_e2e_mean_s": base["e2e_mean_s"],
            "own_e2e_mean_s": own["e2e_mean_s"],
            "own_ttft_p99_s": own["ttft_p99_s"],
        }
    )
table = pd.DataFrame(rows).set_index("predictor")
print(table.astype(float).round(3).to_string())

# %% [markdown]
# With one length predicted for all, the queue is first come, first served, and the two are one policy.

# %%
figure, ax = plt.subplots(figsize=(3.3, 2.4), layout="constrained")
table[["vllm_v1_e2e_mean_s", "own_e2e_mean_s"]].astype(float).plot.bar(ax=ax, rot=0)
ax.set(xlabel="", ylabel="mean E2E time (s)")
figure.savefig("own_policy.png", dpi=150)
