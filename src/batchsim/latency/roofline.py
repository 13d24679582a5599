"""Seconds from a model's shape and a GPU's data sheet alone: nothing measured, and labelled so."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from batchsim.errors import ConfigError
from batchsim.latency.analytic import check_number
from batchsim.latency.base import BatchShape, BatchTime, Domain, IterationShape, LatencyInfo
from batchsim.specs import GPUSpec, ModelSpec


@dataclass(frozen=True, slots=True)
class RooflineLatency:
    """Each forward pass takes the longer of its arithmetic and its memory traffic, plus a constant.

    ``max(FLOPs / F, bytes / BW) / tensor_parallel + overhead``, with ``F`` and ``BW`` the GPU's peaks times
    their efficiencies. A token costs two FLOPs for each weight it is multiplied with, and ``4 * layers *
    query heads * head dimension`` for each token it attends to (half of that in a causal prefill); a pass
    reads all weights once, and the KV of its tokens. Communication between GPUs is not modelled: say it as
    overhead. A batch's prefill is one pass, without chunks.

    Attributes
    ----------
    compute_efficiency, bandwidth_efficiency
        Shares of the data sheet's peaks that are reached, above 0 and at most 1.
    overhead_s
        Seconds per forward pass for launching kernels, sampling and the host.
    """

    model: ModelSpec
    gpu: GPUSpec
    compute_efficiency: float
    bandwidth_efficiency: float
    overhead_s: float
    tensor_parallel: int = 1
    domain: Domain = field(default_factory=Domain)
    info: LatencyInfo = field(default_factory=lambda: LatencyInfo("roofline", "derived"))
    # Seconds: arithmetic per token and per token attended to, memory traffic per pass and per KV token.
    _token_s: float = field(init=False, repr=False, compare=False)
    _attended_s: float = field(init=False, repr=False, compare=False)
    _weights_s: float = field(init=False, repr=False, compare=False)
    _kv_s: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("compute_efficiency", "bandwidth_efficiency"):
            value = getattr(self, name)
            check_number(name, value, above=0)
            if value > 1:
                raise ConfigError(f"{name} is {value!r}; a share of at most 1 is needed")
        check_number("overhead_s", self.overhead_s)
        if type(self.tensor_parallel) is not int or self.tensor_parallel < 1:
            raise ConfigError(f"tensor_parallel is {self.tensor_parallel!r}; a whole number >= 1 is needed")
        if self.info.provenance == "measured":
            raise ConfigError(
                "a roofline is computed, not measured; its provenance must be derived or synthetic"
            )
        model = self.model
        flop_per_s = self.gpu.flop_per_s * self.compute_efficiency * self.tensor_parallel
        bytes_per_s = self.gpu.memory_bytes_per_s * self.bandwidth_efficiency * self.tensor_parallel
        weights = model.num_multiplied_parameters
        derived = {
            "_token_s": 2 * weights / flop_per_s,
            "_attended_s": 4 * model.num_layers * model.num_query_heads * model.head_dim / flop_per_s,
            "_weights_s": weights * model.bytes_per_weight / bytes_per_s,
            "_kv_s": model.kv_bytes_per_token / bytes_per_s,
        }
        if self.info.name == "roofline":
            name = f"roofline of {model.name} on {self.gpu.name}"
            derived["info"] = replace(self.info, name=name)  # type: ignore[assignment]
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def batch_time(self, shape: BatchShape) -> BatchTime:
        """Seconds to the first token and to the end of the batch."""
        batch_size, prompt_tokens, output_tokens = shape
        tokens = batch_size * prompt_tokens
        compute_s = tokens * (self._token_s + self._attended_s * prompt_tokens / 2)
        memory_s = self._weights_s + self._kv_s * tokens
        first_token_s = (compute_s if compute_s > memory_s else memory_s) + self.overhead_s
        return BatchTime(
            first_token_s, first_token_s + self.decode_span_s(output_tokens - 1, batch_size, tokens)
        )

    def iteration_s(self, shape: IterationShape) -> float:
        """Seconds for one forward pass; its prefill tokens count as one prompt from the start."""
        prefill_tokens, decode_seqs, context_tokens = shape
        attended_tokens = context_tokens + prefill_tokens**2 / 2
        compute_s = self._token_s * (prefill_tokens + decode_seqs) + self._attended_s * attended_tokens
        memory_s = self._weights_s + self._kv_s * (prefill_tokens + context_tokens)
        return max(compute_s, memory_s) + self.overhead_s

    def decode_span_s(self, num_iterations: int, decode_seqs: int, context_tokens: int) -> float:
        """Seconds for a span of decode iterations, as `latency.base.decode_span_s`, in closed form.

        Arithmetic and traffic both grow by a constant per iteration, so that they cross at most once.
        """
        compute_s = self._token_s * decode_seqs + self._attended_s * context_tokens
        compute_growth_s = self._attended_s * decode_seqs
        memory_s = self._weights_s + self._kv_s * context_tokens
        memory_growth_s = self._kv_s * decode_seqs
        if compute_s > memory_s:
            first, first_growth, later, later_growth = compute_s, compute_growth_s, memory_s, memory_growth_s
        else:
            first, first_growth, later, later_growth = memory_s, memory_growth_s, compute_s, compute_growth_s
        before = num_iterations  # iterations in which the one that is longer at the start still is
        lead_s, catching_up_s = first - later, later_growth - first_growth
        if lead_s < catching_up_s * num_iterations:
            before = min(before, int(lead_s / catching_up_s) + 1)
        after = num_iterations - before
        total_s = before * first + first_growth * before * (before - 1) / 2
        total_s += after * later + later_growth * after * (before + num_iterations - 1) / 2
        return total_s + num_iterations * self.overhead_s
