"""Who is let in at the door of a cluster, and what becomes of the others."""

from typing import Any

import pytest

from batchsim.errors import ConfigError
from batchsim.latency import LinearIterationLatency
from batchsim.records import FINISHED, REFUSED
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate
from tests.sim.worlds import workload

#: 100 ms a pass, and 1 ms for each token of a prompt.
LATENCY = LinearIterationLatency(0.1, 0.001, 0.0, 0.0, 0.0)


def run(
    arrivals_s: list[float],
    outputs: list[int],
    prompts: list[int] | int = 1,
    *,
    num_gpus: int = 1,
    routing: str = "LeastLoaded",
    **config: Any,
) -> SimulationResult:
    """One seat per replica."""
    policy = {
        "preset": "vllm_v1",
        "batch_size": 1,
        "routing": {"kind": routing},
        "admission": config.pop("door"),
    }
    given = {
        "policy": policy,
        "workload": {"training_fraction": 0.0},
        "cluster": {"num_gpus": num_gpus},
        **config,
    }
    return simulate(given, workload(arrivals_s, outputs, prompts), latency=LATENCY)


LIMIT = {"kind": "QueueLimit", "max_waiting": 1}


def test_who_would_be_one_too_many_is_shed_and_counted_apart() -> None:
    result = run([0.0, 0.01, 0.02, 5.0, 6.0], [10] * 5, [1, 1, 1, 1, 10**6], door=LIMIT)

    assert result.requests["status"].tolist() == [FINISHED, FINISHED, REFUSED, FINISHED, REFUSED]
    assert result.records.refusals[2] == "shed: 1 requests wait, and QueueLimit lets 1 wait"
    assert result.records.refusals[4].startswith("may hold 1000009 KV tokens")
    assert result.summary["num_refused"] == 2
    assert result.summary["num_shed"] == 1


@pytest.mark.parametrize(("routing", "num_shed"), [("LeastLoaded", 2), ("RoundRobin", 2), ("Central", 3)])
def test_a_limit_is_of_each_replica_or_of_the_one_queue(routing: str, num_shed: int) -> None:
    result = run([0.0, 0.01, 0.02, 0.03, 0.04, 0.05], [20] * 6, num_gpus=2, routing=routing, door=LIMIT)

    assert result.summary["num_shed"] == num_shed


def test_an_old_view_lets_too_many_in() -> None:
    policy = {"preset": "vllm_v1", "batch_size": 1, "admission": LIMIT}
    shed = [
        simulate(
            {
                "policy": {**policy, "routing": {"kind": "LeastLoaded", "view_age_s": age_s}},
                "workload": {"training_fraction": 0.0},
            },
            workload([0.0, 0.01, 0.02, 0.03, 0.7], [20] * 5),
            latency=LATENCY,
        ).summary["num_shed"]
        for age_s in (0.0, 0.5)
    ]

    assert shed == [3, 1]


def test_a_client_that_is_shed_sends_its_next() -> None:
    result = run(
        [0.0] * 9, [5] * 9, door={"kind": "QueueLimit", "max_waiting": 1},
        clients={"kind": "closed_loop", "concurrency": 4, "think_time": "fixed", "think_time_s": 0.13},
    )  # fmt: skip

    assert (result.requests["status"] == FINISHED).sum() == 9 - result.summary["num_shed"]
    assert 0 < result.summary["num_shed"] < 9


def test_predictions_are_learnt_from_first_tokens() -> None:
    """Prompts of 900 tokens take 1 s: after the first was seen, who would wait for more than two is shed."""
    arrivals_s = [0.0, 1.5, 1.6, 1.7, 1.8]
    result = run(arrivals_s, [1] * 5, 900, door={"kind": "PredictedTTFT", "limit_s": 2.1})

    # Found by the second: nobody. By the third: nothing waits, as the prompt under way is in its last pass.
    assert result.requests["status"].tolist() == [FINISHED, FINISHED, FINISHED, FINISHED, REFUSED]
    assert result.records.refusals[4] == (
        "shed: a first token after 3 s is predicted, and PredictedTTFT lets requests wait 2.1 s for it"
    )


def test_the_door_stands_before_those_who_compute_prompts() -> None:
    config = {"cluster": {"num_gpus": 3, "num_prefill_replicas": 1}, "kv_transfer": {"nic_bytes_per_s": 1e12}}
    policy = {"preset": "vllm_v1", "batch_size": 1, "admission": LIMIT}
    given = {"policy": policy, "workload": {"training_fraction": 0.0}, **config}

    result = simulate(given, workload([0.0, 0.01, 0.02], [3] * 3, 100), latency=LATENCY)

    assert result.requests["status"].tolist() == [FINISHED, FINISHED, REFUSED]


def test_batches_that_run_to_completion_have_no_door() -> None:
    with pytest.raises(
        ConfigError, match=r"policy\.admission needs a policy that batches at every iteration"
    ):
        simulate({"policy": {"preset": "static_fifo", "admission": LIMIT}}, workload([0.0], [1]))


def test_a_door_needs_a_kind_that_exists() -> None:
    with pytest.raises(ConfigError, match=r"policy\.admission needs a kind; .*QueueLimit"):
        run([0.0], [1], door={"max_waiting": 1})
    with pytest.raises(ConfigError, match=r"policy\.admission\.max_wait is no parameter of QueueLimit"):
        run([0.0], [1], door={"kind": "QueueLimit", "max_wait": 1})
