# %% [markdown]
# # How many GPUs, of which kind?
#
# The fewest of each kind that hold an SLO at a rate, what they cost, and what the answer hangs on. Seconds
# come from data sheets here; read how far they could be off before an order depends on it.

# %%
import matplotlib.pyplot as plt
import pandas as pd

from batchsim.study.capacity import find_capacity
from batchsim.study.run import simulate

WANTED = {
    "policy": {"preset": "vllm_v1"},
    "cluster": {"model": "llama-3.1-8b"},
    "slo": {"ttft_ms": 1000, "tpot_ms": 40},
    "workload": {"num_requests": 1500, "request_rate": 10.0},
}
KINDS = ["l40s", "a100-80g", "h100"]

# %% [markdown]
# `find_capacity` looks for the fewest GPUs that attain the limits for 90 % of the requests, by bisection.

# %%
rows = []
for kind in KINDS:
    config = {**WANTED, "cluster": {**WANTED["cluster"], "gpu": kind}}
    found = find_capacity(config)
    run = simulate({**config, "cluster": {**config["cluster"], "num_gpus": found.num_gpus}}).summary
    rows.append(
        {
            "gpu": kind,
            "num_gpus": found.num_gpus,
            "slo_attainment": run["slo_attainment"],
            "busy_fraction": run["busy_fraction"],
            "usd_per_hour": run["usd_per_hour"],
        }
    )
table = pd.DataFrame(rows).set_index("gpu")
print(table.round(3).to_string())
print(run["expected_error"])

# %% [markdown]
# One more or one less? Attainment over the number of GPUs shows how near the limit the answer is.

# %%
figure, ax = plt.subplots(figsize=(3.3, 2.4), layout="constrained")
for kind in KINDS:
    counts = range(1, int(table.loc[kind, "num_gpus"]) + 2)
    attained = [
        simulate({**WANTED, "cluster": {**WANTED["cluster"], "gpu": kind, "num_gpus": count}}).summary[
            "slo_attainment"
        ]
        for count in counts
    ]
    ax.plot(counts, attained, marker="o", label=kind)
ax.axhline(0.9, color="0.6", linewidth=0.8)
ax.set(xlabel="GPUs", ylabel="SLO attainment", ylim=(0, 1.02))
ax.legend()
figure.savefig("sizing.png", dpi=150)
