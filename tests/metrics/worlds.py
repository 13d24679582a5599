"""Small worlds as records: tables built from the few columns a test cares about."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.records import (
    BATCH_COLUMNS,
    CONTROLLER_COLUMNS,
    FINISHED,
    ITERATION_COLUMNS,
    ITERATION_REQUEST_COLUMNS,
    PREEMPTION_COLUMNS,
    REQUEST_COLUMNS,
    Records,
    empty,
    table,
)
from tests.trust import queues

_REQUEST_DEFAULTS: Mapping[str, Any] = {
    "prompt_tokens": 1,
    "output_tokens": 1,
    "predicted_output_tokens": 1,
    "bin": 0,
    "gpu_id": 0,
    "batch_size": 1,
    "scheduled_s": np.nan,
    "first_token_s": np.nan,
    "finish_s": np.nan,
    "num_evictions": 0,
    "status": FINISHED,
}
_BATCH_DEFAULTS: Mapping[str, Any] = {
    "gpu_id": 0,
    "bin": 0,
    "batch_size": 1,
    "num_evicted": 0,
    "size_limit": 1,
    "is_flush": False,
    "first_token_s": np.nan,
    "max_prompt_tokens": 1,
    "max_output_tokens": 1,
    "sum_prompt_tokens": 1,
    "sum_output_tokens": 1,
    "kv_tokens": 2,
    "is_extrapolated": False,
}
_ENGINE_REQUEST_DEFAULTS: Mapping[str, Any] = {
    **_REQUEST_DEFAULTS,
    "batch_id": -1,
    "batch_size": 0,
    "decode_start_s": np.nan,
    "cached_tokens": 0,
    "recomputed_tokens": 0,
    "num_preemptions": 0,
}
_ITERATION_DEFAULTS: Mapping[str, Any] = {
    "gpu_id": 0,
    "num_iterations": 1,
    "host_s": 0.0,
    "prefill_tokens": 0,
    "prefill_seqs": 0,
    "prefill_pairs": 0.0,
    "longest_tokens": 0,
    "decode_seqs": 0,
    "context_tokens": 0,
    "num_running": 1,
    "num_waiting": 0,
    "kv_blocks": 1,
    "num_preempted": 0,
    "is_extrapolated": False,
}
_PREEMPTION_DEFAULTS: Mapping[str, Any] = {"gpu_id": 0, "mode": "recompute", "lost_tokens": 0}
NO_PREEMPTIONS = empty(PREEMPTION_COLUMNS)


def request_table(arrival_s: Any, **columns: Any) -> pd.DataFrame:
    rows = np.arange(len(arrival_s))
    given = {"request_id": rows, "batch_id": rows, "arrival_s": arrival_s, **_REQUEST_DEFAULTS, **columns}
    return table(REQUEST_COLUMNS, _full_columns(given, len(rows)))


def batch_table(start_s: Any, finish_s: Any, **columns: Any) -> pd.DataFrame:
    rows = np.arange(len(start_s))
    given = {"batch_id": rows, "start_s": start_s, "finish_s": finish_s, **_BATCH_DEFAULTS, **columns}
    return table(BATCH_COLUMNS, _full_columns(given, len(rows)))


def engine_request_table(arrival_s: Any, **columns: Any) -> pd.DataFrame:
    """A request's only decode run begins with its first token, unless ``decode_start_s`` says otherwise."""
    rows = np.arange(len(arrival_s))
    given = {"request_id": rows, "arrival_s": arrival_s, **_ENGINE_REQUEST_DEFAULTS, **columns}
    given = {**given, "decode_start_s": columns.get("decode_start_s", given["first_token_s"])}
    return table(ITERATION_REQUEST_COLUMNS, _full_columns(given, len(rows)))


def iteration_table(start_s: Any, finish_s: Any, **columns: Any) -> pd.DataFrame:
    """The iterations of a span are equally long, unless ``first_iteration_s`` says otherwise."""
    given = {"start_s": start_s, "finish_s": finish_s, **_ITERATION_DEFAULTS, **columns}
    equal_s = np.subtract(finish_s, start_s) / given["num_iterations"]
    return table(ITERATION_COLUMNS, _full_columns({"first_iteration_s": equal_s, **given}, len(start_s)))


def preemption_table(time_s: Any, **columns: Any) -> pd.DataFrame:
    given = {"time_s": time_s, **_PREEMPTION_DEFAULTS, **columns}
    return table(PREEMPTION_COLUMNS, _full_columns(given, len(time_s)))


def engine_records(
    requests: pd.DataFrame,
    iterations: pd.DataFrame,
    preemptions: pd.DataFrame = NO_PREEMPTIONS,
    kv_blocks: tuple[int, ...] = (100,),
) -> Records:
    return Records(
        requests,
        empty(BATCH_COLUMNS),
        empty(CONTROLLER_COLUMNS),
        len(kv_blocks),
        16 * kv_blocks[0],
        {},
        iterations,
        preemptions,
        kv_blocks=kv_blocks,
    )


def records(
    requests: pd.DataFrame, batches: pd.DataFrame, num_replicas: int = 1, kv_capacity_tokens: int = 100
) -> Records:
    return Records(requests, batches, empty(CONTROLLER_COLUMNS), num_replicas, kv_capacity_tokens, {})


def single_server(arrival_s: NDArray[np.float64], service_s: NDArray[np.float64]) -> Records:
    """One GPU, one request at a time, first come first served."""
    _, start_s, finish_s = queues.single_server(arrival_s, service_s)
    requests = request_table(arrival_s, scheduled_s=start_s, first_token_s=finish_s, finish_s=finish_s)
    return records(requests, batch_table(start_s, finish_s))


def poisson_queue(utilisation: float, num_requests: int, rng: np.random.Generator) -> Records:
    """M/M/1 with one request per second of service on average, started empty."""
    arrival_s = np.cumsum(rng.exponential(1 / utilisation, num_requests))
    return single_server(arrival_s, rng.exponential(1.0, num_requests))


def _full_columns(given: Mapping[str, Any], length: int) -> dict[str, Any]:
    return {name: np.full(length, value) if np.isscalar(value) else value for name, value in given.items()}
