"""How many replicas? For clusters where they come and go with the load.

A rule is told at every decision what was observed since the last one, and answers how many are wanted; the
autoscaler keeps that within its limits, starts replicas and lets them go.
"""

from __future__ import annotations

import math
import reprlib
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from batchsim.errors import ConfigError, nearest
from batchsim.policies.building_blocks import Answer
from batchsim.policies.parts.importing import import_attribute
from batchsim.policies.parts.parameters import check_names, construct
from batchsim.policies.reports import ClusterReport

#: What a rule can look at: share of time that replicas run something, requests that wait and requests that
#: wait or run for each replica, share of KV blocks in use.
Metric = Literal["busy_fraction", "queue_per_replica", "requests_per_replica", "kv_use"]


class Scaling(Protocol):
    """How many replicas?"""

    def wanted(self, report: ClusterReport) -> int:
        """How many are to be on or starting; limits are for the autoscaler to keep."""


@dataclass(slots=True)
class TargetTracking(Answer):
    """As many replicas as bring a metric to its target: ``ceil(replicas on * metric / target)``.

    The formula of Kubernetes' Horizontal Pod Autoscaler, with its tolerance and its wait before it scales
    down: then the largest answer of the last seconds counts.

    Attributes
    ----------
    metric
        What is brought to the target.
    target
        In the metric's own unit: a share for ``busy_fraction`` and ``kv_use``, else requests.
    tolerance
        No change while the metric is so near to the target, as a share of it.
    scale_down_after_s
        Fewer are wanted only when no answer for so long was more.
    """

    metric: Metric = "busy_fraction"
    target: float = 0.7
    tolerance: float = 0.1
    scale_down_after_s: float = 300.0
    _answers: deque[tuple[float, int]] = field(default_factory=deque, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_positive("target", self.target)
        _check_not_negative("tolerance", self.tolerance)
        _check_not_negative("scale_down_after_s", self.scale_down_after_s)

    def wanted(self, report: ClusterReport) -> int:
        """The largest answer of the last seconds."""
        load = _load(report, self.metric) / self.target  # in replicas
        is_near = abs(load - report.num_on) <= self.tolerance * report.num_on
        answer = report.num_replicas if is_near and load > 0 else _whole(load)
        answers = self._answers
        answers.append((report.now_s, answer))
        while answers[0][0] < report.now_s - self.scale_down_after_s:
            answers.popleft()
        return max(num for _, num in answers)


@dataclass(slots=True)
class Thresholds(Answer):
    """One replica more, or so many, where a metric is above one value; fewer where it is below another.

    Attributes
    ----------
    metric
        What is compared.
    up, down
        The two values.
    step
        Replicas that are added or taken away at once.
    cooldown_s
        After a change the next one waits so long.
    """

    metric: Metric = "queue_per_replica"
    up: float = 4.0
    down: float = 0.5
    step: int = 1
    cooldown_s: float = 120.0
    _changed_s: float = field(default=-math.inf, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_not_negative("down", self.down)
        _check_not_negative("cooldown_s", self.cooldown_s)
        if not self.up > self.down:
            raise ConfigError(f"up is {self.up!r}; a number above down, which is {self.down!r}, is needed")
        if not self.step >= 1:
            raise ConfigError(f"step is {self.step!r}; a whole number >= 1 is needed")

    def wanted(self, report: ClusterReport) -> int:
        """A step up, a step down, or as many as there are."""
        num = report.num_replicas
        if report.now_s - self._changed_s < self.cooldown_s:
            return num
        load = _load(report, self.metric)
        if load > self.up * report.num_on:
            num += self.step
        elif load < self.down * report.num_on:
            num -= self.step
        if num != report.num_replicas:
            self._changed_s = report.now_s
        return num


@dataclass(slots=True)
class Predictive(Answer):
    """As many replicas as serve the rate of requests that is expected, from past arrivals alone.

    Expected is the larger of two rates: that of the last seconds, and that of the same time one period ago,
    for the time that lies ahead. In the first period only the former is known.

    Attributes
    ----------
    requests_per_s
        What one replica serves.
    window_s
        Seconds that a rate is measured over.
    ahead_s
        How far ahead the rate of the period before counts: the cold start, and some time for decisions.
    period_s
        By default a day.
    """

    requests_per_s: float
    window_s: float = 600.0
    ahead_s: float = 300.0
    period_s: float = 86_400.0
    _times_s: list[float] = field(default_factory=lambda: [0.0], init=False, repr=False, compare=False)
    _arrived: list[int] = field(default_factory=lambda: [0], init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("requests_per_s", "window_s", "period_s"):
            _check_positive(name, getattr(self, name))
        _check_not_negative("ahead_s", self.ahead_s)
        if self.ahead_s + self.window_s > self.period_s:
            raise ConfigError(
                f"ahead_s is {self.ahead_s!r}; with window_s, at most period_s, {self.period_s!r}, is "
                "needed: the rest of the period is not known yet"
            )

    def wanted(self, report: ClusterReport) -> int:
        """The larger rate, in replicas."""
        self._times_s.append(report.now_s)
        self._arrived.append(self._arrived[-1] + report.num_arrived)
        return _whole(self.expected_per_s(report.now_s) / self.requests_per_s)

    def expected_per_s(self, now_s: float) -> float:
        """Requests per second that are expected."""
        middle_s = now_s + self.ahead_s - self.period_s
        recent = self._rate_per_s(now_s - self.window_s, now_s)
        before = self._rate_per_s(middle_s - self.window_s / 2, middle_s + self.window_s / 2)
        return max(recent, before)

    def _rate_per_s(self, start_s: float, end_s: float) -> float:
        start_s = max(start_s, self._times_s[0])
        if end_s <= start_s:
            return 0.0
        return (self._by(end_s) - self._by(start_s)) / (end_s - start_s)

    def _by(self, time_s: float) -> float:
        """Requests that had arrived by then: between two decisions, evenly."""
        times_s, arrived = self._times_s, self._arrived
        after = min(bisect_right(times_s, time_s), len(times_s) - 1)
        length_s = times_s[after] - times_s[after - 1]
        share = (time_s - times_s[after - 1]) / length_s if length_s else 1.0
        return arrived[after - 1] + share * (arrived[after] - arrived[after - 1])


def build_scaling(kind: str, parameters: Mapping[str, Any]) -> Scaling:
    """Make the rule of this name, one of ours or ``module:Class``, with these parameters.

    Raises
    ------
    ConfigError
        For an unknown rule or parameter (with the nearest names), or a value the rule refuses.
    """
    if ":" not in kind:
        if kind not in RULES:
            raise ConfigError(f"autoscaler.kind is {reprlib.repr(kind)}; {nearest(kind, RULES)}")
        rule = RULES[kind]
    else:
        rule = import_attribute(kind, f"autoscaler.kind {kind!r}")
        if not isinstance(rule, type) or not callable(getattr(rule, "wanted", None)):
            raise ConfigError(f"autoscaler.kind {kind!r} is no class with a method `wanted`")
    check_names(rule, parameters, "autoscaler")
    made: Scaling = construct(rule, rule, parameters, "autoscaler")
    return made


#: The rules by their names.
RULES: Mapping[str, type] = {rule.__name__: rule for rule in (TargetTracking, Thresholds, Predictive)}


def _whole(load: float) -> int:
    """So many replicas carry a load; what rounding has added to it asks for none."""
    return math.ceil(load - 1e-9)


def _load(report: ClusterReport, metric: Metric) -> float:
    """The metric summed over the replicas that are on."""
    if metric == "queue_per_replica":
        return float(report.num_waiting)
    if metric == "requests_per_replica":
        return float(report.num_requests)
    return report.num_on * (report.busy_fraction if metric == "busy_fraction" else report.kv_use)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"{name} is {value!r}; a number > 0 is needed")


def _check_not_negative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name} is {value!r}; a number >= 0 is needed")
