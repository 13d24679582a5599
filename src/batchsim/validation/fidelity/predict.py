"""Predict a measured run of a serving engine from an operator profile.

Nothing is fitted on the run: its settings, its requests and the profile go in, its times do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.errors import ConfigError, TraceError
from batchsim.latency.base import IterationShape
from batchsim.latency.choices import ReplayFamily
from batchsim.latency.fitting.linear_from_shapes import linear_from_shapes
from batchsim.latency.linear import LinearIterationLatency
from batchsim.latency.lockstep import LockstepLatency
from batchsim.latency.operators import OperatorTable, OperatorTableLatency
from batchsim.latency.profiles.layer_sharing import LayerStack
from batchsim.latency.profiles.operator_profile import read_operator_profile
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate
from batchsim.validation.fidelity.engine_run import EngineSettings
from batchsim.validation.fidelity.kv_memory import kv_blocks
from batchsim.workload.formats import read_trace
from batchsim.workload.prefixes import prefix_ids
from batchsim.workload.request import Workload
from batchsim.workload.tables import read_table

Floats = NDArray[np.float64]

PREDICTED_COLUMNS = ("request_id", "arrival_s", "queued_s", "first_token_s", "last_token_s")


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a replay says of a run.

    Attributes
    ----------
    requests
        One row per request that finishes: `PREDICTED_COLUMNS` and ``output_tokens``.
    settings
        As used, with the KV blocks filled in.
    wall_s
        Seconds that the simulation took, tables read.
    """

    requests: pd.DataFrame
    settings: EngineSettings
    result: SimulationResult
    latency: OperatorTableLatency | LockstepLatency | LinearIterationLatency
    family: ReplayFamily
    wall_s: float


def read_workload(path: str | Path, num_requests: int | None = None) -> tuple[Workload, list[str]]:
    """Read the requests of a run, and what the file calls them; at most so many."""
    workload = read_trace(path)
    if num_requests is not None:
        workload = workload.take(slice(0, num_requests))
    table = read_table(Path(path)).table
    if "request_id" not in table or "prompt_tokens" in table:  # without ids, or ours, whose ids are numbers
        return workload, [str(number) for number in workload.request_id]
    for tokens in ("input_toks", "output_toks"):  # the reader leaves requests without tokens out
        if tokens in table:
            table = table[pd.to_numeric(table[tokens], errors="coerce") > 0]
    given = table["request_id"].astype(str).tolist()
    if len(set(given)) < len(given) or len(given) <= workload.request_id.max(initial=-1):
        raise TraceError(f"{path}: request_id must be unique, and all requests must have one")
    return workload, [given[row] for row in workload.request_id]


def profile_of_model(profile: Path, name: str | None) -> Path:
    """Return the folder that is called like the model in one that may hold those of several."""
    last = (name or "").rsplit("/", 1)[-1]
    found = [path for path in profile.rglob(last) if path.is_dir()] if last else []
    return found[0] if len(found) == 1 else profile


def predict(
    settings: EngineSettings,
    profile: str | Path,
    model: Mapping[str, Any],
    workload: Workload,
    names: list[str] | None = None,
    family: ReplayFamily = "operator",
) -> Prediction:
    """Replay a workload on the engine of a run, with the seconds of a profile.

    Parameters
    ----------
    model
        The mapping of its ``config.json``.
    names
        What the requests are called.
    family
        ``linear``: a linear model, fitted to the table at the iterations that a first replay with it visits.

    Raises
    ------
    ConfigError, TraceError
        If the profile, the model or a setting cannot be used.
    """
    settings = _filled(settings, model, workload)
    table = _latency(settings, profile, model)
    latency: OperatorTableLatency | LockstepLatency | LinearIterationLatency = table
    if family == "linear":
        first = simulate(_config(settings), workload, latency=table)
        latency = linear_from_shapes(table, *_visited(first.iterations))
    start_s = perf_counter()
    result = simulate(_config(settings), workload, latency=latency)
    wall_s = perf_counter() - start_s
    names = names or [str(number) for number in workload.request_id]
    requests = predicted_requests(result, dict(zip(workload.request_id.tolist(), names, strict=True)))
    return Prediction(requests, settings, result, latency, family, wall_s)


def predicted_requests(result: SimulationResult, names: Mapping[int, str]) -> pd.DataFrame:
    """Times of the requests that finished, in order of arrival, zero at the first arrival of the run."""
    finished = result.requests[result.requests["status"] == "finished"]
    arrival_s = finished["arrival_s"].to_numpy()
    queued_s = arrival_s.copy()
    for gpu_id, rows in result.iterations.groupby("gpu_id"):
        here = finished["gpu_id"].to_numpy() == gpu_id
        queued_s[here] = next_boundary_s(arrival_s[here], rows)
    return pd.DataFrame(
        {
            "request_id": [names[number] for number in finished["request_id"].tolist()],
            "arrival_s": arrival_s,
            "queued_s": queued_s,
            "first_token_s": finished["first_token_s"].to_numpy(),
            "last_token_s": finished["finish_s"].to_numpy(),
            "output_tokens": finished["output_tokens"].to_numpy(),
        }
    )


