"""What a sum of operators needs to know of a model's layers, and of the GPUs that share them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from batchsim.errors import ConfigError
from batchsim.files import MAX_COUNT
from batchsim.latency.analytic import check_number
from batchsim.latency.base import Floats
from batchsim.latency.roofline import ACTIVATION_BYTES
from batchsim.specs import ModelSpec, check_magnitude

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class LayerStack:
    """What of a model's ``config.json`` the sums need; ``num_experts`` is 0 for a dense model.

    ``num_query_heads`` and ``num_kv_heads`` are 0 where they are not known, or all share one latent (MLA).
    """

    num_layers: int
    hidden_size: int
    vocab_size: int
    num_experts: int = 0
    experts_per_token: int = 0
    num_query_heads: int = 0
    num_kv_heads: int = 0

    @classmethod
    def of(cls, model: ModelSpec | Mapping[str, Any]) -> LayerStack:
        """Read it from either form."""
        if isinstance(model, ModelSpec):
            heads = (0, 0) if model.kv_lora_rank else (model.num_query_heads, model.num_kv_heads)
            return cls(model.num_layers, model.hidden_size, model.vocab_size, 0, 0, *heads)
        experts = next((key for key in _EXPERTS if model.get(key)), None)
        keys = [
            "num_hidden_layers",
            "hidden_size",
            "vocab_size",
            *([experts, "num_experts_per_tok"] if experts else []),
        ]
        for key in keys:
            if type(model.get(key)) is not int or not 1 <= model[key] <= MAX_COUNT:
                raise ConfigError(
                    f"{key} of the model is {model.get(key)!r:.60}; a whole number >= 1 is needed, as a "
                    "config.json has it"
                )
        query_heads, kv_heads = _heads(model)
        stack = replace(
            cls(*(model[key] for key in keys)), num_query_heads=query_heads, num_kv_heads=kv_heads
        )
        if stack.experts_per_token > stack.num_experts:
            raise ConfigError(
                f"num_experts_per_tok of the model is {stack.experts_per_token}; no more than its "
                f"{stack.num_experts} experts are needed"
            )
        return stack


def _heads(model: Mapping[str, Any]) -> tuple[int, int]:
    query: Any = model.get("num_attention_heads")
    kv: Any = model.get("num_key_value_heads") or query
    is_whole = type(query) is int and type(kv) is int and 1 <= kv <= query <= MAX_COUNT
    return (query, kv) if is_whole and not model.get("kv_lora_rank") else (0, 0)


@dataclass(frozen=True, slots=True)
class Group:
    """GPUs that share a model: by tensors within a replica, by experts within it or across replicas.

    Replicas that share experts, whole ones or slices of each, are taken to run passes alike at the same time.
    """

    tensor_parallel: int
    expert_parallel: int
    data_parallel: int
    link_bytes_per_s: float | None
    link_latency_s: float

    def __post_init__(self) -> None:
        for name in ("tensor_parallel", "expert_parallel", "data_parallel"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name} is {value!r}; a whole number >= 1 is needed")
        if self.expert_parallel > 1 and self.expert_parallel % self.tensor_parallel:
            raise ConfigError(
                f"expert_parallel is {self.expert_parallel}; a multiple of tensor_parallel = "
                f"{self.tensor_parallel} is needed"
            )
        check_number("link_latency_s", self.link_latency_s)
        if self.link_latency_s:
            check_magnitude("link_latency_s", self.link_latency_s)
        if self.num_gpus == 1:
            return
        if self.link_bytes_per_s is None:
            raise ConfigError(
                f"link_bytes_per_s is not given; {self.num_gpus} GPUs that share a model need a rate at "
                "which they exchange activations"
            )
        check_magnitude("link_bytes_per_s", self.link_bytes_per_s)

    @property
    def num_gpus(self) -> int:
        """GPUs that exchange what the feed-forward blocks give."""
        return max(self.tensor_parallel * self.data_parallel, self.expert_parallel)

    @property
    def num_replicas(self) -> int:
        """Replicas that share experts."""
        return self.num_gpus // self.tensor_parallel

    def add_up_s(self, rows: Floats, num_gpus: int, width: int) -> Floats:
        """Seconds to add up activations over GPUs by a ring: to scatter sums, then to gather them."""
        return self._exchange_s(2 * rows * width, num_gpus)

    def gather_s(self, rows: Floats, num_gpus: int, width: int) -> Floats:
        """Seconds to gather what each GPU has a share of, on all of them."""
        return self._exchange_s(rows * width, num_gpus)

    def _exchange_s(self, numbers: Floats, num_gpus: int) -> Floats:
        if num_gpus == 1 or self.link_bytes_per_s is None:
            return np.zeros_like(numbers)
        sent_bytes = (num_gpus - 1) / num_gpus * numbers * ACTIVATION_BYTES
        return np.asarray(self.link_latency_s + sent_bytes / self.link_bytes_per_s, dtype=np.float64)
