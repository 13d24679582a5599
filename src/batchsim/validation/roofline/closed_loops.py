"""Predict measured closed loops: so many clients, each sends its next request when it has its answer.

The table is the sample of serving points of NVIDIA's aiconfigurator. Whatever the engine, vLLM V1 is
simulated: the roofline is on trial, and these engines all batch at every iteration.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from batchsim.latency.base import BatchShape, IterationShape
from batchsim.latency.roofline import RooflineLatency
from batchsim.latency.store import default_latency
from batchsim.metrics.requests import tpot_s, ttft_s
from batchsim.study.run import simulate
from batchsim.validation.points import Points, Row, Time, counts, leave_out, predict_rows, read_columns
from batchsim.validation.roofline.points import hardware, ideal, kv_tokens
from batchsim.workload.request import Source, Workload

COLUMNS = {
    "system": "gpu",
    "model_path": "model",
    "backend": "framework",
    "precision": "precision",
    "mode": "mode",
    "isl": "prompt_tokens",
    "osl": "output_tokens",
    "batch_size": "concurrency",
    "tp_size": "num_gpus",
    "pp_size": "pipeline_parallel",
    "attention_dp_size": "data_parallel",
    "silicon_ttft_ms": "ttft_ms",
    "silicon_tpot_ms": "tpot_ms",
}

#: Requests that each client sends.
ROUNDS = 10
#: Clients of a row that is simulated: ten times those of the largest measured engines.
MOST_CLIENTS = 10_000
_BLOCK_TOKENS = 16


def predict_closed_loops(path: str | Path, spread: float = 0.0, rounds: int = ROUNDS) -> Points:
    """Simulate every row of a table whose hardware and model have specs, with the default roofline.

    Parameters
    ----------
    spread
        Answers are so much shorter or longer than the table says, as a share, all lengths in between equally
        likely. With 0, clients whose requests ran together send the next ones together.

    Raises
    ------
    TraceError
        If the file cannot be read, or a column is missing.
    """
    return predict_rows(read_columns(Path(path), COLUMNS), partial(_predict, spread=spread, rounds=rounds))


def _predict(row: Row, spread: float, rounds: int) -> tuple[Row, list[Time]]:
    # What is not quantised has no precision in the table: the model as it is published, in bf16.
    precision: str = "bf16" if pd.isna(row["precision"]) else str(row["precision"])
    model, gpu = hardware(row["gpu"], row["model"], precision)
    if row["mode"] != "agg":
        leave_out("prefill and decode on GPUs of their own", str(row["mode"]))
    for name in ("pipeline_parallel", "data_parallel"):
        if row[name] > 1:
            leave_out("parallelism that a roofline does not know", name.replace("_", " "))
    num_gpus, concurrency = counts(row, "num_gpus", "concurrency")
    prompt_tokens, output_tokens = counts(row, "prompt_tokens", "output_tokens")
    if concurrency > MOST_CLIENTS:
        leave_out("more clients than are simulated", f"more than {MOST_CLIENTS:,}")
    num_blocks = kv_tokens(model, gpu, num_gpus) // _BLOCK_TOKENS
    if num_blocks * _BLOCK_TOKENS < prompt_tokens + (1 + spread) * output_tokens:
        leave_out("not even one request fits the memory", f"{model.name} on {gpu.name}")
    latency = default_latency(model, gpu, num_gpus)
    workload = _workload(concurrency * rounds, prompt_tokens, output_tokens, spread)
    requests = _simulate(latency, num_blocks, workload, concurrency)
    best = ideal(latency)
    least_ttft_s = best.batch_time(BatchShape(1, prompt_tokens, 1)).first_token_s
    least_tpot_s = best.iteration_s(IterationShape(0, 1, prompt_tokens))
    what = {
        "kind": "closed loop",
        "gpu": gpu.name,
        "model": model.name,
        "framework": row["framework"],
        "num_gpus": num_gpus,
        "precision": precision,
        "batch_size": concurrency,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
    }
    return what, [
        Time("TTFT", row["ttft_ms"] / 1000, float(ttft_s(requests).mean()), least_ttft_s),
        Time("TPOT", row["tpot_ms"] / 1000, float(tpot_s(requests).mean()), least_tpot_s),
    ]


def _workload(num: int, prompt_tokens: int, output_tokens: int, spread: float) -> Workload:
    shares = np.random.default_rng(0).uniform(1 - spread, 1 + spread, num)
    return Workload(
        request_id=np.arange(num, dtype=np.int64),
        arrival_s=np.zeros(num),
        prompt_tokens=np.full(num, prompt_tokens, dtype=np.int64),
        output_tokens=np.maximum(np.rint(output_tokens * shares), 1).astype(np.int64),
        source=Source("closed loop", "synthetic"),
    )


def _simulate(
    latency: RooflineLatency, num_blocks: int, workload: Workload, concurrency: int
) -> pd.DataFrame:
    config = {
        "policy": {"preset": "vllm_v1"},
        "cluster": {"gpu": latency.gpu.name, "model": latency.model.name},
        "engine": {"num_kv_blocks": num_blocks, "block_size": _BLOCK_TOKENS},
        "clients": {"kind": "closed_loop", "concurrency": concurrency},
        "metrics": {"warmup": 0.0},
    }
    return simulate(config, workload, latency=latency).requests
