"""Replicas that share experts wait for each other in every pass: their time as that of one engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from batchsim.latency.base import (
    BatchShape,
    BatchTime,
    DecodeLine,
    Domain,
    Floats,
    IterationShape,
    LatencyInfo,
    follows_longest,
    padded_batch_time,
)
from batchsim.latency.operators import OperatorTableLatency
from batchsim.latency.passes import PassTableLatency


@dataclass(frozen=True, slots=True)
class LockstepLatency:
    """Seconds of a pass that several replicas run together, over all their sequences.

    Each replica has an equal share of the decodes, and of the chunks a whole number: with fewer chunks than
    replicas, some have none, and wait in attention for those that have one. What follows tokens is that of
    their mean over the replicas, as experts are most of it and look at all tokens together.

    Attributes
    ----------
    table
        Of one replica, its experts shared with the others and its passes taken to be like theirs.
    num_replicas
        How many there are.
    """

    table: OperatorTableLatency | PassTableLatency
    num_replicas: int

    @property
    def info(self) -> LatencyInfo:
        """That of the table."""
        return self.table.info

    @property
    def domain(self) -> Domain:
        """That of the table."""
        return self.table.domain

    @property
    def is_bounded(self) -> bool:
        """As the table is."""
        return self.table.is_bounded

    @property
    def follows_longest(self) -> bool:
        """As the table does."""
        return follows_longest(self.table)

    def covers(self, shape: IterationShape) -> bool:
        """Whether the table covers the pass of the fullest replica."""
        return self.table.covers(self._fullest(shape))

    def iteration_s(self, shape: IterationShape) -> float:
        """Seconds of one pass of all replicas."""
        fullest = self._fullest(shape)
        mean_tokens = math.ceil((shape.prefill_tokens + shape.decode_seqs) / self.num_replicas)
        own_tokens = fullest.prefill_tokens + fullest.decode_seqs
        time_s = self.table.iteration_s(fullest)
        if own_tokens == mean_tokens:  # as in all passes of decodes alone, which a table may time apart
            return time_s
        return time_s - self.table.tokens_s(own_tokens) + self.table.tokens_s(mean_tokens)

    def batch_time(self, shape: BatchShape) -> BatchTime:
        """Seconds to the first token and to the end of the batch; its prefill is one pass, without chunks."""
        return padded_batch_time(self, shape)

    def iterations_s(self, shapes: Sequence[IterationShape] | Floats) -> Floats:
        """Seconds of many passes."""
        rows: Any = np.asarray(shapes, dtype=np.float64).reshape(-1, len(IterationShape._fields)).tolist()
        # Contexts may be means over a span of iterations.
        passes = [
            IterationShape(int(tokens), int(decodes), context, int(chunks), pairs, longest)
            for tokens, decodes, context, chunks, pairs, longest in rows
        ]
        return np.array([self.iteration_s(shape) for shape in passes])

    def decode_line(self, decode_seqs: int, context_tokens: int, longest_tokens: int = 0) -> DecodeLine:
        """Seconds of the following decode iterations."""
        fullest = self._fullest(IterationShape(0, decode_seqs, context_tokens, longest_tokens=longest_tokens))
        if follows_longest(self.table):
            return self.table.decode_line(fullest.decode_seqs, fullest.context_tokens, longest_tokens)
        return self.table.decode_line(fullest.decode_seqs, fullest.context_tokens)

    def _fullest(self, shape: IterationShape) -> IterationShape:
        return fullest_share(shape, self.num_replicas)


def fullest_share(shape: IterationShape, num_replicas: int) -> IterationShape:
    """The part of a pass that the replica with most of it has."""
    tokens, decode_seqs, context_tokens, chunks, pairs, longest_tokens = shape
    decodes = math.ceil(decode_seqs / num_replicas)
    # Not a whole number, so that their mean stays what it is.
    context = cast("int", context_tokens * decodes / decode_seqs if decode_seqs else 0)
    busy = min(max(chunks, 1), num_replicas)
    return IterationShape(
        math.ceil(tokens / busy),
        decodes,
        context,
        math.ceil(chunks / busy),
        pairs / busy,
        longest_tokens,
    )
