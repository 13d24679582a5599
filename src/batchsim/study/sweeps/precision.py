"""Replications of a sweep's points until the interval of each is narrow enough, in rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from batchsim.errors import ConfigError
from batchsim.study.plan import plan, read_sweep_file
from batchsim.study.replications import Stopping
from batchsim.study.sweep import run_sweep


def run_sweep_until(
    path: str | Path,
    output_dir: str | Path,
    stopping: Stopping,
    *,
    full: bool = False,
    overrides: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    shard: tuple[int, int] = (1, 1),
    on_notice: Callable[[str], None] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Do `run_sweep` until every point has reached a precision, or the most replications.

    All points have ``stopping.num`` first, or what the file says where that is more. A round gives those that
    are not there yet as many as the width of their interval asks for, twice as many at most. The same command
    goes on where it stopped.

    Raises
    ------
    ConfigError
        For a part of a sweep: its precision would hang on what others have done; and as `run_sweep`.
    """
    if shard != (1, 1):
        raise ConfigError("a precision is one of all runs of a sweep; leave out the shard")
    sweep = read_sweep_file(path, full=full, overrides=overrides)
    stopping = replace(stopping, num=max(stopping.num, sweep.replications or 1))
    sweep = read_sweep_file(path, full=full, overrides=overrides, replications=stopping.num)
    counts: dict[str, int] = {}
    while True:
        results = run_sweep(
            path,
            output_dir,
            full=full,
            overrides=overrides,
            overwrite=overwrite and not counts,
            replications=stopping.num,
            counts=counts,
            on_notice=None if counts else on_notice,
            **options,
        )
        values = {row["run_id"]: stopping.value(row) for row in results.to_dict("records")}
        points: dict[str, list[float]] = {}
        for run in plan(sweep, path, counts):
            points.setdefault(run.point, []).append(values[run.run_id])
        more = {
            point: _next_num(column, stopping)
            for point, column in points.items()
            if not stopping.is_done([column])
        }
        if not more:
            break
        counts |= more
    short = [point for point, column in points.items() if not stopping.is_reached([column])]
    if short and on_notice is not None:
        said = stopping.shortfall([points[short[0]]])
        on_notice(f"{sweep.name}: {len(short)} of {len(points)} points: {said}; the first: {short[0]}")
    return results


def _next_num(column: list[float], stopping: Stopping) -> int:
    """Replications after which the interval would be narrow enough, its width falling with their root."""
    num, precision = len(column), stopping.precision or math.inf
    needed = num * min((stopping.width(column) / precision) ** 2, 2.0)
    return min(max(math.ceil(needed), num + 1), stopping.most)
