"""Queueing models as runs of the simulator, and how close a run must come to theory.

Seconds are tokens of 0.1 ms, so lengths are as good as continuous. Every run is checked against Little's law,
the utilisation law and the conservation of requests before a number is taken from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from batchsim.latency.base import BatchShape, BatchTime, Domain, LatencyInfo
from batchsim.metrics.summary import laws
from batchsim.records import Records
from batchsim.study.result import SimulationResult
from batchsim.workload.request import Workload
from tests.sim.worlds import PLENTY, LinearLatency, run, workload

TOKENS_PER_S = 10_000

#: A batch takes as long as its longest member, whatever its size.
AS_LONG_AS_THE_LONGEST = LinearLatency(per_token_s=1 / TOKENS_PER_S)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ExponentialLatency:
    """Batch times drawn anew for each batch, independent of what is in it."""

    mean_s: float
    rng: np.random.Generator
    info: LatencyInfo = field(default_factory=LatencyInfo)
    domain: Domain = field(default_factory=Domain)

    def batch_time(self, shape: BatchShape) -> BatchTime:
        return BatchTime(float("nan"), self.rng.exponential(self.mean_s))


def poisson_arrivals(rng: np.random.Generator, rate_per_s: float, num: int) -> Floats:
    return np.cumsum(rng.exponential(1 / rate_per_s, num))


def requests_of(arrival_s: ArrayLike, service_s: ArrayLike) -> Workload:
    """Requests that would take these times alone."""
    tokens = np.maximum(1, np.rint(np.asarray(service_s) * TOKENS_PER_S)).astype(np.int64)
    return workload(arrival_s, tokens)


def checked_run(
    requests: Workload, latency: Any, policy: Mapping[str, Any], **config: Any
) -> SimulationResult:
    result = run(requests, latency, policy, **config)
    num_gpus = result.config.cluster.num_gpus
    records = Records(result.requests, result.batches, result.controllers, num_gpus, PLENTY, {})
    assert laws(records) == pytest.approx(
        {"little": 0, "utilisation": 0, "flow": 0, "overbooked": 0}, abs=1e-9
    )
    return result


def waits_s(result: SimulationResult, warmup: float = 0.1) -> Floats:
    """Time from arrival to launch of the requests after the warm-up, in arrival order."""
    late = result.requests.iloc[int(warmup * len(result.requests)) :]
    return (late["scheduled_s"] - late["arrival_s"]).to_numpy()


def stays_s(result: SimulationResult, warmup: float = 0.1) -> Floats:
    """Time from arrival to finish of the requests after the warm-up, in arrival order."""
    late = result.requests.iloc[int(warmup * len(result.requests)) :]
    return (late["finish_s"] - late["arrival_s"]).to_numpy()


def busy_fraction(result: SimulationResult) -> float:
    """Share of the GPUs' time between the first arrival and the last finish."""
    batches = result.batches
    span_s = batches["finish_s"].max() - result.requests["arrival_s"].min()
    busy_s = (batches["finish_s"] - batches["start_s"]).sum()
    return float(busy_s / (result.config.cluster.num_gpus * span_s))


def replicate(measure: Callable[[np.random.Generator], Any], num: int, seed: int) -> Floats:
    """Measurements of independent replications, shape ``(num, numbers of one measurement)``."""
    return np.array([np.atleast_1d(measure(rng)) for rng in np.random.default_rng(seed).spawn(num)])


def assert_agrees(replications: Floats, theory: ArrayLike, resolution: float) -> None:
    """Each mean lies in the band around theory that holds 3.5 standard deviations of a normal law.

    In units of the standard error, which itself is estimated, that is Student's quantile. ``resolution``
    bounds the standard errors, relative to theory: without it a noisy test could not fail.
    """
    expected = np.atleast_1d(np.asarray(theory, dtype=np.float64))
    means = replications.mean(axis=0)
    errors = replications.std(axis=0, ddof=1) / np.sqrt(len(replications))
    quantile = stats.t.isf(stats.norm.sf(3.5), len(replications) - 1)
    assert np.all(errors <= resolution * np.abs(expected)), f"relative standard errors {errors / expected}"
    assert np.all(np.abs(means - expected) <= quantile * errors), f"means {means}, standard errors {errors}"
