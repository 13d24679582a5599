"""The KV cache of the engine: one row of every layer's tensors per slot, filled token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass(slots=True)
class Places:
    """Rows and positions where the packed tokens of a pass belong: int64, each of shape ``(tokens,)``."""

    rows: torch.Tensor
    positions: torch.Tensor


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, each of shape ``(rows, kv heads, max tokens, head dim)``."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, places: Places) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: torch.Tensor = keys
        self.values: torch.Tensor = values
        self.is_initialized = True
        self._places = places

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: a layer is made with its tensors."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the packed tokens, of shape ``(1, kv heads, tokens, head dim)``; hand over all rows."""
        rows, positions = self._places.rows, self._places.positions
        self.keys[rows, :, positions] = key_states[0].transpose(0, 1)
        self.values[rows, :, positions] = value_states[0].transpose(0, 1)
        return self.keys, self.values

    # What transformers asks in order to build masks, which the engine does itself.

    def get_seq_length(self) -> int:
        """Nothing that a model should count from: positions are given."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if the packed tokens were all there is."""
        return int(query_length), 0

    def get_max_length(self) -> int:
        """Tokens in a row."""
        return self.keys.shape[2]

    get_max_cache_shape = get_max_length  # its name in older versions


class SlotCache(Cache):
    """One `SlotLayer` per layer, all of them views of one tensor.

    Attributes
    ----------
    places
        To be set before each pass.
    """

    def __init__(
        self, config: Any, num_rows: int, max_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (
            config.num_hidden_layers,
            2,
            num_rows,
            config.num_key_value_heads,
            max_tokens,
            head_dim,
        )
        # Noise, so that a slot which only pretends to hold tokens is no special case.
        self._states = torch.randn(shape, dtype=dtype, device=device)
        nowhere = torch.empty(0, dtype=torch.int64, device=device)
        self.places = Places(nowhere, nowhere)
        super().__init__(layers=[SlotLayer(keys, values, self.places) for keys, values in self._states])

    def swap(self, first: int, second: int, first_tokens: int, second_tokens: int) -> None:
        """Exchange two rows that hold so many tokens, in all layers."""
        states = self._states
        kept = states[:, :, second, :, :second_tokens].clone()
        states[:, :, second, :, :first_tokens] = states[:, :, first, :, :first_tokens]
        states[:, :, first, :, :second_tokens] = kept
