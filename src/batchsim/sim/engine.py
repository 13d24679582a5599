"""A serving engine's clock: how long its iterations take, GPU and host together."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from typing import cast

from batchsim.latency.base import (
    EXTRAPOLATE,
    IterationLatency,
    IterationShape,
    OutsideRangeError,
    UnevenIterationLatency,
)
from batchsim.sim.speculation.acceptance import Speculation


@dataclass(frozen=True, slots=True)
class Engine:
    """One replica: its GPUs, what runs on them, and its limits.

    Without asynchronous scheduling the GPU waits in every iteration while the host prepares it. With it, the
    host prepares an iteration while the GPU runs the one before: an iteration takes the longer of the two,
    and what arrives or ends in an iteration is known one iteration later.

    Attributes
    ----------
    latency
        Seconds of a forward pass on the GPU.
    num_blocks, block_size
        KV blocks, and tokens in each.
    launch_s
        Seconds of the host per iteration.
    prefill_launch_s, prefill_token_s
        Seconds that an iteration with prompts takes besides, and for each of their tokens in it: kernels
        launched one by one, as such passes are too large for a CUDA graph, and whatever else of a prefill
        the latency model lacks. No scheduling ahead hides them.
    wake_s
        How much longer the first iteration takes after the engine has idled: its caches have gone cold.
    is_async
        Asynchronous scheduling.
    prefix_caching
        Whether the KV of prompts outlives them.
    swap_block_s
        Seconds to copy a KV block between GPU and host.
    may_extrapolate
        Whether iterations outside the latency model's range are run (and counted) or raise an error.
    is_exact
        One event per iteration instead of one per span.
    speculation
        Speculative decoding; its time is in the latency model, as `latency.speculation` has it. Its spans are
        single iterations.
    """

    latency: IterationLatency
    num_blocks: int
    block_size: int = 16
    launch_s: float = 0.0
    prefill_launch_s: float = 0.0
    prefill_token_s: float = 0.0
    wake_s: float = 0.0
    is_async: bool = False
    prefix_caching: bool = False
    swap_block_s: float = 0.0
    may_extrapolate: bool = False
    is_exact: bool = False
    speculation: Speculation | None = None

    def iteration_s(self, shape: IterationShape, *, is_first: bool) -> tuple[float, float]:
        """Seconds of one iteration, and of these the GPU's wait for the host; `is_first` after idling."""
        gpu_s = self.latency.iteration_s(shape)
        if prefill_tokens := shape[0]:  # by name, it takes four times as long
            gpu_s += self.prefill_launch_s + self.prefill_token_s * prefill_tokens
        if is_first:
            gpu_s += self.wake_s
        if is_first or not self.is_async:
            return gpu_s + self.launch_s, self.launch_s
        return max(gpu_s, self.launch_s), max(0.0, self.launch_s - gpu_s)

    def decode_line(
        self, decode_seqs: int, context_tokens: int, longest_tokens: int = 0, *, is_first: bool
    ) -> tuple[float, float, float, float, float]:
        """Seconds of the following decode iterations, host included.

        The three numbers of a `DecodeLine`, then the GPU's wait for the host in the first of them and how
        that grows from one to the next.
        """
        if longest_tokens:
            latency = cast("UnevenIterationLatency", self.latency)
            first_s, growth_s, num_linear = latency.decode_line(decode_seqs, context_tokens, longest_tokens)
        else:
            first_s, growth_s, num_linear = self.latency.decode_line(decode_seqs, context_tokens)
        if is_first and self.wake_s:
            first_s, num_linear = first_s + self.wake_s, 1.0
        launch_s = self.launch_s
        if not launch_s:
            return first_s, growth_s, num_linear, 0.0, 0.0
        if not self.is_async:
            return first_s + launch_s, growth_s, num_linear, launch_s, 0.0
        if is_first:
            return first_s + launch_s, growth_s, 1, launch_s, 0.0
        if first_s >= launch_s:
            num_above = inf if growth_s >= 0 else (first_s - launch_s) // -growth_s + 1
            return first_s, growth_s, min(num_linear, num_above), 0.0, 0.0
        num_below = inf if growth_s <= 0 else ceil((launch_s - first_s) / growth_s)
        return launch_s, 0.0, min(num_linear, num_below), launch_s - first_s, -growth_s

    def is_outside(self, shape: IterationShape, num_iterations: int) -> bool:
        """Tell whether iterations leave the model's range; raise `OutsideRangeError` if they must not."""
        more = num_iterations - 1
        last = shape._replace(
            context_tokens=shape.context_tokens + more * shape.decode_seqs,
            longest_tokens=shape.longest_tokens and shape.longest_tokens + more,
        )
        if self.latency.covers(shape) and self.latency.covers(last):
            return False
        if self.may_extrapolate:
            return True
        raise OutsideRangeError(
            f"latency model {self.latency.info.name} was not measured for an iteration with "
            f"{shape.prefill_tokens} prompt tokens, {shape.decode_seqs} decoding sequences and "
            f"{last.context_tokens} context tokens: lower limits (--batch-size, "
            f"policy.batching.max_num_batched_tokens) keep iterations inside, and {EXTRAPOLATE}"
        )
