"""How many replicas rules want, by hand."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from batchsim.errors import ConfigError
from batchsim.policies.reports import ClusterReport
from batchsim.policies.scaling import Predictive, TargetTracking, Thresholds, build_scaling


def report(now_s: float = 0.0, num_on: int = 2, **observed: Any) -> ClusterReport:
    nothing = {
        "elapsed_s": 10.0,
        "num_starting": 0,
        "num_arrived": 0,
        "num_waiting": 0,
        "num_requests": 0,
        "busy_fraction": 0.0,
        "kv_use": 0.0,
    }
    return ClusterReport(now_s=now_s, num_on=num_on, **{**nothing, **observed})


@pytest.mark.parametrize(
    ("rule", "observed", "wanted"),
    [
        (TargetTracking("busy_fraction", 0.5), {"busy_fraction": 1.0}, 4),
        (TargetTracking("busy_fraction", 0.5), {"busy_fraction": 0.54}, 2),  # near enough
        (TargetTracking("busy_fraction", 0.5), {"busy_fraction": 0.54, "num_starting": 1}, 3),
        (TargetTracking("busy_fraction", 0.5), {}, 0),
        (TargetTracking("busy_fraction", 0.5), {"busy_fraction": 1e-16}, 0),  # a rounding
        (TargetTracking("kv_use", 0.4), {"kv_use": 0.9}, 5),
        (TargetTracking("queue_per_replica", 2.0), {"num_waiting": 7, "num_on": 0}, 4),
        (TargetTracking("requests_per_replica", 4.0), {"num_requests": 21}, 6),
        (Thresholds("queue_per_replica", 4.0, 1.0), {"num_waiting": 9}, 3),
        (Thresholds("queue_per_replica", 4.0, 1.0), {"num_waiting": 8}, 2),
        (Thresholds("queue_per_replica", 4.0, 1.0, step=2), {"num_waiting": 1}, 0),
    ],
)
def test_a_rule_answers(rule: Any, observed: dict[str, Any], wanted: int) -> None:
    assert rule.wanted(report(**observed)) == wanted


def test_target_tracking_scales_down_when_no_recent_answer_was_more() -> None:
    rule = TargetTracking("requests_per_replica", 1.0, scale_down_after_s=20.0)

    answers = [rule.wanted(report(10.0 * i, num_requests=num)) for i, num in enumerate([5, 1, 3, 1, 1, 1])]

    assert answers == [5, 5, 5, 3, 3, 1]


def test_thresholds_wait_after_a_change() -> None:
    rule = Thresholds("queue_per_replica", 4.0, 1.0, cooldown_s=20.0)

    answers = [rule.wanted(report(10.0 * index, num_waiting=100)) for index in range(4)]

    assert answers == [3, 2, 3, 2]


def test_predictive_goes_by_the_last_seconds_and_by_the_period_before() -> None:
    """10 a second in the first 100 s of each 1000, else 1: the rise is seen 50 s before it comes."""
    rule = Predictive(2.0, window_s=20.0, ahead_s=60.0, period_s=1000.0)

    answers = {
        now_s: rule.wanted(report(now_s, num_arrived=100 if (now_s - 10) % 1000 < 100 else 10))
        for now_s in np.arange(10.0, 1500.0, 10.0).tolist()
    }

    assert (answers[50.0], answers[100.0], answers[110.0], answers[120.0]) == (5, 5, 3, 1)
    assert (answers[930.0], answers[940.0], answers[950.0]) == (1, 5, 5)
    assert (answers[1050.0], answers[1110.0], answers[1120.0]) == (5, 3, 1)


def test_what_is_expected_does_not_depend_on_what_comes_later() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(20, 300).tolist()

    def answers(num: int) -> list[int]:
        rule = Predictive(0.3, window_s=50.0, ahead_s=30.0, period_s=400.0)
        return [rule.wanted(report(10.0 * i, num_arrived=one)) for i, one in enumerate(counts[:num], 1)]

    assert answers(300)[:200] == answers(200)


@dataclass
class AlwaysThree:
    """A rule from outside."""

    more: int = 0

    def wanted(self, report: ClusterReport) -> int:
        return 3 + self.more


def test_a_rule_from_outside_is_found_by_name() -> None:
    assert build_scaling(f"{__name__}:AlwaysThree", {"more": 2}).wanted(report()) == 5


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("Targettracking", {}, "TargetTracking"),
        ("TargetTracking", {"metric": "load"}, "one of 'busy_fraction'"),
        ("TargetTracking", {"target": 0.0}, "autoscaler.target is 0.0"),
        ("Predictive", {}, "requests_per_s"),
        ("Predictive", {"requests_per_s": 1.0, "period_s": 100.0}, "autoscaler.ahead_s is 300.0"),
        ("nowhere:Rule", {}, "cannot be imported"),
        (f"{__name__}:report", {}, "no class with a method"),
    ],
)
def test_a_rule_that_cannot_be_made_is_refused(kind: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_scaling(kind, parameters)
