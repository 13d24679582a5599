"""Seconds from a model's shape and a GPU's data sheet alone: nothing measured, and labelled so."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

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
from batchsim.latency.expert_load import ExpertLoad
from batchsim.latency.lockstep import fullest_share
from batchsim.specs import GPUSpec, ModelSpec, Sharing, gpu_attention_parameters

#: What GPUs that share a model send each other: activations in bf16.
ACTIVATION_BYTES = 2

#: The smallest share of a peak; times grow without end towards 0.
LEAST_SHARE = 1e-6


class _Costs(NamedTuple):
    """Seconds: of arithmetic, of memory traffic, and beside both."""

    token_s: float  # arithmetic: a token, but its experts
    expert_token_s: float  # its experts
    sample_s: float
    pair_s: float  # of a prompt's token and one it attends to
    window_pair_s: float
    context_s: float  # of a decode and one it attends to
    window_context_s: float
    weights_s: float  # traffic: a pass, but its experts
    expert_s: float  # one expert in every layer
    kv_s: float
    window_kv_s: float
    state_s: float  # that a sequence has for all layers of linear attention
    fixed_s: float  # beside: a pass
    sent_s: float  # a token that is sent


@dataclass(frozen=True, slots=True)
class RooflineLatency:
    """Each forward pass takes the longer of its arithmetic and its memory traffic, plus a constant.

    ``max(FLOPs / F, bytes / BW) / tensor_parallel + exchanges + overhead``, with ``F`` and ``BW`` the GPU's
    peaks times their efficiencies. A token costs two FLOPs for each weight of the layers that it meets, of
    experts those that it goes to, at the rate of the model's arithmetic where they are quantised, and
    ``2 * layers * query heads * (numbers of a key + numbers of a value)`` for each token it attends to. The
    output head is multiplied with the tokens whose successor is asked for: the last of each prompt chunk, as
    in vLLM, and each decode. A pass reads all weights once, of experts those that its tokens reach if each
    chooses as by lot, ``E * (1 - (1 - k / E) ^ tokens)``, and the KV of its tokens. Not counted is the KV of
    earlier chunks that a prompt chunk reads again.

    Latent attention (MLA) decodes on the latent itself, the "absorbed" form, and multiplies prompts out. In
    layers of a window a decode attends to at most ``window_tokens`` of the mean context, a prompt to at most
    so many for each token. A state of linear attention is read once a pass and sequence.

    Two all-reduces a layer (Megatron-LM, arXiv 1909.08053, section 3) add up the shares of
    ``tensor_parallel`` GPUs. By rings, and overlapped by nothing, each takes ``2 * (tp - 1) / tp * tokens *
    hidden size * 2 bytes / link_bytes_per_s + link_latency_s``. KV heads are shared out evenly, and copied
    where they are fewer than the GPUs; so are latents and routers, on each.

    Stages of a pipeline (``pipeline_parallel``) work at the same time on groups of the pass's sequences, as
    many as there are stages or sequences: their arithmetic and KV divide, but each group reads the weights.
    What a stage hands on takes one transfer.

    Groups of GPUs with attention of their own (``data_parallel``) run passes in lockstep: the fullest counts,
    see `lockstep.fullest_share`. They share experts, which tokens of all reach. A token's activations go to
    all GPUs and come back added up, or, where GPUs hold whole experts (``expert_parallel``), to those of the
    GPUs that have its experts, expected ``n * (1 - (1 - 1 / n) ^ k)`` of ``n``. The GPU whose experts most
    tokens chose counts, see `ExpertLoad`; exchanges are those of the mean.

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
    pipeline_parallel: int = 1
    data_parallel: int = 1
    expert_parallel: int = 1
    domain: Domain = field(default_factory=Domain)
    info: LatencyInfo = field(default_factory=lambda: LatencyInfo("roofline", "derived"))
    _costs: _Costs = field(init=False, repr=False, compare=False)
    # Where GPUs hold whole experts.
    _expert_load: ExpertLoad | None = field(init=False, repr=False, compare=False)
    # Those that count, if every token attends to all before it and meets every weight, on GPUs that share
    # tensors only: a token, a sample, a pair, weights, KV, fixed, sent.
    _plain: tuple[float, ...] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("compute_efficiency", "bandwidth_efficiency"):
            value = getattr(self, name)
            check_number(name, value, above=0)
            if not LEAST_SHARE <= value <= 1:
                raise ConfigError(
                    f"{name} is {value!r:.60}; a share of at most 1 is needed, from {LEAST_SHARE:g} on"
                )
        check_number("overhead_s", self.overhead_s)
        self.sharing.check(self.model)
        if self.info.provenance == "measured":
            raise ConfigError(
                "a roofline is computed, not measured; its provenance must be derived or synthetic"
            )
        model, costs = self.model, _costs(self)
        plain = (
            costs.token_s,
            costs.sample_s,
            costs.pair_s,
            costs.weights_s,
            costs.kv_s,
            costs.fixed_s,
            costs.sent_s,
        )
        is_plain = not (model.num_experts or model.num_window_layers or model.num_linear_layers)
        is_plain = is_plain and not model.kv_lora_rank and self.pipeline_parallel == 1
        object.__setattr__(self, "_costs", costs)
        shared_out = ExpertLoad(model, self.expert_parallel) if self.expert_parallel > 1 else None
        object.__setattr__(self, "_expert_load", shared_out)
        object.__setattr__(self, "_plain", plain if is_plain else None)
        if self.info.name == "roofline":
            name = f"roofline of {model.name} on {self.gpu.name}"
            object.__setattr__(self, "info", replace(self.info, name=name))

    @property
    def sharing(self) -> Sharing:
        """How GPUs share the model."""
        return Sharing(self.tensor_parallel, self.pipeline_parallel, self.data_parallel, self.expert_parallel)

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
        if self._plain is None:
            compute_s, memory_s, beside_s = self._any(shape)
            return max(compute_s, memory_s) + beside_s
        prefill_tokens, decode_seqs, context_tokens, prefill_seqs, prefill_pairs, _ = shape
        token_s, sample_s, pair_s, weights_s, kv_s, fixed_s, sent_s = self._plain
        tokens = prefill_tokens + decode_seqs
        compute_s = (
            token_s * tokens
            + sample_s * (prefill_seqs + decode_seqs)
            + pair_s * (context_tokens + prefill_pairs)
        )
        memory_s = weights_s + kv_s * (prefill_tokens + context_tokens)
        longer_s = compute_s if compute_s > memory_s else memory_s
        return longer_s + fixed_s + sent_s * tokens

    def verification_s(self, shape: IterationShape, tokens_each: int) -> float:
        """Seconds of a pass in which each decode has so many tokens, for which its KV is read once."""
        compute_s, memory_s, beside_s = self._any(shape, tokens_each)
        return max(compute_s, memory_s) + beside_s

    def decode_line(self, decode_seqs: int, context_tokens: int) -> DecodeLine:
        """Seconds of the following decode iterations, up to where arithmetic and traffic change the lead.

        Both grow by a constant per iteration, so that this happens at most once; where contexts reach a
        window, they do so by another.
        """
        if self._plain is None:
            return self._any_line(decode_seqs, context_tokens)
        token_s, sample_s, pair_s, weights_s, kv_s, fixed_s, sent_s = self._plain
        compute_s = (token_s + sample_s) * decode_seqs + pair_s * context_tokens
        memory_s = weights_s + kv_s * context_tokens
        beside_s = fixed_s + sent_s * decode_seqs
        return _line(compute_s, memory_s, beside_s, pair_s * decode_seqs, kv_s * decode_seqs)

    def _any_line(self, decode_seqs: int, context_tokens: int) -> DecodeLine:
        costs, num_linear = self._costs, math.inf
        computing_s, reading_s = costs.context_s, costs.kv_s
        window_tokens = self.model.window_tokens * decode_seqs
        if context_tokens < window_tokens:
            computing_s += costs.window_context_s
            reading_s += costs.window_kv_s
            num_linear = (window_tokens - context_tokens) // decode_seqs + 1
        seqs = math.ceil(decode_seqs / self.data_parallel)
        grown = seqs / min(self.pipeline_parallel, seqs)
        line = _line(
            *self._any(IterationShape(0, decode_seqs, context_tokens)), computing_s * grown, reading_s * grown
        )
        return line._replace(num_linear=min(line.num_linear, num_linear))

    def _any(self, shape: IterationShape, tokens_each: int = 1) -> tuple[float, float, float]:
        """Seconds of arithmetic, of traffic, and beside both, of any model on any GPUs."""
        costs, window = self._costs, self.model.window_tokens
        all_tokens = shape.prefill_tokens + tokens_each * shape.decode_seqs
        if self.data_parallel > 1:
            shape = fullest_share(shape, self.data_parallel)
        prefill_tokens, decode_seqs, context_tokens, prefill_seqs, prefill_pairs, _ = shape
        tokens, sequences = prefill_tokens + tokens_each * decode_seqs, prefill_seqs + decode_seqs
        groups = min(self.pipeline_parallel, max(sequences, 1))
        near_tokens = min(context_tokens, window * decode_seqs)
        if self._expert_load is None:
            load, experts = 1.0, self.model.reached_experts(all_tokens / groups)
        else:
            load = self._expert_load.load(all_tokens / groups)
            experts = self._expert_load.reached(all_tokens / groups)
        compute_s = (
            costs.token_s * tokens
            + costs.expert_token_s * all_tokens * load
            + costs.sample_s * (prefill_seqs + tokens_each * decode_seqs)
            + costs.pair_s * prefill_pairs
            + costs.window_pair_s * min(prefill_pairs, window * prefill_tokens)
            + costs.context_s * tokens_each * context_tokens
            + costs.window_context_s * tokens_each * near_tokens
        )
        read_s = (
            costs.kv_s * (prefill_tokens + context_tokens)
            + costs.window_kv_s * (prefill_tokens + near_tokens)
            + costs.state_s * sequences
        )
        memory_s = costs.weights_s + costs.expert_s * experts + read_s / groups
        return compute_s / groups, memory_s, costs.fixed_s + costs.sent_s * tokens / groups


