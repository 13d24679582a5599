"""What a cluster is made of: the hardware that a latency model brings with it, and how a heading names it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any, NamedTuple

from batchsim.config import ClusterConfig, LatencyConfig, ReplicaConfig, RunConfig, load_config
from batchsim.errors import ConfigError
from batchsim.latency.base import BatchLatency, IterationLatency
from batchsim.latency.lockstep import LockstepLatency
from batchsim.latency.operators import OperatorTableLatency
from batchsim.latency.passes import PassTableLatency
from batchsim.latency.profiles.aiconfigurator import SetUp, aiconfigurator_latency
from batchsim.latency.roofline import RooflineLatency
from batchsim.latency.store import load_latency
from batchsim.specs import Sharing, load_gpu, load_model
from batchsim.specs.names import known_gpu, known_model

AnyLatency = BatchLatency | IterationLatency

#: A GPU with so much more or less memory than the spec is another one of a similar name.
_SAME_MEMORY = 0.1
#: Shares from which on a measured model is doubtful: its error where points were held out of the fit, how far
#: the machine's speed drifted while it was measured, and the median spread of the trials of a point.
_DOUBTFUL_ERROR, _DOUBTFUL_DRIFT, _DOUBTFUL_SPREAD = 0.15, 0.2, 0.2


class _Hardware(NamedTuple):
    """What a latency model says it is of, as settings of a cluster; None where not said or no spec ships."""

    model: str | None
    gpu: str | None
    tensor_parallel: int | None
    pipeline_parallel: int | None = None
    data_parallel: int | None = None
    expert_parallel: int | None = None


#: Settings of how GPUs share a model: adopted together, or not at all.
_SHARING = ("tensor_parallel", "pipeline_parallel", "data_parallel", "expert_parallel")


def adopt_hardware(config: RunConfig, latency: AnyLatency | None = None) -> tuple[RunConfig, list[str]]:
    """Let latency files bring their hardware, where the configuration leaves it open.

    Parameters
    ----------
    config
        As given.
    latency
        Model that is used instead of the files.

    Returns
    -------
    config, notices
        The configuration with the model, GPU and GPUs per replica that count, and sentences on what was
        assumed, does not agree, or is doubtful.
    """
    overrides: dict[str, Any] = {}
    doubts: list[str] = []
    if latency is None and config.cluster.replicas:
        overrides["cluster.replicas"] = [_adopted(one) for one in config.cluster.replicas]
        own = dict.fromkeys(one.latency_file for one in config.cluster.replicas if one.latency_file)
        doubts += [doubt for file in own for doubt in _doubts(load_latency(file))]
    if latency is None:
        latency = given_latency(config.latency, config.cluster.sharing(ReplicaConfig()))
    if latency is None:
        return (load_config(config, overrides) if overrides else config), doubts
    told = _told(latency)
    notices = _contradictions(config, latency, told)
    overrides |= {
        f"cluster.{key}": value
        for key, value in _adoptable(config.cluster, told)
        if key not in config.cluster.model_fields_set
    }
    if told.model is None and (tokens := _own_kv_tokens(config, latency)) is not None:
        overrides["cluster.kv_capacity_tokens"] = tokens
        notices.append(
            f"KV memory of {tokens:,} tokens a replica is what latency model {latency.info.name} says"
        )
    config = load_config(config, overrides)
    return config, notices + _assumptions(config, latency) + [*_doubts(latency), *doubts]


def given_latency(latency: LatencyConfig, sharing: Sharing) -> AnyLatency | None:
    """The model that a configuration names, shared as given where it leaves that open; None if none is named.

    Raises
    ------
    ConfigError
        As `in_lockstep`.
    """
    if latency.file is not None:
        return in_lockstep(load_latency(latency.file), sharing)
    if latency.system is None or latency.model is None:
        return None
    set_up = SetUp(
        latency.system,
        latency.model,
        latency.backend,
        latency.version,
        latency.tensor_parallel or sharing.tensor_parallel,
        latency.pipeline_parallel or sharing.pipeline_parallel,
        latency.expert_parallel or sharing.expert_parallel,
        latency.data_parallel or sharing.data_parallel,
    )
    return in_lockstep(aiconfigurator_latency(set_up), sharing, set_up.data_parallel)


def in_lockstep(latency: AnyLatency, sharing: Sharing, num_groups: int | None = None) -> AnyLatency:
    """A table of one group of GPUs as the model of a replica of all of them; all others as they are.

    Parameters
    ----------
    num_groups
        That the table is of; left out: as its details say.

    Raises
    ------
    ConfigError
        If the replica has several groups, and the table is of another number.
    """
    if sharing.data_parallel == 1 or not isinstance(latency, OperatorTableLatency | PassTableLatency):
        return latency
    told = num_groups or latency.info.details.get("data_parallel", 1)
    if told != sharing.data_parallel:
        raise ConfigError(
            f"cluster.data_parallel is {sharing.data_parallel}, but latency model {latency.info.name} is of "
            f"data_parallel = {told}: give both alike, or the groups as cluster.num_replicas"
        )
    return LockstepLatency(latency, sharing.data_parallel)


def hardware_notices(configs: Iterable[RunConfig]) -> list[str]:
    """Say once what `adopt_hardware` says of any of these; what cannot run says nothing here."""
    asked = {
        one.model_dump_json(include={"cluster", "engine", "latency"}, exclude_unset=True): one
        for one in configs
    }
    notices: list[str] = []
    for config in asked.values():
        with suppress(ConfigError):
            notices += adopt_hardware(config)[1]
    return list(dict.fromkeys(notices))


def max_model_len(config: RunConfig, latency: AnyLatency | None = None) -> int | None:
    """Most tokens of a request: as configured, else what the replicas' models all take, where known."""
    cluster = config.cluster
    if config.engine.max_model_len is not None:
        return config.engine.max_model_len
    is_default = latency is not None or config.latency.is_given
    if is_default and "model" not in cluster.model_fields_set:
        return None  # the latency model may be of any
    names = {one.model or cluster.model for one in cluster.replicas} or {cluster.model}
    limits = [load_model(name).max_model_len for name in names]
    return min((limit for limit in limits if limit is not None), default=None)


