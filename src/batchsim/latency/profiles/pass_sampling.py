"""Sampling an estimator of forward passes into the tables of `PassTableLatency`, and telling how well."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import product
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from batchsim.latency.base import Domain, Floats, IterationShape, LatencyInfo
from batchsim.latency.operators import OperatorTable
from batchsim.latency.passes import PassTableLatency

#: Numbers of prompts that are asked for: their attention is close to linear in it.
_PROMPTS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 32, 64, 128, 256, 512, 1024)
#: Points for each doubling of tokens or sequences; a block of KV is the least that stands before a chunk.
_PER_DOUBLING, _BLOCK_TOKENS = {"prefill": 3, "decode": 6}, 16
#: By how much a point may be off from the line between its neighbours to be left out.
_THIN = 5e-4
#: Every number of tokens is asked for up to here; beyond, the first and the last of each tile of rows.
_EVERY_UP_TO, _TILE = 2**13, 64
#: Passes that the table is held against, drawn at random.
NUM_HELD_OUT = 1000


class PassEstimator(Protocol):
    """Tells the parts of a forward pass; all in seconds, whole passes, all layers together."""

    def tokens_s(self, tokens: int) -> float:
        """All but attention, in a pass that has prompts."""

    def decodes_s(self, decode_seqs: int) -> float:
        """All but attention, in a pass of decodes alone."""

    def prefill_s(self, num_prompts: int, chunk: int, before: int) -> float:
        """Attention of prompts that have so many tokens each, after so many that are in the cache."""

    def decode_s(self, decode_seqs: int, context: int) -> float:
        """Attention of decodes of so many tokens of context each."""


class Range(NamedTuple):
    """Up to where a table is made."""

    max_tokens: int = 2**15  # of the prompts of a pass
    max_seqs: int = 2**10
    max_context: int = 2**17


def sample_passes(estimator: PassEstimator, most: Range, info: LatencyInfo) -> PassTableLatency:
    """Make the tables of an estimator; ``details.interpolation`` tells how far they are from it."""
    model = PassTableLatency(
        by_tokens=_thinned(estimator.tokens_s, _tiled(most.max_tokens + most.max_seqs)),
        by_decodes=_thinned(estimator.decodes_s, np.arange(1, most.max_seqs + 1)),
        prefill=_prefill(estimator, most),
        decode=_decode(estimator, most),
        domain=Domain((1, most.max_seqs), (1, most.max_tokens), length=(2, most.max_context)),
        info=info,
    )
    info.details["interpolation"] = held_out_errors(model, estimator, most)
    return model


def _prefill(estimator: PassEstimator, most: Range) -> OperatorTable:
    chunks = _doubling(most.max_tokens, "prefill")
    before = (0, *(num for num in _doubling(most.max_context, "prefill") if num >= _BLOCK_TOKENS))
    prompts = tuple(num for num in _PROMPTS if num <= most.max_seqs)
    # More prompts than a pass takes are corners of the grid alone.
    taken = {chunk: [num for num in prompts if num * chunk <= 2 * most.max_tokens] or [1] for chunk in chunks}
    seconds = (
        estimator.prefill_s(min(num, taken[chunk][-1]), chunk, tokens) * max(1.0, num / taken[chunk][-1])
        for num, chunk, tokens in product(prompts, chunks, before)
    )
    return _table((prompts, chunks, before), seconds)


def _decode(estimator: PassEstimator, most: Range) -> OperatorTable:
    doubled = _doubling(most.max_seqs, "decode")
    # Kernels change where the number of sequences doubles: the last before it is asked for, too.
    seqs = tuple(sorted({*doubled, *(2**power - 1 for power in range(1, most.max_seqs.bit_length()))}))
    context = _doubling(most.max_context, "decode")
    seconds = (estimator.decode_s(num, mean) for num, mean in product(seqs, context))
    return _table((seqs, context), seconds)


def held_out_errors(model: PassTableLatency, estimator: PassEstimator, most: Range) -> dict[str, float]:
    """Relative errors of passes drawn at random, all magnitudes alike: of prompts, of decodes, of both."""
    rng = np.random.default_rng(0)

    def drawn(high: int, low: int = 1) -> int:
        return round(math.exp(rng.uniform(math.log(low), math.log(high))))

    errors = []
    for number in range(NUM_HELD_OUT):
        time_s, tokens, seqs, context, prompts, pairs = 0.0, 0, 0, 0, 0, 0.0
        if number % 3:
            prompts = drawn(16)
            chunk = drawn(most.max_tokens // prompts)
            before = drawn(most.max_context // 2, _BLOCK_TOKENS) if rng.random() < 0.3 else 0
            tokens, pairs = prompts * chunk, prompts * chunk * (before + chunk / 2)
            time_s += estimator.prefill_s(prompts, chunk, before)
        if number % 3 != 1:
            seqs, mean = drawn(most.max_seqs), drawn(most.max_context, 16)
            context = seqs * mean
            time_s += estimator.decode_s(seqs, mean)
        time_s += estimator.tokens_s(tokens + seqs) if tokens else estimator.decodes_s(seqs)
        shape = IterationShape(tokens, seqs, context, prompts, pairs)
        errors.append(abs(model.iteration_s(shape) / time_s - 1))
    return {
        "num_passes": NUM_HELD_OUT,
        "mean_error": float(np.mean(errors)),
        "p99_error": float(np.quantile(errors, 0.99)),
        "max_error": float(np.max(errors)),
    }


def _doubling(last: int, kind: Literal["prefill", "decode"]) -> tuple[int, ...]:
    num = round(math.log2(last) * _PER_DOUBLING[kind])
    return tuple(sorted({round(last ** (step / num)) for step in range(num + 1)}))


def _tiled(last: int) -> NDArray[np.int64]:
    tiles = np.arange(_EVERY_UP_TO, last + 1, _TILE)
    return np.unique(np.concatenate((np.arange(1, min(_EVERY_UP_TO, last) + 1), tiles, tiles + 1, [last])))


def _thinned(time_s: Callable[[int], float], numbers: NDArray[np.int64]) -> OperatorTable:
    """Ask for all of these numbers, and keep those that lines between their neighbours do not tell."""
    at = np.asarray(numbers, dtype=np.float64)
    seconds = np.array([time_s(int(number)) for number in numbers])
    kept, last = [0], len(at) - 1
    while kept[-1] < last:
        first, step = kept[-1], 1
        while first + 2 * step <= last and _is_line(at, seconds, first, first + 2 * step):
            step *= 2
        end = first + step
        while step := step // 2:
            if end + step <= last and _is_line(at, seconds, first, end + step):
                end += step
        kept.append(end)
    return _table((tuple(int(at[place]) for place in kept),), seconds[kept])


def _table(axes: tuple[tuple[int, ...], ...], seconds: Iterable[float]) -> OperatorTable:
    """A table in six digits, more than the times have."""
    return OperatorTable(axes, tuple(float(f"{time_s:.6g}") for time_s in seconds))


def _is_line(at: Floats, seconds: Floats, first: int, end: int) -> bool:
    ends = [first, end]
    between = np.interp(at[first : end + 1], at[ends], seconds[ends])
    return bool(np.all(np.abs(between - seconds[first : end + 1]) <= _THIN * seconds[first : end + 1]))
