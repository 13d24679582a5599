"""How much of the hardware's peaks was used: model FLOPs and model bandwidth utilisation, MFU and MBU.

Both count what the model needs, not what the kernels did: padding or reading a tile twice does not add to
them. Work done again after a preemption does, for the engine asked for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from batchsim.metrics.engine import computed_tokens, decode_steps, decoded_tokens
from batchsim.metrics.system import Window, ratio, running_s
from batchsim.records import Columns
from batchsim.specs import GPUSpec, ModelSpec, Sharing


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a replica is: the model on so many GPUs; all replicas alike."""

    model: ModelSpec
    gpu: GPUSpec
    sharing: Sharing = field(default_factory=Sharing)

    @property
    def flop_per_s(self) -> float:
        """Peak of the replica's GPUs together, in the arithmetic of the model's weights."""
        return self.gpu.rate(self.model.arithmetic) * self.sharing.num_gpus

    @property
    def bytes_per_s(self) -> float:
        """Peak memory bandwidth of the replica's GPUs together."""
        return self.gpu.memory_bytes_per_s * self.sharing.num_gpus


class Work(NamedTuple):
    """What the iterations of a window asked for.

    A span that reaches beyond the window counts with the share of its time that lies inside.

    Attributes
    ----------
    busy_s
        Summed over replicas.
    passes
        Iterations.
    tokens
        Computed, in prompts and decodes.
    samples
        Tokens whose successor is asked for: the last of each prompt chunk, and decodes.
    pairs
        Of a token and one it attends to; decodes attend to the tokens in the KV cache.
    kv_tokens
        Read by decodes, from the KV cache.
    decodes
        Tokens computed in decodes.
    experts
        Of a layer, summed over the passes that reach them, each by as many tokens as it has.
    """

    busy_s: float
    passes: float
    tokens: float
    samples: float
    pairs: float
    kv_tokens: float
    decodes: float
    experts: float = 0.0


def work(iterations: Columns[Any], window: Window, model: ModelSpec | None = None) -> Work:
    """Sum up the work in the window; which experts are reached, the model tells."""
    busy_s = running_s(iterations, window)
    share = busy_s / np.asarray(iterations["finish_s"] - iterations["start_s"])
    num = np.asarray(iterations["num_iterations"], dtype=np.float64)
    decode_seqs = np.asarray(iterations["decode_seqs"])
    kv_tokens = num * np.asarray(iterations["context_tokens"]) + decode_seqs * num * (num - 1) / 2
    decodes = decode_steps(iterations)
    samples = np.asarray(iterations["prefill_seqs"]) + decoded_tokens(iterations)
    pairs = np.asarray(iterations["prefill_pairs"]) + kv_tokens
    tokens = computed_tokens(iterations)
    each: Any = tokens / num
    experts = num * (model.reached_experts(each) if model else 0.0)
    amounts = (num, tokens, samples, pairs, kv_tokens, decodes, experts)
    return Work(float(busy_s.sum()), *(float((amount * share).sum()) for amount in amounts))


def mfu(work: Work, hardware: Hardware, seconds: float) -> float:
    """FLOPs that the model needs / (seconds * peak), from ``seconds`` of replica time.

    ``(2 P tokens + 2 H samples + 4 layers query_heads head_dim pairs) / (seconds peak)``, with P the weights
    of the layers that a token meets, of experts those that it goes to, and H those of the output head. Layers
    of a window have at most ``window_tokens`` pairs a token. The seconds are ``work.busy_s``, while it ran,
    or replicas * window, by the clock.
    """
    model = hardware.model
    near_pairs = min(work.pairs, model.window_tokens * work.tokens)
    flop = (
        model.flop_per_token * work.tokens
        + model.flop_per_sample * work.samples
        + model.flop_per_pair * work.pairs
        + model.flop_per_window_pair * near_pairs
    )
    return ratio(flop, seconds * hardware.flop_per_s)


def mbu(work: Work, hardware: Hardware, seconds: float) -> float:
    """Bytes to be read / (seconds * peak bandwidth): the weights in each iteration, and the decodes' KV.

    Of experts those that the tokens of each iteration reach, if they choose as by lot; groups of GPUs with
    attention of their own all read it. Left out: KV that is written, and KV that later chunks of a prompt
    read. Seconds as in `mfu`.
    """
    model = hardware.model
    near_tokens = min(work.kv_tokens, model.window_tokens * work.decodes)
    read_bytes = (
        model.every_pass_bytes * hardware.sharing.data_parallel * work.passes
        + model.reached_bytes * work.experts
        + model.kv_bytes_per_token * work.kv_tokens
        + model.window_bytes_per_token * near_tokens
    )
    return ratio(read_bytes, seconds * hardware.bytes_per_s)
