"""The virtual token counter, step by step."""

import math

import numpy as np
import pytest

from batchsim.config import PolicyConfig
from batchsim.errors import ConfigError
from batchsim.policies import presets
from batchsim.policies.fair_share import FairShare, share_counters
from tests.policies.worlds import Waiting


def queue_of(*tenants: str, **parameters: object) -> FairShare:
    """Requests 0, 1, ... of these tenants, a second apart, with prompts of 10 tokens."""
    queue = FairShare(**parameters)  # type: ignore[arg-type]
    for index, tenant in enumerate(tenants):
        queue.push(Waiting(index, float(index), 10, 5, tenant=tenant))
    return queue


def admit(queue: FairShare) -> int:
    request = queue.pop(0, 0.0)
    queue.admit(request, request.prompt_tokens)
    return request.request_id


def test_next_is_the_first_of_who_was_served_least() -> None:
    queue = queue_of("a", "a", "a", "b", "b")

    assert [admit(queue) for _ in range(5)] == [0, 3, 1, 4, 2]


def test_answers_count_twice_by_default_as_they_are_decoded() -> None:
    queue = queue_of("a", "a", "b", "b")
    first = queue.pop(0, 0.0)
    queue.admit(first, 10)
    queue.first_token(first)
    queue.join(first)
    queue.advance(4)
    queue.leave(first)
    queue.advance(100)

    assert queue.counters.served_tokens() == {"a": 10 + 2 * 5, "b": 0}
    assert [admit(queue) for _ in range(3)] == [2, 3, 1]  # b: 0, 10, then level with a, who came before


def test_service_is_counted_over_weights_without_rounding() -> None:
    queue = queue_of(*"ab" * 30, weights={"a": 3, "b": 0.1}, prompt_weight=0.3)
    for _ in range(31):
        admit(queue)

    served = queue.counters.served_tokens()
    assert served["a"] == pytest.approx(30 * 10 * 0.3 / 3)
    assert served["b"] == pytest.approx(10 * 0.3 / 0.1)
    assert queue.counters.account("a").served == queue.counters.account("b").served


def test_who_begins_to_wait_is_lifted_to_the_least_of_those_who_wait_or_to_the_last_who_did() -> None:
    queue = queue_of("a", "a", "b")
    assert [admit(queue) for _ in range(2)] == [0, 2]
    queue.push(Waiting(3, 3.0, 10, 5, tenant="c"))
    assert queue.counters.served_tokens()["c"] == 10  # only a waits, at 10

    assert [admit(queue) for _ in range(2)] == [1, 3]  # level: by arrival
    assert queue.oldest_bin() is None
    queue.push(Waiting(4, 4.0, 10, 5, tenant="d"))
    assert queue.counters.served_tokens()["d"] == 20  # c was the last


def test_who_gives_up_is_no_longer_waited_for() -> None:
    queue = FairShare()
    requests = [Waiting(index, float(index), 10, 5, tenant=tenant) for index, tenant in enumerate("aab")]
    for request in requests:
        queue.push(request)
    queue.discard(requests[2], 0)
    queue.discard(requests[0], 0)

    assert queue.waiting(0) == 1
    assert queue.head(0, 0.0) is requests[1]
    assert queue.oldest(0) is queue.nth(0, 0) is requests[1]


def test_it_tells_when_another_will_be_next() -> None:
    queue = queue_of("a", "a", "b")
    running = queue.pop(0, 0.0)
    queue.join(running)
    assert queue.iterations_to_other_head() == 1  # level, and a came first: 1 token of a is enough
    queue.push(Waiting(3, 3.0, 10, 5, tenant="c"))
    queue.admit(Waiting(9, tenant="b"), 7)
    queue.admit(Waiting(9, tenant="c"), 8)

    assert queue.iterations_to_other_head() == 4  # 2 * 4 > 7
    queue.advance(3)
    assert queue.head(0, 0.0).tenant == "a"
    queue.advance(1)
    assert queue.head(0, 0.0).tenant == "b"
    assert queue.iterations_to_other_head() == math.inf  # b does not run


def test_closed_form_of_the_next_head_is_that_of_one_iteration_after_the_other() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        weights = {name: float(rng.choice([1, 2, 0.7])) for name in "abcd"}
        queue = queue_of(*rng.permutation(list("abcd")), weights=weights)
        for name in "abcd":
            queue.admit(Waiting(9, tenant=name), int(rng.integers(0, 60)))
            for _ in range(rng.integers(0, 4)):
                queue.join(Waiting(9, tenant=name))
        told, head = queue.iterations_to_other_head(), queue.head(0, 0.0)
        num = 0
        while queue.head(0, 0.0) is head and num < 500:
            queue.advance(1)
            num += 1

        assert told == (num if num < 500 else math.inf)


def test_a_batch_is_taken_as_if_each_had_run_and_what_did_not_go_is_given_back() -> None:
    queue = queue_of("a", "a", "a", "b", "b")
    batch = queue.take(0, 4, 0.0)
    assert [request.request_id for request in batch] == [0, 3, 1, 4]
    for request in reversed(batch[2:]):
        queue.push_back(request, 0)
    assert queue.counters.served_tokens() == {"a": 20, "b": 20}

    queue.settle(batch[:2], [10 + 25])  # a had 25 tokens, not 5; b was thrown out

    assert queue.counters.served_tokens() == {"a": 60, "b": 0}
    queue.push_back(batch[1], 0)
    assert [request.request_id for request in queue.take(0, 4, 0.0)] == [3, 4, 1, 2]


def test_queues_that_share_count_together() -> None:
    queues = [queue_of("a", "b", shared=True) for _ in range(2)]
    alone = queue_of("a", "b")
    share_counters([*queues, alone])
    admit(queues[0])

    assert [queue.counters.served_tokens()["a"] for queue in (*queues, alone)] == [10, 10, 0]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"weights": {"a": 0}}, "weights is 0 for a; a number > 0 is needed"),
        ({"weights": 3}, "weights is 3; a table of names to numbers is needed"),
        ({"output_weight": 0}, "output_weight is 0; a number > 0 is needed"),
        ({"prompt_weight": math.inf}, "prompt_weight is inf; a number > 0 is needed"),
    ],
)
def test_weights_have_to_be_positive(parameters: dict[str, object], message: str) -> None:
    config = PolicyConfig(preset="vllm_v1", queueing={"kind": "FairShare", **parameters})

    with pytest.raises(ConfigError, match=f"policy.queueing.{message}"):
        presets.build(config)
