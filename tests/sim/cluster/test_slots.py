"""Replicas that fail, come and go, by hand: 10 ms a pass, and 1 ms for each token of a prompt."""

from typing import Any

import numpy as np
import pytest

from batchsim.errors import ConfigError, StalledSimulation
from batchsim.latency import LinearIterationLatency
from batchsim.metrics.summary import laws
from batchsim.metrics.tokens import token_times_s
from batchsim.policies.continuous import StallFree
from batchsim.policies.presets import Preset
from batchsim.policies.queueing import Fifo
from batchsim.policies.routing import LeastLoaded
from batchsim.policies.sizing import FixedSize
from batchsim.policies.steps import Step
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate
from tests.sim.worlds import workload

LATENCY = LinearIterationLatency(0.01, 0.001, 0.0, 0.0, 0.0)


def run(arrivals_s: list[float], outputs: list[int], prompts: list[int], **config: Any) -> SimulationResult:
    """One replica, unless told otherwise, that fails for 100 ms at a time."""
    given = {"policy": {"preset": "vllm_v1"}, **config}
    if "failures" in given:
        given["failures"] = {"repair": "fixed", "repair_s": 0.1, **given["failures"]}
    result = simulate(given, workload(arrivals_s, outputs, prompts), latency=LATENCY)
    assert laws(result.records) == pytest.approx(dict.fromkeys(laws(result.records), 0.0), abs=1e-9)
    return result


def token_times(result: SimulationResult, request_id: int = 0) -> np.ndarray:
    return token_times_s(request_id, result.requests, result.iterations, result.preemptions)


def states(result: SimulationResult, replica: int = 0) -> list[tuple[str, float, float]]:
    rows = result.replica_states[result.replica_states["gpu_id"] == replica]
    return [tuple(row) for row in rows[["state", "start_s", "end_s"]].round(9).to_numpy()]


def test_one_that_resumes_goes_on_after_the_tokens_it_has() -> None:
    """First token at 60 ms, two more by 80; the third is under way at 85 and lost.

    On again at 185, 50 + 3 tokens are computed again, which gives the fourth.
    """
    result = run([0.0], [6], [50], failures={"at": [[0.085, 0]]})

    assert token_times(result) == pytest.approx([0.06, 0.07, 0.08, 0.248, 0.258, 0.268])
    assert result.iterations["num_iterations"].tolist() == [1, 2, 1, 2]
    request, moved = result.requests.iloc[0], result.preemptions.iloc[0]
    assert (request["scheduled_s"], request["first_token_s"]) == pytest.approx((0.0, 0.06))
    assert request["recomputed_tokens"] == moved["lost_tokens"] == 52  # the third token was not stored
    assert (moved["mode"], moved["time_s"]) == ("failure", 0.085)
    assert states(result) == [("on", 0.0, 0.085), ("failed", 0.085, 0.185), ("on", 0.185, 0.268)]
    assert result.summary["wasted_output_tokens"] == 0
    assert result.summary["failure_lost_tokens"] == 52
    assert result.summary["num_interrupted"] == result.summary["num_failures"] == 1
    assert result.summary["failed_share"] == pytest.approx(0.1 / 0.268)


def test_one_that_is_tried_again_has_none_of_its_tokens() -> None:
    result = run([0.0], [6], [50], failures={"at": [[0.085, 0]], "on_failure": "retry"})

    assert token_times(result) == pytest.approx([0.245, 0.255, 0.265, 0.275, 0.285, 0.295])
    request = result.requests.iloc[0]
    assert (request["scheduled_s"], request["first_token_s"]) == pytest.approx((0.185, 0.245))
    assert result.preemptions["mode"].tolist() == ["restart"]
    assert result.summary["wasted_output_tokens"] == 3
    assert result.summary["whole_run_output_throughput_tokens_per_s"] == pytest.approx(6 / 0.295)


def test_one_that_is_lost_has_failed_and_who_waited_has_not() -> None:
    result = run(
        [0.0, 0.01],
        [6, 2],
        [50, 10],
        failures={"at": [[0.085, 0]], "on_failure": "lose"},
        policy={"preset": "vllm_v1", "batch_size": 1},
    )

    assert result.requests["status"].tolist() == ["failed", "finished"]
    assert token_times(result, 1) == pytest.approx([0.205, 0.215])
    assert result.summary["num_failed"] == 1
    assert result.summary["wasted_output_tokens"] == 3
    assert result.summary["whole_run_output_throughput_tokens_per_s"] == pytest.approx(2 / 0.215)


def test_others_take_over() -> None:
    result = run([0.0, 0.0], [6, 9], [50, 50], failures={"at": [[0.085, 0]]}, cluster={"num_gpus": 2})

    assert result.requests["gpu_id"].tolist() == [1, 1]
    # In the middle of its own iteration, which ends at 90 ms, the other replica is handed 53 tokens more.
    assert token_times(result) == pytest.approx([0.06, 0.07, 0.08, 0.153, 0.163, 0.173])
    assert token_times(result, 1)[4] == pytest.approx(0.153)


