"""How much a cluster can take: the highest request rate, or the fewest GPUs, at which an SLO is attained.

By bisection. Replications are consecutive parts of the requests, each paced to the rate that is tried, so
that all rates, and all policies that are asked about, meet the same requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from batchsim.config import RunConfig, WorkloadConfig, load_config
from batchsim.errors import ConfigError
from batchsim.metrics.statistics import Interval, t_interval
from batchsim.policies import presets
from batchsim.streams import stream
from batchsim.study.hardware import AnyLatency, adopt_hardware
from batchsim.study.run import simulate, training_fraction
from batchsim.workload.load import prepare
from batchsim.workload.predictor import make_predictor
from batchsim.workload.request import Workload

#: A rate that so many halvings do not bring down to one that attains the SLO is taken for 0.
_MOST_HALVINGS = 20
_MOST_GPUS = 4096


class Trial(NamedTuple):
    """One simulation of a search."""

    replication: int
    request_rate_per_s: float
    num_gpus: int
    slo_attainment: float
    saturated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Capacity:
    """What a search found.

    Attributes
    ----------
    request_rate_per_s
        The highest rate, mean over the replications with a 95 % interval; 0 where even requests that are
        served alone miss the SLO. Or the rate that was asked about.
    num_gpus
        The GPUs that were asked about, or the fewest that attain the SLO on average over the replications.
    attainment
        Share of good requests at that, mean over the replications with a 95 % interval.
    trials
        All simulations, in the order in which they ran.
    """

    request_rate_per_s: Interval
    num_gpus: int
    attainment: Interval
    trials: tuple[Trial, ...]


def find_capacity(
    config: RunConfig | Mapping[str, Any] | str | Path | None,
    workload: Workload | None = None,
    *,
    latency: AnyLatency | None = None,
    share: float = 0.9,
    num_replications: int = 5,
    tolerance: float = 0.01,
    on_trial: Callable[[Trial], None] | None = None,
) -> Capacity:
    """Find the highest request rate of a cluster, or for a ``request_rate`` its fewest GPUs.

    A rate attains the SLO if at least a share of all requests meets every limit and the backlog does not grow
    (a queue that grows without end meets any limit in a run that is short enough).

    Parameters
    ----------
    config, workload, latency
        As for `simulate`. With ``workload.request_rate``, the GPUs are searched, else the rate that
        ``cluster.num_gpus`` of them can take.
    share
        Of requests that must meet the limits, in (0, 1].
    num_replications
        Parts that the requests are cut into, at least 2.
    tolerance
        Of the rate, relative: the rate found attains the SLO, one larger by this was seen to miss it.
    on_trial
        Called after each simulation.

    Raises
    ------
    ConfigError
        If no limit is configured, an argument is out of range, or the requests do not suffice.
    """
    loaded, _ = adopt_hardware(load_config(config), latency)
    if all(limit is None for limit in (loaded.slo.e2e_ms, loaded.slo.ttft_ms, loaded.slo.tpot_ms)):
        raise ConfigError("a capacity needs an SLO: at least one of slo.e2e_ms, slo.ttft_ms, slo.tpot_ms")
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share:g}; a number in (0, 1] is needed")
    if num_replications < 2:
        raise ConfigError(f"num_replications is {num_replications}; at least 2 are needed for an interval")
    if not 0 < tolerance < 1:
        raise ConfigError(f"tolerance is {tolerance:g}; a number in (0, 1) is needed")
    search = _Search(loaded, _parts(loaded, workload, num_replications), latency, share, on_trial)
    rate_per_s = loaded.workload.request_rate
    return search.highest_rate(tolerance) if rate_per_s is None else search.fewest_gpus(rate_per_s)


class _Part(NamedTuple):
    """Requests of one replication, those to train on first."""

    workload: Workload
    training_fraction: float


def _parts(config: RunConfig, workload: Workload | None, num_parts: int) -> list[_Part]:
    """Cut what is configured into consecutive parts of equal size; all share the training part."""
    given = config.workload
    fixed = (given.rate_scale, given.request_rate_per_gpu, given.load, given.num_requests_per_gpu)
    if any(one is not None for one in fixed) or config.cluster.replicas:
        raise ConfigError(
            "a capacity is searched over request rates or numbers of equal GPUs: leave out "
            "workload.rate_scale, workload.request_rate_per_gpu, workload.load, "
            "workload.num_requests_per_gpu and cluster.replicas"
        )
    is_generated = workload is None and given.generator is not None
    unpaced = given.model_copy(
        update={"request_rate": None, "num_requests": given.num_requests if is_generated else None}
    )
    _, everything = prepare(unpaced, config.cluster.num_gpus, stream(config.seed, "workload"), workload)
    fraction = training_fraction(config, presets.build(config.policy), make_predictor(config.predictor))
    num_training = max(1, round(fraction * len(everything))) if fraction else 0
    num_left = len(everything) - num_training
    size = (num_left if is_generated else min(num_left, given.num_requests or num_left)) // num_parts
    if size < 2:
        raise ConfigError(
            f"{everything.source.name} leaves {size} requests for each of {num_parts} replications; many "
            "more are needed"
        )
    training = np.arange(num_training)
    starts = range(num_training, num_training + num_parts * size, size)
    return [
        _Part(
            everything.take(np.concatenate([training, np.arange(start, start + size)])),
            num_training / (num_training + size),
        )
        for start in starts
    ]


class _Search:
    def __init__(
        self,
        config: RunConfig,
        parts: list[_Part],
        latency: AnyLatency | None,
        share: float,
        on_trial: Callable[[Trial], None] | None,
    ) -> None:
        self._config = config
        self._parts = parts
        self._latency = latency
        self._share = share
        self._on_trial = on_trial
        self._trials: list[Trial] = []

    def highest_rate(self, tolerance: float) -> Capacity:
        """Bisect the rate for each replication; each starts from what the one before found."""
        num_gpus = self._config.cluster.num_gpus
        found: list[Trial] = []
        guess_per_s = float(num_gpus)
        for replication in range(len(self._parts)):
            best = self._highest_rate_of(replication, guess_per_s, tolerance)
            guess_per_s = best.request_rate_per_s or guess_per_s
            found.append(best)
        return Capacity(
            t_interval([trial.request_rate_per_s for trial in found]),
            num_gpus,
            t_interval([trial.slo_attainment for trial in found]),
            tuple(self._trials),
        )

    def fewest_gpus(self, rate_per_s: float) -> Capacity:
        """Double the replicas until their GPUs suffice, then bisect."""
        per_replica = self._config.cluster.gpus_per_replica

        def attained(num_replicas: int) -> tuple[bool, Interval]:
            num_gpus = num_replicas * per_replica
            trials = [self._try(part, rate_per_s, num_gpus) for part in range(len(self._parts))]
            attainment = t_interval([trial.slo_attainment for trial in trials])
            return attainment.mean >= self._share and not any(one.saturated for one in trials), attainment

        too_few, num_replicas = 0, 1
        while not (result := attained(num_replicas))[0]:
            too_few, num_replicas = num_replicas, 2 * num_replicas
            if num_replicas * per_replica > _MOST_GPUS:
                raise ConfigError(
                    f"{too_few * per_replica} GPUs do not attain the SLO at {rate_per_s:g} requests per s: "
                    f"{result[1].mean:.1%} of the requests are good; those served alone may miss it too"
                )
        attainment = result[1]
        while num_replicas - too_few > 1:
            between = (too_few + num_replicas) // 2
            suffices, of_fewer = attained(between)
            if suffices:
                num_replicas, attainment = between, of_fewer
            else:
                too_few = between
        num_gpus = num_replicas * per_replica
        return Capacity(Interval(rate_per_s, 0.0), num_gpus, attainment, tuple(self._trials))

    def _highest_rate_of(self, replication: int, guess_per_s: float, tolerance: float) -> Trial:
        num_gpus, factor = self._config.cluster.num_gpus, 2.0 if not replication else 1.2
        trial = self._try(replication, guess_per_s, num_gpus)
        if self._attains(trial):
            best = trial
            while self._attains(trial := self._try(replication, best.request_rate_per_s * factor, num_gpus)):
                best, factor = trial, 2.0
            too_high = trial
        else:
            for _ in range(_MOST_HALVINGS):
                too_high = trial
                trial = self._try(replication, too_high.request_rate_per_s / factor, num_gpus)
                if self._attains(trial):
                    break
                factor = 2.0
            else:
                return trial._replace(request_rate_per_s=0.0)
            best = trial
        while too_high.request_rate_per_s > best.request_rate_per_s * (1 + tolerance):
            between = float(np.sqrt(best.request_rate_per_s * too_high.request_rate_per_s))
            trial = self._try(replication, between, num_gpus)
            if self._attains(trial):
                best = trial
            else:
                too_high = trial
        return best

    def _attains(self, trial: Trial) -> bool:
        return trial.slo_attainment >= self._share and not trial.saturated

    def _try(self, replication: int, rate_per_s: float, num_gpus: int) -> Trial:
        part = self._parts[replication]
        paced = WorkloadConfig(request_rate=rate_per_s, training_fraction=part.training_fraction)
        config = self._config.model_copy(
            update={
                "workload": paced,
                "cluster": self._config.cluster.model_copy(
                    update={"num_gpus": num_gpus, "num_replicas": None}
                ),
            }
        )
        summary = simulate(config, part.workload, latency=self._latency).summary
        trial = Trial(
            replication, rate_per_s, num_gpus, float(summary["slo_attainment"]), bool(summary["saturated"])
        )
        self._trials.append(trial)
        if self._on_trial is not None:
            self._on_trial(trial)
        return trial
