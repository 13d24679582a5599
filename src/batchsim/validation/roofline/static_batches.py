"""Predict measured static batches: all prompts start together, all answers have one length.

The table is that of LLM-Inference-Bench (arXiv 2411.00136).
"""

from __future__ import annotations

import math
from pathlib import Path

from batchsim.latency.base import BatchShape
from batchsim.latency.store import default_latency
from batchsim.specs import Sharing
from batchsim.validation.points import Points, Row, Time, counts, leave_out, predict_rows, read_columns
from batchsim.validation.roofline.points import hardware, ideal, kv_tokens

COLUMNS = {
    "Hardware": "gpu",
    "Num of Hardware": "num_gpus",
    "Framework": "framework",
    "Model": "model",
    "Input Output Length": "length",
    "Batch Size": "batch_size",
    "Latency": "measured_s",
    "Throughput": "tokens_per_s",
}

#: Its rows come from llama-bench, whose ``-b`` is the number of *prompt tokens* that a pass takes: whatever
#: the batch size says, one sequence runs.
SINGLE_SEQUENCE = "llama.cpp"


def predict_static_batches(path: str | Path) -> Points:
    """Predict every row of a table whose hardware and model have specs, with the default roofline.

    Raises
    ------
    TraceError
        If the file cannot be read, or a column is missing.
    """
    return predict_rows(read_columns(Path(path), COLUMNS), _predict)


def _predict(row: Row) -> tuple[Row, list[Time]]:
    framework, measured_s = str(row["framework"]), float(row["measured_s"])
    size, length, num_gpus = counts(row, "batch_size", "length", "num_gpus")
    model, gpu = hardware(row["gpu"], row["model"], "bf16")  # or fp16, which costs the same
    if framework == SINGLE_SEQUENCE:
        leave_out("the batch size is not one of sequences", framework)
    num_tokens = 2 * size * length
    if not math.isclose(row["tokens_per_s"] * measured_s, num_tokens, rel_tol=0.01):
        leave_out("latency and throughput contradict each other", framework)
    if num_tokens > kv_tokens(model, gpu, Sharing(num_gpus)):
        leave_out("the batch does not fit the memory at once", f"{model.name} on {gpu.name}")
    latency, shape = default_latency(model, gpu, num_gpus), BatchShape(size, length, length)
    what = {
        "kind": "static batch",
        "gpu": gpu.name,
        "model": model.name,
        "framework": framework,
        "num_gpus": num_gpus,
        "precision": "bf16",
        "batch_size": size,
        "prompt_tokens": length,
        "output_tokens": length,
    }
    least_s = ideal(latency).batch_time(shape).total_s
    return what, [Time("batch", measured_s, latency.batch_time(shape).total_s, least_s)]
