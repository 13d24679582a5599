"""What a replication of a candidate says of the SLO, and how sure many of them make it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from batchsim.metrics.requests import TIMES
from batchsim.metrics.slo import judged_scores
from batchsim.metrics.statistics import Interval, t_interval
from batchsim.metrics.weighted import Floats
from batchsim.study.recommend.betting import is_above, is_below
from batchsim.study.recommend.draws import Draw
from batchsim.study.run import simulate

#: The requirement that the queue of most replications does not grow.
QUEUE = "queue"
_MOST = 0.5


class Value(NamedTuple):
    """How far one replication meets a requirement.

    Attributes
    ----------
    reached
        In [0, 1].
    wanted
        The mean of it that is wanted of many replications.
    share
        Of requests, those that keep the limit by themselves.
    """

    reached: float
    wanted: float
    share: float


class Outcome(NamedTuple):
    """What is kept of one replication.

    Attributes
    ----------
    values
        By requirement: those of `requirement_scores`, and `QUEUE`.
    within
        Share of the requests within the limits of each metric, and within all (``all``); empty where only
        statistics are limited.
    verdict
        Whether its queue grew, as in a summary.
    tokens_per_gpu_s, tokens_per_user_s
        Output tokens a second of a GPU, and of a request after its first token; NaN where not known.
    stands_on
        Sentences on what the numbers stand on: workload, latency model and prices, and how far times could be
        off.
    """

    values: Mapping[str, Value]
    within: Mapping[str, float]
    verdict: str
    tokens_per_gpu_s: float
    tokens_per_user_s: float
    stands_on: tuple[str, ...] = ()


def measure(draw: Draw, share: float) -> Outcome:
    """Simulate a replication, and judge its requests but for the warm-up."""
    result = simulate(draw.config, draw.workload)
    summary = result.summary
    covered = result.requests.iloc[int(summary["num_warmup"]) :]
    scores = judged_scores(covered, draw.config.slo, share)
    values = {name: _value(name, of, share) for name, of in scores.items()}
    does_not_grow = float(summary["verdict"] != "saturated")
    values[QUEUE] = Value(does_not_grow, _MOST, does_not_grow)
    names = {"all": "slo_attainment", **{name: f"slo_attainment_{name}" for name in TIMES}}
    tokens_per_s = summary["output_throughput_tokens_per_s"]
    if tokens_per_s is None:
        tokens_per_s = summary["whole_run_output_throughput_tokens_per_s"]
    tpot_s = summary["tpot_mean_s"]
    return Outcome(
        values,
        {name: summary[key] for name, key in names.items() if summary.get(key) is not None},
        str(summary["verdict"]),
        math.nan if tokens_per_s is None else tokens_per_s / draw.config.cluster.num_gpus,
        math.nan if not tpot_s else 1 / tpot_s,
        (
            f"{summary['workload']} ({summary['workload_kind']}) on {summary['latency_model']} "
            f"({summary['latency_provenance']}); {summary['prices']}",
            str(summary["expected_error"]),
        ),
    )


def wanted_share(name: str, share: float) -> float | None:
    """The share of requests that a requirement asks for; None where it limits a mean."""
    statistic = name.rpartition("_")[2]
    if name == "good":
        return share
    return float(statistic[1:]) / 100 if statistic.startswith("p") else None


def _value(name: str, scores: Floats, share: float) -> Value:
    """A share as it is; a mean from 0, for twice its limit or more, over 1/2 at the limit, to 1."""
    wanted, within = wanted_share(name, share), float((scores >= 0).mean())
    if wanted is None:
        return Value((1 + max(float(scores.mean()), -1.0)) / 2, 0.5, within)
    return Value(within, wanted, within)


class Evidence:
    """Replications of one candidate so far.

    Attributes
    ----------
    outcomes
        In their order.
    """

    def __init__(self, population: int | None = None) -> None:
        """Expect replications that are drawn from so many in all; None: as many as one likes."""
        self.outcomes: list[Outcome] = []
        self._population = population

    def __len__(self) -> int:
        return len(self.outcomes)

    @property
    def requirements(self) -> tuple[str, ...]:
        """All that must be met."""
        return tuple(self.outcomes[0].values) if self.outcomes else ()

    @property
    def margin(self) -> float:
        """How far the mean of the binding requirement is above what is wanted; -1 where nothing is known."""
        return min(map(self._margin, self.requirements), default=-1.0)

    @property
    def binding(self) -> str:
        """The requirement that is furthest from being met."""
        return min(self.requirements, key=self._margin)

    def attains(self, error: float) -> bool:
        """Whether all requirements are met, but for this probability that one is missed."""
        return all(
            is_above(self._reached(name), self._wanted(name), error, self._population)
            for name in self.requirements
        )

    def misses(self, error: float) -> bool:
        """Whether one is missed, but for this probability that all are met."""
        each = error / len(self.requirements)
        return any(
            is_below(self._reached(name), self._wanted(name), each, self._population)
            for name in self.requirements
        )

    def attained(self) -> Interval:
        """Share of requests that `shares` are of, with its 95 % t interval.

        The interval is for the eye, of this candidate alone at this moment; the race does not go by it.
        """
        shares = self.shares()
        interval = t_interval(shares) if len(shares) > 1 else Interval(_mean(shares), 0.0, 1.0)
        return Interval(interval.mean, max(interval.low, 0.0), min(interval.high, 1.0))

    @property
    def shown(self) -> str:
        """The requirement that is shown as a share: ``good``, or else the statistic that is the tightest."""
        names = [name for name in self.requirements if name != QUEUE]
        return "good" if "good" in names else min(names, key=self._margin)

    def shares(self, name: str | None = None) -> Floats:
        """Of each replication, the share of requests that keep the limit of a requirement; of `shown`."""
        name = name or self.shown
        return np.array([one.values[name].share for one in self.outcomes])

    def within(self) -> dict[str, float]:
        """Mean share of requests within the limits of each metric."""
        names = dict.fromkeys(name for one in self.outcomes for name in one.within)
        return {name: _mean(one.within.get(name, math.nan) for one in self.outcomes) for name in names}

    def mean_of(self, field: str, num: int | None = None) -> float:
        """Mean of a field of the outcomes, or of the first so many."""
        return _mean(getattr(one, field) for one in self.outcomes[:num])

    def _reached(self, name: str) -> Floats:
        return np.array([one.values[name].reached for one in self.outcomes])

    def _wanted(self, name: str) -> float:
        return self.outcomes[0].values[name].wanted

    def _margin(self, name: str) -> float:
        return float(self._reached(name).mean()) - self._wanted(name)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
