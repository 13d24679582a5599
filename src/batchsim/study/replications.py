"""One configuration many times, each time with other random draws: how sure its numbers are.

A replication is the same configuration with another seed, of which everything random is drawn: generated
requests, blocks of a trace, predictions, routing, failures, drafts. The same replication of two policies
draws the same. A trace that is replayed stays the same; where nothing else is random either, all replications
would be one run, and one run is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchsim.config import RunConfig, load_config
from batchsim.errors import ConfigError, nearest
from batchsim.files import json_text
from batchsim.files.tables import csv_text
from batchsim.metrics.statistics import t_interval
from batchsim.sim.recording.recorder import Recorder
from batchsim.study.aggregate import over_replications
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate
from batchsim.study.setup.hardware import AnyLatency
from batchsim.workload.request import Workload

#: Replications where nobody says how many, and from which on a precision is judged: of fewer, the spread is
#: so badly known that many would stop where it happens to look small.
DEFAULT_NUM = 10
#: Replications after which a precision that is not reached is given up.
DEFAULT_MOST = 50

_SEED_BITS = 52  # a whole number that tables and browsers hold exactly, as a float, too


def replication_seed(seed: int, k: int) -> int:
    """Return the seed of a configuration's replication ``k``: for 0 its own, else one of 2^52."""
    if k == 0:
        return seed
    (word,) = np.random.SeedSequence([seed, k]).generate_state(1, np.uint64)
    return int(word) >> (64 - _SEED_BITS)


def replication(config: RunConfig, k: int) -> RunConfig:
    """Return the configuration of replication ``k``."""
    return config.model_copy(update={"seed": replication_seed(config.seed, k)})


@dataclass(frozen=True, slots=True)
class Stopping:
    """How many replications there are to be.

    Attributes
    ----------
    num
        So many, or, with a precision, at least so many.
    precision
        Go on until the half width of the 95 % interval of the metric is at most this share of its mean.
    metric
        A number of the summary.
    most
        Give up after so many.

    Raises
    ------
    ConfigError
        For a number that makes no sense.
    """

    num: int = DEFAULT_NUM
    precision: float | None = None
    metric: str = "e2e_mean_s"
    most: int = DEFAULT_MOST

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ConfigError(f"replications is {self.num}; a whole number >= 1 is needed")
        if self.precision is None:
            return
        if not 0 < self.precision < 1:
            raise ConfigError(f"precision is {self.precision:g}; a share in (0, 1) is needed, e.g. 2%")
        if self.num < 2:
            raise ConfigError("replications is 1; a precision is told from at least 2")
        if self.most < self.num:
            raise ConfigError(
                f"max_replications is {self.most}; at least replications = {self.num} is needed"
            )

    def is_done(self, columns: Sequence[Sequence[float]]) -> bool:
        """Whether there are enough, from each policy's values of the metric so far."""
        num = len(columns[0])
        if self.precision is None or num < self.num:
            return num >= self.num
        return num >= self.most or self.is_reached(columns)

    def is_reached(self, columns: Sequence[Sequence[float]]) -> bool:
        """Whether every interval is narrow enough; without a precision, any is."""
        return self.precision is None or all(self.width(values) <= self.precision for values in columns)

    def shortfall(self, columns: Sequence[Sequence[float]]) -> str:
        """Say that the precision was not reached; empty where it was."""
        if self.precision is None or self.is_reached(columns):
            return ""
        widest = max(map(self.width, columns))
        return (
            f"a precision of {100 * self.precision:.3g}% was not reached: after {len(columns[0])} "
            f"replications the 95 % interval of {self.metric} reaches {100 * widest:.2g}% of its mean to "
            "either side; max_replications allows no more"
        )

    @staticmethod
    def width(values: Sequence[float]) -> float:
        """Half width of the interval as a share of the mean; infinite where that cannot be told."""
        interval = t_interval(values)
        if interval.half_width == 0:
            return 0.0
        width = interval.half_width / abs(interval.mean) if interval.mean else math.inf
        return width if math.isfinite(width) else math.inf

    def value(self, summary: Mapping[Any, Any]) -> float:
        """The metric of one run; NaN where nothing is to be looked at, or the run has none."""
        if self.precision is None:
            return math.nan
        value = summary.get(self.metric)
        numbers = [key for key, one in summary.items() if isinstance(one, float)]
        if self.metric not in summary or isinstance(value, str | bool):
            raise ConfigError(
                f"a precision of {self.metric!r}: a run has no such number; {nearest(self.metric, numbers)}"
            )
        return math.nan if value is None else float(value)


