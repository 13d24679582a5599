import math
from typing import Any

import pytest

from batchsim.errors import ConfigError
from batchsim.policies.base import Setting
from batchsim.policies.batching import FullBatch, Greedy, Timer
from batchsim.policies.queueing import MultiBin
from batchsim.policies.sizing import FixedSize
from tests.policies.worlds import waiting

SHORT, LONG = 1, 20


def queue_of(*predicted_output_tokens: int) -> MultiBin:
    queue = MultiBin(2, boundaries=[10])
    queue.prepare(Setting(100))
    for request in waiting(*predicted_output_tokens):
        queue.push(request)
    return queue


def ask(
    rule: Any, queue: MultiBin, now_s: float = 0.0, size: int = 2, *, is_last_call: bool = False
) -> int | None:
    return rule.next_bin(queue, FixedSize(size), now_s, is_last_call=is_last_call)


def test_greedy_serves_the_bin_whose_oldest_request_arrived_first() -> None:
    assert ask(Greedy(), queue_of(LONG, SHORT, SHORT)) == 1


def test_greedy_serves_the_longest_line_if_told_so() -> None:
    assert ask(Greedy("longest"), queue_of(LONG, SHORT, SHORT)) == 0


@pytest.mark.parametrize("rule", [Greedy(), Greedy("longest"), FullBatch(), Timer(0.0)])
def test_nothing_is_launched_from_an_empty_queue(rule: Any) -> None:
    assert ask(rule, queue_of()) is None
    assert ask(rule, queue_of(), is_last_call=True) is None


def test_full_batch_waits_until_a_bin_is_full() -> None:
    assert ask(FullBatch(), queue_of(SHORT, LONG)) is None


def test_full_batch_goes_by_when_a_bin_became_full() -> None:
    assert ask(FullBatch(), queue_of(SHORT, LONG, LONG, SHORT)) == 1


def test_full_batch_does_not_count_requests_beyond_the_first_batch() -> None:
    # The short line became full with request 1, though it still grew after the long one did.
    assert ask(FullBatch(), queue_of(SHORT, SHORT, LONG, LONG, SHORT, SHORT)) == 0


def test_full_batch_flushes_the_oldest_leftovers_at_the_last_call() -> None:
    assert ask(FullBatch(), queue_of(LONG, SHORT), is_last_call=True) == 1


def test_full_batch_strands_leftovers_if_told_so() -> None:
    rule = FullBatch("strand")

    assert ask(rule, queue_of(LONG, SHORT), is_last_call=True) is None
    assert (rule.strands, FullBatch().strands) == (True, False)


def test_timer_waits_until_the_oldest_is_due() -> None:
    queue = queue_of(LONG, SHORT)

    assert ask(Timer(5.0), queue, 4.99) is None
    assert ask(Timer(5.0), queue, 5.0) == 1
    assert Timer(5.0).wake_s(queue) == 5.0


def test_timer_launches_a_full_bin_before_it_is_due() -> None:
    assert ask(Timer(5.0), queue_of(LONG, SHORT, SHORT), 2.0) == 0


def test_timer_launches_anything_at_the_last_call() -> None:
    assert ask(Timer(5.0), queue_of(SHORT), 0.0, is_last_call=True) == 0


@pytest.mark.parametrize("rule", [Greedy(), FullBatch(), Timer(5.0)])
def test_no_rule_asks_to_be_woken_for_an_empty_queue(rule: Any) -> None:
    assert rule.wake_s(queue_of()) == math.inf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Greedy("newest"), "order is 'newest'"),
        (lambda: FullBatch("drop"), "leftovers is 'drop'"),
        (lambda: Timer(-1.0), r"max_wait_s is -1\.0"),
        (lambda: Timer(math.nan), "max_wait_s is nan"),
    ],
)
def test_rules_refuse_parameters_that_make_no_sense(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
