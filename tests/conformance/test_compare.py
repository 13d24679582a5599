"""The first difference between two logs is told in words."""

import copy
from typing import Any

import pytest

from tests.conformance.compare import Log, effect, first_difference, request_difference

LOG: Log = {
    "rows": [
        [0.0, [[0, 16]], [], 7],
        [0.5, [[0, 1], [1, 4]], [], 6],
        [1.0, [[0, 1]], [1], 7],
    ],
    "first_token_s": [0.5, 1.0],
    "finish_s": [1.5, 2.0],
}


def changed(row: int, column: int, value: Any) -> Log:
    log = copy.deepcopy(LOG)
    log["rows"][row][column] = value
    return log


def test_equal_logs_do_not_differ_whether_pairs_are_lists_or_tuples() -> None:
    ours = copy.deepcopy(LOG)
    ours["rows"] = [[start, [tuple(pair) for pair in pairs], *rest] for start, pairs, *rest in ours["rows"]]

    assert first_difference(LOG, ours) is None


@pytest.mark.parametrize(
    ("ours", "difference"),
    [
        (changed(1, 0, 0.5000000000000001), "iteration 1, at 0.5 s: ours begins at 0.5000000000000001 s"),
        (changed(1, 1, [[0, 1]]), "iteration 1, at 0.5 s: 4 tokens of 1, ours 0"),
        (changed(2, 2, [0, 1]), "iteration 2, at 1.0 s: preempts 1, ours 0, 1"),
        (changed(2, 2, []), "iteration 2, at 1.0 s: preempts 1, ours nobody"),
        (changed(0, 3, 6), "iteration 0, at 0.0 s: 7 blocks free, ours 6"),
    ],
)
def test_first_iteration_that_differs_is_named(ours: Log, difference: str) -> None:
    assert first_difference(LOG, ours) == difference


def test_iteration_that_only_one_side_has_is_named() -> None:
    ours = {**LOG, "rows": LOG["rows"][:2]}

    assert first_difference(LOG, ours) == "iteration 2, at 1.0 s: only vLLM has it (1 of 0)"
    assert first_difference(ours, LOG) == "iteration 2, at 1.0 s: only we have it (1 of 0)"


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("first_token_s", "request 1: first token at 1.0 s, ours at 1.25 s"),
        ("finish_s", "request 1: end at 2.0 s, ours at 1.25 s"),
    ],
)
def test_requests_are_compared_where_iterations_are_not(name: str, difference: str) -> None:
    ours = {**LOG, "rows": [], name: [LOG[name][0], 1.25]}

    assert request_difference(LOG, ours) == difference


def test_effect_is_that_on_the_mean_time_from_arrival_to_end() -> None:
    ours = {**LOG, "finish_s": [1.5, 2.3]}

    assert effect(LOG, ours, [0.0, 0.5]) == "our mean E2E time +10.0000%"
    assert effect(LOG, {**LOG, "finish_s": []}, [0.0, 0.5]) == "there is no end"
