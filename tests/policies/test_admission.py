"""Who is let in, by what is seen of the replica."""

import pytest

from batchsim.errors import ConfigError
from batchsim.policies.admission import AdmitAll, PredictedTTFT, QueueLimit
from tests.policies.worlds import View, Waiting


def prompt(tokens: int, request_id: int = 0) -> Waiting:
    return Waiting(request_id, prompt_tokens=tokens)


def test_all_are_admitted_however_many_wait() -> None:
    assert AdmitAll().refusal(prompt(1), View(10**6, 10**6), 0.0) is None


def test_a_queue_limit_lets_so_many_wait() -> None:
    limit = QueueLimit(max_waiting=2)

    assert limit.refusal(prompt(1), View(9, 1), 0.0) is None
    assert limit.refusal(prompt(1), View(9, 2), 0.0) == "2 requests wait, and QueueLimit lets 2 wait"


def test_where_nobody_may_wait_an_empty_replica_takes_one() -> None:
    assert QueueLimit(max_waiting=0).refusal(prompt(1), View(0, 0), 0.0) is None
    assert QueueLimit(max_waiting=0).refusal(prompt(1), View(1, 0), 0.0) is not None


def test_nothing_is_predicted_before_a_first_token_was_seen() -> None:
    assert PredictedTTFT(limit_s=0.001).refusal(prompt(10**6), View(5, 4, 10**6), 0.0) is None


def test_predictions_follow_the_measured_rate() -> None:
    door = PredictedTTFT(limit_s=1.0)
    assert door.refusal(prompt(100), View(1, 0, 300), 2.0) is None
    door.observe(prompt(100), 2.5)  # 400 tokens took half a second

    assert door.refusal(prompt(500, 1), View(1, 0, 300), 3.0) is None  # exactly 1 s
    reason = door.refusal(prompt(600, 2), View(1, 0, 300), 3.0)
    assert (
        reason == "a first token after 1.12 s is predicted, and PredictedTTFT lets requests wait 1 s for it"
    )
    assert door.refusal(prompt(600, 2), View(1, 0, 300, cached=200), 3.0) is None  # need not be computed


def test_older_measurements_fade() -> None:
    door = PredictedTTFT(limit_s=1.0, memory=2.0)
    for number, (at_s, took_s) in enumerate([(0.0, 8.0), (10.0, 2.0)]):
        assert door.refusal(prompt(100, number), View(), at_s) is None
        door.observe(prompt(100, number), at_s + took_s)

    # (8 / 2 + 2) s for (100 / 2 + 100) tokens: 0.04 s each
    assert door.refusal(prompt(25), View(1), 20.0) is None
    assert door.refusal(prompt(26), View(1), 20.0) is not None


def test_who_finds_nobody_is_let_in_so_that_a_slow_moment_is_not_the_last_word() -> None:
    door = PredictedTTFT(limit_s=0.1)
    door.refusal(prompt(1), View(), 0.0)
    door.observe(prompt(1), 50.0)

    assert door.refusal(prompt(100), View(1), 60.0) is not None
    assert door.refusal(prompt(100), View(0), 60.0) is None


def test_one_that_did_not_come_through_the_door_teaches_nothing() -> None:
    door = PredictedTTFT(limit_s=0.1)
    door.observe(prompt(1), 50.0)

    assert door.refusal(prompt(100), View(1), 60.0) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QueueLimit(max_waiting=-1), "max_waiting is -1; a whole number >= 0"),
        (lambda: PredictedTTFT(limit_s=0.0), "limit_s is 0.0; a number of seconds > 0"),
        (lambda: PredictedTTFT(memory=0.5), "memory is 0.5; a number of requests >= 1"),
    ],
)
def test_senseless_limits_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]
