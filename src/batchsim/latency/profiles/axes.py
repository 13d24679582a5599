"""Where to ask functions of a whole number, so that lines between the points tell them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from batchsim.latency.base import Floats

#: By how much a point may be off from the line between its neighbours to be left out.
THIN = 5e-4


def bending(
    functions: Sequence[Callable[[int], float]], starts: Iterable[int], within: float = THIN
) -> tuple[int, ...]:
    """Points of an axis that all functions share: gaps between ``starts`` are halved where any bends.

    A step is found by it to the whole number. What the points around a point tell is left out in the end.
    """

    @cache
    def values(number: int) -> Floats:
        return np.array([function(number) for function in functions])

    known = {number: values(number) for number in starts}
    gaps = list(pairwise(sorted(known)))
    while gaps:
        low, high = gaps.pop()
        # Quarters, too: two steps can leave the middle where the line is.
        inside = [low + (high - low) * part // 4 for part in (1, 2, 3)]
        bends = False
        for number in sorted({*inside} - {low}):
            known[number] = values(number)
            line = known[low] + (known[high] - known[low]) * ((number - low) / (high - low))
            bends |= bool(np.any(np.abs(line - known[number]) > within * np.abs(known[number])))
        if bends:
            gaps += [(low, inside[1]), (inside[1], high)]
    numbers = np.array(sorted(known))
    kept = thinned(numbers, np.array([known[number] for number in numbers.tolist()]), within)
    return tuple(numbers[kept].tolist())


def thinned(numbers: NDArray[np.int64], values: Floats, within: float = THIN) -> list[int]:
    """Places of the points that lines between the others do not tell; one row of values a point."""
    at = numbers.astype(np.float64)
    kept, last = [0], len(at) - 1
    while kept[-1] < last:
        first, step = kept[-1], 1
        while first + 2 * step <= last and _is_line(at, values, first, first + 2 * step, within):
            step *= 2
        end = first + step
        while step := step // 2:
            if end + step <= last and _is_line(at, values, first, end + step, within):
                end += step
        kept.append(end)
    return kept


def _is_line(at: Floats, values: Floats, first: int, end: int, within: float) -> bool:
    share = (at[first : end + 1] - at[first]) / (at[end] - at[first])
    between = values[first] + share[:, None] * (values[end] - values[first])
    inside = values[first : end + 1]
    return bool(np.all(np.abs(between - inside) <= within * np.abs(inside)))