def describe_cluster(config: RunConfig) -> str:
    """What a heading says of the cluster: its GPUs, and the replicas these make where that differs."""
    cluster = config.cluster
    total = _plural(cluster.num_gpus, "GPU")
    if config.autoscaler.kind is not None:
        total = f"at most {total}"
    if cluster.replicas:
        return f"{total} = {' + '.join(_describe(one, config) for one in cluster.replicas)}"
    per_replica = cluster.gpus_per_replica
    num_replicas, num_prefill = cluster.num_gpus // per_replica, cluster.num_prefill_replicas
    each = "" if per_replica == 1 else f" of {per_replica}"
    if num_prefill:
        return f"{total} = {num_prefill} prefill + {num_replicas - num_prefill} decode replicas{each}"
    return total if per_replica == 1 else f"{total} = {_plural(num_replicas, 'replica')}{each}"


def _describe(one: ReplicaConfig, config: RunConfig) -> str:
    cluster = config.cluster
    model = f" with {one.model}" if one.model is not None else ""
    hardware = f"{cluster.sharing(one).num_gpus} {one.gpu or cluster.gpu}"
    role = "" if one.role == "both" else f"{one.role} "
    return f"{_plural(one.count, f'{role}replica')} of {hardware}{model}"


def _plural(num: int, what: str) -> str:
    return f"{num} {what}" if num == 1 else f"{num} {what}s"


def _told(latency: AnyLatency) -> _Hardware:
    if isinstance(latency, RooflineLatency):
        names = (latency.model.name, latency.gpu.name) if _is_shipped(latency) else (None, None)
        return _Hardware(*names, **asdict(latency.sharing))
    details = latency.info.details
    gpu = known_gpu(str(details.get("gpu")))
    memory_bytes = details.get("memory_bytes")
    if gpu is not None and isinstance(memory_bytes, int | float):
        spec_bytes = load_gpu(gpu).memory_bytes
        gpu = gpu if abs(memory_bytes - spec_bytes) <= _SAME_MEMORY * spec_bytes else None
    tensor, pipeline, _, expert = (
        degree if isinstance(degree, int) and degree >= 1 else None for degree in map(details.get, _SHARING)
    )
    # Experts may be shared with other replicas, whose GPUs are not this one's.
    expert = expert if expert == tensor else None
    return _Hardware(known_model(str(details.get("model"))), gpu, tensor, pipeline, None, expert)


