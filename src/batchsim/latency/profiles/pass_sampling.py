"""Sampling an estimator of forward passes into the tables of `PassTableLatency`, and telling how well."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from batchsim.latency.base import Domain, IterationShape, LatencyInfo
from batchsim.latency.operators import OperatorTable
from batchsim.latency.passes import PassTableLatency, share_of_pairs
from batchsim.latency.profiles.axes import bending, thinned

#: Points for each doubling of an axis that gaps are halved from; a block of KV is the least before a chunk.
_PER_DOUBLING, _BLOCK_TOKENS = 6, 16
#: Attention of prompts that follows no law, and so has a table of three axes: with points further apart.
_THIN_OF_THREE, _PER_DOUBLING_OF_THREE = 2e-2, 2
#: Every number of prompts is asked for up to here; beyond, so many for each doubling.
_EVERY_PROMPT_UP_TO, _PROMPTS_PER_DOUBLING = 32, 4
_EVERY_PROMPT_UP_TO_OF_THREE, _PROMPTS_PER_DOUBLING_OF_THREE = 12, 1
#: By how much a pass may be off from `PairLaw` for it to hold, and how many passes tell.
_LAW_WITHIN, _LAW_PASSES = 1e-3, 100
#: Every number of tokens is asked for up to here; beyond, the first and the last of each tile of rows.
_EVERY_UP_TO, _TILE = 2**13, 64
#: What is told apart can come out as nothing, up to rounding.
_LEAST_S = 1e-9
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
    law = PairLaw.of(estimator, most)
    model = PassTableLatency(
        by_tokens=_by_number(estimator.tokens_s, _tiled(most.max_tokens + most.max_seqs)),
        by_decodes=_by_number(estimator.decodes_s, np.arange(1, most.max_seqs + 1)),
        prefill=_prefill(estimator, most) if law is None else _whole_prompts(law, most),
        decode=_decode(estimator, most),
        by_prompt_tokens=None if law is None else _by_number(law.tokens_s, _tiled(most.max_tokens)),
        domain=Domain((1, most.max_seqs), (1, most.max_tokens), length=(2, most.max_context)),
        info=info,
    )
    info.details["interpolation"] = held_out_errors(model, estimator, most)
    return model


class PairLaw:
    """Attention of prompts as what follows their tokens, plus a share of that of prompts without a start.

    So many prompts of a chunk each, after others: ``tokens_s(prompts * chunk)``, kernels beside the pairs,
    plus ``whole_s(prompts, before + chunk)`` by the chunk's share of the pairs. What differs between two ends
    at the same chunk is of pairs alone, and a parabola of the chunk: that tells both apart.
    """

    def __init__(self, estimator: PassEstimator, most: Range) -> None:
        self._most, self._prefill_s = most, cache(estimator.prefill_s)
        far, near = self._ends = most.max_context, most.max_context // 8
        chunks = (near // 16, near // 2)
        shares = [[share_of_pairs(chunk, far), -share_of_pairs(chunk, near)] for chunk in chunks]
        apart = [
            self._prefill_s(1, chunk, far - chunk) - self._prefill_s(1, chunk, near - chunk)
            for chunk in chunks
        ]
        self._far_s = float(np.linalg.solve(shares, apart)[0])

    @classmethod
    def of(cls, estimator: PassEstimator, most: Range) -> PairLaw | None:
        """The law of an estimator; None where its attention follows another."""
        law, rng = cls(estimator, most), np.random.default_rng(1)
        for _ in range(_LAW_PASSES):
            prompts = _drawn(rng, 16)
            chunk, before = _drawn(rng, most.max_tokens // prompts), _drawn(rng, most.max_context // 2)
            told_s, time_s = (
                law.prefill_s(prompts, chunk, before),
                estimator.prefill_s(prompts, chunk, before),
            )
            if abs(told_s - time_s) > _LAW_WITHIN * time_s:
                return None
        return law

    def prefill_s(self, num_prompts: int, chunk: int, before: int) -> float:
        """As `PassEstimator.prefill_s`."""
        share = share_of_pairs(chunk, before + chunk)
        return self.tokens_s(num_prompts * chunk) + share * self.whole_s(num_prompts, before + chunk)

    def tokens_s(self, tokens: int) -> float:
        """What follows the tokens of prompts alone, whatever is before them."""
        far = self._ends[0]
        time_s = self._prefill_s(1, tokens, far - tokens) - self._far_s * share_of_pairs(tokens, far)
        return max(time_s, _LEAST_S)

    def whole_s(self, num_prompts: int, end: int) -> float:
        """What follows the pairs of prompts that all have so many tokens and nothing before them."""
        chunk = max(1, min(end, self._most.max_tokens // num_prompts) // 2)
        pairs_s = self._prefill_s(num_prompts, chunk, end - chunk) - self.tokens_s(num_prompts * chunk)
        return pairs_s / share_of_pairs(chunk, end)


def _whole_prompts(law: PairLaw, most: Range) -> OperatorTable:
    prompts = _numbers_of_prompts(most, _EVERY_PROMPT_UP_TO, _PROMPTS_PER_DOUBLING)
    of = [num for num in (1, 2, 3, 5, 8, 11, 16, 24, 48) if num <= most.max_seqs]
    ends = bending([partial(law.whole_s, num) for num in of], _doubling(most.max_context))
    return _table((prompts, ends), law.whole_s)


def _prefill(estimator: PassEstimator, most: Range) -> OperatorTable:
    prompts = _numbers_of_prompts(most, _EVERY_PROMPT_UP_TO_OF_THREE, _PROMPTS_PER_DOUBLING_OF_THREE)

    @cache
    def time_s(num_prompts: int, chunk: int, before: int) -> float:
        # More tokens than a pass takes are corners of the grid alone.
        taken = max(1, min(num_prompts, 2 * most.max_tokens // chunk))
        return estimator.prefill_s(taken, chunk, before) * (num_prompts / taken)

    def along_chunk(num: int, before: int) -> Callable[[int], float]:
        return lambda chunk: time_s(num, min(chunk, most.max_tokens // num), before)

    def along_before(num: int, chunk: int) -> Callable[[int], float]:
        return lambda before: time_s(num, chunk, before)

    nums = [num for num in (1, 2, 3, 6, 12) if num <= most.max_seqs]
    befores = [num for num in (0, 1, 100, 1000, 3000, 20000) if num <= most.max_context]
    some = [num for num in (2, 10, 300, 3000) if num <= most.max_tokens]
    starts = {*_doubling(most.max_tokens, _PER_DOUBLING_OF_THREE), *_before_doublings(most.max_tokens)}
    bends = bending([along_chunk(*of) for of in product(nums, befores)], starts, _THIN_OF_THREE)
    chunks = tuple(sorted({1, 2, 3, 4, *bends}))  # the least bend apart from those further on
    starts = {0, *_doubling(most.max_context, _PER_DOUBLING_OF_THREE)}
    before = bending([along_before(*of) for of in product(nums, some)], starts, _THIN_OF_THREE)
    return _table((prompts, chunks, before), time_s)


def _decode(estimator: PassEstimator, most: Range) -> OperatorTable:
    def along_seqs(context: int) -> Callable[[int], float]:
        return lambda seqs: estimator.decode_s(seqs, context)

    doubled = _doubling(most.max_context, 1)[4:] or (most.max_context,)
    contexts = [
        context for each in doubled for context in (each, each + each // 64)
    ]  # before a step, and after
    seq_starts = {*_doubling(most.max_seqs), *_before_doublings(most.max_seqs)}
    seqs = bending([along_seqs(context) for context in contexts], seq_starts)
    of = [num for num in (1, 3, 5, 12, 20, 29, 50, 57, 100, 300, 700) if num <= most.max_seqs]
    context = bending([partial(estimator.decode_s, num) for num in of], _doubling(most.max_context))
    return _table((seqs, context), estimator.decode_s)


def held_out_errors(model: PassTableLatency, estimator: PassEstimator, most: Range) -> dict[str, object]:
    """Relative errors of passes drawn at random, all magnitudes alike: of prompts, of decodes, of both."""
    rng = np.random.default_rng(0)
    drawn = partial(_drawn, rng)
    errors, passes = [], []
    for number in range(NUM_HELD_OUT):
        time_s, prompts, chunk, before, seqs, mean = 0.0, 0, 0, 0, 0, 0
        if number % 3:
            prompts = drawn(16)
            chunk = drawn(most.max_tokens // prompts)
            before = drawn(most.max_context // 2, _BLOCK_TOKENS) if rng.random() < 0.3 else 0
            time_s += estimator.prefill_s(prompts, chunk, before)
        if number % 3 != 1:
            seqs, mean = drawn(most.max_seqs), drawn(most.max_context, 16)
            time_s += estimator.decode_s(seqs, mean)
        tokens = prompts * chunk
        time_s += estimator.tokens_s(tokens + seqs) if tokens else estimator.decodes_s(seqs)
        shape = IterationShape(tokens, seqs, seqs * mean, prompts, tokens * (before + chunk / 2))
        errors.append(abs(model.iteration_s(shape) / time_s - 1))
        passes.append(
            {"prompts": prompts, "chunk": chunk, "before": before, "decodes": seqs, "mean_context": mean}
        )
    return {
        "num_passes": NUM_HELD_OUT,
        "mean_error": float(np.mean(errors)),
        "p99_error": float(np.quantile(errors, 0.99)),
        "max_error": float(np.max(errors)),
        "worst_pass": passes[int(np.argmax(errors))],
    }


def _drawn(rng: np.random.Generator, high: int, low: int = 1) -> int:
    """A whole number, all magnitudes alike."""
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def _numbers_of_prompts(most: Range, every_up_to: int, per_doubling: int) -> tuple[int, ...]:
    every = range(1, min(every_up_to, most.max_seqs) + 1)
    return tuple(sorted({*every, *_doubling(most.max_seqs, per_doubling)}))


def _doubling(last: int, per_doubling: int = _PER_DOUBLING) -> tuple[int, ...]:
    num = round(math.log2(last) * per_doubling)
    return tuple(sorted({round(last ** (step / num)) for step in range(num + 1)}))


def _before_doublings(last: int) -> list[int]:
    """The last numbers before kernels change."""
    return [2**power - 1 for power in range(1, last.bit_length())]


def _tiled(last: int) -> NDArray[np.int64]:
    tiles = np.arange(_EVERY_UP_TO, last + 1, _TILE)
    return np.unique(np.concatenate((np.arange(1, min(_EVERY_UP_TO, last) + 1), tiles, tiles + 1, [last])))


def _by_number(time_s: Callable[[int], float], numbers: NDArray[np.int64]) -> OperatorTable:
    """Ask for all of these numbers, and keep those that lines between their neighbours do not tell."""
    kept = thinned(numbers, np.array([[time_s(int(number))] for number in numbers]))
    return _table((tuple(int(number) for number in numbers[kept]),), time_s)


def _table(axes: tuple[tuple[int, ...], ...], time_s: Callable[..., float]) -> OperatorTable:
    """A table in six digits, more than the times have."""
    return OperatorTable(axes, tuple(float(f"{max(time_s(*at), _LEAST_S):.6g}") for at in product(*axes)))
