"""A latency model that interpolates between the points of a calibration, and is honest at its edges."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, get_args

import pandas as pd

from batchsim.errors import ConfigError
from batchsim.files import MAX_COUNT
from batchsim.latency.analytic import check_number
from batchsim.latency.base import BatchShape, BatchTime, Domain, LatencyInfo
from batchsim.latency.choices import TableLength


@dataclass(frozen=True, slots=True)
class TableLatency:
    """Linear interpolation between the points of a complete grid; beyond its edges the outer cells go on.

    Attributes
    ----------
    axes
        Batch sizes, then lengths as `length` says; increasing.
    total_s
        Seconds at each point of the grid, last axis fastest.
    length
        ``output`` or ``prompt+output`` with two axes, ``prompt,output`` with three.
    """

    axes: tuple[tuple[int, ...], ...]
    total_s: tuple[float, ...]
    length: TableLength
    info: LatencyInfo = field(default_factory=LatencyInfo)
    domain: Domain = field(init=False)

    def __post_init__(self) -> None:
        if self.length not in get_args(TableLength):
            raise ConfigError(f"length is {self.length!r}; known: {'; '.join(get_args(TableLength))}")
        if len(self.axes) != 2 + (self.length == "prompt,output"):
            raise ConfigError(f"a table over {self.length} cannot have {len(self.axes)} axes")
        for axis in self.axes:
            is_whole = all(type(value) is int and 1 <= value <= MAX_COUNT for value in axis)
            if not axis or not is_whole or list(axis) != sorted(set(axis)):
                raise ConfigError(
                    f"axis {list(axis)!r:.60} of the table must hold increasing whole numbers >= 1"
                )
        if len(self.total_s) != math.prod(map(len, self.axes)):
            raise ConfigError(
                f"total_s holds {len(self.total_s)} times; the axes ask for {math.prod(map(len, self.axes))}"
            )
        for value in self.total_s:
            check_number("a time in total_s", value, above=0)
        ranges = [(axis[0], axis[-1]) for axis in self.axes]
        if self.length == "prompt,output":
            domain = Domain(batch_size=ranges[0], prompt_tokens=ranges[1], output_tokens=ranges[2])
        elif self.length == "output":
            domain = Domain(batch_size=ranges[0], output_tokens=ranges[1])
        else:
            domain = Domain(batch_size=ranges[0], length=ranges[1])
        object.__setattr__(self, "domain", domain)

    def batch_time(self, shape: BatchShape) -> BatchTime:
        """Seconds to the end of the batch; the first token is NaN.

        Raises
        ------
        ConfigError
            Outside the grid, if it has one value only in that direction or its slope leads below zero.
        """
        batch_size, prompt_tokens, output_tokens = shape
        if self.length == "prompt,output":
            total_s = self.interpolate((batch_size, prompt_tokens, output_tokens))
        elif self.length == "output":
            total_s = self.interpolate((batch_size, output_tokens))
        else:
            total_s = self.interpolate((batch_size, prompt_tokens + output_tokens))
        if total_s <= 0:
            raise ConfigError(
                f"{self.info.name}: extrapolated to {total_s:.3g} s for {tuple(shape)}, too far from the grid"
            )
        return BatchTime(math.nan, total_s)

    def interpolate(self, position: tuple[float, ...]) -> float:
        """Value at a position along the axes."""
        for axis, value in zip(self.axes, position, strict=True):
            if len(axis) == 1 and value != axis[0]:
                raise ConfigError(
                    f"{self.info.name}: the table holds only {axis[0]} along one axis, not {value:g}"
                )
        return interpolate(self.axes, self.total_s, position)


def interpolate(axes: Sequence[Sequence[int]], values: Sequence[float], position: Sequence[float]) -> float:
    """Interpolate linearly in each direction; ``values`` are those of the grid's points, last axis fastest.

    Beyond the edges the outer cells go on; an axis of one value has no cells, and that value is taken.
    """
    corners = [(0, 1.0)]  # offset into the values and weight, doubled by each axis
    for axis, value in zip(axes, position, strict=True):
        width = len(axis)
        if width == 1:
            continue
        low = min(max(bisect_right(axis, value) - 1, 0), width - 2)
        share = (value - axis[low]) / (axis[low + 1] - axis[low])
        corners = [
            (offset * width + low + step, weight * part)
            for offset, weight in corners
            for step, part in ((0, 1 - share), (1, share))
            if part
        ]
    return sum(values[offset] * weight for offset, weight in corners)


def table_latency(points: pd.DataFrame, length: TableLength, info: LatencyInfo) -> TableLatency:
    """Make a table of whole-batch points as `Calibration.points` holds them.

    Raises
    ------
    ConfigError
        If the points do not fill a grid: names the first that is missing or doubled.
    """
    columns = [points["batch_size"], *lengths_of(points, length)]
    keys = [tuple(int(value) for value in key) for key in zip(*columns, strict=True)]
    time_s = dict(zip(keys, points["mean_s"].tolist(), strict=True))
    if len(time_s) < len(keys):
        doubled = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"several points share batch size and {length} {doubled}; a table needs one each")
    axes = tuple(tuple(sorted(set(axis))) for axis in zip(*keys, strict=True))
    for key in product(*axes):
        if key not in time_s:
            raise ConfigError(
                f"the grid lacks the point at batch size and {length} {key}; a table needs all of them"
            )
    return TableLatency(axes, tuple(time_s[key] for key in product(*axes)), length, info)


def lengths_of(points: pd.DataFrame, length: TableLength) -> list[pd.Series[Any]]:
    """Return one or two columns with the lengths of whole-batch points; ``max_seq_len`` is taken as it is."""
    if points["max_seq_len"].notna().all():
        if length == "prompt,output":
            raise ConfigError("the aggregated form has one length per point; prompt,output needs raw trials")
        return [points["max_seq_len"]]
    prompt, output = points["prompt_tokens"], points["output_tokens"]
    return {"output": [output], "prompt+output": [prompt + output], "prompt,output": [prompt, output]}[length]