def _adoptable(given: ClusterConfig | ReplicaConfig, told: _Hardware) -> Iterator[tuple[str, Any]]:
    """What of it can stand beside the settings that are given: no part of another way to share a model."""
    values = told._asdict()
    differs = any(
        key in given.model_fields_set and values[key] not in (None, getattr(given, key)) for key in _SHARING
    )
    for key, value in values.items():
        if value is not None and not (differs and key in _SHARING):
            yield key, value


def _own_kv_tokens(config: RunConfig, latency: AnyLatency) -> int | None:
    """KV tokens that a latency model tells, where the configuration leaves them, and the model, open."""
    cluster, tokens = config.cluster, latency.info.details.get("kv_capacity_tokens")
    is_open = cluster.kv_capacity_tokens is None and config.engine.num_kv_blocks is None
    if not is_open or "model" in cluster.model_fields_set or not isinstance(tokens, int):
        return None
    return tokens * cluster.data_parallel  # told of one group


def _is_shipped(latency: RooflineLatency) -> bool:
    try:
        return (load_model(latency.model.name), load_gpu(latency.gpu.name)) == (latency.model, latency.gpu)
    except ConfigError:
        return False


def _adopted(one: ReplicaConfig) -> dict[str, Any]:
    """A replica's settings, with what its own latency file brings."""
    given = one.model_dump(exclude_unset=True)
    if one.latency_file is None:
        return given
    return {**dict(_adoptable(one, _told(load_latency(one.latency_file)))), **given}


def _contradictions(config: RunConfig, latency: AnyLatency, told: _Hardware) -> list[str]:
    cluster = config.cluster
    return [
        f"cluster.{key} is {getattr(cluster, key)}, but latency model {latency.info.name} is of {value}: its "
        "seconds go with the memory of the other"
        for key, value in told._asdict().items()
        if value is not None and key in cluster.model_fields_set and getattr(cluster, key) != value
    ]


def _assumptions(config: RunConfig, latency: AnyLatency) -> list[str]:
    """What KV memory stands on, where neither the configuration nor the latency model says."""
    cluster, details = config.cluster, latency.info.details
    if cluster.kv_capacity_tokens is not None or config.engine.num_kv_blocks is not None:
        return []
    open_keys = [key for key in ("model", "gpu") if key not in cluster.model_fields_set]
    if not open_keys:
        return []
    named = " on ".join(str(details[key]) for key in open_keys if details.get(key))
    reason = (
        f"is of {named}, of which no spec ships" if named else f"does not say its {' and '.join(open_keys)}"
    )
    assumed = " and ".join(f"cluster.{key} = {getattr(cluster, key)}" for key in open_keys)
    return [f"latency model {latency.info.name} {reason}; KV memory is that of {assumed}"]


def _doubts(latency: AnyLatency) -> list[str]:
    """What the fit of a latency model, and the measurement it was made from, say against it."""
    details = latency.info.details
    held_out = held_out_errors(details.get("qualities"))
    error, where = max(
        ((error, f"at {kind} points of a {what}") for kind, what, error in held_out), default=(0.0, "")
    )
    by_wall = {} if details.get("clock") == "cpu_s" else details  # which is what these two are of
    drift, spread = _share(by_wall.get("drift")), _share(by_wall.get("median_spread"))
    said = []
    if error > _DOUBTFUL_ERROR:
        said.append(f"{where} held out of its fit, the error was {error:.0%}")
    if drift > _DOUBTFUL_DRIFT:
        said.append(f"the machine's speed drifted by {drift:.0%} while it was measured")
    if spread > _DOUBTFUL_SPREAD:
        said.append(f"the trials of a point spread by {spread:.0%}")
    low_fidelity = details.get("low_fidelity")
    said += map(str, low_fidelity if isinstance(low_fidelity, list) else [])
    return [f"latency model {latency.info.name} is doubtful: {'; '.join(said)}"] if said else []


def held_out_errors(qualities: object) -> Iterator[tuple[str, str, float]]:
    """Kind of points, what of them was held out, and the mean error of a fit there, as a file tells them."""
    for quality in qualities if isinstance(qualities, list) else []:
        if isinstance(quality, dict):
            for what in ("batch size", "length"):
                error = quality.get(f"heldout_{what.replace(' ', '_')}_mape")
                if isinstance(error, float) and math.isfinite(error):
                    yield str(quality.get("kind")), what, error


def _share(value: object) -> float:
    """A share of a latency file's details; 0 where they have none."""
    return value if isinstance(value, float) else 0.0
