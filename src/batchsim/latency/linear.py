"""The linear iteration model: a few coefficients, which `latency.fitting` finds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from batchsim.errors import ConfigError
from batchsim.latency.analytic import check_number
from batchsim.latency.base import (
    BatchShape,
    BatchTime,
    DecodeLine,
    Domain,
    IterationDomain,
    IterationShape,
    LatencyInfo,
    padded_batch_time,
)

LINEAR_COEFFICIENTS = (
    "fixed_s",
    "per_prefill_token_s",
    "per_prefill_pair_s",
    "per_decode_seq_s",
    "per_context_token_s",
)
#: Two more, 0 where they are not given.
PER_PREFILL_SEQ = "per_prefill_seq_s"
IF_SEVERAL_TOKENS = "if_several_tokens_s"


@dataclass(frozen=True, slots=True)
class LinearIterationLatency:
    """``c0 + c_p prefill tokens + c_pp pairs + c_d decodes + c_kv context tokens + c_s chunks + c_m``.

    The counts are those of `IterationShape`; c_m counts in passes of several tokens. The usual form for
    engines that batch at every iteration; arXiv 2503.05248 has ``0.03 + 0.00022 * decode sequences``. It has
    no knee where a prefill turns from memory-bound to compute-bound; near it, it errs most.

    Attributes
    ----------
    fixed_s, per_prefill_token_s, per_prefill_pair_s, per_decode_seq_s, per_context_token_s
        c0, c_p, c_pp, c_d, c_kv; each at least 0, in seconds.
    per_prefill_seq_s
        c_s, at least 0: what a prompt costs besides its tokens, as where each is attended to by a kernel of
        its own.
    if_several_tokens_s
        c_m, at least 0: what a pass of two or more tokens, prompt or decode, costs more than that of a lone
        one, in which linear layers multiply matrices by a vector.
    domain, iteration_domain
        The range of whole batches, and that of iterations.
    """

    fixed_s: float
    per_prefill_token_s: float
    per_prefill_pair_s: float
    per_decode_seq_s: float
    per_context_token_s: float
    per_prefill_seq_s: float = 0.0
    domain: Domain = field(default_factory=Domain)
    iteration_domain: IterationDomain = field(default_factory=IterationDomain)
    info: LatencyInfo = field(default_factory=LatencyInfo)
    if_several_tokens_s: float = 0.0

    def __post_init__(self) -> None:
        for name in (*LINEAR_COEFFICIENTS, PER_PREFILL_SEQ, IF_SEVERAL_TOKENS):
            check_number(name, getattr(self, name))
        if not self.fixed_s:
            if self.per_prefill_token_s == self.per_prefill_pair_s == self.per_prefill_seq_s == 0:
                raise ConfigError("fixed_s and all prefill coefficients are 0; an iteration must take time")
            if self.per_decode_seq_s == self.per_context_token_s == 0:
                raise ConfigError("fixed_s and all decode coefficients are 0; an iteration must take time")

    @property
    def is_bounded(self) -> bool:
        """Whether there are shapes that `covers` denies."""
        return self.iteration_domain != IterationDomain()

    def covers(self, shape: IterationShape) -> bool:
        """Whether the shape lies in the range the model was measured on."""
        return self.iteration_domain.contains(shape)

    def batch_time(self, shape: BatchShape) -> BatchTime:
        """Seconds to the first token and to the end of the batch; its prefill is one pass, without chunks."""
        return padded_batch_time(self, shape)

    def iteration_s(self, shape: IterationShape) -> float:
        """Seconds for one forward pass."""
        prefill_tokens, decode_seqs, context_tokens, prefill_seqs, prefill_pairs, _ = shape
        return (
            self.fixed_s
            + self.per_prefill_token_s * prefill_tokens
            + self.per_prefill_pair_s * prefill_pairs
            + self.per_decode_seq_s * decode_seqs
            + self.per_context_token_s * context_tokens
            + self.per_prefill_seq_s * prefill_seqs
            + self.if_several_tokens_s * (prefill_tokens + decode_seqs > 1)
        )

    def decode_line(self, decode_seqs: int, context_tokens: int) -> DecodeLine:
        """Seconds of all following decode iterations: one line."""
        slope_s = self.per_context_token_s
        fixed_s = self.fixed_s + self.if_several_tokens_s * (decode_seqs > 1)
        return DecodeLine(
            fixed_s + self.per_decode_seq_s * decode_seqs + slope_s * context_tokens,
            slope_s * decode_seqs,
            math.inf,
        )