def next_boundary_s(arrival_s: Floats, spans: pd.DataFrame) -> Floats:
    """When an engine takes arrivals in: at once while it idles, else when the iteration under way ends."""
    spans = spans.sort_values("start_s")
    number = spans["num_iterations"].to_numpy().astype(np.int64)
    first_s, start_s = spans["first_iteration_s"].to_numpy(), spans["start_s"].to_numpy()
    finish_s = spans["finish_s"].to_numpy()
    growth_s = (finish_s - start_s - number * first_s) / np.maximum(number * (number - 1) / 2, 1)
    row = np.repeat(np.arange(len(number)), number)
    step = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number) + 1
    ends_s = start_s[row] + step * first_s[row] + growth_s[row] * step * (step - 1) / 2
    ends_s[np.cumsum(number) - 1] = finish_s  # exact, where the sum rounds
    starts_s = np.concatenate([start_s[:1], ends_s[:-1]])
    starts_s[np.cumsum(number) - number] = start_s  # after idling
    under_way = np.minimum(np.searchsorted(ends_s, arrival_s, side="left"), len(ends_s) - 1)
    is_idle = (arrival_s <= starts_s[under_way]) | (arrival_s > ends_s[under_way])
    return np.where(is_idle, arrival_s, ends_s[under_way])


def _filled(settings: EngineSettings, model: Mapping[str, Any], workload: Workload) -> EngineSettings:
    """Say what the settings leave open."""
    notices = list(settings.notices)
    if settings.num_kv_blocks is None:
        blocks, notice = kv_blocks(settings, model)
        settings = replace(settings, num_kv_blocks=blocks)
        notices.append(notice)
    elif settings.num_kv_blocks < 2:
        raise ConfigError(
            f"num_kv_blocks is {settings.num_kv_blocks}; at least 2 are needed, as vLLM keeps one as its "
            "null block"
        )
    if settings.prefix_caching and prefix_ids(workload) is None:
        notices.append(
            f"{workload.source.name} has no block hashes: of prompts, only those of preempted requests are "
            "found in the cache"
        )
    if LayerStack.of(model).num_experts == 0:
        settings = replace(settings, is_expert_parallel=False)
    elif settings.data_parallel > 1:
        settings = replace(settings, shares_experts=True)
        notices.append(
            f"{settings.data_parallel} replicas share experts and wait for each other in every pass: they "
            "are taken as one engine of as many seats, with one prefix cache"
        )
    num_gpus = settings.tensor_parallel * (settings.data_parallel if settings.shares_experts else 1)
    if num_gpus > 1 and not settings.link_bytes_per_s:
        raise ConfigError(
            f"{num_gpus} GPUs share the model, but link_bw is not recorded; GB/s between them are needed in "
            "meta.json"
        )
    return replace(settings, notices=tuple(notices))


def _latency(
    settings: EngineSettings, profile: str | Path, model: Mapping[str, Any]
) -> OperatorTableLatency | LockstepLatency:
    table = read_operator_profile(
        Path(profile),
        model,
        tensor_parallel=settings.tensor_parallel,
        expert_parallel=settings.expert_parallel,
        data_parallel=settings.data_parallel if settings.shares_experts else 1,
        link_bytes_per_s=settings.link_bytes_per_s,
        link_latency_s=settings.link_latency_s,
        kernel_gap_s=settings.kernel_gap_s,
        memory_bytes_per_s=settings.memory_bytes_per_s,
        uneven_contexts=settings.uneven_contexts,
    )
    if settings.extra_s:
        seconds = tuple(one + settings.extra_s for one in table.by_sequences.seconds)
        table = replace(table, by_sequences=OperatorTable(table.by_sequences.axes, seconds))
    return LockstepLatency(table, settings.data_parallel) if settings.shares_experts else table


def _config(settings: EngineSettings) -> dict[str, Any]:
    assert settings.num_kv_blocks is not None, "filled in before"
    together = settings.data_parallel if settings.shares_experts else 1
    return {
        "policy": {
            "preset": "vllm_v1",
            "batch_size": together * settings.max_num_seqs,
            "batching": {
                "max_num_batched_tokens": together * settings.max_num_batched_tokens,
                "long_prefill_threshold": settings.max_num_batched_tokens if together > 1 else 0,
                "engine_version": settings.engine_version,
                **({"allocate": settings.allocate} if settings.allocate else {}),
            },
        },
        "cluster": {
            "num_replicas": settings.data_parallel // together,
            "num_prefill_replicas": settings.num_prefill,
        },
        "kv_transfer": _transfer(settings),
        "engine": {
            "block_size": settings.block_size,
            "num_kv_blocks": together * (settings.num_kv_blocks - 1),  # but for the null block
            "prefix_caching": settings.prefix_caching,
            "async_scheduling": settings.async_scheduling,
        },
        "latency": {"outside": "extrapolate"},
        "metrics": {"warmup": 0.0},
    }


def _transfer(settings: EngineSettings) -> dict[str, Any]:
    """The link between replicas that compute prompts and those that decode; nothing where all do both."""
    if not settings.num_prefill:
        return {}
    return {
        "nic_bytes_per_s": settings.link_bytes_per_s,
        "latency_s": settings.link_latency_s,
        "bytes_per_token": settings.kv_token_bytes,
    }


def _visited(spans: pd.DataFrame) -> tuple[Floats, NDArray[np.int64]]:
    """Shapes of the iterations of a replay, those of a span at its mean context, and how often each ran."""
    number = spans["num_iterations"].to_numpy().astype(np.int64)
    half = (number - 1) / 2
    means = spans.assign(
        context_tokens=spans["context_tokens"] + spans["decode_seqs"] * half,
        longest_tokens=spans["longest_tokens"] + half,
    )
    shapes = means[list(IterationShape._fields)].to_numpy(dtype=np.float64)
    return shapes, number