@dataclass(frozen=True, slots=True, eq=False)
class Replications:
    """What the replications of one configuration gave.

    Attributes
    ----------
    first
        Replication 0, whole: the configuration with its own seed.
    summaries
        Of each replication.
    stopping
        How many there were to be.
    is_fixed
        Nothing random bears on this run: its replications cannot differ, and there is one.
    """

    first: SimulationResult
    summaries: tuple[Mapping[str, Any], ...]
    stopping: Stopping
    is_fixed: bool = False

    @property
    def summary(self) -> dict[str, Any]:
        """Means over replications, with intervals: `over_replications`."""
        return over_replications(self.summaries)

    @property
    def table(self) -> pd.DataFrame:
        """A row per replication: its number, then its summary."""
        return pd.DataFrame([{"replication": k, **one} for k, one in enumerate(self.summaries)])

    @property
    def notices(self) -> list[str]:
        """What a reader should know of the intervals, in sentences."""
        if self.is_fixed:
            return [FIXED]
        values = [self.stopping.value(summary) for summary in self.summaries]
        return [said] if (said := self.stopping.shortfall([values])) else []

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write replication 0 as `SimulationResult.save` does, and beside it what all of them gave.

        ``aggregated.json`` is `summary`, ``replications.csv`` is `table`.
        """
        more = {"aggregated.json": json_text(self.summary), "replications.csv": csv_text(self.table)}
        self.first.save(directory, overwrite=overwrite, more=more)


#: What is said where `Replications.is_fixed`.
FIXED = (
    "replications of this run cannot differ: the trace stays the same and nothing else in it is random; one "
    "run was made, whose interval, where it has one, is from batch means within it. With "
    "workload.resample_s they are of blocks of the trace"
)


def replicate(
    config: RunConfig | Mapping[str, Any] | str | Path | None = None,
    workload: Workload | None = None,
    num: int = DEFAULT_NUM,
    *,
    precision: float | None = None,
    metric: str = "e2e_mean_s",
    most: int = DEFAULT_MOST,
    latency: AnyLatency | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_start: Callable[[int, Recorder], None] | None = None,
) -> Replications:
    """Simulate replications of one configuration.

    Parameters
    ----------
    config, workload, latency, overrides
        As for `simulate`.
    num, precision, metric, most
        See `Stopping`.
    on_start
        Called with the number of each replication and its recorder, before its first event.

    Raises
    ------
    ConfigError
        For a number that makes no sense, or a metric that runs lack; and as `simulate`.
    """
    stopping = Stopping(num, precision, metric, most)
    loaded = load_config(config, overrides)

    def run(k: int) -> SimulationResult:
        watch = None if on_start is None else partial(on_start, k)
        return simulate(replication(loaded, k), workload, latency=latency, on_start=watch)

    first = run(0)
    summaries, values = [first.summary], [stopping.value(first.summary)]
    while not stopping.is_done([values]):
        result = run(len(summaries))
        if len(summaries) == 1 and is_same_run(first, result):
            return Replications(first, (first.summary,), stopping, is_fixed=True)
        summaries.append(result.summary)
        values.append(stopping.value(result.summary))
    return Replications(first, tuple(summaries), stopping)


def is_same_run(one: SimulationResult, other: SimulationResult) -> bool:
    """Whether the same requests met the same fate at the same times, as all replications then will."""
    if is_rare(one.config):
        return False
    columns = ["request_id", "arrival_s", "prompt_tokens", "output_tokens", "status", "finish_s"]
    return one.requests[columns].equals(other.requests[columns])


def is_rare(config: RunConfig) -> bool:
    """Whether what is random may come in some replications only: a failure, say, that two were spared."""
    return config.failures.time_between_s is not None