def _line(
    compute_s: float, memory_s: float, beside_s: float, computing_s: float, reading_s: float
) -> DecodeLine:
    """Decode iterations whose arithmetic and traffic take so long at first, and so much more in each."""
    if compute_s > memory_s:
        first_s, growth_s, catching_up_s = compute_s, computing_s, reading_s - computing_s
    else:
        first_s, growth_s, catching_up_s = memory_s, reading_s, computing_s - reading_s
    num_linear = abs(compute_s - memory_s) // catching_up_s + 1 if catching_up_s > 0 else math.inf
    return DecodeLine(first_s + beside_s, growth_s, num_linear)


def _costs(latency: RooflineLatency) -> _Costs:
    model, gpu, sharing = latency.model, latency.gpu, latency.sharing
    tensor, stage = sharing.tensor_parallel, sharing.gpus_per_stage
    peak = latency.compute_efficiency
    bf16 = gpu.flop_per_s * peak

    def rate(bytes_per_weight: float) -> float:
        return (gpu.rate(model.arithmetic) if bytes_per_weight < 2 else gpu.flop_per_s) * peak

    attention = gpu_attention_parameters(model, sharing)
    every_s = (
        attention / rate(model.attention_bytes)
        + model.num_feed_forward_parameters / tensor / rate(model.bytes_per_weight)
        + model.num_router_parameters / rate(model.kept_bytes)
    )
    every_bytes = (
        attention * model.attention_bytes
        + model.num_feed_forward_parameters / tensor * model.bytes_per_weight
        + (model.num_router_parameters + model.num_head_parameters / tensor) * model.kept_bytes
    )
    expert_s = (
        model.num_moe_layers * model.experts_per_token * model.expert_parameters / rate(model.expert_bytes)
    )
    bytes_per_s = gpu.memory_bytes_per_s * latency.bandwidth_efficiency
    layer_kv_s = model.kv_layer_bytes * sharing.kv_copies(model) / (bytes_per_s * tensor)
    pair_s, absorbed_s = (
        model.flop_per_layer_pair / (bf16 * tensor),
        model.flop_per_layer_read / (bf16 * tensor),
    )
    fixed_s, sent_s = _exchanges(latency)
    return _Costs(
        token_s=2 * every_s,
        expert_token_s=2 * expert_s / stage,
        sample_s=model.flop_per_sample / (rate(model.kept_bytes) * tensor),
        pair_s=model.num_kv_layers * pair_s,
        window_pair_s=model.num_window_layers * pair_s,
        context_s=model.num_kv_layers * absorbed_s,
        window_context_s=model.num_window_layers * absorbed_s,
        weights_s=every_bytes / bytes_per_s,
        expert_s=model.reached_bytes / (bytes_per_s * stage),
        kv_s=model.num_kv_layers * layer_kv_s,
        window_kv_s=model.num_window_layers * layer_kv_s,
        state_s=model.linear_state_bytes / (bytes_per_s * tensor),
        fixed_s=latency.overhead_s + fixed_s,
        sent_s=sent_s,
    )


