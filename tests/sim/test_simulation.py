"""Whole runs of a few requests whose times are worked out by hand."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from batchsim.errors import ConfigError, PlanError, StalledSimulation
from batchsim.latency.base import Domain
from batchsim.policies.base import QueueDiscipline, Sizer
from batchsim.policies.batching import Greedy
from batchsim.policies.presets import PRESETS
from batchsim.records import ABANDONED, FINISHED, REFUSED, STRANDED
from tests.sim.worlds import LinearLatency, run, workload

ONE_SECOND = LinearLatency(fixed_s=1.0)
TWO_SECONDS = LinearLatency(fixed_s=2.0)


class Never(Greedy):
    """Launches nothing, and does not own up to it."""

    def next_bin(
        self, queue: QueueDiscipline, sizer: Sizer, now_s: float, *, is_last_call: bool
    ) -> int | None:
        return None


@dataclass(frozen=True)
class Broken(Greedy):
    def next_bin(
        self, queue: QueueDiscipline, sizer: Sizer, now_s: float, *, is_last_call: bool
    ) -> int | None:
        if is_last_call:
            raise RuntimeError("this rule is broken")
        return None


NEVER = replace(PRESETS["static_fifo"], batching=Never())
BROKEN = replace(PRESETS["static_fifo"], batching=Broken())


def two_bins(size: int, **answers: Any) -> dict[str, Any]:
    """Answers of fewer than 10 tokens and others."""
    bins = {"num_bins": 2, "boundaries": [10]}
    return {"preset": "multi_bin", "batch_size": size, "queueing": bins, **answers}


def test_static_fifo_takes_what_waits_whenever_the_gpu_is_idle() -> None:
    requests = workload([0.0, 0.25, 0.5, 0.75, 5.0], 1)
    latency = LinearLatency(fixed_s=1.0, per_request_s=0.5)

    result = run(requests, latency, {"preset": "static_fifo", "batch_size": 2})

    # 0 alone until 1.5; 1 and 2 until 3.5; 3 until 5.0, the instant at which 4 comes.
    assert result.requests["scheduled_s"].tolist() == [0.0, 1.5, 1.5, 3.5, 5.0]
    assert result.requests["finish_s"].tolist() == [1.5, 3.5, 3.5, 5.0, 6.5]
    assert result.requests["first_token_s"].tolist() == [1.0, 2.5, 2.5, 4.5, 6.0]
    assert result.batches["batch_size"].tolist() == [1, 2, 1, 1]


def test_multi_bin_waits_for_full_batches_and_flushes_the_rest_at_the_end() -> None:
    requests = workload([0.0, 1.0, 2.0, 3.0, 4.0], [5, 20, 5, 20, 5])

    result = run(requests, LinearLatency(per_token_s=0.125), two_bins(2))

    # 0 and 2 from the arrival of 2 until 2.625; 1 and 3 from 3.0 until 5.5; then 4, whom nobody joins.
    assert result.requests["scheduled_s"].tolist() == [2.0, 3.0, 2.0, 3.0, 5.5]
    assert result.requests["finish_s"].tolist() == [2.625, 5.5, 2.625, 5.5, 6.125]
    assert result.requests["bin"].tolist() == [0, 1, 0, 1, 0]
    assert result.batches["is_flush"].tolist() == [False, False, True]


def test_multi_bin_serves_the_bin_that_became_full_first_not_the_oldest_request() -> None:
    requests = workload([0.0, 0.0, 0.125, 0.25, 0.375, 0.5], [5, 5, 5, 20, 20, 5])

    result = run(requests, LinearLatency(per_token_s=0.125), two_bins(2))

    # While 0 and 1 run until 0.625, the long bin fills at 0.375 and the short one, with the older 2, at 0.5.
    assert result.requests["scheduled_s"].tolist() == [0.0, 0.0, 3.125, 0.625, 0.625, 3.125]


def test_dynamic_no_bins_moves_the_size_with_the_measured_time_between_tokens() -> None:
    feedback = {"target_s": 2.0, "tolerance": 0.1, "alpha": 2, "delta": 1}
    policy = {"preset": "dynamic_no_bins", "batch_size": 4, "sizing": {"SloFeedback": feedback}}

    result = run(workload([0.0] * 8, 2), LinearLatency(per_request_s=0.5), policy)

    # The window [1, 4] starts at 2; two take 1 s between tokens, below 1.8 s, so it becomes [2, 4].
    assert result.batches["size_limit"].tolist() == [2, 3, 3]
    assert result.batches["start_s"].tolist() == [0.0, 1.0, 2.5]
    assert result.requests["finish_s"].tolist() == [1.0] * 2 + [2.5] * 3 + [4.0] * 3
    # The run is over when the last batch ends: nobody decides any more.
    assert result.controllers["batch_size"].tolist() == [3, 3]
    assert result.controllers["measured"].tolist() == [1.0, 1.5]
    assert result.controllers[["low", "high"]].iloc[0].tolist() == [2.0, 4.0]


def test_multi_bin_dynamic_keeps_a_size_for_each_bin() -> None:
    feedback = {"target_s": 2.0, "tolerance": 0.1, "alpha": 2, "delta": 1}
    policy = two_bins(4, preset="multi_bin_dynamic", sizing={"SloFeedback": feedback})

    result = run(workload([0.0] * 8, [2, 20] * 4), LinearLatency(per_request_s=0.5), policy)

    # What the short bin measures does not widen the long one: its first batch has the initial limit as well.
    assert result.batches["bin"].tolist() == [0, 1, 0, 1]
    assert result.batches["size_limit"].tolist() == [2, 2, 3, 3]
    assert result.requests["scheduled_s"].tolist() == [0.0, 1.0, 0.0, 1.0, 2.0, 3.0, 2.0, 3.0]
    assert result.controllers["bin"].tolist() == [0, 1, 0]


def test_arrival_at_the_instant_a_batch_ends_joins_the_next() -> None:
    requests = workload([0.0, 0.5, 1.0], 1)

    result = run(requests, ONE_SECOND, {"preset": "static_fifo"})

    assert result.requests["scheduled_s"].tolist() == [0.0, 1.0, 1.0]
    assert result.requests["batch_id"].tolist() == [0, 1, 1]


def test_requests_of_one_instant_are_taken_together() -> None:
    result = run(workload([0.0, 0.0, 3.0, 3.0], 1), ONE_SECOND, {"preset": "static_fifo"})

    assert result.batches["batch_size"].tolist() == [2, 2]


def test_gpu_that_is_idle_longest_goes_first() -> None:
    result = run(
        workload([0.0, 0.25, 0.5, 4.0], 1), ONE_SECOND, {"preset": "static_fifo", "batch_size": 1}, num_gpus=3
    )

    assert result.requests["gpu_id"].tolist() == [0, 1, 2, 0]
    assert result.requests["scheduled_s"].tolist() == [0.0, 0.25, 0.5, 4.0]


def test_timer_launches_a_short_batch_when_its_oldest_request_is_due() -> None:
    policy = two_bins(2, batching={"kind": "Timer", "max_wait_s": 1.5})

    result = run(workload([0.0, 1.0, 9.0, 9.5], [5, 20, 5, 5]), ONE_SECOND, policy)

    # 1 is due at 2.5, when 0 has just ended; 2 and 3 fill a batch before they are due.
    assert result.requests["scheduled_s"].tolist() == [1.5, 2.5, 9.5, 9.5]


def test_limit_that_falls_when_a_batch_ends_is_applied_at_once_by_another_idle_gpu() -> None:
    sizing = {"kind": "SloFeedback", "target_s": 0.001, "alpha": 1, "delta": 0, "max_batch_size": 8}
    policy = {"preset": "multi_bin", "queueing": {"num_bins": 1}, "sizing": sizing}

    result = run(workload([0.0] * 6 + [100.0], 2), LinearLatency(per_request_s=0.5), policy, num_gpus=2)

    # Four run until 2.0; their latency brings the limit down to 2, which makes a batch of the two that wait.
    assert result.requests["scheduled_s"].tolist() == [0.0] * 4 + [2.0] * 2 + [100.0]


@pytest.mark.parametrize("num_gpus", [1, 2])
def test_strand_leaves_the_last_short_batch_unserved(num_gpus: int) -> None:
    policy = {"preset": "multi_bin", "num_bins": 1, "batch_size": 4, "batching": {"leftovers": "strand"}}

    result = run(workload([0.0, 0.125, 0.25, 0.375, 0.5, 0.625], 1), ONE_SECOND, policy, num_gpus=num_gpus)

    assert result.requests["status"].tolist() == [FINISHED] * 4 + [STRANDED] * 2


def test_flush_serves_leftovers_oldest_first_once_no_more_requests_come() -> None:
    result = run(workload([0.0, 0.0, 0.0], [20, 5, 20]), ONE_SECOND, two_bins(4))

    assert result.requests["scheduled_s"].tolist() == [0.0, 1.0, 0.0]
    assert result.batches["is_flush"].all()


def test_request_gives_up_after_its_patience_unless_it_runs() -> None:
    requests = workload([0.0, 0.5, 1.5], 1)

    result = run(requests, TWO_SECONDS, {"preset": "static_fifo", "batch_size": 1}, patience_s=1.0)

    # 0 outlasts its patience on the GPU; 1 gives up at 1.5; 2 is served at 2.0.
    assert result.requests["status"].tolist() == [FINISHED, ABANDONED, FINISHED]
    assert result.requests["finish_s"].tolist()[::2] == [2.0, 4.0]
    assert result.requests["left_s"].fillna(-1).tolist() == [-1, 1.5, -1]


def test_patience_that_ends_at_the_instant_the_gpu_is_free_is_over() -> None:
    result = run(
        workload([0.0, 0.0], 1), TWO_SECONDS, {"preset": "static_fifo", "batch_size": 1}, patience_s=2.0
    )

    assert result.requests["status"].tolist() == [FINISHED, ABANDONED]


def test_request_that_gave_up_does_not_count_towards_a_full_batch() -> None:
    policy = {"preset": "multi_bin", "num_bins": 1, "batch_size": 2}

    result = run(workload([0.0, 2.0, 2.5], 1), ONE_SECOND, policy, patience_s=1.0)

    assert result.requests["status"].tolist() == [ABANDONED, FINISHED, FINISHED]
    assert result.requests["scheduled_s"].tolist()[1:] == [2.5, 2.5]


def test_evicted_request_runs_in_the_next_batch_with_its_wait_counted_from_its_arrival() -> None:
    result = run(
        workload([0.0, 0.0, 0.5], 20, 10),
        ONE_SECOND,
        {"preset": "static_fifo"},
        kv_capacity_tokens=40,
        predictor={"kind": "constant", "tokens": 5},
    )

    # Two were thought to take 2 * 15 tokens and take 2 * 30: 1 is thrown out and goes before 2. At 2 * 20
    # by what is expected of it now, it still gets company, which is thrown out in turn.
    assert result.requests["scheduled_s"].tolist() == [0.0, 1.0, 2.0]
    assert result.requests["num_evictions"].tolist() == [0, 1, 1]
    assert result.batches["num_evicted"].tolist() == [1, 1, 0]


def test_evicted_request_is_ranked_by_what_is_expected_of_it_now() -> None:
    # All are thought to take 5 tokens; after its eviction 1 is thought to take 10, so 2 passes it.
    result = run(
        workload([0.0, 0.0, 0.5], [20, 20, 6], 10),
        ONE_SECOND,
        {"preset": "static_fifo", "queueing": {"kind": "ShortestFirst"}},
        kv_capacity_tokens=40,
        predictor={"kind": "constant", "tokens": 5},
    )

    assert result.requests["scheduled_s"].tolist() == [0.0, 2.0, 1.0]


def test_prompt_that_fills_the_gpu_is_refused_at_the_door_with_the_reason() -> None:
    result = run(
        workload([0.0, 0.0], 1, [100, 10]), ONE_SECOND, {"preset": "static_fifo"}, kv_capacity_tokens=100
    )

    assert result.requests["status"].tolist() == [REFUSED, FINISHED]
    assert "a prompt of 100 tokens" in result.manifest["refusals"]["0"]


def test_round_robin_spreads_requests_in_turn() -> None:
    policy = {"preset": "static_fifo", "batch_size": 1, "routing": {"kind": "RoundRobin"}}

    result = run(workload([0.0, 0.25, 0.5, 2.0], 1), ONE_SECOND, policy, num_gpus=2)

    assert result.requests["gpu_id"].tolist() == [0, 1, 0, 1]
    assert result.requests["scheduled_s"].tolist() == [0.0, 0.25, 1.0, 2.0]


def test_least_loaded_counts_waiting_and_running_requests() -> None:
    policy = {"preset": "static_fifo", "batch_size": 1, "routing": {"kind": "LeastLoaded"}}
    requests = workload([0.0, 0.25, 2.0, 2.0, 2.0], [32, 8, 8, 8, 8])

    result = run(requests, LinearLatency(per_token_s=0.125), policy, num_gpus=2)

    # 0 runs on the first until 4.0, 1 on the second until 1.25; then they go to 1, to 0 (a tie) and to 1.
    assert result.requests["gpu_id"].tolist() == [0, 1, 1, 0, 1]
    assert result.requests["scheduled_s"].tolist() == [0.0, 0.25, 2.0, 4.0, 3.0]


def test_routed_request_stays_with_its_replica_though_another_is_idle() -> None:
    policy = {"preset": "static_fifo", "batch_size": 1, "routing": {"kind": "RoundRobin"}}

    result = run(workload([0.0, 0.0, 0.0], [32, 8, 8]), LinearLatency(per_token_s=0.125), policy, num_gpus=2)

    assert result.requests["scheduled_s"].tolist() == [0.0, 0.0, 4.0]


def test_stalled_run_says_who_waits_for_what() -> None:
    with pytest.raises(StalledSimulation) as stalled:
        run(workload([0.0, 0.5, 1.0], 1), ONE_SECOND, {"preset": f"{__name__}:NEVER"}, num_gpus=2)

    assert str(stalled.value) == (
        "nothing can happen after 1.000 s, but 3 requests are unfinished: queue 0: 3 requests in bin 0 "
        f"(oldest: request 0) wait for Never of policy {__name__}:NEVER to launch them, 2 of 2 GPUs wait "
        "for a batch"
    )


def test_error_of_a_policy_is_not_mistaken_for_a_stall() -> None:
    with pytest.raises(PlanError, match=r"Broken\.\w+ raised RuntimeError: this rule is broken"):
        run(workload([0.0], 1), ONE_SECOND, {"preset": f"{__name__}:BROKEN"})


def test_batch_outside_the_measured_range_stops_the_run_unless_it_may_extrapolate() -> None:
    measured = LinearLatency(fixed_s=1.0, domain=Domain(output_tokens=(1, 10)))
    requests = workload([0.0, 2.0], [10, 11])

    with pytest.raises(ConfigError, match="11"):
        run(requests, measured, {"preset": "static_fifo"})
    result = run(requests, measured, {"preset": "static_fifo"}, latency={"outside": "extrapolate"})

    assert result.batches["is_extrapolated"].tolist() == [False, True]
