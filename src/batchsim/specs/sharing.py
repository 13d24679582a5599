"""How the GPUs of a replica share a model: the weights and KV that each of them holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from batchsim.errors import ConfigError
from batchsim.specs.gpu import GPUSpec
from batchsim.specs.model import ModelSpec

#: Of each logit, while vLLM draws tokens to see what it needs: as float32, sorted, its place, probabilities
#: and their sums. Its logs tell of peaks of 1.2 to 1.4 GiB for 256 sequences and 128,000 to 152,000 tokens.
LOGIT_BYTES = 32
CUDA_BYTES = 2**30 / 10  # that PyTorch does not know of; 0.05 to 0.2 GiB in such logs
#: Tokens whose experts vLLM works on at a time.
_EXPERT_TOKENS = 32_768


@dataclass(frozen=True, slots=True)
class Sharing:
    """GPUs of a replica, as vLLM lays a model out on them.

    Attributes
    ----------
    tensor_parallel
        GPUs that share each layer: its heads, its feed-forward block, the vocabulary.
    pipeline_parallel
        Groups of GPUs that have a share of the layers each.
    data_parallel
        Groups of GPUs that have the whole of attention each, and sequences of their own; they share experts.
    expert_parallel
        GPUs that share out whole experts: all of a stage, or 1 where each has a slice of every expert.
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    expert_parallel: int = 1

    def __post_init__(self) -> None:
        for name in ("tensor_parallel", "pipeline_parallel", "data_parallel", "expert_parallel"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name} is {value!r:.60}; a whole number >= 1 is needed")
        if self.expert_parallel not in (1, self.gpus_per_stage):
            raise ConfigError(
                f"expert_parallel is {self.expert_parallel}; tensor_parallel * data_parallel = "
                f"{self.gpus_per_stage} is needed, all GPUs that share a layer, or 1"
            )

    @property
    def gpus_per_stage(self) -> int:
        """GPUs that share a layer's experts."""
        return self.tensor_parallel * self.data_parallel

    @property
    def num_gpus(self) -> int:
        """GPUs of the replica."""
        return self.gpus_per_stage * self.pipeline_parallel

    def check(self, model: ModelSpec) -> None:
        """Raise `ConfigError` where the model cannot be shared out so."""
        if self.tensor_parallel > 1 and model.num_query_heads % self.tensor_parallel:
            raise ConfigError(
                f"tensor_parallel is {self.tensor_parallel}; a divisor of the {model.num_query_heads} query "
                f"heads of {model.name} is needed"
            )
        if self.pipeline_parallel > model.num_layers:
            raise ConfigError(
                f"pipeline_parallel is {self.pipeline_parallel}; {model.name} has {model.num_layers} layers"
            )
        if self.data_parallel > 1 and not model.num_experts:
            raise ConfigError(
                f"data_parallel is {self.data_parallel}, but {model.name} has no experts to share; so many "
                "replicas (cluster.num_replicas) are the same"
            )
        if self.expert_parallel > max(model.num_experts, 1):
            raise ConfigError(
                f"expert_parallel is {self.expert_parallel}; {model.name} has {model.num_experts} experts"
            )

    def stage_share(self, model: ModelSpec) -> float:
        """Share of the layers that the longest stage has."""
        return math.ceil(model.num_layers / self.pipeline_parallel) / model.num_layers

    def kv_copies(self, model: ModelSpec) -> float:
        """How often the KV of a token lies on the GPUs that share a layer: more GPUs than heads copy."""
        return max(1.0, self.tensor_parallel / model.num_kv_heads)


def gpu_attention_parameters(model: ModelSpec, sharing: Sharing) -> float:
    """Weights of attention on a GPU, over all layers: of keys and values, or latents, it may have copies."""
    tensor = sharing.tensor_parallel
    shared_heads = 1 if model.kv_lora_rank else tensor / sharing.kv_copies(model)
    of_one = model.query_parameters / tensor + model.kv_parameters / shared_heads
    linear = model.num_linear_layers * model.linear_layer_parameters / tensor
    return (model.num_layers - model.num_linear_layers) * of_one + linear


