"""What a language model is to the simulator: the shapes of its layers, and the bytes of its numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from batchsim.errors import ConfigError
from batchsim.specs.fields import check_fields

Arithmetic = Literal["bf16", "fp8", "fp4"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder: attention of one kind or another, then a gated feed-forward block or experts.

    What a model does not have is 0. Biases and the norms of single heads, below 0.1 % of the weights, are
    left out everywhere, and so is what predicts further tokens (MTP) or looks at pictures.

    Attributes
    ----------
    num_kv_heads, head_dim
        Of attention; with multi-head latent attention the one latent that all heads share, and the numbers of
        a query, ``qk_rope_head_dim`` among them.
    intermediate_size
        Width of a dense layer's feed-forward block.
    num_experts, experts_per_token, expert_intermediate_size
        Of each layer but the ``num_dense_layers``; how many of them a token goes to, and the width of one.
    shared_intermediate_size
        Width of the experts that every token goes to, together.
    kv_lora_rank, q_lora_rank, qk_rope_head_dim, v_head_dim
        Of multi-head latent attention (MLA, DeepSeek-V2): numbers of the latent that stands for keys and
        values, of that for queries (0: none), of the part of a key that tells positions, and of a value.
    gated_attention
        Whether a gate as wide as the queries multiplies what attention gives (Qwen3-Next).
    num_window_layers, window_tokens
        Layers whose tokens attend to the last so many tokens only.
    num_linear_layers, linear_layer_parameters, linear_state_bytes
        Layers of linear attention, which hold a state instead of KV: weights of one, and bytes of the states
        of a sequence in all of them.
    bytes_per_weight
        Scales included: of feed-forward blocks, and of what the following leave open.
    bytes_per_attention_weight, bytes_per_expert_weight, bytes_per_kept_weight
        Of attention, of experts, and of what quantisation leaves alone: embedding, output head, routers and
        norms.
    arithmetic
        Products of weights of less than 2 bytes; others are in bf16, and so is attention to tokens.
    max_model_len
        Most tokens of a sequence; ``None`` where not known.
    source
        Where the numbers come from.
    """

    name: str
    num_layers: int
    hidden_size: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool
    bytes_per_weight: float = 2
    bytes_per_kv: float = 2
    max_model_len: int | None = None
    num_experts: int = 0
    experts_per_token: int = 0
    expert_intermediate_size: int = 0
    shared_intermediate_size: int = 0
    num_dense_layers: int = 0
    kv_lora_rank: int = 0
    q_lora_rank: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    gated_attention: bool = False
    num_window_layers: int = 0
    window_tokens: int = 0
    num_linear_layers: int = 0
    linear_layer_parameters: int = 0
    linear_state_bytes: int = 0
    bytes_per_attention_weight: float | None = None
    bytes_per_expert_weight: float | None = None
    bytes_per_kept_weight: float | None = None
    arithmetic: Arithmetic = "bf16"
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_fields(self)
        _check_parts(self)

    @property
    def num_moe_layers(self) -> int:
        """Layers that have experts."""
        return self.num_layers - self.num_dense_layers if self.num_experts else 0

    @property
    def num_kv_layers(self) -> int:
        """Layers that hold KV of every token."""
        return self.num_layers - self.num_window_layers - self.num_linear_layers

    @property
    def attention_bytes(self) -> float:
        """Bytes of a weight of attention."""
        return self.bytes_per_attention_weight or self.bytes_per_weight

    @property
    def expert_bytes(self) -> float:
        """Bytes of a weight of an expert."""
        return self.bytes_per_expert_weight or self.bytes_per_weight

    @property
    def kept_bytes(self) -> float:
        """Bytes of a weight of the embedding, the output head, a router or a norm."""
        return self.bytes_per_kept_weight or self.bytes_per_weight

    @property
    def query_parameters(self) -> int:
        """Weights of a layer's attention that query heads share out among GPUs."""
        heads = self.num_query_heads
        if not self.kv_lora_rank:
            return (3 if self.gated_attention else 2) * self.hidden_size * heads * self.head_dim
        queries = (self.q_lora_rank or self.hidden_size) * heads * self.head_dim
        unpacked = self.kv_lora_rank * heads * (self.head_dim - self.qk_rope_head_dim + self.v_head_dim)
        return queries + unpacked + heads * self.v_head_dim * self.hidden_size

    @property
    def kv_parameters(self) -> int:
        """Weights of a layer's attention that make what query heads share: keys and values, or latents."""
        if not self.kv_lora_rank:
            return 2 * self.hidden_size * self.num_kv_heads * self.head_dim
        return self.hidden_size * (self.q_lora_rank + self.kv_lora_rank + self.qk_rope_head_dim)

    @property
    def num_attention_parameters(self) -> int:
        """Weights of attention, over all layers."""
        of_one = self.query_parameters + self.kv_parameters
        linear = self.num_linear_layers * self.linear_layer_parameters
        return (self.num_layers - self.num_linear_layers) * of_one + linear

    @property
    def num_feed_forward_parameters(self) -> int:
        """Weights of feed-forward blocks and shared experts, over all layers: every token meets them."""
        dense_layers = self.num_layers - self.num_moe_layers
        width = dense_layers * self.intermediate_size + self.num_moe_layers * self.shared_intermediate_size
        return 3 * self.hidden_size * width

    @property
    def expert_parameters(self) -> int:
        """Weights of one expert in one layer."""
        return 3 * self.hidden_size * self.expert_intermediate_size

    @property
    def num_expert_parameters(self) -> int:
        """Weights of all experts, over all layers; shared ones not among them."""
        return self.num_moe_layers * self.num_experts * self.expert_parameters

    @property
    def num_router_parameters(self) -> int:
        """Weights of all routers."""
        return self.num_moe_layers * self.hidden_size * self.num_experts

    @property
    def num_layer_parameters(self) -> int:
        """Weights each token is multiplied with: those of all layers, of experts those that it goes to."""
        active = self.num_moe_layers * self.experts_per_token * self.expert_parameters
        every = self.num_attention_parameters + self.num_feed_forward_parameters
        return every + active + self.num_router_parameters

    @property
    def num_head_parameters(self) -> int:
        """Weights of the output head: multiplied with a token whose successor is asked for."""
        return self.hidden_size * self.vocab_size

    @property
    def num_multiplied_parameters(self) -> int:
        """Weights a token meets in all layers and the output head, not of the input embedding."""
        return self.num_layer_parameters + self.num_head_parameters

    @property
    def flop_per_token(self) -> int:
        """Two for each weight of the layers that it meets."""
        return 2 * self.num_layer_parameters

    @property
    def flop_per_sample(self) -> int:
        """Two for each weight of the output head."""
        return 2 * self.num_head_parameters

    @property
    def flop_per_layer_pair(self) -> int:
        """For each token that a token attends to: scores and values, over a layer's query heads."""
        return 2 * self.num_query_heads * (self.head_dim + (self.v_head_dim or self.head_dim))

    @property
    def flop_per_layer_read(self) -> int:
        """The same of a decode, which scores and adds up latents where there are some ("absorbed")."""
        if not self.kv_lora_rank:
            return self.flop_per_layer_pair
        return 2 * self.num_query_heads * (2 * self.kv_lora_rank + self.qk_rope_head_dim)

    @property
    def flop_per_pair(self) -> int:
        """The same over all layers that attend to every token."""
        return self.num_kv_layers * self.flop_per_layer_pair

    @property
    def flop_per_window_pair(self) -> int:
        """The same over the layers that attend to a window."""
        return self.num_window_layers * self.flop_per_layer_pair

    @property
    def every_pass_bytes(self) -> float:
        """Weights that a forward pass reads, whatever the batch: all but the experts and the embedding."""
        return (
            self.num_attention_parameters * self.attention_bytes
            + self.num_feed_forward_parameters * self.bytes_per_weight
            + (self.num_router_parameters + self.num_head_parameters) * self.kept_bytes
        )

    def read_weight_bytes(self, tokens: float) -> float:
        """Weights that a forward pass of so many tokens reads."""
        return self.every_pass_bytes + self.reached_experts(tokens) * self.reached_bytes

    @property
    def reached_bytes(self) -> float:
        """Bytes of one expert in every layer."""
        return self.num_moe_layers * self.expert_parameters * self.expert_bytes

    def reached_experts(self, tokens: float) -> float:
        """Experts of a layer that so many tokens go to, if each chooses as by lot: their expected number."""
        if not self.num_experts:
            return 0.0
        missed: float = (1 - self.experts_per_token / self.num_experts) ** tokens
        return self.num_experts * (1 - missed)

    @property
    def num_kept_parameters(self) -> int:
        """Weights that quantisation leaves alone: head, routers, layer norms and, unless tied, embedding."""
        norms = (2 * self.num_layers + 1) * self.hidden_size
        embedding = 0 if self.tied_embeddings else self.hidden_size * self.vocab_size
        return self.num_head_parameters + self.num_router_parameters + norms + embedding

    @property
    def num_parameters(self) -> int:
        """All weights that lie in memory."""
        return (
            self.num_attention_parameters
            + self.num_feed_forward_parameters
            + self.num_expert_parameters
            + self.num_kept_parameters
        )

    @property
    def weight_bytes(self) -> int:
        """Memory the weights take."""
        return math.ceil(
            self.num_attention_parameters * self.attention_bytes
            + self.num_feed_forward_parameters * self.bytes_per_weight
            + self.num_expert_parameters * self.expert_bytes
            + self.num_kept_parameters * self.kept_bytes
        )

    @property
    def kv_layer_bytes(self) -> float:
        """Memory that keys and values of one token take in one layer."""
        if self.kv_lora_rank:
            return (self.kv_lora_rank + self.qk_rope_head_dim) * self.bytes_per_kv
        return 2 * self.num_kv_heads * self.head_dim * self.bytes_per_kv

    @property
    def kv_bytes_per_token(self) -> int:
        """Memory that keys and values of one more token take, over the layers that hold those of all."""
        return math.ceil(self.num_kv_layers * self.kv_layer_bytes)

    @property
    def window_bytes_per_token(self) -> int:
        """The same, over the layers that hold a window."""
        return math.ceil(self.num_window_layers * self.kv_layer_bytes)


