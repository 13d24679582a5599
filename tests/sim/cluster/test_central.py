"""One queue for all replicas: by hand."""

from typing import Any

import pytest

from batchsim.latency import LinearIterationLatency
from batchsim.records import ABANDONED, FINISHED, REFUSED
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate
from tests.sim.worlds import workload

#: 100 ms a pass, whatever is in it.
A_PASS = LinearIterationLatency(0.1, 0.0, 0.0, 0.0, 0.0)


def run(
    arrivals_s: list[float],
    outputs: list[int],
    prompts: list[int] | int = 16,
    *,
    policy: dict[str, Any] | None = None,
    **config: Any,
) -> SimulationResult:
    """Two replicas of one seat each, unless told otherwise."""
    given = {
        "policy": {"preset": "vllm_v1", "batch_size": 1, "routing": {"kind": "Central"}, **(policy or {})},
        "workload": {"training_fraction": 0.0},
        "cluster": {"num_gpus": 2},
        **config,
    }
    return simulate(given, workload(arrivals_s, outputs, prompts), latency=A_PASS)


def test_a_request_waits_for_whoever_is_free_first() -> None:
    result = run([0.0, 0.01, 0.02, 0.03], [30, 5, 5, 5])

    assert result.requests["gpu_id"].tolist() == [0, 1, 1, 1]
    assert result.requests["scheduled_s"].tolist() == pytest.approx([0.0, 0.01, 0.51, 1.01])


def test_the_queue_discipline_orders_the_one_queue() -> None:
    result = run([0.0, 0.0, 0.1, 0.2], [10, 10, 9, 3], policy={"preset": "sjf", "batch_size": 1})

    assert result.requests["scheduled_s"].tolist() == pytest.approx([0.0, 0.0, 1.0, 1.0])
    assert result.requests["gpu_id"].tolist() == [0, 1, 1, 0]  # the shorter one first


def test_who_has_waited_too_long_is_next_the_moment_that_is_so() -> None:
    """At 0.4 s a seat is free, but not the blocks for who is next; at 0.62 s the one behind becomes next."""
    result = run(
        [0.0, 0.0, 0.0, 0.0, 0.12, 0.15],
        [30, 30, 4, 30, 20, 2],
        [200, 200, 16, 16, 16, 250],
        policy={"preset": "sjf", "batch_size": 2, "queueing": {"promote_after_s": 0.5}},
        engine={"num_kv_blocks": 20},
    )

    assert result.requests["scheduled_s"][4:].tolist() == pytest.approx([0.7, 3.0])


def test_several_short_prompts_are_given_at_once_and_long_ones_one_by_one() -> None:
    def begins(tokens: int) -> tuple[list[int], list[float]]:
        result = run(
            [0.0] * 4,
            [5] * 4,
            tokens,
            policy={"batch_size": 8, "batching": {"max_num_batched_tokens": 64}},
        )
        return result.requests["gpu_id"].tolist(), result.requests["scheduled_s"].tolist()

    assert begins(20) == ([0, 1, 0, 1], [0.0] * 4)
    gpus, times_s = begins(60)
    assert gpus == [0, 1, 0, 1]
    assert times_s == pytest.approx([0.0, 0.0, 0.1, 0.1])


def test_no_request_waits_at_a_replica_whose_blocks_are_taken() -> None:
    """Of 20 blocks the first two take 15 each: the third, of 8, has to wait for one of them, the second."""
    result = run(
        [0.0, 0.0, 0.05], [30, 10, 3], [230, 230, 120], policy={"batch_size": 8}, engine={"num_kv_blocks": 20}
    )

    assert result.requests["gpu_id"].tolist() == [0, 1, 1]
    assert result.requests["scheduled_s"][2] == pytest.approx(1.0)


def test_what_no_replica_can_hold_is_refused_and_what_one_can_goes_there() -> None:
    cluster = {"replicas": [{"num_kv_blocks": 4}, {"num_kv_blocks": 40}]}
    result = run([0.0, 0.0, 0.1], [5, 5, 5], [1000, 300, 16], cluster=cluster)

    assert result.requests["status"].tolist() == [REFUSED, FINISHED, FINISHED]
    assert result.requests["gpu_id"].tolist() == [-1, 1, 0]


def test_who_gives_up_leaves_the_one_queue() -> None:
    result = run([0.0, 0.0, 0.1, 0.2], [20, 20, 5, 5], patience_s=1.85)

    # The third gives up at 1.95 s, just before both are free.
    assert result.requests["status"].tolist() == [FINISHED, FINISHED, ABANDONED, FINISHED]
    assert result.requests["scheduled_s"][3] == pytest.approx(2.0)


def test_one_queue_of_prompts_before_replicas_that_only_compute_them() -> None:
    result = run(
        [0.0, 0.0, 0.0],
        [5, 5, 5],
        cluster={"num_gpus": 3, "num_prefill_replicas": 2},
        kv_transfer={"nic_bytes_per_s": 1e12},
    )

    assert (result.requests["status"] == FINISHED).all()
    assert set(result.transfers["source"]) == {0, 1}


def test_batches_that_run_to_completion_have_that_queue_anyway() -> None:
    requests = workload([0.0, 0.1, 0.2], [30, 5, 5])
    ends = [
        simulate(
            {
                "policy": {"preset": "static_fifo", "batch_size": 1, **routing},
                "workload": {"training_fraction": 0.0},
                "cluster": {"num_gpus": 2},
            },
            requests,
        ).requests["finish_s"]
        for routing in ({}, {"routing": {"kind": "Central"}}, {"routing": {"kind": "RoundRobin"}})
    ]

    assert ends[0].equals(ends[1])
    assert not ends[0].equals(ends[2])
