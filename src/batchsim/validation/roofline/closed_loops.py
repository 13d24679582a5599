"""Predict measured closed loops: so many clients, each sends its next request when it has its answer.

The table is the sample of serving points of NVIDIA's aiconfigurator. Whatever the engine, vLLM V1 is
simulated: the roofline is on trial, and these engines all batch at every iteration.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from batchsim.latency.base import BatchShape, IterationShape
from batchsim.latency.store import default_latency
from batchsim.metrics.requests import tpot_s, ttft_s
from batchsim.specs import Sharing, gpu_activation_bytes
from batchsim.study.run import simulate
from batchsim.validation.points import Points, Row, Time, counts, leave_out, predict_rows, read_columns
from batchsim.validation.roofline.points import hardware, ideal, kv_tokens, sharing_of
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
    "tp_size": "tensor_parallel",
    "pp_size": "pipeline_parallel",
    "attention_dp_size": "data_parallel",
    "moe_ep_size": "expert_parallel",
    "silicon_ttft_ms": "ttft_ms",
    "silicon_tpot_ms": "tpot_ms",
}

#: vLLM's limits of a pass, left to themselves.
_PASS_TOKENS, _PASS_SEQS = 2048, 256
#: Requests that each client sends.
ROUNDS = 10
#: Clients of a row that is simulated, of all its groups together.
MOST_CLIENTS = 2048
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


class _Loop(NamedTuple):
    """What is simulated, once for all rows that say the same."""

    gpu: str  # as the table names them
    model: str
    precision: str
    sharing: Sharing
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    spread: float
    rounds: int


def _predict(row: Row, spread: float, rounds: int) -> tuple[Row, list[Time]]:
    # What is not quantised has no precision in the table: the model as it is published, in bf16.
    precision: str = "bf16" if pd.isna(row["precision"]) else str(row["precision"])
    model, gpu = hardware(row["gpu"], row["model"], precision)
    if row["mode"] != "agg":
        leave_out("prefill and decode on GPUs of their own", str(row["mode"]))
    sharing = sharing_of(row, model, gpu)
    clients, prompt_tokens, output_tokens = counts(row, "concurrency", "prompt_tokens", "output_tokens")
    concurrency = clients * sharing.data_parallel  # of each group so many
    if concurrency > MOST_CLIENTS:
        leave_out("more clients than are simulated", f"more than {MOST_CLIENTS:,}")
    ttft, tpot = _simulated(
        _Loop(
            row["gpu"],
            row["model"],
            precision,
            sharing,
            concurrency,
            prompt_tokens,
            output_tokens,
            spread,
            rounds,
        )
    )
    best = ideal(default_latency(model, gpu, sharing=sharing))
    least_ttft_s = best.batch_time(BatchShape(1, prompt_tokens, 1)).first_token_s
    least_tpot_s = best.iteration_s(IterationShape(0, 1, prompt_tokens))
    what = {
        "kind": "closed loop",
        "gpu": gpu.name,
        "model": model.name,
        "framework": row["framework"],
        "num_gpus": sharing.num_gpus,
        "precision": precision,
        "batch_size": concurrency,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
    }
    return what, [
        Time("TTFT", row["ttft_ms"] / 1000, ttft, least_ttft_s),
        Time("TPOT", row["tpot_ms"] / 1000, tpot, least_tpot_s),
    ]


@cache
def _simulated(loop: _Loop) -> tuple[float, float]:
    """Mean TTFT and TPOT."""
    model, gpu = hardware(loop.gpu, loop.model, loop.precision)
    activation_bytes = gpu_activation_bytes(model, loop.sharing, _PASS_TOKENS, _PASS_SEQS)
    num_blocks = kv_tokens(model, gpu, loop.sharing, activation_bytes) // _BLOCK_TOKENS
    longest = loop.prompt_tokens + (1 + loop.spread) * loop.output_tokens
    if num_blocks * _BLOCK_TOKENS < loop.sharing.data_parallel * longest:
        leave_out("not even one request fits the memory", f"{model.name} on {gpu.name}")
    config = {
        "policy": {"preset": "vllm_v1"},
        "cluster": {"gpu": gpu.name, "model": model.name, "num_replicas": 1, **asdict(loop.sharing)},
        "engine": {"num_kv_blocks": num_blocks, "block_size": _BLOCK_TOKENS},
        "clients": {"kind": "closed_loop", "concurrency": loop.concurrency},
        "metrics": {"warmup": 0.0},
    }
    latency = default_latency(model, gpu, sharing=loop.sharing)
    requests = simulate(config, _workload(loop), latency=latency).requests
    return float(ttft_s(requests).mean()), float(tpot_s(requests).mean())


def _workload(loop: _Loop) -> Workload:
    num = loop.concurrency * loop.rounds
    shares = np.random.default_rng(0).uniform(1 - loop.spread, 1 + loop.spread, num)
    return Workload(
        request_id=np.arange(num, dtype=np.int64),
        arrival_s=np.zeros(num),
        prompt_tokens=np.full(num, loop.prompt_tokens, dtype=np.int64),
        output_tokens=np.maximum(np.rint(loop.output_tokens * shares), 1).astype(np.int64),
        source=Source("closed loop", "synthetic"),
    )
