"""From a configuration to hardware and policies: KV memory, latency models, engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from batchsim.config import ClusterConfig, PolicyConfig, ReplicaConfig, RunConfig
from batchsim.errors import ConfigError
from batchsim.latency.analytic import NoisyLatency
from batchsim.latency.base import IterationLatency
from batchsim.latency.families import as_batch_latency, as_iteration_latency
from batchsim.latency.noise import NoisyIterationLatency
from batchsim.latency.roofline import RooflineLatency
from batchsim.latency.store import default_latency, load_latency
from batchsim.metrics.efficiency import Hardware
from batchsim.policies import presets
from batchsim.policies.base import Routing, Setting
from batchsim.policies.continuous import ChunkedPrefill
from batchsim.policies.fair_share import FairShare, share_counters
from batchsim.policies.guards.checks import unguarded
from batchsim.policies.presets import Policy
from batchsim.policies.sizing import FixedSize
from batchsim.policies.steps import IterationRule
from batchsim.sim.arrivals.front_end import FrontEndTimes
from batchsim.sim.cluster.hand_over import Disaggregation, KVNetwork, Role
from batchsim.sim.engine import Engine
from batchsim.sim.gpu import KVMemory
from batchsim.sim.simulation import Cluster
from batchsim.specs import (
    GPUSpec,
    ModelSpec,
    Sharing,
    gpu_activation_bytes,
    kv_capacity_tokens,
    load_gpu,
    load_model,
)
from batchsim.streams import stream
from batchsim.study.setup.hardware import AnyLatency, given_latency, in_lockstep
from batchsim.study.setup.speculation import speculation, with_drafts
from batchsim.workload.request import Workload

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica as configured: what `ReplicaConfig` leaves out is filled in from the cluster's settings."""

    model: ModelSpec
    gpu: GPUSpec
    latency: AnyLatency
    policy: PolicyConfig
    num_kv_blocks: int
    sharing: Sharing = field(default_factory=Sharing)
    role: Role = "both"


def batch_cluster(config: RunConfig, latency: AnyLatency | None) -> Cluster:
    """Equal replicas for batches that run to completion; `latency` wins over what is configured."""
    cluster = config.cluster
    if config.engine.speculation.num_speculative_tokens:
        raise ConfigError(
            f"policy {config.policy.preset} runs batches to completion, as long as their longest answer has "
            "tokens; engine.speculation needs a policy that batches at every iteration"
        )
    if cluster.replicas:
        raise ConfigError(
            f"policy {config.policy.preset} runs batches to completion on equal GPUs; cluster.replicas needs "
            "a policy that batches at every iteration"
        )
    if cluster.tier:
        raise ConfigError(
            f"policy {config.policy.preset} runs batches to completion and caches no prefixes; cluster.tier "
            "needs a policy that batches at every iteration"
        )
    model, gpu, sharing = load_model(cluster.model), load_gpu(cluster.gpu), cluster.sharing(ReplicaConfig())
    capacity = cluster.kv_capacity_tokens or kv_capacity_tokens(
        model, gpu, cluster.memory_margin, sharing, config.engine.max_model_len
    )
    known = as_batch_latency(
        latency or given_latency(config.latency, sharing) or default_latency(model, gpu, sharing=sharing)
    )
    return Cluster(
        cluster.num_gpus // sharing.num_gpus,
        KVMemory(capacity, cluster.kv_layout),
        known,
        config.latency.outside == "extrapolate",
    )


def with_noise(config: RunConfig, cluster: Cluster) -> Cluster:
    """The cluster with the configured noise on its batches."""
    if not config.latency.noise:
        return cluster
    rng = stream(config.seed, "latency")
    return replace(cluster, latency=NoisyLatency(cluster.latency, config.latency.noise, rng))


def replicas(config: RunConfig, latency: AnyLatency | None) -> list[Replica]:
    """The replicas of the iteration-level world; `latency` wins over what is configured."""
    cluster = config.cluster
    given = cluster.replicas or _equal_replicas(cluster)
    alike = [(_replica(config, one, latency), one.count) for one in given]
    return [replica for replica, count in alike for _ in range(count)]


def _equal_replicas(cluster: ClusterConfig) -> tuple[ReplicaConfig, ...]:
    count, num_prefill = cluster.num_gpus // cluster.gpus_per_replica, cluster.num_prefill_replicas
    if not num_prefill:
        return (ReplicaConfig(count=count),)
    return (
        ReplicaConfig(count=num_prefill, role="prefill"),
        ReplicaConfig(count=count - num_prefill, role="decode"),
    )


