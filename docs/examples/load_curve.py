# %% [markdown]
# # A load curve, with intervals
#
# How do latencies and attainment move with the load, and how sure is that? One configuration at a few rates,
# five replications each, from Python. Run the file as it stands, or open it in an editor that knows `# %%`.

# %%
import matplotlib.pyplot as plt
import pandas as pd

from batchsim.metrics.statistics import ci95_keys
from batchsim.study.replications import replicate

CHAT = {
    "policy": {"preset": "vllm_v1", "batch_size": 16},
    "slo": {"ttft_ms": 1000},
    "workload": {
        "num_requests": 400,
        "generator": {
            "kind": "gamma",
            "rate_per_s": 1.0,
            "cv": 1.5,
            "prompt": {"kind": "lognormal", "mean": 600, "sigma": 1.0, "max_tokens": 4000},
            "output": {"kind": "lognormal", "mean": 150, "sigma": 0.8, "max_tokens": 1000},
        },
    },
}
RATES = [2.0, 3.0, 4.0, 5.0, 6.0]

# %% [markdown]
# A replication is the same configuration with another seed. Each number of the summary is then a mean, and
# has the ends of its 95 % interval beside it.

# %%
METRICS = ["e2e_mean_s", "ttft_p99_s", "slo_attainment"]
rows = []
for rate in RATES:
    summary = replicate(CHAT, num=5, overrides={"workload.request_rate": rate}).summary
    rows.append({"rate": rate, "verdict": summary["verdict"], **summary})
table = pd.DataFrame(rows).set_index("rate")
print(table[["verdict", *METRICS]].round(3).to_string())

# %% [markdown]
# Where the verdict is not `stable`, the mean says how long the run was, no more.

# %%
figure, axes = plt.subplots(1, len(METRICS), figsize=(7, 2.4), layout="constrained")
for ax, metric in zip(axes, METRICS, strict=True):
    low, high = ci95_keys(metric)
    ax.fill_between(table.index, table[low].astype(float), table[high].astype(float), alpha=0.2)
    ax.plot(table.index, table[metric], marker="o")
    ax.set(xlabel="requests/s", title=metric)
figure.savefig("load_curve.png", dpi=150)
