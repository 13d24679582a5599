"""What a roofline says to published measurements: points, and the rows that have no prediction.

The tables name GPUs and models in their own ways; here stands which of our specs is meant.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pandas as pd

from batchsim.errors import ConfigError
from batchsim.files import MAX_COUNT
from batchsim.files.tables import CsvTable, read_csv
from batchsim.latency.roofline import RooflineLatency
from batchsim.specs import GPUSpec, ModelSpec, in_fp8, kv_capacity_tokens, load_gpu, load_model

POINT_COLUMNS = (
    "kind",  # "static batch" or "closed loop"
    "gpu",
    "model",
    "framework",
    "num_gpus",
    "precision",
    "batch_size",  # sequences, or clients of a closed loop
    "prompt_tokens",
    "output_tokens",
    "metric",  # "batch", "TTFT" or "TPOT"
    "measured_s",
    "predicted_s",
)

#: GPUs as the tables name them. LLM-Inference-Bench does not name its variants: its A100 are those of Polaris
#: (40 GB SXM), its H100 "80GB HBM3" (SXM). Its MI250 are cards of two dies: Llama-2-70B in fp16 was run on
#: two, and fits four dies only.
GPUS: Mapping[str, str] = {
    "Nvidia A100 GPU": "a100-40g",
    "Nvidia H100 GPU": "h100",
    "Nvidia GH200 GPU": "gh200-96g",
    "AMD MI250 GPU": "mi250",
    "AMD MI300X GPU": "mi300x",
    "h100_sxm": "h100",
    "h200_sxm": "h200",
    "b200_sxm": "b200",
    "l40s": "l40s",
}

#: Models by their name on Hugging Face; those of equal shape share a spec.
MODELS: Mapping[str, str] = {
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Llama-2-13b-hf": "llama-2-13b",
    "meta-llama/Llama-2-70b-hf": "llama-2-70b",
    "meta-llama/Meta-Llama-3-8B": "llama-3.1-8b",
    "meta-llama/Meta-Llama-3-70B": "llama-3.1-70b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
    "mistralai/Mistral-7B-v0.1": "mistral-7b",
    "Qwen/Qwen2-7B": "qwen2.5-7b",
    "Qwen/Qwen2-72B": "qwen2-72b",
    "Qwen/Qwen3-32B": "qwen3-32b",
}


#: Share of the GPUs' memory that weights and KV do not get, as in vLLM.
MEMORY_MARGIN = 0.1

Row = dict[Any, Any]

#: Columns of text, by our names, and the largest count of the others.
_WORDS = ("gpu", "framework", "model", "precision", "mode")
_MOST = 1_000_000


class Unpredictable(Exception):  # noqa: N818 -- a state of a row, nobody's fault
    """A row that is left out: why, and what about it in particular."""


class Time(NamedTuple):
    """A time that was measured and predicted, and the least that the data sheet allows."""

    metric: str
    measured_s: float
    predicted_s: float
    least_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Times that were measured and predicted, and the rows that could not be.

    Attributes
    ----------
    table
        `POINT_COLUMNS`, one row per time.
    num_rows
        Rows of the file.
    skipped
        Rows left out, by reason and detail.
    """

    table: pd.DataFrame
    num_rows: int
    skipped: Counter[tuple[str, str]]


def read_columns(path: Path, names: Mapping[str, str]) -> pd.DataFrame:
    """Read these columns of a table under names of our own; what is not there is NaN.

    Raises
    ------
    TraceError
        If the file cannot be read, a column is missing, or a value is none of its kind.
    """
    table = read_csv(path)
    table.need(list(names))
    return pd.DataFrame({ours: table.recorded(name, _kind(name, ours)) for name, ours in names.items()})


def _kind(name: str, ours: str) -> Callable[[CsvTable], pd.Series[Any]]:
    if ours in _WORDS:
        return lambda table: table.words(name)
    if ours.endswith("_per_s"):
        return lambda table: table.numbers(name, 0, MAX_COUNT)
    if ours.endswith(("_s", "_ms")):
        return lambda table: table.times(name, 1e-3 if ours.endswith("_ms") else 1.0)
    least = 0 if ours.endswith("_parallel") else 1  # published tables have 0 where nothing is parallel
    return lambda table: table.counts(name, least, _MOST)


def counts(row: Row, *names: str) -> list[int]:
    """Whole numbers of a row; it is left out where one of them is not there."""
    for name in names:
        if pd.isna(row[name]):
            leave_out("a number that is not there", name)
    return [int(row[name]) for name in names]


def predict_rows(table: pd.DataFrame, predict: Callable[[Row], tuple[Row, list[Time]]]) -> Points:
    """Predict row by row: what a row is and its times, or `Unpredictable`."""
    rows: list[Row] = []
    skipped: Counter[tuple[str, str]] = Counter()
    for row in table.to_dict("records"):
        try:
            what, times = predict(row)
            for time in times:
                if not math.isfinite(time.measured_s):
                    leave_out("a time that is not there", time.metric)
                if time.measured_s < time.least_s:
                    leave_out("faster than the data sheet allows", f"{what['framework']} on {what['gpu']}")
        except Unpredictable as why:
            skipped[why.args[0], why.args[1]] += 1
        else:
            rows += [
                {**what, **{name: value for name, value in time._asdict().items() if name != "least_s"}}
                for time in times
            ]
    return Points(pd.DataFrame(rows, columns=list(POINT_COLUMNS)), len(table), skipped)


def leave_out(reason: str, detail: str) -> NoReturn:
    """Leave the row out, for a reason that is counted."""
    raise Unpredictable(reason, detail)


def hardware(gpu: str, model: str, precision: str) -> tuple[ModelSpec, GPUSpec]:
    """The specs of a row; it is left out where we have none, or none in this precision."""
    if gpu not in GPUS:
        leave_out("GPU without a spec", gpu)
    if model not in MODELS:
        leave_out("model without a spec", model)
    model_spec, gpu_spec = load_model(MODELS[model]), load_gpu(GPUS[gpu])
    if precision == "bf16":
        return model_spec, gpu_spec
    if precision != "fp8" or gpu_spec.fp8_flop_per_s is None:
        leave_out("quantisation without a spec", f"{precision} on {gpu_spec.name}")
    return in_fp8(model_spec, gpu_spec), gpu_spec


def kv_tokens(model: ModelSpec, gpu: GPUSpec, num_gpus: int) -> int:
    """Tokens of KV that some GPUs hold together beside the weights."""
    together = replace(gpu, memory_bytes=gpu.memory_bytes * num_gpus)
    try:
        return kv_capacity_tokens(model, together, MEMORY_MARGIN)
    except ConfigError:  # not even the weights
        return 0


def ideal(latency: RooflineLatency) -> RooflineLatency:
    """The same at the peaks of the data sheet, without overhead and all-reduces: no engine is faster."""
    gpu, num_gpus = latency.gpu, latency.tensor_parallel
    together = replace(
        gpu,
        flop_per_s=gpu.flop_per_s * num_gpus,
        fp8_flop_per_s=gpu.fp8_flop_per_s and gpu.fp8_flop_per_s * num_gpus,
        memory_bytes_per_s=gpu.memory_bytes_per_s * num_gpus,
    )
    return RooflineLatency(latency.model, together, 1.0, 1.0, 0.0)