def disaggregation(config: RunConfig, replicas: Sequence[Replica]) -> Disaggregation | None:
    """Who computes prompts and who decodes, and what lies between; None where all do both."""
    roles = [one.role for one in replicas]
    if set(roles) == {"both"}:
        return None
    models = {one.model.name: one.model for one in replicas}
    if len(models) > 1:
        raise ConfigError(
            f"the replicas run {' and '.join(models)}, but KV of one model is of no use to another; one "
            "model is needed where prompts are computed and decoded on different replicas"
        )
    given, model = config.kv_transfer, replicas[0].model
    network = KVNetwork(
        given.nic_bytes_per_s,
        given.latency_s,
        given.max_transfers,
        given.fabric_bytes_per_s,
        by_layer=given.overlap == "layers",
    )
    kv_bytes_per_token = given.bytes_per_token or model.kv_bytes_per_token
    return Disaggregation(roles, network, kv_bytes_per_token, model.num_layers)


def engines(config: RunConfig, replicas: Sequence[Replica]) -> list[Engine]:
    """What each replica's engine does with an iteration."""
    given, rng = config.engine, stream(config.seed, "latency")
    return [
        Engine(
            latency=_noisy(
                with_drafts(as_iteration_latency(replica.latency), given.speculation),
                config.latency.noise,
                rng,
            ),
            num_blocks=replica.num_kv_blocks,
            block_size=given.block_size,
            launch_s=given.host.launch_s,
            prefill_launch_s=given.host.prefill_launch_s,
            prefill_token_s=given.host.prefill_token_s,
            wake_s=_calibrated_wake_s(replica.latency) if given.wake_s is None else given.wake_s,
            is_async=given.async_scheduling,
            prefix_caching=replica.role != "decode"
            and _caches_prefixes(given.prefix_caching, replica.policy),
            swap_block_s=given.block_size * replica.model.kv_bytes_per_token / given.swap_bytes_per_s,
            may_extrapolate=config.latency.outside == "extrapolate",
            is_exact=given.exact_iterations or (len(replicas) > 1 and _counts_together(replica.policy)),
            speculation=speculation(config),
        )
        for replica in replicas
    ]


def _calibrated_wake_s(latency: AnyLatency) -> float:
    """What a calibration says of the first pass after a rest; 0 where it says nothing."""
    told = latency.info.details.get("wake_s", 0.0)
    if not isinstance(told, float | int) or isinstance(told, bool) or not 0 <= told <= 1:
        raise ConfigError(
            f"latency model {latency.info.name}: details.wake_s is {told!r:.60}; seconds, 0 to 1, are needed"
        )
    return float(told)


def front_end(config: RunConfig) -> FrontEndTimes | None:
    """What a request takes before an engine knows of it; None where that is nothing."""
    host = config.engine.host
    if not host.frontend_s and not host.frontend_token_s:
        return None
    return FrontEndTimes(host.frontend_s, host.frontend_token_s)


def hardware(config: RunConfig, replicas: Sequence[Replica]) -> Hardware | None:
    """What the replicas run on, if they are alike and the latency model is of that hardware.

    A latency file may be of any; its hardware is known if the configuration names model and GPU beside it.
    """
    is_named = {"model", "gpu"} <= config.cluster.model_fields_set
    kinds = {
        (replica.model, replica.gpu, replica.sharing)
        for replica in replicas
        if is_named or isinstance(replica.latency, RooflineLatency)
    }
    return Hardware(*kinds.pop()) if len(kinds) == 1 else None


def prepare_policies(
    config: RunConfig, given: Sequence[PolicyConfig], capacities: Sequence[int], training: Workload
) -> list[Policy]:
    """Build one policy for each queue, fitted on the training part; `capacities` are KV tokens."""
    policies = [presets.build(one) for one in given]
    share_counters(policy.queueing for policy in policies)
    rng = stream(config.seed, "routing")
    for policy, capacity in zip(policies, capacities, strict=True):
        slo = config.slo
        setting = Setting(
            kv_capacity_tokens=capacity,
            training_prompt_tokens=training.prompt_tokens,
            training_output_tokens=training.output_tokens,
            num_bins=policy.queueing.num_bins,
            batch_size=policy.sizing.max_batch_size,
            slo_tpot_s=None if slo.tpot_ms is None else slo.tpot_ms / 1000,
            slo_e2e_s=None if slo.e2e_ms is None else slo.e2e_ms / 1000,
            class_ttft_s=slo.class_ttft_s,
            rng=rng,
        )
        policy.queueing.prepare(setting)
        bins: NDArray[np.int64] = np.array(
            [policy.queueing.bin_of(tokens) for tokens in training.output_tokens.tolist()], dtype=np.int64
        )
        for sizer in {id(one): one for one in (policy.sizing, *policy.controllers)}.values():
            sizer.prepare(replace(setting, training_bins=bins))
        for answer in (policy.routing, policy.admission):
            if answer is not None:
                answer.prepare(setting)
    return policies


def central_policy(
    config: RunConfig, routing: Routing | None, capacity: int, training: Workload
) -> Policy | None:
    """What orders the one queue of all replicas; None where each has its own. `capacity` is in KV tokens."""
    if routing is None or not routing.is_central:
        return None
    return prepare_policies(config, [config.policy], [capacity], training)[0]