def test_a_request_fails_that_was_interrupted_too_often() -> None:
    instants = [[0.05 + 0.15 * number, 0] for number in range(4)]

    result = run([0.0, 0.7], [1, 1], [60, 10], failures={"at": instants, "max_retries": 2})

    assert result.requests["status"].tolist() == ["failed", "finished"]
    assert (result.preemptions["request_id"] == 0).sum() == 3


def test_where_no_replica_will_ever_be_there_all_fail() -> None:
    result = run([0.0, 0.2], [6, 1], [50, 10], failures={"at": [[0.085, 0]], "repair_s": None})

    assert (result.requests["status"] == "failed").all()
    assert states(result)[1:] == [("failed", 0.085, 0.085), ("off", 0.085, 0.2)]


def test_a_failure_takes_away_what_was_swapped_out() -> None:
    """Its next run begins with a token, as one does after a prefill."""
    world: dict[str, Any] = {
        "policy": {"preset": "vllm_v0_swap"},
        "engine": {"num_kv_blocks": 8, "block_size": 4},
    }
    whole = run([0.0, 0.0], [18, 18], [10, 10], **world)
    swapped_s = float(whole.preemptions["time_s"][0])

    result = run([0.0, 0.0], [18, 18], [10, 10], failures={"at": [[swapped_s + 0.005, 0]]}, **world)

    assert result.preemptions["mode"].tolist()[:3] == ["swap", "failure", "failure"]
    assert len(token_times(result, 1)) == 18


ON_DEMAND = {
    "kind": "TargetTracking",
    "metric": "requests_per_replica",
    "target": 1.0,
    "scale_down_after_s": 0.0,
    "interval_s": 1.0,
    "min_replicas": 0,
    "cold_start_s": 0.5,
}


def test_a_replica_is_asked_for_paid_started_and_let_go() -> None:
    """At 1 s the first has ended and it goes; the second at 3.25 s asks for it anew."""
    result = run([0.25, 3.25], [2, 2], [50, 50], autoscaler=ON_DEMAND, cost={"usd_per_gpu_hour": 3.6})

    assert states(result) == [
        ("off", 0.0, 0.25),
        ("starting", 0.25, 0.75),
        ("on", 0.75, 1.0),
        ("draining", 1.0, 1.0),
        ("off", 1.0, 3.25),
        ("starting", 3.25, 3.75),
        ("on", 3.75, 3.82),
    ]
    assert result.requests["finish_s"].tolist() == pytest.approx([0.82, 3.82])
    summary = result.summary
    assert summary["gpu_hours"] == pytest.approx((0.75 + 0.57) / 3600)
    assert summary["usd_total"] == pytest.approx((0.75 + 0.57) / 1000)
    assert summary["busy_fraction"] is None or summary["busy_fraction"] <= 1
    assert summary["replicas_paid_mean"] == pytest.approx((0.75 + 0.57) / 3.57)
    assert summary["replicas_on_mean"] == pytest.approx(0.32 / 3.57)
    assert (summary["replicas_on_max"], summary["num_cold_starts"]) == (1, 2)
    assert summary["first_ready_s"] == pytest.approx(0.5)


def test_one_that_drains_ends_its_requests_and_gets_no_new_ones() -> None:
    """Two at the start; at 1 s one request is left, which is enough for one replica: the other goes."""
    result = run(
        [0.0, 0.01, 1.5],
        [150, 2, 2],
        [50, 50, 50],
        cluster={"num_gpus": 2},
        autoscaler={**ON_DEMAND, "target": 2.0, "initial_replicas": 2, "min_replicas": 1},
    )

    assert [state for state, *_ in states(result, 1)] == ["on", "draining", "off"]
    assert result.requests["gpu_id"].tolist() == [0, 1, 0]


def test_one_that_is_let_go_while_it_runs_is_paid_until_its_last_request_ends() -> None:
    result = run(
        [0.0, 0.0, 0.0],
        [130, 120, 300],
        [50, 50, 50],
        cluster={"num_gpus": 3},
        autoscaler={**ON_DEMAND, "target": 1.7, "initial_replicas": 3, "min_replicas": 1},
    )

    gone = result.replica_states[result.replica_states["state"] == "draining"]
    let_go_s, off_s = gone.loc[gone["gpu_id"] == 2, ["start_s", "end_s"]].iloc[0]
    assert let_go_s == 1.0  # three requests, which two replicas can take
    served = result.requests[result.requests["gpu_id"] == 2]
    assert off_s == served["finish_s"].max() > 3.0


