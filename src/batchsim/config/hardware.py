"""The half of a run's configuration that is hardware: GPUs and replicas, engines, how long they take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from batchsim.config.section import MOST_GPUS, Count, Fraction, NumGPUs, Section, Tokens
from batchsim.config.speculation import SpeculationConfig
from batchsim.config.tiers import TierConfig, check_tiers
from batchsim.errors import ConfigError
from batchsim.specs.names import Kind, known_name
from batchsim.specs.sharing import Sharing


def _shipped_or_given(kind: Kind) -> AfterValidator:
    """Put the name of a shipped spec for what a driver or Hugging Face calls it; a file stays as it is."""
    return AfterValidator(lambda name: known_name(name, kind) or name)


GPUName = Annotated[str, _shipped_or_given("gpus")]
ModelName = Annotated[str, _shipped_or_given("models")]


class ReplicaConfig(Section):
    """Replicas that differ from the rest of the cluster; what is left out is as the cluster has it."""

    count: NumGPUs = Field(1, description="so many alike")
    role: Literal["both", "prefill", "decode"] = Field(
        "both", description="whether they compute prompts, decode what others computed, or do both"
    )
    gpu: GPUName | None = None
    model: ModelName | None = None
    latency_file: str | None = None
    tensor_parallel: NumGPUs | None = None
    pipeline_parallel: NumGPUs | None = None
    data_parallel: NumGPUs | None = None
    expert_parallel: NumGPUs | None = None
    num_kv_blocks: Count | None = None
    batch_size: Count | None = Field(None, description="limit on running requests (max_num_seqs)")
    max_num_batched_tokens: Count | None = Field(None, description="token budget of an iteration")
    batching: dict[str, Any] = Field(
        {}, description="as policy.batching: what differs, or another rule by its kind"
    )


class ClusterConfig(Section):
    """The hardware: GPUs in equal replicas of one model; or, at the iteration level, replicas that differ.

    ``num_gpus`` holds the GPUs of the cluster, whichever way they were given.
    """

    gpu: GPUName = Field(
        "rtx4080-laptop",
        description="name that `batchsim hardware` lists, or a JSON file: its memory, and its speed where no "
        "latency file is given",
    )
    model: ModelName = Field(
        "qwen2.5-1.5b",
        description="the same: weights and KV bytes per token, and its speed; a file may be a config.json of "
        "Hugging Face",
    )
    memory_margin: Fraction = Field(0.1, description="share of GPU memory kept free of weights and KV")
    kv_capacity_tokens: Tokens | None = Field(
        None, description="KV tokens per replica, instead of the specs' value"
    )
    kv_layout: Literal["padded", "paged"] = Field(
        "padded",
        description="a batch holds size * (longest prompt + longest output) tokens, or the plain sum",
    )
    tensor_parallel: NumGPUs = Field(1, description="GPUs of each replica, which share its model")
    pipeline_parallel: NumGPUs = Field(
        1, description="so many times as many GPUs: stages, each with a share of the layers"
    )
    data_parallel: NumGPUs = Field(
        1,
        description="so many times as many GPUs: groups with attention and sequences of their own, which "
        "share the experts and run in lockstep, as one engine of as many seats",
    )
    expert_parallel: NumGPUs = Field(
        1,
        description="GPUs that share out whole experts: tensor_parallel * data_parallel; or 1: each GPU has "
        "a slice of every expert",
    )
    replicas: tuple[ReplicaConfig, ...] = Field(
        (), description="instead of equal replicas: tables of what differs; iteration level only"
    )
    num_replicas: NumGPUs | None = Field(None, description="equal replicas; or num_gpus")
    num_prefill_replicas: Annotated[int, Field(ge=0, le=MOST_GPUS)] = Field(
        0, description="so many of the equal replicas compute prompts, and the others decode; 0: all do both"
    )
    tier: tuple[TierConfig, ...] = Field(
        (), description="tables of what lies below the GPUs and holds the KV of prefixes that they lose"
    )
    num_gpus: NumGPUs = Field(
        default_factory=lambda given: _num_gpus(given),
        description="GPUs, a multiple of a replica's; left out: those of the replicas, by default of one",
    )

    @model_validator(mode="after")
    def _whole_replicas(self) -> ClusterConfig:
        made = _num_gpus(self.__dict__)
        for one in (ReplicaConfig(), *self.replicas):
            self.sharing(one)
        if self.replicas and self.num_replicas is not None:
            raise ValueError("give cluster.replicas or cluster.num_replicas, not both")
        if (self.replicas or self.num_replicas is not None) and self.num_gpus != made:
            raise ValueError(
                f"cluster.num_gpus is {self.num_gpus}, but the replicas have {made} GPUs together; leave one "
                "of them out"
            )
        if made > MOST_GPUS:
            raise ValueError(f"the replicas have {made} GPUs together; at most {MOST_GPUS} are possible")
        self._check_roles()
        check_tiers(self.tier)
        per_replica, left = self.gpus_per_replica, self.num_gpus % self.gpus_per_replica
        if left and not self.replicas:
            set_by = " * ".join(name for name in _FACTORS if getattr(self, name) > 1)
            raise ValueError(
                f"cluster.num_gpus is {self.num_gpus}, which replicas of {per_replica} GPUs "
                f"(cluster.{set_by}) do not divide; {self.num_gpus - left + per_replica} would be "
                "a whole number of replicas"
            )
        return self

    def _check_roles(self) -> None:
        roles = {one.role for one in self.replicas}
        if ("prefill" in roles) != ("decode" in roles):
            raise ValueError(
                "the replicas of cluster.replicas either compute prompts or decode; role = prefill and role "
                "= decode belong together"
            )
        num_prefill, num_equal = self.num_prefill_replicas, self.num_gpus // self.gpus_per_replica
        if num_prefill and self.replicas:
            raise ValueError("give cluster.num_prefill_replicas, or a role to each of cluster.replicas")
        if num_prefill >= max(1, num_equal):
            raise ValueError(
                f"cluster.num_prefill_replicas is {num_prefill} of {num_equal} replicas; some have to decode"
            )

    @property
    def gpus_per_replica(self) -> int:
        """GPUs of each of the equal replicas: the step in which a cluster grows."""
        return _gpus_of(None, self.__dict__)

    def sharing(self, one: ReplicaConfig) -> Sharing:
        """How the GPUs of such a replica share its model.

        Raises
        ------
        ValueError
            If they cannot.
        """
        try:
            return Sharing(
                **{name: getattr(one, name) or getattr(self, name) for name in (*_FACTORS, "expert_parallel")}
            )
        except ConfigError as error:
            raise ValueError(f"cluster.{error}") from error


#: What the GPUs of a replica are the product of.
_FACTORS = ("tensor_parallel", "pipeline_parallel", "data_parallel")


def _num_gpus(given: Mapping[str, Any]) -> int:
    """GPUs of the replicas that are given, or of one."""
    if replicas := given.get("replicas"):
        return sum(one.count * _gpus_of(one, given) for one in replicas)
    return (given.get("num_replicas") or 1) * _gpus_of(None, given)


def _gpus_of(one: ReplicaConfig | None, given: Mapping[str, Any]) -> int:
    return math.prod(getattr(one, name, None) or given.get(name, 1) for name in _FACTORS)


class HostTimes(NamedTuple):
    """Seconds of an engine's host beside its GPUs, by the settings of `EngineConfig`."""

    frontend_s: float
    frontend_token_s: float
    launch_s: float
    prefill_launch_s: float
    prefill_token_s: float