def _exchanges(latency: RooflineLatency) -> tuple[float, float]:
    """Seconds of a pass's exchanges between GPUs: of them all together, and per token that is sent."""
    sharing, gpu, model = latency.sharing, latency.gpu, latency.model
    if sharing.num_gpus == 1:
        return 0.0, 0.0
    if gpu.link_bytes_per_s is None or gpu.link_latency_s is None:
        name = next(name for name, number in asdict(sharing).items() if number > 1)
        raise ConfigError(
            f"{name} is {getattr(sharing, name)}; GPU {gpu.name} must have link_bytes_per_s and "
            "link_latency_s"
        )
    tensor, data = sharing.tensor_parallel, sharing.data_parallel
    number, sent = sharing.pipeline_parallel - 1.0, sharing.pipeline_parallel - 1.0
    if tensor > 1:
        number += 2 * model.num_layers
        sent += 2 * model.num_layers * 2 * (tensor - 1) / tensor
    if data > 1:  # there and back
        stage, each = sharing.gpus_per_stage, data - 1.0
        if sharing.expert_parallel > 1:  # of GPUs that hold the same tokens each sends a share
            reached = stage * (1 - (1 - 1 / stage) ** model.experts_per_token)
            each = reached * (stage - 1) / stage / tensor
        number += 2 * model.num_moe_layers
        sent += 2 * model.num_moe_layers * each
    token_bytes = model.hidden_size * ACTIVATION_BYTES
    return number * gpu.link_latency_s, sent * token_bytes / gpu.link_bytes_per_s