def test_a_replica_that_comes_back_has_an_empty_prefix_cache() -> None:
    requests = workload([0.0, 1.5], [2, 2], [64, 64])
    requests.extra["hash_ids_16"] = np.array([[1, 2, 3, 4]] * 2 + [None], dtype=object)[:2]
    given = {
        "policy": {"preset": "vllm_v1"},
        "failures": {"at": [[1.0, 0]], "repair_s": 0.1, "repair": "fixed"},
    }

    with_failure = simulate(given, requests, latency=LATENCY)
    without = simulate({"policy": {"preset": "vllm_v1"}}, requests, latency=LATENCY)

    assert with_failure.requests["cached_tokens"].tolist() == [0, 0]
    assert without.requests["cached_tokens"].tolist() == [0, 48]


def test_a_request_that_waits_for_a_replica_may_give_up() -> None:
    result = run([0.25], [2], [50], autoscaler=ON_DEMAND, patience_s=0.2)

    assert result.requests["status"].tolist() == ["abandoned"]


def test_a_load_is_a_share_of_what_all_replicas_serve_all_the_time() -> None:
    loaded = {"workload": {"load": 0.5, "training_fraction": 0.0}, "cluster": {"num_gpus": 2}}

    fixed, scaled = (
        run([0.0, 0.1, 0.2], [5, 6, 7], [50, 60, 70], **loaded, **control)
        for control in ({}, {"autoscaler": ON_DEMAND})
    )

    assert scaled.requests["arrival_s"].tolist() == fixed.requests["arrival_s"].tolist()
    assert (scaled.summary["cluster"], fixed.summary["cluster"]) == ("at most 2 GPUs", "2 GPUs")


class Refuses(StallFree):
    """A rule that lets nobody in."""

    def plan(self, step: Step) -> None:
        pass


REFUSES = Preset(Fifo(), FixedSize(4), Refuses(), LeastLoaded())


def test_a_run_that_stands_still_is_noticed_though_replicas_come_and_go() -> None:
    with pytest.raises(StalledSimulation, match="1 requests are unfinished"):
        run(
            [0.0],
            [2],
            [5],
            policy={"preset": f"{__name__}:REFUSES"},
            autoscaler={"kind": "Thresholds", "interval_s": 3600.0},
        )


def routed(kind: str, **parameters: float) -> dict[str, Any]:
    return {"preset": "vllm_v1", "routing": {"kind": kind, **parameters}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"autoscaler": {"min_replicas": 2, "kind": "Thresholds"}},
            "min_replicas is 2, but the cluster has 1",
        ),
        ({"autoscaler": {"min_replicas": 0}}, "min_replicas needs autoscaler.kind"),
        ({"autoscaler": {"kind": "Treshold"}}, "did you mean"),
        ({"autoscaler": {"kind": "Thresholds", "uup": 3}}, "uup is no parameter"),
        ({"autoscaler": {"kind": "Thresholds", "up": 0.1}}, "a number above down"),
        ({"failures": {"at": [[1.0, 1]]}}, "names replica 1"),
        ({"failures": {"repair": "uniform", "repair_cv": 0.7}}, "a uniform law has at most"),
        (
            {"failures": {"at": [[1.0, 1]]}, "policy": {"preset": "static_fifo"}},
            "batches at every iteration",
        ),
        (
            {"failures": {"at": [[1.0, 1]]}, "cluster": {"num_gpus": 2, "num_prefill_replicas": 1}},
            "compute prompts and decode",
        ),
        (
            {"autoscaler": {"kind": "Thresholds"}, "policy": routed("Central")},
            "with Central nobody does",
        ),
        (
            {"failures": {"at": [[1.0, 0]], "repair_s": None}, "policy": routed("Central")},
            "Central needs failures.repair_s",
        ),
        ({"failures": {"at": [[1.0, 0]]}, "policy": routed("LMetric")}, "LMetric sees more"),
        (
            {"failures": {"at": [[1.0, 0]]}, "policy": routed("LeastLoaded", view_age_s=1.0)},
            "LeastLoaded sees more",
        ),
        (
            {
                "failures": {"at": [[1.0, 0]]},
                "engine": {"speculation": {"num_speculative_tokens": 2, "acceptance": 0.5}},
            },
            "leave engine.speculation out",
        ),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate({"policy": {"preset": "vllm_v1"}, **config}, workload([0.0], [1]), latency=LATENCY)


def test_a_window_without_any_replica_has_no_averages() -> None:
    """400 requests end before all replicas are gone for good, and 400 come thereafter."""
    arrivals_s = [*np.arange(400) * 0.02, *100.0 + np.arange(400) * 10.0]

    result = run(arrivals_s, [1] * 800, [1] * 800, failures={"at": [[9.0, 0]], "repair_s": None})
    late = result.with_warmup(400).summary

    assert (late["num_finished"], late["num_failed"], late["window"]) == (400, 400, "steady")
    assert (late["busy_fraction"], late["running_mean"], late["kv_use_mean"]) == (None, None, None)
    assert late["num_covered_finished"] == 0