#: By engine, from published closed loops of 1 to 4 clients: docs/fidelity-hardware.md says how.
HOST_TIMES: Mapping[str, HostTimes] = {
    "none": HostTimes(0.0, 0.0, 0.0, 0.0, 0.0),
    "vllm": HostTimes(0.0, 0.0, 1e-3, 16e-3, 6e-6),
    "sglang": HostTimes(166e-3, 9e-6, 0.7e-3, 0.0, 0.0),
    "trtllm": HostTimes(38e-3, 0.0, 0.0, 0.0, 0.0),
}

HostSeconds = Annotated[float, Field(ge=0, le=1)]  # above: milliseconds are meant


class EngineConfig(Section):
    """The engine of a replica; all but ``max_model_len`` for presets that batch at every iteration."""

    max_model_len: Tokens | None = Field(
        None,
        description="most tokens of a request, prompt and answer: one that asks for more is refused; left "
        "out: that of the model, where it is known",
    )
    block_size: Count = Field(16, description="tokens per KV block")
    num_kv_blocks: Count | None = Field(
        None, description="KV blocks per replica, instead of what the specs and gpu_memory_utilization give"
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="share of GPU memory for weights, activations and KV blocks"
    )
    prefix_caching: bool | None = Field(
        None,
        description="find again the KV of prompts whose block hashes the trace carries, and of preempted "
        "requests; left out: where the engine that the policy follows does so by default (vLLM V1)",
    )
    frontend: Literal["none", "vllm", "sglang", "trtllm"] = Field(
        "none",
        description="engine whose host times stand where the five below are left out; none: 0",
    )
    frontend_s: HostSeconds | None = Field(
        None, description="seconds of a request at the server before the engine knows of it, and back"
    )
    frontend_token_s: HostSeconds | None = Field(None, description="the same, for each token of its prompt")
    launch_s: HostSeconds | None = Field(
        None, description="host seconds per iteration that the latency model does not contain"
    )
    prefill_launch_s: HostSeconds | None = Field(
        None, description="seconds besides, of an iteration that has prompts"
    )
    prefill_token_s: HostSeconds | None = Field(
        None, description="the same, for each token of its prompts in the iteration"
    )
    wake_s: HostSeconds | None = Field(
        None,
        description="how much longer the first iteration takes after the engine idled; left out: what the "
        "calibration of the latency file says, else 0",
    )
    async_scheduling: bool = Field(
        False, description="the host prepares the next iteration while the GPU runs, one iteration behind"
    )
    swap_bytes_per_s: Annotated[float, Field(ge=1e5, le=1e18)] = Field(  # below: GB/s are meant
        25e9, description="between GPU and host memory, for preemption by swapping"
    )
    exact_iterations: bool = Field(False, description="one event per iteration instead of one per span")
    speculation: SpeculationConfig = SpeculationConfig()

    @property
    def host(self) -> HostTimes:
        """What the host takes: as given, else what the engine named as front end does."""
        return HostTimes(
            *(
                usual if (given := getattr(self, name)) is None else given
                for name, usual in HOST_TIMES[self.frontend]._asdict().items()
            )
        )