def has_one_queue(config: RunConfig) -> bool:
    """Whether GPUs whose batches run to completion share a queue; `ConfigError` for what needs engines."""
    policy = presets.build(config.policy)
    if policy.admission is not None:
        raise ConfigError(
            f"policy {config.policy.preset} runs batches to completion; policy.admission needs a policy that "
            "batches at every iteration"
        )
    return policy.routing is None or policy.routing.is_central


def _replica(config: RunConfig, given: ReplicaConfig, latency: AnyLatency | None) -> Replica:
    cluster = config.cluster
    model, gpu = load_model(given.model or cluster.model), load_gpu(given.gpu or cluster.gpu)
    sharing = cluster.sharing(given)
    policy = _replica_policy(config.policy, given, gpu)
    return Replica(
        model,
        gpu,
        latency or _latency(config, given.latency_file, model, gpu, sharing),
        _merged(policy, sharing.data_parallel) if sharing.data_parallel > 1 else policy,
        given.num_kv_blocks or _num_kv_blocks(config, model, gpu, sharing, policy),
        sharing,
        given.role,
    )


def _merged(policy: PolicyConfig, num_groups: int) -> PolicyConfig:
    """The policy of groups with attention of their own as that of one engine with the seats of all."""
    built = presets.build(policy)
    batching = dict(policy.batching)
    budget = getattr(built.batching, "max_num_batched_tokens", None)
    if budget is not None:
        batching["max_num_batched_tokens"] = num_groups * budget
        if isinstance(built.batching, ChunkedPrefill) and not built.batching.long_prefill_threshold:
            batching["long_prefill_threshold"] = budget  # a prompt is that of one group
    batch_size = num_groups * built.sizing.max_batch_size
    return policy.model_copy(update={"batch_size": batch_size, "batching": batching})


def _replica_policy(policy: PolicyConfig, given: ReplicaConfig, gpu: GPUSpec) -> PolicyConfig:
    """The run's policy within the replica's own limits, or those vLLM has for a GPU of its class."""
    preset = presets.find_preset(policy.preset)
    batch_size = given.batch_size or policy.batch_size
    batching = dict(given.batching) if "kind" in given.batching else {**policy.batching, **given.batching}
    if given.max_num_batched_tokens is not None:
        batching["max_num_batched_tokens"] = given.max_num_batched_tokens
    is_large = gpu.memory_bytes >= 70 * GIB and "a100" not in gpu.name
    follows_vllm = preset.batching == ChunkedPrefill() and preset.sizing == FixedSize(256)
    if is_large and follows_vllm and "kind" not in batching:
        # vLLM V1 serving; all other GPUs have the 2048 tokens and 256 sequences of the preset.
        batching.setdefault("max_num_batched_tokens", 8192)
        if batch_size is None and not policy.sizing:
            batch_size = min(1024, batching["max_num_batched_tokens"])
    return policy.model_copy(update={"batch_size": batch_size, "batching": batching})


def _caches_prefixes(configured: bool | None, policy: PolicyConfig) -> bool:
    rule = cast("IterationRule", presets.build(policy).batching)
    return rule.caches_prefixes if configured is None else configured


def _counts_together(policy: PolicyConfig) -> bool:
    """Whether what another replica serves may change who is next here, at any of its iterations."""
    queue = unguarded(presets.build(policy).queueing)
    return isinstance(queue, FairShare) and queue.shared


def _num_kv_blocks(
    config: RunConfig, model: ModelSpec, gpu: GPUSpec, sharing: Sharing, policy: PolicyConfig
) -> int:
    engine, tokens = config.engine, config.cluster.kv_capacity_tokens
    if engine.num_kv_blocks is not None:
        return engine.num_kv_blocks
    if tokens is None:
        margin = 1 - engine.gpu_memory_utilization
        built = presets.build(policy)
        budget = getattr(built.batching, "max_num_batched_tokens", ChunkedPrefill().max_num_batched_tokens)
        activations = gpu_activation_bytes(model, sharing, budget, built.sizing.max_batch_size)
        tokens = kv_capacity_tokens(model, gpu, margin, sharing, engine.max_model_len, activations)
    if tokens < engine.block_size:
        raise ConfigError(
            f"engine.block_size is {engine.block_size}, but the KV cache holds {tokens} tokens; a smaller "
            "block is needed"
        )
    return tokens // engine.block_size


def _latency(
    config: RunConfig, own_file: str | None, model: ModelSpec, gpu: GPUSpec, sharing: Sharing
) -> AnyLatency:
    """The replica's own file, the run's model, or a derived model of the GPU whose memory counts."""
    if own_file is not None:
        return in_lockstep(load_latency(own_file), sharing)
    return given_latency(config.latency, sharing) or default_latency(model, gpu, sharing=sharing)


def _noisy(latency: IterationLatency, sigma: float, rng: np.random.Generator) -> IterationLatency:
    return NoisyIterationLatency(latency, sigma, rng) if sigma else latency
