"""Tokens that come several at once: their times, and what drafts were worth."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from batchsim.metrics.engine import speculation_parts, token_throughput
from batchsim.metrics.summary import laws
from batchsim.metrics.system import Window
from batchsim.metrics.tokens import itl, num_tokens, token_times_s, worst_gap_s
from batchsim.records import DECODE_STEP_COLUMNS, Records, table
from tests.metrics.worlds import (
    NO_PREEMPTIONS,
    engine_records,
    engine_request_table,
    iteration_table,
    preemption_table,
)

#: A prompt to 1 s; then steps to 2, 3 and 5 s: of the first request 3, 1 and 2 tokens, of the second 2 and 2.
REQUESTS = engine_request_table([0.0, 0.0], output_tokens=[7, 5], first_token_s=1.0, finish_s=[5.0, 3.0])
ITERATIONS = iteration_table(
    [0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 5.0], decode_seqs=[0, 2, 2, 1], prefill_tokens=[20, 0, 0, 0]
).assign(decode_tokens=[0, 5, 3, 2])
STEPS = table(
    DECODE_STEP_COLUMNS,
    {
        "request_id": [0, 0, 0, 1, 1],
        "drafted": [2] * 5,
        "accepted": [2, 0, 2, 1, 2],
        "tokens": [3, 1, 2, 2, 2],
    },
)


def records_of(steps: pd.DataFrame) -> Records:
    return replace(engine_records(REQUESTS, ITERATIONS), decode_steps=steps)


def test_tokens_of_a_step_come_together() -> None:
    tables = (REQUESTS, ITERATIONS, NO_PREEMPTIONS, STEPS)

    assert token_times_s(0, *tables).tolist() == [1.0, 2.0, 2.0, 2.0, 3.0, 5.0, 5.0]
    assert token_times_s(1, *tables).tolist() == [1.0, 2.0, 2.0, 3.0, 3.0]
    assert num_tokens(*tables).tolist() == [7, 5]


def test_gaps_are_between_steps() -> None:
    gaps = itl(REQUESTS, ITERATIONS, NO_PREEMPTIONS)

    assert gaps.total == 5
    assert gaps.sum == 6.0
    assert worst_gap_s(REQUESTS, ITERATIONS, NO_PREEMPTIONS).tolist() == [2.0, 1.0]


def test_throughput_counts_tokens() -> None:
    done = token_throughput(REQUESTS, ITERATIONS, NO_PREEMPTIONS, Window(0.0, 5.0))

    assert done.output_tokens_per_s == pytest.approx(12 / 5)


def test_accepted_drafts_count_beyond_the_end_of_an_answer_and_tokens_do_not() -> None:
    records = records_of(STEPS)

    parts = speculation_parts(records)

    assert parts["tokens_per_step_mean"] == pytest.approx(10 / 5)
    assert parts["accepted_per_step_mean"] == pytest.approx(7 / 5)
    assert parts["draft_acceptance_rate"] == pytest.approx(7 / 10)
    assert speculation_parts(engine_records(REQUESTS, ITERATIONS)) == {}


def test_steps_of_an_answer_that_was_preempted_are_those_of_its_runs() -> None:
    # Preempted at 2 s, computed again to 3 s, which gives a token by itself; then a step of 3 to 5 s.
    requests = engine_request_table(
        [0.0], output_tokens=7, first_token_s=1.0, decode_start_s=3.0, finish_s=5.0, num_preemptions=1
    )
    iterations = iteration_table(
        [0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 5.0], decode_seqs=[0, 1, 0, 1], prefill_tokens=[20, 0, 22, 0]
    ).assign(decode_tokens=[0, 2, 0, 3])
    preemptions = preemption_table([2.0], request_id=[0], decode_start_s=[1.0])
    steps = table(
        DECODE_STEP_COLUMNS,
        {"request_id": [0, 0], "drafted": [2, 2], "accepted": [1, 2], "tokens": [2, 3]},
    )

    assert token_times_s(0, requests, iterations, preemptions, steps).tolist() == [1, 2, 2, 3, 5, 5, 5]
    assert num_tokens(requests, iterations, preemptions, steps).tolist() == [7]


@pytest.mark.parametrize("row", range(5))
def test_laws_catch_a_step_that_is_lost_or_a_token_too_many(row: int) -> None:
    sound = laws(records_of(STEPS))
    assert (sound["tokens"], sound["decodes"]) == (0.0, 0.0)

    lost = laws(records_of(STEPS.drop(index=row)))
    longer = STEPS.assign(tokens=STEPS["tokens"] + (np.arange(5) == row))
    gained = laws(records_of(longer))

    assert lost["tokens"] > 0
    assert gained["tokens"] == 1.0
    assert gained["decodes"] == -1.0
