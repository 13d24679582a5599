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


class ClusterReport(NamedTuple):
    """What an autoscaler measures: since its last decision, or now.

    Of replicas that are on; those that drain, and what runs there, are left out.
    """

    now_s: float
    elapsed_s: float  # since the last decision
    num_on: int
    num_starting: int
    num_arrived: int  # requests, since the last decision
    num_waiting: int  # now, without KV blocks, those held included for which no replica is on
    num_requests: int  # now, waiting or running
    busy_fraction: float  # share of the replicas' time since the last decision; 0 where none was on
    kv_use: float  # now, share of the KV blocks, mean of the replicas; 0 where none is on

    @property
    def num_replicas(self) -> int:
        """Replicas that are on or will be."""
        return self.num_on + self.num_starting
