"""Attention over packed tokens: decodes together, each prompt chunk over its own row of the cache.

Registered with transformers under `ATTENTIONS`, so that a model's own code runs everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from batchsim.errors import ConfigError

#: How the two kinds of attention are called inside transformers.
ATTENTIONS = {"sdpa": "batchsim_sdpa", "eager": "batchsim_eager"}

# What some models ask of attention beyond `scaling`.
_NOT_DONE = ("sliding_window", "softcap", "s_aux")


class ChunkPlan(NamedTuple):
    """A prompt chunk: where its tokens lie in the pass, and in which row and after how many they go."""

    first: int
    last: int
    row: int
    stored_tokens: int
    mask: torch.Tensor | None  # bool (tokens, stored + tokens); None for a prompt's beginning: plainly causal


@dataclass(frozen=True, slots=True)
class PassPlan:
    """One forward pass: first a token for each of the rows ``0 .. num_decodes - 1``, then the chunks.

    Attributes
    ----------
    decode_mask
        What each of these rows attends to: bool, ``(decodes, 1, 1, longest context + 1)``.
    """

    num_decodes: int
    decode_mask: torch.Tensor
    chunks: tuple[ChunkPlan, ...]


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: PassPlan,
    scaling: float | None,
    *,
    is_eager: bool,
) -> torch.Tensor:
    """Attend as planned; query ``(1, heads, tokens, dim)``, output ``(1, tokens, heads, dim)``."""
    _, heads, _, head_dim = query.shape
    kv_heads = key.shape[1]
    scale = head_dim**-0.5 if scaling is None else scaling
    parts = []
    if num := plan.num_decodes:
        longest = plan.decode_mask.shape[-1]
        # Query heads that share a KV head lie along the query axis: nothing has to be repeated.
        grouped = query[0, :, :num].transpose(0, 1).reshape(num, kv_heads, heads // kv_heads, head_dim)
        attend = _eager if is_eager else scaled_dot_product_attention
        keys, values = key[:num, :, :longest], value[:num, :, :longest]
        decoded = attend(grouped, keys, values, attn_mask=plan.decode_mask, scale=scale)
        parts.append(decoded.reshape(num, heads, head_dim))
    for first, last, row, stored_tokens, mask in plan.chunks:
        end = stored_tokens + last - first
        keys, values = key[row : row + 1, :, :end], value[row : row + 1, :, :end]
        # Repeated, because of the kernels only some know query heads that share a KV head, and none of those
        # takes a mask: the rest would leave the attention to the slowest.
        keys, values = (states.repeat_interleave(heads // kv_heads, 1) for states in (keys, values))
        asked = query[:, :, first:last]
        if is_eager:
            mask = _causal(last - first, stored_tokens, query.device) if mask is None else mask
            done = _eager(asked, keys, values, attn_mask=mask, scale=scale)
        else:
            is_causal = mask is None
            done = scaled_dot_product_attention(
                asked, keys, values, attn_mask=mask, is_causal=is_causal, scale=scale
            )
        parts.append(done[0].transpose(0, 1))
    return torch.cat(parts)[None]


def chunk_mask(num_tokens: int, stored_tokens: int, device: torch.device) -> torch.Tensor | None:
    """The mask of a chunk; None at a prompt's beginning, where kernels have one of their own."""
    return _causal(num_tokens, stored_tokens, device) if stored_tokens else None


def _causal(num_tokens: int, stored_tokens: int, device: torch.device) -> torch.Tensor:
    ones = torch.ones(num_tokens, stored_tokens + num_tokens, dtype=torch.bool, device=device)
    return ones.tril(diagonal=stored_tokens)


def _eager(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, attn_mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention from its definition."""
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(~attn_mask, float("-inf"))
    weights: torch.Tensor = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return weights @ value


def _interface(*, is_eager: bool) -> Any:
    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        plan: PassPlan,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        for name in _NOT_DONE:
            if kwargs.get(name) is not None:
                raise ConfigError(
                    f"the model attends with {name} = {kwargs[name]}, which the engine does not"
                )
        return _attend(query, key, value, plan, scaling, is_eager=is_eager), None

    return attention


for _name, _registered in ATTENTIONS.items():
    AttentionInterface.register(_registered, _interface(is_eager=_name == "eager"))
