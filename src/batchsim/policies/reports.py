"""What answers learn from batches and iterations that ended, and what they then decide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class BatchReport(NamedTuple):
    """What a scheduler learns from a batch that ended; times are measured, noise and all."""

    bin: int
    batch_size: int
    first_token_s: float  # after launch; NaN where the latency model does not tell
    total_s: float
    worst_e2e_s: float  # of the member that arrived first
    output_tokens: int  # the longest answer
    total_tokens: Sequence[int]  # prompt + output of each member


class IterationReport(NamedTuple):
    """What a controller learns from a span of equal iterations; times are measured, noise and all."""

    num_iterations: int
    duration_s: float
    num_sequences: int  # that got a token in each, completed prompts too; 0 where the decoding ones stalled
    num_decoding: int  # sequences that wanted one
    total_tokens: Sequence[int]  # prompt + output of each request that finished at its end


class Decision(NamedTuple):
    """One decision of a controller, for the records."""

    controller: str
    bin: int  # -1: one state for all bins
    batch_size: int
    low: float
    high: float
    measured: float
