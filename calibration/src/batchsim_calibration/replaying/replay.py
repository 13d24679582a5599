"""Replay a trace in real time on a real model, driven by the policies that the simulator runs.

`trace_of` makes the requests, `settle` the configuration that a simulation needs to repeat the run, `replay`
runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from batchsim.config import RunConfig, load_config
from batchsim.errors import ConfigError
from batchsim.policies import presets
from batchsim.policies.base import Setting
from batchsim.policies.presets import Policy
from batchsim.streams import stream
from batchsim.workload.load import prepare
from batchsim.workload.predictor import make_predictor
from batchsim.workload.request import Workload
from batchsim.workload.transform import rescale_to_rate
from batchsim_calibration.replaying.batch_replay import BatchReplay, KVCapacity
from batchsim_calibration.replaying.inbox import HEEDED, Clock, Log, WallClock, requests_of
from batchsim_calibration.replaying.iteration_replay import IterationReplay
from batchsim_calibration.serving.engine import Chunk, Engine
from batchsim_calibration.serving.timing import undisturbed

#: Share of a trace that bins are fitted on and that is not replayed, where that is not configured.
TRAINING_FRACTION = 0.1


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine that a trace is replayed on has room for."""

    num_slots: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Trace:
    """A workload cut to what an engine can serve; see `trace_of`.

    Attributes
    ----------
    training
        The requests before those replayed, on whose lengths bins are fitted; maybe none.
    changes
        What was done to the trace, for the manifest.
    """

    workload: Workload
    training: Workload
    changes: dict[str, Any]


def trace_of(
    config: RunConfig,
    *,
    trains: bool = False,
    duration_s: float | None = None,
    max_prompt_tokens: int | None = None,
    max_output_tokens: int | None = None,
) -> Trace:
    """Make the requests that ``config.workload`` asks for, numbered from 0, the first at 0 s.

    Parameters
    ----------
    trains
        Whether a policy learns, so that a part is set aside even if ``training_fraction`` does not say so.
    duration_s
        Rescale time so that the last request arrives after so long.
    max_prompt_tokens, max_output_tokens
        Longer prompts and answers are cut to this; a notice of the workload says how many were.
    """
    fraction = config.workload.training_fraction
    if fraction is None:
        fraction = TRAINING_FRACTION if trains else 0.0
    training, workload = prepare(config.workload, 1, stream(config.seed, "workload"), None, fraction)
    workload = _renumbered(workload)
    if duration_s is not None:
        workload = rescale_to_rate(workload, (len(workload) - 1) / duration_s)
    limits = {"prompt_tokens": max_prompt_tokens, "output_tokens": max_output_tokens}
    cut = {name: _num_above(workload, name, limit) for name, limit in limits.items()}
    notices = [
        f"{num} of {len(workload)} requests have {name} above {limits[name]}; cut to that"
        for name, num in cut.items()
        if num
    ]
    workload, training = _clipped(workload, limits), _clipped(training, limits)
    source = replace(workload.source, notices=(*workload.source.notices, *notices))
    changes = {**{f"max_{name}": limit for name, limit in limits.items()}, "num_cut": cut}
    return Trace(workload.with_source(source), training, changes)


def settle(config: RunConfig, training: Workload, limits: Limits) -> RunConfig:
    """Return the configuration by which a simulation repeats the replay, with nothing left to find out.

    Bins have their edges, fitted on the training part, of which nothing else remains: sizers have learnt
    nothing yet. KV memory and batch size are those of the engine, as far as they are not configured smaller.

    Raises
    ------
    ConfigError
        If the configuration asks for something that a replay cannot do.
    """
    # A small token budget may suit the engine's slots though not the many sequences that the preset allows.
    most = presets.build(config.policy.model_copy(update={"batching": {}})).sizing.max_batch_size
    batch_size = min(most, limits.num_slots)
    policy = presets.build(config.policy.model_copy(update={"batch_size": batch_size}))
    _refuse_what_cannot_be(config, policy)
    capacity_tokens = limits.num_slots * limits.max_tokens
    tree: dict[str, Any] = {
        "seed": config.seed,
        "policy": {**config.policy.model_dump(exclude_unset=True), "batch_size": batch_size},
        "workload": {"training_fraction": 0.0},
        "predictor": config.predictor.model_dump(),
        "slo": config.slo.model_dump(),
        "metrics": config.metrics.model_dump(),
    }
    if policy.queueing.learns:
        queueing = {**config.policy.queueing, "boundaries": _fitted_edges(policy, training)}
        tree["policy"] = {**tree["policy"], "queueing": queueing}
    if presets.find_preset(config.policy.preset).is_iteration_level:
        block_size = config.engine.block_size
        tree["engine"] = {
            "block_size": block_size,
            "num_kv_blocks": config.engine.num_kv_blocks or capacity_tokens // block_size,
            "prefix_caching": False,
            "exact_iterations": True,
        }
    else:
        tree["cluster"] = {
            "kv_capacity_tokens": config.cluster.kv_capacity_tokens or capacity_tokens,
            "kv_layout": config.cluster.kv_layout,
        }
    return load_config(tree)


