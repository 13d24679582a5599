"""Predict published closed loops of today's models: so many clients, each sends when it has its answer.

The table is the sample of serving points of NVIDIA's aiconfigurator, the times are those of the operators in
its package; the serving points themselves are nowhere used to make them. Whatever the engine, vLLM V1's
scheduling is simulated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from batchsim.errors import ConfigError
from batchsim.latency.profiles.aiconfigurator import (
    SetUp,
    aiconfigurator_latency,
    known,
    kv_capacity_tokens,
)
from batchsim.metrics.requests import tpot_s, ttft_s
from batchsim.study.run import simulate
from batchsim.validation.points import (
    Points,
    Row,
    Time,
    counts,
    gpus_of,
    leave_out,
    predict_rows,
    read_columns,
)
from batchsim.workload.request import Source, Workload

COLUMNS = {
    "system": "gpu",
    "model_path": "model",
    "backend": "framework",
    "precision": "precision",
    "mode": "mode",
    "silicon_data_source": "source",
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

#: What the package calls a model of the table in a precision, where not the same.
MODELS: Mapping[tuple[str, str], str] = {
    ("MiniMaxAI/MiniMax-M2.5", "fp4"): "nvidia/MiniMax-M2.5-NVFP4",
    ("Qwen/Qwen3-32B", "fp8"): "Qwen/Qwen3-32B-FP8",
    ("Qwen/Qwen3.5-397B-A17B", "fp4"): "nvidia/Qwen3.5-397B-A17B-NVFP4",
    ("deepseek-ai/DeepSeek-R1", "fp4"): "nvidia/DeepSeek-V3.1-NVFP4",
    ("deepseek-ai/DeepSeek-V3", "fp4"): "nvidia/DeepSeek-V3.1-NVFP4",
    ("meta-llama/Llama-3.1-70B", "fp8"): "nvidia/Llama-3.1-70B-Instruct-FP8",
    ("meta-llama/Llama-3.1-8B-Instruct", "bf16"): "meta-llama/Meta-Llama-3.1-8B",
    ("moonshotai/Kimi-K2.5", "fp4"): "nvidia/Kimi-K2.5-NVFP4",
    ("zhipuai/GLM-5", "fp4"): "nvidia/GLM-5-NVFP4",
    ("zhipuai/GLM-5", "fp8"): "zai-org/GLM-5-FP8",
}
#: Precisions that a model's own name already has, and so are left to its config.json.
_OWN = {
    "openai/gpt-oss-120b": ("fp4",),
    "moonshotai/Kimi-K2.5": ("int4",),
    "Qwen/Qwen3.5-397B-A17B": ("bf16",),
}

#: Requests that each client sends.
ROUNDS = 10
#: Clients of a row that is simulated.
MOST_CLIENTS = 2048
_BLOCK_TOKENS = 16
_PASS_TOKENS, _PASS_SEQS = 8192, 1024  # vLLM's limits on large GPUs


class Protocol(NamedTuple):
    """How points were measured: the least length as a share of what is named, and rounds left out."""

    shortest: float
    rounds_left_out: int


#: InferenceMAX: ``--random-range-ratio 0.8 --num-prompts 10 * clients``, measured from the first on.
INFERENCEMAX = Protocol(0.8, 0)
#: Those of NVIDIA, of which no more than mean lengths is said: not all alike, and without the first rush.
UNKNOWN = Protocol(0.9, 2)


@dataclass(frozen=True, slots=True)
class _Loop:
    """What is simulated, once for all rows that say the same."""

    set_up: SetUp
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    protocol: Protocol


def predict_measured_loops(path: str | Path) -> Points:
    """Simulate every row of a table whose model the package has.

    Raises
    ------
    TraceError
        If the file cannot be read, or a column is missing.
    ConfigError
        If the package is not installed.
    """
    known()
    return predict_rows(read_columns(Path(path), COLUMNS), _predict)


def _predict(row: Row) -> tuple[Row, list[Time]]:
    if row["mode"] != "agg":
        leave_out("prefill and decode on GPUs of their own", str(row["mode"]))
    precision: str = "bf16" if pd.isna(row["precision"]) else str(row["precision"])
    set_up = set_up_of(row, precision)
    concurrency, prompt_tokens, output_tokens = counts(row, "concurrency", "prompt_tokens", "output_tokens")
    if concurrency > MOST_CLIENTS:
        leave_out("more clients than are simulated", f"more than {MOST_CLIENTS:,}")
    ttft, tpot = _simulated(
        _Loop(set_up, concurrency, prompt_tokens, output_tokens, protocol_of(str(row["source"])))
    )
    what = {
        "kind": "closed loop",
        "gpu": set_up.system,
        "model": set_up.model,
        "framework": set_up.backend,
        "num_gpus": set_up.tensor_parallel * set_up.data_parallel * set_up.pipeline_parallel,
        "precision": precision,
        "batch_size": concurrency,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
    }
    return what, [
        Time("TTFT", row["ttft_ms"] / 1000, ttft, 0.0),
        Time("TPOT", row["tpot_ms"] / 1000, tpot, 0.0),
    ]


def protocol_of(source: str) -> Protocol:
    """Tell the protocol by where a row says it comes from: dumps of InferenceMAX go by their dates."""
    origin = source.partition(";")[0].removeprefix("source_file=")
    is_dump = origin.startswith(("db-dump/", "20")) or "gap-analysis" in origin
    return INFERENCEMAX if is_dump else UNKNOWN


def set_up_of(row: Row, precision: str) -> SetUp:
    """What the package is asked for; the row is left out where it has no such model."""
    name = str(row["model"])
    model = MODELS.get((name, precision), name)
    is_own = model != name or precision in _OWN.get(name, (precision,))
    if model not in known().models or not is_own:
        leave_out("model that the package has not", f"{name} in {precision}")
    tensor, pipeline, data, expert = gpus_of(row)
    return SetUp(str(row["gpu"]), model, str(row["framework"]), "current", tensor, pipeline, expert, data)


@cache
def _simulated(loop: _Loop) -> tuple[float, float]:
    """Mean TTFT and TPOT."""
    try:
        latency = aiconfigurator_latency(loop.set_up)
        kv_tokens = kv_capacity_tokens(loop.set_up)
    except ConfigError as error:
        leave_out("no times of it", str(error).split(":")[0].removeprefix("aiconfigurator-core has "))
    if kv_tokens is None or kv_tokens < loop.prompt_tokens + loop.output_tokens:
        leave_out("no memory for KV beside the weights", f"{loop.set_up.model} on {loop.set_up.system}")
    config = {
        "policy": {
            "preset": "vllm_v1",
            "batch_size": max(_PASS_SEQS, loop.concurrency),
            "batching": {"max_num_batched_tokens": _PASS_TOKENS},
        },
        "engine": {
            "num_kv_blocks": kv_tokens // _BLOCK_TOKENS,
            "block_size": _BLOCK_TOKENS,
            "frontend": loop.set_up.backend,
        },
        "clients": {"kind": "closed_loop", "concurrency": loop.concurrency},
        "metrics": {"warmup": 0.0},
        "latency": {"outside": "extrapolate"},
    }
    requests = simulate(config, _workload(loop), latency=latency).requests
    measured = requests.iloc[loop.protocol.rounds_left_out * loop.concurrency :]
    return float(ttft_s(measured).mean()), float(tpot_s(measured).mean())


def _workload(loop: _Loop) -> Workload:
    num, rng = loop.concurrency * ROUNDS, np.random.default_rng(0)

    def lengths(longest: int) -> np.ndarray:
        return rng.integers(max(1, int(loop.protocol.shortest * longest)), longest + 1, num)

    return Workload(
        request_id=np.arange(num, dtype=np.int64),
        arrival_s=np.zeros(num),
        prompt_tokens=lengths(loop.prompt_tokens),
        output_tokens=lengths(loop.output_tokens),
        source=Source("closed loop", "synthetic"),
    )