def _check_parts(model: ModelSpec) -> None:
    """Raise `ConfigError` where fields that belong together do not fit."""
    if model.num_experts:
        for name in ("experts_per_token", "expert_intermediate_size"):
            if not getattr(model, name):
                raise ConfigError(f"num_experts is {model.num_experts}, but {name} is not given")
        if model.experts_per_token > model.num_experts:
            raise ConfigError(
                f"experts_per_token is {model.experts_per_token}; at most num_experts = {model.num_experts} "
                "is possible"
            )
    if model.num_query_heads % model.num_kv_heads:
        raise ConfigError(
            f"num_kv_heads is {model.num_kv_heads}; a divisor of the {model.num_query_heads} query heads is "
            "needed"
        )
    if model.num_dense_layers > model.num_layers:
        raise ConfigError(
            f"num_dense_layers is {model.num_dense_layers}; there are {model.num_layers} layers"
        )
    if model.num_kv_layers < 0:
        raise ConfigError(
            f"num_window_layers and num_linear_layers are {model.num_window_layers} and "
            f"{model.num_linear_layers}; there are {model.num_layers} layers"
        )
    if model.num_window_layers and not model.window_tokens:
        raise ConfigError(f"num_window_layers is {model.num_window_layers}, but window_tokens is not given")
    if model.kv_lora_rank:
        if model.num_kv_heads != 1:
            raise ConfigError(
                f"num_kv_heads is {model.num_kv_heads}; with kv_lora_rank it is 1, the latent of all heads"
            )
        if not 0 < model.qk_rope_head_dim < model.head_dim or not model.v_head_dim:
            raise ConfigError(
                f"kv_lora_rank is {model.kv_lora_rank}: v_head_dim and qk_rope_head_dim, below head_dim = "
                f"{model.head_dim}, are needed"
            )
