"""Made-up tables in the form of published measurements."""

from pathlib import Path
from typing import Any

import pandas as pd

BATCH: dict[str, Any] = {
    "Hardware": "Nvidia H100 GPU",
    "Num of Hardware": 1,
    "Framework": "vLLM",
    "Model": "meta-llama/Meta-Llama-3-8B",
    "Input Output Length": 128,
    "Batch Size": 4,
    "Latency": 2.0,
}
LOOP: dict[str, Any] = {
    "system": "h100_sxm",
    "model_path": "meta-llama/Llama-3.1-8B-Instruct",
    "backend": "vllm",
    "precision": None,
    "mode": "agg",
    "isl": 512,
    "osl": 8,
    "batch_size": 1,
    "tp_size": 1,
    "pp_size": 1,
    "attention_dp_size": None,
    "moe_ep_size": 1,
    "silicon_ttft_ms": 40.0,
    "silicon_tpot_ms": 10.0,
}


def write_batches(path: Path, *changes: dict[str, Any]) -> Path:
    """One static batch for each change; its throughput counts prompt and answer, unless it is given."""
    rows = [{**BATCH, **change} for change in changes]
    for row in rows:
        tokens = 2 * row["Batch Size"] * row["Input Output Length"]
        row.setdefault("Throughput", tokens / row["Latency"])
    return _write(path, rows)


def write_loops(path: Path, *changes: dict[str, Any]) -> Path:
    """One closed loop for each change."""
    return _write(path, [{**LOOP, **change} for change in changes])


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pd.DataFrame(rows).to_csv(path, index=False)
    return path