def replay(engine: Engine, config: RunConfig, workload: Workload, clock: Clock | None = None) -> Log:
    """Serve a workload as the settled configuration says, in real time unless there is another clock.

    Raises
    ------
    ConfigError
        If a request, or a batch of the longest ones, does not fit the engine's slots.
    PlanError
        If the policy breaks its limits, or leaves requests waiting for nothing.
    """
    policy, capacity = _prepared(config)
    if policy.sizing.max_batch_size > engine.num_slots:
        raise ConfigError(
            f"policy {policy.name} may run {policy.sizing.max_batch_size} requests; the engine has "
            f"{engine.num_slots} slots: give a smaller policy.batch_size"
        )
    edges = np.asarray(policy.queueing.edges, dtype=np.float64)
    predicted = make_predictor(config.predictor).predict(
        workload, workload.take(slice(0, 0)), edges, stream(config.seed, "predictor")
    )
    log = Log(requests_of(workload, predicted), predicted)
    prompts = prompts_of(workload, engine, config.seed)
    _clear(engine)
    with undisturbed():
        given = (engine, policy, log, prompts, workload.output_tokens.tolist(), clock or WallClock())
        if presets.find_preset(config.policy.preset).is_iteration_level:
            block_size = config.engine.block_size
            IterationReplay(*given, num_blocks=capacity // block_size, block_size=block_size).run()
        else:
            BatchReplay(*given, capacity=KVCapacity(capacity, config.cluster.kv_layout)).run()
    return log


def warm_up(engine: Engine, workload: Workload) -> None:
    """Run the first passes, which load kernels, before a clock runs."""
    longest = max(prompts_of(workload, engine, seed=0), key=len)[: engine.max_tokens]
    with undisturbed():
        for num in sorted({1, min(2, engine.num_slots), engine.num_slots}):
            _clear(engine)
            prompts = [longest, *(longest[:1] for _ in range(num - 1))]
            engine.step([Chunk(slot, ids, completes=True) for slot, ids in enumerate(prompts)], ())
            if len(longest) < engine.max_tokens:
                engine.step((), range(num))
    _clear(engine)


def prompts_of(workload: Workload, engine: Engine, seed: int) -> Sequence[torch.Tensor]:
    """Draw random token ids for each prompt, on the engine's device."""
    lengths = workload.prompt_tokens.tolist()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(engine.vocab_size, (sum(lengths),), generator=generator)
    return torch.split(ids.to(engine.device), lengths)


def _clear(engine: Engine) -> None:
    for slot in range(engine.num_slots):
        engine.clear(slot)


def _prepared(config: RunConfig) -> tuple[Policy, int]:
    """Build the policy, and the KV tokens it is told of."""
    policy = presets.build(config.policy)
    blocks, cluster, slo = config.engine.num_kv_blocks, config.cluster, config.slo
    capacity = cluster.kv_capacity_tokens if blocks is None else blocks * config.engine.block_size
    assert capacity is not None, "settled configurations name their memory"
    setting = Setting(
        kv_capacity_tokens=capacity,
        num_bins=policy.queueing.num_bins,
        batch_size=policy.sizing.max_batch_size,
        slo_tpot_s=None if slo.tpot_ms is None else slo.tpot_ms / 1000,
        slo_e2e_s=None if slo.e2e_ms is None else slo.e2e_ms / 1000,
        class_ttft_s=slo.class_ttft_s,
        rng=stream(config.seed, "routing"),
    )
    policy.queueing.prepare(setting)
    for sizer in {id(one): one for one in (policy.sizing, *policy.controllers)}.values():
        sizer.prepare(setting)
    return policy, capacity


def _fitted_edges(policy: Policy, training: Workload) -> list[float]:
    policy.queueing.prepare(
        Setting(
            kv_capacity_tokens=0,
            training_prompt_tokens=training.prompt_tokens,
            training_output_tokens=training.output_tokens,
            num_bins=policy.queueing.num_bins,
            batch_size=policy.sizing.max_batch_size,
        )
    )
    return list(policy.queueing.edges)


def _refuse_what_cannot_be(config: RunConfig, policy: Policy) -> None:
    cluster, engine = config.cluster, config.engine
    asked = {
        f"cluster.num_gpus = {cluster.num_gpus}": cluster.num_gpus > 1,
        "cluster.replicas": bool(cluster.replicas),
        f"replicas of {cluster.gpus_per_replica} GPUs": cluster.gpus_per_replica > 1,
        "engine.prefix_caching = true": engine.prefix_caching is True,
        "engine.async_scheduling = true": engine.async_scheduling,
        f"engine.wake_s = {engine.wake_s}": bool(engine.wake_s),
        **{f"engine.{name} = {value:g}": value > 0 for name, value in engine.host._asdict().items()},
        f"clients.kind = {config.clients.kind!r}": config.clients.kind != "open_loop",
        f"patience_s = {config.patience_s}": config.patience_s is not None,
        "preemption by swapping": getattr(policy.batching, "preemption", "") == "swap",
        "a queue that counts what was served": hasattr(policy.queueing, "meter"),
    }
    for what, is_asked in asked.items():
        if is_asked:
            raise ConfigError(
                f"{what}: a replay runs one engine, whose requests arrive at their time and wait, and which "
                "recomputes what it preempts and tells its queue nothing of what it serves; leave that out"
            )


def _renumbered(workload: Workload) -> Workload:
    """The first request at 0 s, numbers from 0, and of the further columns only what a policy looks at."""
    kept = {name: workload.extra[name] for name in HEEDED if name in workload.extra}
    return replace(
        workload,
        request_id=np.arange(len(workload)),
        arrival_s=workload.arrival_s - workload.arrival_s[0],
        extra=kept,
    )


def _num_above(workload: Workload, name: str, limit: int | None) -> int:
    return 0 if limit is None else int((getattr(workload, name) > limit).sum())


def _clipped(workload: Workload, limits: dict[str, int | None]) -> Workload:
    columns = {
        name: np.minimum(getattr(workload, name), limit)
        for name, limit in limits.items()
        if limit is not None
    }
    return replace(workload, **columns)
