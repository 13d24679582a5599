"""Sessions: who belongs together, how contexts grow, and what the generator promises."""

from typing import Any

import numpy as np
import pytest

from batchsim.errors import ConfigError
from batchsim.workload.generators.synthetic import generate
from batchsim.workload.prefixes import prefix_ids
from batchsim.workload.request import Workload
from batchsim.workload.sessions import (
    Sessions,
    answer_ids,
    gaps_to_next_turn_s,
    grow_context,
    session_numbers,
    session_rows,
)

NUM = 40_000


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def workload(session_id: list[Any], prompt_tokens: Any = 1, output_tokens: Any = 1) -> Workload:
    """One request a second."""
    num = len(session_id)
    ids = np.empty(num, dtype=object)
    ids[:] = session_id
    return Workload(
        np.arange(num),
        np.arange(num, dtype=np.float64),
        np.broadcast_to(np.asarray(prompt_tokens), num),
        np.broadcast_to(np.asarray(output_tokens), num),
        {"session_id": ids},
    )


def test_sessions_are_numbered_by_first_arrival_and_none_is_none() -> None:
    assert session_numbers(workload(["b", np.nan, "a", "b", None])).tolist() == [0, -1, 1, 0, -1]
    assert session_numbers(workload([7, 3, 7])).tolist() == [0, 1, 0]


def test_a_workload_without_session_ids_has_single_turns() -> None:
    requests = Workload(np.arange(2), np.zeros(2), np.ones(2, int), np.ones(2, int))

    assert session_rows(requests) == [[0], [1]]


def test_rows_of_a_session_are_its_turns_and_a_request_without_session_is_alone() -> None:
    requests = workload(["a", None, "b", "a", None, "b", "a"])

    assert session_rows(requests) == [[0, 3, 6], [1], [2, 5], [4]]


def test_gaps_lead_to_the_next_turn_of_the_same_session() -> None:
    assert gaps_to_next_turn_s(workload(["a", "b", None, "a", "b", "a"])).tolist() == [3, 3, 0, 2, 0, 0]


def test_a_prompt_repeats_the_prompts_and_answers_before_it() -> None:
    requests = workload(["a", "b", None, "a", "a"], [10, 20, 30, 1, 2], [5, 6, 7, 8, 9])

    grown = grow_context(requests)

    assert grown.prompt_tokens.tolist() == [10, 20, 30, 10 + 5 + 1, 10 + 5 + 1 + 8 + 2]
    assert grown.output_tokens is requests.output_tokens
    assert "earlier turns" in grown.source.notices[-1]
    assert requests.prompt_tokens.tolist() == [10, 20, 30, 1, 2]


def test_turns_share_the_ids_of_full_blocks_and_sessions_none() -> None:
    requests = workload(["a", "b", "a", None, "b"], [40, 16, 20, 50, 1], [8, 8, 8, 8, 8])

    found = prefix_ids(grow_context(requests))

    # Prompts of 40, 16, 40 + 8 + 20 = 68, 50 and 16 + 8 + 1 = 25 tokens; full blocks of 16.
    assert found is not None
    assert found.tokens_per_id == 16
    first, other, second, alone, last = found.ids
    assert [len(ids) for ids in found.ids] == [2, 1, 4, 3, 1]
    assert second[:2] == first
    assert last == other
    assert len({*first, *second, *other, *alone}) == 4 + 1 + 3


def test_ids_of_an_answer_are_those_that_the_next_turn_has_behind_the_prompt() -> None:
    # ids cover 16 tokens; of 20 + 12 tokens, one is never stored
    grown = grow_context(workload(["a", "b", "a", "a"], [20, 64, 1, 40], [12, 16, 31, 9]))
    prefixes = prefix_ids(grown)
    assert prefixes is not None

    ids = answer_ids(grown, prefixes)

    assert [list(one) for one in prefixes.ids] == [[0], [6, 7, 8, 9], [0, 1], [0, 1, 2, 3, 4, 5]]
    assert [list(one) for one in ids] == [[], [], [2], []]


@pytest.mark.parametrize("repeated", [[7, 2, 3], [1, 2]])
def test_turn_that_does_not_repeat_prompt_and_answer_tells_no_ids(repeated: list[int]) -> None:
    turns = workload(["a", "a"], [16, 16 * len(repeated)], 30)
    turns.extra["prefix_ids"] = np.empty(2, dtype=object)
    turns.extra["prefix_ids"][:] = [[1], repeated]
    prefixes = prefix_ids(turns)
    assert prefixes is not None

    assert [list(one) for one in answer_ids(turns, prefixes)] == [[], []]


def test_generated_sessions_have_the_published_numbers_of_turns() -> None:
    _, session = Sessions(sessions_per_s=1.0).sample(NUM, rng())
    num_turns = np.unique(session, return_counts=True)[1]

    assert np.mean(num_turns == 1) == pytest.approx(1 / 2.8, abs=0.02)
    assert np.median(num_turns) == 2
    assert np.quantile(num_turns, 0.75) == 4


def test_generated_turns_come_in_order_at_the_rate_and_gaps_asked() -> None:
    requests = generate(
        {
            "kind": "sessions",
            "sessions_per_s": 2.0,
            "mean_turns": 3.0,
            "turn_gap_s": 10.0,
            "prompt": {"kind": "lognormal", "sigma": 1.0, "median": 100},
            "output": {"kind": "lognormal", "sigma": 1.0, "median": 50},
        },
        NUM,
        rng(),
    )

    gaps_s = gaps_to_next_turn_s(requests)
    assert requests.source.kind == "synthetic"
    assert np.all(np.diff(requests.arrival_s) >= 0)
    assert NUM / requests.arrival_s[-1] == pytest.approx(6.0, rel=0.03)
    assert gaps_s[gaps_s > 0].mean() == pytest.approx(10.0, rel=0.03)


def test_one_turn_a_session_is_a_poisson_process() -> None:
    arrival_s, session = Sessions(sessions_per_s=4.0, mean_turns=1.0).sample(NUM, rng())

    gaps_s = np.diff(arrival_s)
    assert len(set(session.tolist())) == NUM
    assert gaps_s.mean() == pytest.approx(0.25, rel=0.02)
    assert gaps_s.std() == pytest.approx(0.25, rel=0.03)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sessions_per_s": 0.0}, "sessions_per_s is 0.0; a number > 0"),
        ({"sessions_per_s": 1.0, "mean_turns": 0.5}, "mean_turns is 0.5; a number >= 1"),
        ({"sessions_per_s": 1.0, "turn_gap_s": -1}, "turn_gap_s is -1"),
        ({"rate_per_s": 1.0}, r"'rate_per_s' is unknown; did you mean"),
        ({}, "parameter sessions_per_s is missing"),
    ],
)
def test_wrong_parameters_are_one_sentence(parameters: dict[str, float], message: str) -> None:
    lengths = {"prompt": {"kind": "fixed", "tokens": 1}, "output": {"kind": "fixed", "tokens": 1}}

    with pytest.raises(ConfigError, match=message):
        generate({"kind": "sessions", **parameters, **lengths}, 5, rng())