class LatencyConfig(Section):
    """How long a batch or an iteration takes."""

    file: str | None = Field(
        None, description="latency.json; left out: a roofline of cluster.model on cluster.gpu, derived"
    )
    family: Literal["aiconfigurator"] | None = Field(
        None, description="instead of a file: made of NVIDIA's measured operators for the settings below"
    )
    system: str | None = Field(None, description="GPU as aiconfigurator-core names it, e.g. h200_sxm")
    backend: str = Field("vllm", description="engine whose operators count: vllm, sglang, trtllm")
    version: str = Field("current", description="of the backend: current, previous, next, or a number")
    model: str | None = Field(
        None, description="name on Hugging Face that the package has, or a folder with a config.json"
    )
    tensor_parallel: NumGPUs | None = Field(None, description="left out: cluster.tensor_parallel")
    expert_parallel: NumGPUs | None = Field(
        None, description="GPUs that share out whole experts; left out: cluster.expert_parallel"
    )
    pipeline_parallel: NumGPUs | None = Field(
        None, description="stages that a pass goes through; left out: cluster.pipeline_parallel"
    )
    data_parallel: NumGPUs | None = Field(
        None,
        description="groups of tensor_parallel GPUs that share the experts; left out: cluster.data_parallel, "
        "given beside a cluster.data_parallel of 1: each is a replica",
    )
    outside: Literal["refuse", "extrapolate"] = Field("refuse", description="beyond the calibrated range")
    noise: Annotated[float, Field(ge=0, le=3)] = Field(
        0.0, description="sigma of a lognormal factor with mean 1"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> LatencyConfig:
        if self.family is None:
            made = self.model_fields_set - {"file", "family", "outside", "noise"}
            if made and self != LatencyConfig(file=self.file, outside=self.outside, noise=self.noise):
                raise ValueError(f'latency.{min(made)} needs latency.family = "aiconfigurator"')
        elif self.file is not None:
            raise ValueError("give latency.file or latency.family, not both")
        elif self.system is None or self.model is None:
            absent = "system" if self.system is None else "model"
            raise ValueError(f"latency.family = {self.family!r} needs latency.{absent}")
        return self

    @property
    def is_given(self) -> bool:
        """Whether it names a model, instead of leaving it to the specs."""
        return self.file is not None or self.family is not None
