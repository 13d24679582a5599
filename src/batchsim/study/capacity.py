"""How much a cluster can take: the highest request rate, or the fewest GPUs, at which an SLO is attained.

By bisection, on the same requests at every rate, and for all policies that are asked about. Each rate is one
simulation of all requests; how sure its numbers are is told by consecutive parts of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from batchsim.config import RunConfig, load_config
from batchsim.errors import ConfigError
from batchsim.metrics.statistics import t_interval
from batchsim.policies import presets
from batchsim.study.replications import FIXED, Stopping, is_rare, replication
from batchsim.study.setup.hardware import AnyLatency, adopt_hardware
from batchsim.study.trials import Requests, Trial, Trials, requests_of
from batchsim.workload.request import Workload

#: A first look takes this share of the requests, and at least so many.
_GLANCE, _SMALLEST_GLANCE = 1 / 16, 1000
#: A rate that is still too high after so many halvings is taken for 0.
_MOST_HALVINGS = 16
_MOST_GPUS = 4096
#: The highest rate that a configuration takes.
_MOST_PER_S = 1e9
#: Half width of a rate, as a share of it, beyond which one number says little.
BURSTY = 0.25
#: What bounds a rate at which every limit is met: a queue that grows.
QUEUE = "queue"


@dataclass(frozen=True, slots=True, eq=False)
class Capacity:
    """What a search found.

    Attributes
    ----------
    request_rate_per_s
        The highest rate that was seen to attain the SLO; 0 where even requests that are served alone miss it.
        Or the rate that was asked about.
    half_width_per_s
        Of its 95 % interval: how far the rate moves with the margin's interval. None where that cannot be
        told.
    missed_per_s
        The lowest rate that was seen to miss it; infinity where nothing bounds the rate.
    num_gpus
        The GPUs that were asked about, or the fewest that attain the SLO.
    binding
        What bounds the rate: a requirement, `QUEUE`, or nothing (empty).
    best
        The trial at this rate and these GPUs.
    trials
        All simulations, in the order in which they ran.
    assumptions
        Sentences on the hardware and the latency model, as `adopt_hardware` gives them.
    replications
        The searches of which this is the mean, see `replicate_capacity`; empty: it is one search.
    shortfall
        What was not reached in them, in a sentence.
    """

    request_rate_per_s: float
    half_width_per_s: float | None
    missed_per_s: float
    num_gpus: int
    binding: str
    best: Trial
    trials: tuple[Trial, ...]
    assumptions: tuple[str, ...] = ()
    replications: tuple[Capacity, ...] = ()
    shortfall: str = ""

    @property
    def is_unbounded(self) -> bool:
        """Whether these requests cannot miss the SLO, however fast they come."""
        return math.isinf(self.missed_per_s)

    @property
    def usd_per_request(self) -> float | None:
        """What a request costs at this rate on these GPUs; None where none attains, or a price is unknown."""
        if not self.request_rate_per_s or self.best.usd_per_hour is None:
            return None
        return self.best.usd_per_hour / (3600 * self.request_rate_per_s)

    @property
    def usd_per_million_output_tokens(self) -> float | None:
        """The same of the output tokens that are asked for at this rate."""
        per_request = self.usd_per_request
        return None if per_request is None else 1e6 * per_request / self.best.mean_output_tokens

    @property
    def notices(self) -> list[str]:
        """What a reader should know beside the numbers, in sentences; those on the search come last."""
        return [*self.assumptions, *self.cautions]

    @property
    def cautions(self) -> list[str]:
        """How far the search can be trusted, in sentences."""
        said = []
        if self.is_unbounded:
            said.append(
                "these requests cannot miss the limits, however fast they come: the rate is a lower bound"
            )
        if not self.request_rate_per_s:
            said.append("even requests that are served alone miss the SLO (its limits are in ms)")
        elif self.half_width_per_s is not None and self.half_width_per_s > BURSTY * self.request_rate_per_s:
            said.append(f"the requests are too bursty, or too few, for one number: {self._spread}")
        if self.request_rate_per_s and not self.is_unbounded and self.best.verdict == "transient":
            said.append(f"whether the queue would go on growing cannot be told: {self.best.verdict_reason}")
        return said + [self.shortfall] * bool(self.shortfall)

    @property
    def _spread(self) -> str:
        if self.replications:
            rates = [one.request_rate_per_s for one in self.replications]
            return f"{min(rates):.4g} to {max(rates):.4g} requests/s by replication"
        least, most = min(self.best.by_part), max(self.best.by_part)
        return f"at this rate the margin of {self.best.subject} is {least:+.1%} to {most:+.1%} by part"


def find_capacity(
    config: RunConfig | Mapping[str, Any] | str | Path | None,
    workload: Workload | None = None,
    *,
    latency: AnyLatency | None = None,
    share: float = 0.9,
    num_parts: int = 20,
    tolerance: float = 0.01,
    on_trial: Callable[[Trial], None] | None = None,
    split_pools: bool = False,
) -> Capacity:
    """Find the highest request rate of a cluster, or for a ``request_rate`` its fewest GPUs.

    A rate attains the SLO if at least a share of the requests meets every limit per request, every limit on a
    statistic holds, and the queue does not grow (one that grows without end meets any limit in a run that is
    short enough). Requests of the warm-up are left out.

    Parameters
    ----------
    config, workload, latency
        As for `simulate`. With ``workload.request_rate``, the GPUs are searched, else the rate that
        ``cluster.num_gpus`` of them can take. Of a trace, `DEFAULT_NUM_REQUESTS` at most are taken where
        ``workload.num_requests`` does not say how many.
    share
        Of requests that must meet the limits per request, in (0, 1].
    num_parts
        Consecutive parts of the requests from which intervals are taken, at least 2.
    tolerance
        Of the rate, relative: the rate found attains the SLO, one larger by this was seen to miss it.
    on_trial
        Called after each simulation.
    split_pools
        Part the replicas into some that compute prompts and others that decode, as is best at each rate.

    Raises
    ------
    ConfigError
        If no limit is configured, clients wait for answers (their rate is an outcome), an argument is out of
        range, or the requests do not suffice.
    """
    loaded, assumptions = adopt_hardware(load_config(config), latency)
    if not loaded.slo.told_ms and not loaded.slo.statistics_s:
        raise ConfigError("a capacity needs an SLO: at least one limit, e.g. slo.ttft_ms or slo.ttft_p95_ms")
    if loaded.clients.kind == "closed_loop":
        raise ConfigError(
            'clients.kind is "closed_loop": its clients wait for answers, so their rate is an outcome; a '
            'capacity needs "open_loop"'
        )
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share:g}; a number in (0, 1] is needed")
    if num_parts < 2:
        raise ConfigError(f"num_parts is {num_parts}; at least 2 are needed for an interval")
    if not 0 < tolerance < 1:
        raise ConfigError(f"tolerance is {tolerance:g}; a number in (0, 1) is needed")
    rate_per_s = loaded.workload.request_rate
    if split_pools:
        _check_split(loaded, is_rate_searched=rate_per_s is None)
    search = _Search(loaded, requests_of(loaded, workload), latency, share, num_parts, on_trial, split_pools)
    found = search.highest_rate(tolerance) if rate_per_s is None else search.fewest_gpus(rate_per_s)
    return replace(found, assumptions=tuple(assumptions))


def replicate_capacity(
    config: RunConfig | Mapping[str, Any] | str | Path | None, stopping: Stopping, **options: Any
) -> Capacity:
    """Do `find_capacity` with several seeds, each search for itself; ``options`` are its others.

    The rate is the mean of the rates, with Student's interval over replications; of numbers of GPUs it is the
    largest: that many attain the SLO in every replication. A precision is of the rate.

    Raises
    ------
    ConfigError
        For a precision of a number of GPUs; and as `find_capacity`.
    """
    loaded = load_config(config)
    if stopping.precision is not None and loaded.workload.request_rate is not None:
        raise ConfigError("a precision is one of a rate, and of GPUs the fewest are asked for; give the "
                          "number of replications instead")  # fmt: skip
    stopping = replace(stopping, metric="request_rate_per_s")
    found: list[Capacity] = []
    rates: list[float] = []
    while not found or not stopping.is_done([rates]):
        found.append(find_capacity(replication(loaded, len(found)), **options))
        rates.append(found[-1].request_rate_per_s)
        if len(found) == 2 and not is_rare(loaded) and _course(found[0]) == _course(found[1]):
            return replace(found[0], shortfall=FIXED)
    most = max(found, key=lambda one: one.num_gpus)
    attained = [one.best.slo_attainment for one in found if one.best.slo_attainment is not None]
    interval = t_interval(rates)
    return replace(
        most,
        request_rate_per_s=interval.mean,
        half_width_per_s=interval.half_width if len(set(rates)) > 1 else None,
        missed_per_s=float(np.mean([one.missed_per_s for one in found])),
        binding=Counter(one.binding for one in found).most_common(1)[0][0],
        best=most.best._replace(slo_attainment=float(np.mean(attained)) if attained else None),
        trials=tuple(trial for one in found for trial in one.trials),
        replications=tuple(found),
        shortfall=stopping.shortfall([rates]),
    )


def _course(found: Capacity) -> list[tuple[Any, ...]]:
    # As text: none finished is the same as none finished.
    return [
        (trial.request_rate_per_s, trial.num_gpus, trial.margin, str(trial.e2e_mean_s))
        for trial in found.trials
    ]


def _check_split(config: RunConfig, *, is_rate_searched: bool) -> None:
    cluster = config.cluster
    if not presets.find_preset(config.policy.preset).is_iteration_level:
        raise ConfigError(
            f"policy {config.policy.preset} runs batches to completion and hands no prompts over; one that "
            "batches at every iteration is needed to split the replicas into pools"
        )
    if cluster.num_prefill_replicas:
        raise ConfigError(
            f"cluster.num_prefill_replicas is {cluster.num_prefill_replicas}: leave it out to have the best "
            "split into pools searched"
        )
    if is_rate_searched and cluster.num_gpus < 2 * cluster.gpus_per_replica:
        raise ConfigError(
            f"cluster.num_gpus is {cluster.num_gpus}: one replica cannot be split into pools; at least "
            f"{2 * cluster.gpus_per_replica} GPUs are needed"
        )


class _Search:
    def __init__(
        self,
        config: RunConfig,
        requests: Requests,
        latency: AnyLatency | None,
        share: float,
        num_parts: int,
        on_trial: Callable[[Trial], None] | None,
        split_pools: bool,
    ) -> None:
        self._config = config
        self._fewest_replicas = 2 if split_pools else 1
        self._requests = requests
        self._few = requests.first(max(int(_GLANCE * requests.num_evaluated), _SMALLEST_GLANCE))
        self._trials = Trials(config, latency, share, num_parts, on_trial, is_split_open=split_pools)

    def highest_rate(self, tolerance: float) -> Capacity:
        """Bracket the rate on a few of the requests, then on all, and close in on it."""
        num_gpus = self._config.cluster.num_gpus
        guess, _ = self._bracket(self._few, float(num_gpus), 2.0)
        if not guess.attains:  # then all of them get one chance, at this pace at which each is alone
            guess = self._trials.attempt(self._requests, guess.request_rate_per_s, num_gpus)
        if not guess.attains:
            return self._capacity(guess, guess.request_rate_per_s, guess.binding)
        low, high = self._bracket(self._requests, guess.request_rate_per_s, 1.1)
        if high is None:
            return self._capacity(low, math.inf, "")
        while high.request_rate_per_s > low.request_rate_per_s * (1 + tolerance):
            trial = self._trials.attempt(self._requests, _between(low, high), num_gpus)
            if trial.attains:
                low = trial
            else:
                high = trial
        binding = high.binding if high.margin < 0 else QUEUE
        return self._capacity(low, high.request_rate_per_s, binding)

    def fewest_gpus(self, rate_per_s: float) -> Capacity:
        """Search with a few of the requests, then from there with all."""
        step = self._config.cluster.gpus_per_replica
        few = self._fewest(self._few, rate_per_s, self._fewest_replicas, step)
        best = self._fewest(self._requests, rate_per_s, few.num_gpus // step, step)
        return self._capacity(best, math.nan, "")

    def _fewest(self, requests: Requests, rate_per_s: float, guess: int, step: int) -> Trial:
        """Bisect the number of replicas, of ``step`` GPUs each, from a guess."""

        def attempt(num: int) -> Trial:
            return self._trials.attempt(requests, rate_per_s, num * step)

        too_few, num, best = self._fewest_replicas - 1, guess, attempt(guess)
        while not best.attains:
            if 2 * num * step > _MOST_GPUS:
                raise ConfigError(
                    f"{num * step} GPUs do not attain the SLO at {rate_per_s:g} requests/s: {best.failure}"
                )
            too_few, num = num, 2 * num
            best = attempt(num)
        while num - too_few > 1:
            between = (too_few + num) // 2
            trial = attempt(between)
            if trial.attains:
                num, best = between, trial
            else:
                too_few = between
        return best

    def _bracket(self, requests: Requests, guess_per_s: float, factor: float) -> tuple[Trial, Trial | None]:
        """A rate that attains the SLO and a higher one that does not.

        The second is None where nothing bounds the rate, and the first misses the SLO where every rate does.
        """
        num_gpus = self._config.cluster.num_gpus
        trial = self._trials.attempt(requests, guess_per_s, num_gpus)
        if not trial.attains:
            return self._bracket_below(requests, trial, factor)
        while not trial.is_at_once and trial.request_rate_per_s * factor < _MOST_PER_S:
            higher = self._trials.attempt(requests, trial.request_rate_per_s * factor, num_gpus)
            if not higher.attains:
                return trial, higher
            trial, factor = higher, min(2.0, factor * factor)
        return trial, None

    def _bracket_below(self, requests: Requests, high: Trial, factor: float) -> tuple[Trial, Trial]:
        trial = high
        for _ in range(_MOST_HALVINGS):
            trial = self._trials.attempt(requests, high.request_rate_per_s / factor, high.num_gpus)
            if trial.attains:
                break
            high, factor = trial, min(2.0, factor * factor)
        return trial, high

    def _capacity(self, best: Trial, missed_per_s: float, binding: str) -> Capacity:
        rate_per_s = best.request_rate_per_s if best.attains else 0.0
        half_width = self._rate_half_width(best) if rate_per_s and binding not in ("", QUEUE) else None
        return Capacity(
            rate_per_s, half_width, missed_per_s, best.num_gpus, binding, best, tuple(self._trials.done)
        )

    def _rate_half_width(self, best: Trial) -> float | None:
        """How far the rate moves where the margin does by its half width: by the slope around it."""
        near = [
            (math.log(trial.request_rate_per_s), trial.margin)
            for trial in self._trials.done
            if trial.num_requests == best.num_requests
            and trial.binding == best.binding
            and abs(math.log(trial.request_rate_per_s / best.request_rate_per_s)) < 0.2
        ]
        if len(near) < 2 or not math.isfinite(best.half_width):
            return None
        log_rates, margins = np.array(near).T
        slope = float(np.polyfit(log_rates, margins, 1)[0])
        return best.request_rate_per_s * best.half_width / -slope if slope < 0 else None


def _between(low: Trial, high: Trial) -> float:
    """Where the margin will vanish, by the line through both; never next to either; else the middle."""
    share = 0.5
    if low.binding == high.binding and low.margin > 0 > high.margin:
        share = min(max(low.margin / (low.margin - high.margin), 0.15), 0.85)
    return low.request_rate_per_s * math.pow(high.request_rate_per_s / low.request_rate_per_s, share)