def gpu_weight_bytes(model: ModelSpec, sharing: Sharing) -> int:
    """Weights on the GPU that holds most of them.

    Heads, feed-forward blocks and the vocabulary are divided by ``tensor_parallel``; keys and values no
    further than their heads, latents, routers and norms not at all. Experts are divided by all GPUs of a
    stage. A stage has its share of the layers; embedding and head lie on the first and the last.
    """
    tensor = sharing.tensor_parallel
    whole_experts = math.ceil(model.num_experts / sharing.expert_parallel)
    slices = sharing.gpus_per_stage if sharing.expert_parallel == 1 else 1
    experts = model.num_moe_layers * model.expert_parameters * whole_experts / slices
    norms = (2 * model.num_layers + 1) * model.hidden_size
    layers_bytes = (
        gpu_attention_parameters(model, sharing) * model.attention_bytes
        + model.num_feed_forward_parameters / tensor * model.bytes_per_weight
        + experts * model.expert_bytes
        + (model.num_router_parameters + norms) * model.kept_bytes
    )
    vocabulary = model.num_head_parameters / tensor * model.kept_bytes
    both_ends = sharing.pipeline_parallel == 1 and not model.tied_embeddings
    return math.ceil(layers_bytes * sharing.stage_share(model) + vocabulary * (2 if both_ends else 1))


def gpu_kv_bytes(model: ModelSpec, sharing: Sharing, tokens: int) -> float:
    """Memory that one sequence of so many tokens takes on one GPU."""
    of_all = tokens * model.num_kv_layers + min(tokens, model.window_tokens) * model.num_window_layers
    kv_bytes = of_all * model.kv_layer_bytes * sharing.kv_copies(model)
    held_bytes = (kv_bytes + model.linear_state_bytes) / sharing.tensor_parallel
    return held_bytes * sharing.stage_share(model)


def gpu_activation_bytes(model: ModelSpec, sharing: Sharing, tokens: int, sequences: int) -> int:
    """Memory that vLLM keeps free on a GPU for its largest pass: so many tokens, of so many sequences.

    In bf16 the residual, its norm, queries and what attention gives, and gate, product and activation of the
    feed-forward block or of a token's experts, with what these give; then the logits of all sequences.
    """
    numbers = tokens * (4 * model.hidden_size + 3 * model.intermediate_size / sharing.tensor_parallel)
    if model.num_experts:
        slices = sharing.gpus_per_stage if sharing.expert_parallel == 1 else 1
        width = 3 * model.expert_intermediate_size / slices + model.hidden_size
        together = min(tokens * sharing.data_parallel, max(tokens, _EXPERT_TOKENS))
        numbers = tokens * 4 * model.hidden_size + together * model.experts_per_token * width
    return math.ceil(2 * numbers + sequences * model.vocab_size * LOGIT_BYTES + CUDA_BYTES)


def kv_capacity_tokens(
    model: ModelSpec,
    gpu: GPUSpec,
    margin: float,
    sharing: Sharing = Sharing(),
    sequence_tokens: int | None = None,
    activation_bytes: int = 0,
) -> int:
    """How many tokens of KV a replica holds beside the weights when the share ``margin`` of memory is free.

    ``activation_bytes`` of each GPU are not for KV either, see `gpu_activation_bytes`.

    Windows and states of linear attention make a token of a long sequence cheaper than one of a short: as in
    vLLM's log, the number holds for sequences of ``sequence_tokens``, by default the longest.

    Raises
    ------
    ConfigError
        If not even one does.
    """
    if not 0 <= margin < 1:
        raise ConfigError(f"memory margin is {margin!r}; a share of at least 0 and below 1 is needed")
    sharing.check(model)
    usable_bytes = gpu.memory_bytes * (1 - margin)
    weight_bytes = gpu_weight_bytes(model, sharing)
    length = sequence_tokens or model.max_model_len or 32_768
    per_token = gpu_kv_bytes(model, sharing, length) / length
    left_bytes = usable_bytes - weight_bytes - activation_bytes
    tokens = math.floor(sharing.data_parallel * (left_bytes / per_token))
    if tokens < 1:
        together = gpu.name if sharing.num_gpus == 1 else f"{sharing.num_gpus} {gpu.name}"
        each = "" if sharing.num_gpus == 1 else " on each"
        also = f" and its activations {activation_bytes / 2**30:.1f} GiB" if activation_bytes else ""
        raise ConfigError(
            f"{model.name} does not fit {together}: its weights take {weight_bytes / 2**30:.1f} GiB{each}"
            f"{also}, a margin of {margin:.0%} leaves {usable_bytes / 2**30:.1f} GiB; more GPUs a replica "
            "(cluster.tensor_parallel), a GPU with more memory, a smaller model or an explicit KV capacity "
            "is needed"
        )
    return tokens
