"""How the GPUs of a replica share a model: the weights and KV that each of them holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from batchsim.errors import ConfigError
from batchsim.specs.gpu import GPUSpec
from batchsim.specs.model import ModelSpec

#: Of each logit, while vLLM draws tokens to see what it needs: in 16 and in 32 bits, sorted with its place,
#: room to sort, probabilities and their sums. Its logs tell of peaks of 38.2 to 38.6 bytes for 1,024
#: sequences, whatever the model.
LOGIT_BYTES = 38
#: Of what a card is sold with, that no program sees (0.35 to 0.8 GiB), and what PyTorch does not know of.
CUDA_BYTES = 0.6 * 2**30
#: For what is exchanged with each further GPU: 0.4 GiB for one, 2.4 for seven of them, in such logs.
LINK_BYTES = 0.35 * 2**30
#: Tokens whose experts vLLM works on at a time.
_EXPERT_TOKENS = 32_768


class Stage(NamedTuple):
    """A pipeline's group of GPUs: its layers, those of them without experts, and ends of the model on it."""

    layers: int
    dense_layers: int
    ends: int


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

    def stages(self, model: ModelSpec) -> list[Stage]:
        """The stages as vLLM cuts them: what does not divide goes to those before the last, from behind."""
        each, over = divmod(model.num_layers, self.pipeline_parallel)
        last = self.pipeline_parallel - 1
        left, stages = model.num_layers - model.num_moe_layers, []
        for index in range(self.pipeline_parallel):
            layers = each + (last - over <= index < last)
            dense = min(left, layers)
            left -= dense
            stages.append(Stage(layers, dense, (index == 0) + (index == last)))
        return stages

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
    stage. A stage has its layers, see `Sharing.stages`; embedding and head lie on the first and the last.
    """
    return math.ceil(max(_stage_weight_bytes(model, sharing, stage) for stage in sharing.stages(model)))


def _stage_weight_bytes(model: ModelSpec, sharing: Sharing, stage: Stage) -> float:
    tensor, moe_layers = sharing.tensor_parallel, stage.layers - stage.dense_layers
    whole_experts = math.ceil(model.num_experts / sharing.expert_parallel)
    slices = sharing.gpus_per_stage if sharing.expert_parallel == 1 else 1
    experts = moe_layers * model.expert_parameters * whole_experts / slices
    width = stage.dense_layers * model.intermediate_size + moe_layers * model.shared_intermediate_size
    kept = moe_layers * model.hidden_size * model.num_experts + (2 * stage.layers + 1) * model.hidden_size
    attention = gpu_attention_parameters(model, sharing) * stage.layers / model.num_layers
    vocabularies = min(stage.ends, 1) if model.tied_embeddings else stage.ends
    return (
        attention * model.attention_bytes
        + 3 * model.hidden_size * width / tensor * model.bytes_per_weight
        + experts * model.expert_bytes
        + (kept + vocabularies * model.num_head_parameters / tensor) * model.kept_bytes
    )


def gpu_kv_bytes(model: ModelSpec, sharing: Sharing, tokens: int) -> float:
    """Memory that one sequence of so many tokens takes on one GPU, of the stage with most layers."""
    most = max(stage.layers for stage in sharing.stages(model))
    return _kv_layers_bytes(model, sharing, tokens) * most / model.num_layers


def _kv_layers_bytes(model: ModelSpec, sharing: Sharing, tokens: int) -> float:
    """The same over all layers."""
    of_all = tokens * model.num_kv_layers + min(tokens, model.window_tokens) * model.num_window_layers
    kv_bytes = of_all * model.kv_layer_bytes * sharing.kv_copies(model)
    return (kv_bytes + model.linear_state_bytes) / sharing.tensor_parallel


def gpu_activation_bytes(model: ModelSpec, sharing: Sharing, tokens: int, sequences: int) -> int:
    """Memory that vLLM keeps free on a GPU for its largest pass: so many tokens, of so many sequences.

    The larger of two peaks, one after the other: in bf16 the residual, its norm, queries and what attention
    gives, and gate, product and activation of the feed-forward block or of a token's experts, with what these
    give; then what the tokens came to, and the logits of all sequences. Besides what CUDA and links take.
    """
    numbers = tokens * (4 * model.hidden_size + 3 * model.intermediate_size / sharing.tensor_parallel)
    if model.num_experts:
        slices = sharing.gpus_per_stage if sharing.expert_parallel == 1 else 1
        width = 3 * model.expert_intermediate_size / slices + model.hidden_size
        together = min(tokens * sharing.data_parallel, max(tokens, _EXPERT_TOKENS))
        numbers = tokens * 4 * model.hidden_size + together * model.experts_per_token * width
    drawing_bytes = sequences * model.vocab_size * LOGIT_BYTES + 2 * tokens * model.hidden_size
    beside_bytes = CUDA_BYTES + LINK_BYTES * (sharing.gpus_per_stage - 1)
    return math.ceil(max(2 * numbers, drawing_bytes) + beside_bytes)


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
    length = sequence_tokens or model.max_model_len or 32_768
    per_layer = _kv_layers_bytes(model, sharing, length) / (length * model.num_layers)
    free_bytes = usable_bytes - activation_bytes
    tokens = math.floor(
        sharing.data_parallel
        * min(
            (free_bytes - math.ceil(_stage_weight_bytes(model, sharing, stage))) / (per_layer * stage.layers)
            for stage in sharing.stages(model)
        )
    )
    if tokens < 1:
        weight_bytes = gpu_weight_bytes(model, sharing)
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
