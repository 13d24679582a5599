"""The BurstGPT-like trace of the repository: how it is made, and how it compares with what is published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from batchsim.workload.generators.burstgpt_like import GENERATOR_VERSION, burstgpt_like
from batchsim.workload.tables import write_text

NUM_ROWS = 100_000
NUM_DAYS = 14.0
SEED = 36  # of 0 to 39, one whose days and hours differ about as much as the published ones

#: Published for BurstGPT trace 1 (README of HPMLL/BurstGPT, and aggregates of the whole trace by others).
#: Lengths are over requests that did not fail.
PUBLISHED: Mapping[str, float] = {
    "rows": 1_429_737,
    "days": 61,
    "mean_rate_per_s": 0.271,
    "failed_share": 0.0178,
    "conversation_share": 0.1038,
    "gpt4_share": 0.1532,
    "request_mean_tokens": 621,
    "request_max_tokens": 29_665,
    "response_mean_tokens": 126,
    "response_max_tokens": 7_315,
    "daily_cv": 1.13,
    "busiest_day_over_mean": 149_520 / 23_438,
    "busiest_hour_over_mean": 33_344 / (23_438 / 24),
    "duplicate_share": 0.029,
}

#: Percentiles are not published; these are quoted elsewhere and could not be checked: a rough guide.
QUOTED: Mapping[str, float] = {
    "request_p50_tokens": 251,
    "request_p95_tokens": 2_461,
    "response_p50_tokens": 34,
    "response_p95_tokens": 460,
}


def embedded_frame() -> pd.DataFrame:
    """Make the embedded trace anew, as a table in BurstGPT's columns."""
    return burstgpt_like(NUM_ROWS, np.random.default_rng(SEED), num_days=NUM_DAYS)


def write_embedded_trace(path: Path) -> None:
    """Make the embedded trace anew and write it; the text is the same every time."""
    label = (
        f"batchsim burstgpt_like generator version {GENERATOR_VERSION}, seed {SEED}, {NUM_ROWS} rows in "
        f"{NUM_DAYS:g} days; built from published statistics of BurstGPT, holds no row of it"
    )
    write_burstgpt_csv(embedded_frame(), path, label)


def write_burstgpt_csv(frame: pd.DataFrame, path: str | Path, label: str) -> None:
    """Write a generated table in BurstGPT's columns, under a ``# synthetic`` line that readers heed."""
    write_text(Path(path), f"# synthetic: {label}\n" + frame.to_csv(index=False, lineterminator="\n"))


def statistics(frame: pd.DataFrame) -> dict[str, float]:
    """Measure a table in BurstGPT's columns; keys as in `PUBLISHED` and `QUOTED`.

    Shares of models and log types, and lengths, are over rows that did not fail.
    """
    answered = frame[frame["Response tokens"] > 0]
    timestamp_s = frame["Timestamp"].to_numpy()
    per_day, per_hour = (np.bincount((timestamp_s // unit_s).astype(np.int64)) for unit_s in (86_400, 3_600))
    measured: dict[str, float] = {
        "rows": len(frame),
        "days": len(per_day),
        "mean_rate_per_s": (len(frame) - 1) / float(timestamp_s[-1] - timestamp_s[0]),
        "failed_share": 1 - len(answered) / len(frame),
        "conversation_share": float((answered["Log Type"] == "Conversation log").mean()),
        "gpt4_share": float((answered["Model"] == "GPT-4").mean()),
        "daily_cv": float(per_day.std() / per_day.mean()),
        "busiest_day_over_mean": float(per_day.max() / per_day.mean()),
        "busiest_hour_over_mean": float(per_hour.max() / per_hour.mean()),
        "duplicate_share": float(frame.duplicated().mean()),
    }
    for ours, column in (("request", "Request tokens"), ("response", "Response tokens")):
        tokens = answered[column]
        measured[f"{ours}_mean_tokens"] = float(tokens.mean())
        measured[f"{ours}_p50_tokens"] = float(tokens.quantile(0.5))
        measured[f"{ours}_p95_tokens"] = float(tokens.quantile(0.95))
        measured[f"{ours}_max_tokens"] = float(tokens.max())
    return measured


def comparison_table(frame: pd.DataFrame) -> str:
    """Return a Markdown table of a generated trace beside the published trace 1."""
    measured = statistics(frame)
    lines = ["| statistic | this trace | BurstGPT trace 1 |", "|---|---:|---:|"]
    for values, remark in ((PUBLISHED, ""), (QUOTED, " (quoted)")):
        for name, value in values.items():
            lines.append(f"| {name} | {_shown(name, measured[name])} | {_shown(name, value)}{remark} |")
    return "\n".join(lines) + "\n"


def _shown(name: str, value: float) -> str:
    if name.endswith("_share"):
        return f"{value:.1%}"
    if name.endswith(("_cv", "_over_mean")):
        return f"{value:.2f}"
    return f"{value:.3f}" if name.endswith("_per_s") else f"{value:,.0f}"
