"""Seconds from a model's shape and a GPU's data sheet alone: nothing measured, and labelled so."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from batchsim.errors import ConfigError
from batchsim.latency.analytic import check_number
from batchsim.latency.base import (
    BatchShape,
    BatchTime,
    DecodeLine,
    Domain,
    IterationShape,
    LatencyInfo,
    padded_batch_time,
)
from batchsim.specs import GPUSpec, ModelSpec

#: What GPUs that share a model send each other: activations in bf16.
ACTIVATION_BYTES = 2

#: The smallest share of a peak; times grow without end towards 0.
LEAST_SHARE = 1e-6


@dataclass(frozen=True, slots=True)
class RooflineLatency:
    """Each forward pass takes the longer of its arithmetic and its memory traffic, plus a constant.

    ``max(FLOPs / F, bytes / BW) / tensor_parallel + all-reduces + overhead``, with ``F`` and ``BW`` the GPU's
    peaks times their efficiencies. A token costs two FLOPs for each weight of the layers, and ``4 * layers *
    query heads * head dimension`` for each token it attends to. The output head is multiplied with the tokens
    whose successor is asked for: the last of each prompt chunk, as in vLLM, and each decode. A pass reads all
    weights once, and the KV of its tokens. Not counted is the KV of earlier chunks that a prompt chunk reads
    again.

    Two all-reduces a layer (Megatron-LM, arXiv 1909.08053, section 3) add up the shares of
    ``tensor_parallel`` GPUs. By rings, and overlapped by nothing, each takes ``2 * (tp - 1) / tp * tokens *
    hidden size * 2 bytes / link_bytes_per_s + link_latency_s``. KV heads are shared out evenly, however few.

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
    # Seconds: arithmetic per token, per token sampled from and per token attended to, memory traffic per pass
    # and per KV token.
    _token_s: float = field(init=False, repr=False, compare=False)
    _sample_s: float = field(init=False, repr=False, compare=False)
    _attended_s: float = field(init=False, repr=False, compare=False)
    _weights_s: float = field(init=False, repr=False, compare=False)
    _kv_s: float = field(init=False, repr=False, compare=False)
    # Seconds beside both: per pass, and per token that all-reduces carry.
    _fixed_s: float = field(init=False, repr=False, compare=False)
    _reduced_token_s: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("compute_efficiency", "bandwidth_efficiency"):
            value = getattr(self, name)
            check_number(name, value, above=0)
            if not LEAST_SHARE <= value <= 1:
                raise ConfigError(
                    f"{name} is {value!r:.60}; a share of at most 1 is needed, from {LEAST_SHARE:g} on"
                )
        check_number("overhead_s", self.overhead_s)
        if type(self.tensor_parallel) is not int or self.tensor_parallel < 1:
            raise ConfigError(
                f"tensor_parallel is {self.tensor_parallel!r:.60}; a whole number >= 1 is needed"
            )
        if self.info.provenance == "measured":
            raise ConfigError(
                "a roofline is computed, not measured; its provenance must be derived or synthetic"
            )
        model = self.model
        reduces_s, reduced_token_s = self._all_reduces()
        flop_per_s = self.gpu.flop_per_s * self.compute_efficiency * self.tensor_parallel
        bytes_per_s = self.gpu.memory_bytes_per_s * self.bandwidth_efficiency * self.tensor_parallel
        derived = {
            "_token_s": model.flop_per_token / flop_per_s,
            "_sample_s": model.flop_per_sample / flop_per_s,
            "_attended_s": model.flop_per_pair / flop_per_s,
            "_weights_s": model.multiplied_bytes / bytes_per_s,
            "_kv_s": model.kv_bytes_per_token / bytes_per_s,
            "_fixed_s": self.overhead_s + reduces_s,
            "_reduced_token_s": reduced_token_s,
        }
        if self.info.name == "roofline":
            name = f"roofline of {model.name} on {self.gpu.name}"
            derived["info"] = replace(self.info, name=name)  # type: ignore[assignment]
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def is_bounded(self) -> bool:
        """A formula: it has no range of iterations."""
        return False

    def covers(self, shape: IterationShape) -> bool:
        """Whether the shape lies in the range: always."""
        return True

    def batch_time(self, shape: BatchShape) -> BatchTime:
        """Seconds to the first token and to the end of the batch; its prefill is one pass, without chunks."""
        return padded_batch_time(self, shape)

    def iteration_s(self, shape: IterationShape) -> float:
        """Seconds for one forward pass."""
        prefill_tokens, decode_seqs, context_tokens, prefill_seqs, prefill_pairs, _ = shape
        tokens = prefill_tokens + decode_seqs
        compute_s = (
            self._token_s * tokens
            + self._sample_s * (prefill_seqs + decode_seqs)
            + self._attended_s * (context_tokens + prefill_pairs)
        )
        memory_s = self._weights_s + self._kv_s * (prefill_tokens + context_tokens)
        longer_s = compute_s if compute_s > memory_s else memory_s
        return longer_s + self._fixed_s + self._reduced_token_s * tokens

    def decode_line(self, decode_seqs: int, context_tokens: int) -> DecodeLine:
        """Seconds of the following decode iterations, up to where arithmetic and traffic change the lead.

        Both grow by a constant per iteration, so that this happens at most once.
        """
        compute_s = (self._token_s + self._sample_s) * decode_seqs + self._attended_s * context_tokens
        memory_s = self._weights_s + self._kv_s * context_tokens
        beside_s = self._fixed_s + self._reduced_token_s * decode_seqs
        if compute_s > memory_s:
            first_s, slope_s, catching_up_s = compute_s, self._attended_s, self._kv_s - self._attended_s
        else:
            first_s, slope_s, catching_up_s = memory_s, self._kv_s, self._attended_s - self._kv_s
        num_linear = math.inf
        if catching_up_s > 0:
            num_linear = abs(compute_s - memory_s) // (catching_up_s * decode_seqs) + 1
        return DecodeLine(first_s + beside_s, slope_s * decode_seqs, num_linear)

    def _all_reduces(self) -> tuple[float, float]:
        """Seconds of a pass's all-reduces: of them all together, and per token they carry."""
        num_gpus, gpu = self.tensor_parallel, self.gpu
        if num_gpus == 1:
            return 0.0, 0.0
        if gpu.link_bytes_per_s is None or gpu.link_latency_s is None:
            raise ConfigError(
                f"tensor_parallel is {num_gpus}; GPU {gpu.name} must have link_bytes_per_s and link_latency_s"
            )
        num_reduces = 2 * self.model.num_layers
        token_bytes = 2 * (num_gpus - 1) / num_gpus * self.model.hidden_size * ACTIVATION_BYTES
        return num_reduces * gpu.link_latency_s, num_reduces * token_bytes / gpu.link_bytes_per_s
