from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchsim.metrics.requests import tpot_s
from batchsim.metrics.tokens import iteration_ends_s, itl, num_tokens, token_times_s, worst_gap_s
from batchsim.metrics.weighted import Weighted
from batchsim.records import STRANDED, Records
from tests.metrics.engine_world import dice_run
from tests.metrics.worlds import (
    NO_PREEMPTIONS,
    engine_request_table,
    iteration_table,
    preemption_table,
)


def dice(test: Any) -> Any:
    return settings(max_examples=15)(given(seed=st.integers(0, 99), num_gpus=st.integers(1, 3))(test))


# A prefill of two, three decodes of 1, 2 and 3 s, a prefill of a third request, one decode of all three.
ITERATIONS = iteration_table(
    [0.0, 2.0, 8.0],
    [2.0, 8.0, 9.0],
    num_iterations=[1, 3, 1],
    first_iteration_s=[2.0, 1.0, 1.0],
    decode_seqs=[0, 2, 2],
)


def tables(run: Records) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    return run.requests, run.iterations, run.preemptions


def as_dict(gaps: Weighted) -> dict[float, int]:
    values, weights = gaps.written_out()
    return pd.Series(weights).groupby(values).sum().to_dict()


def test_iterations_of_a_span_grow_by_a_constant() -> None:
    assert iteration_ends_s(ITERATIONS).tolist() == [2.0, 3.0, 5.0, 8.0, 9.0]


def test_the_last_iteration_ends_with_its_span_whatever_the_rounding() -> None:
    spans = iteration_table([0.1], [0.7], num_iterations=[3], first_iteration_s=[0.19])

    assert iteration_ends_s(spans)[-1] == 0.7


def test_every_decoding_sequence_gets_a_token_at_the_end_of_an_iteration() -> None:
    requests = engine_request_table([0.0, 0.0], output_tokens=[5, 4], first_token_s=2.0, finish_s=[9.0, 8.0])

    first, second = (token_times_s(row, requests, ITERATIONS, NO_PREEMPTIONS) for row in (0, 1))

    assert first.tolist() == [2.0, 3.0, 5.0, 8.0, 9.0]
    assert second.tolist() == [2.0, 3.0, 5.0, 8.0]
    assert as_dict(itl(requests, ITERATIONS, NO_PREEMPTIONS)) == {1.0: 3, 2.0: 2, 3.0: 2}
    assert worst_gap_s(requests, ITERATIONS, NO_PREEMPTIONS).tolist() == [3.0, 3.0]


def test_a_prefill_of_others_stalls_the_next_token() -> None:
    requests = engine_request_table([0.0], output_tokens=3, first_token_s=1.0, finish_s=7.0)
    iterations = iteration_table([0.0, 1.0, 2.0, 6.0], [1.0, 2.0, 6.0, 7.0], decode_seqs=[0, 1, 0, 1])

    assert as_dict(itl(requests, iterations, NO_PREEMPTIONS)) == {1.0: 1, 5.0: 1}
    assert worst_gap_s(requests, iterations, NO_PREEMPTIONS).tolist() == [5.0]


def test_a_chunk_beside_decodes_delays_their_token_and_gives_its_own_request_one() -> None:
    requests = engine_request_table(
        [0.0, 0.0], output_tokens=[3, 2], first_token_s=[1.0, 4.0], finish_s=[5.0, 5.0]
    )
    iterations = iteration_table([0.0, 1.0, 4.0], [1.0, 4.0, 5.0], decode_seqs=[0, 1, 2])

    assert token_times_s(0, requests, iterations, NO_PREEMPTIONS).tolist() == [1.0, 4.0, 5.0]
    assert token_times_s(1, requests, iterations, NO_PREEMPTIONS).tolist() == [4.0, 5.0]


@pytest.mark.parametrize(
    ("mode", "decode_start_s", "times_s"),
    [("recompute", 6.0, [1.0, 2.0, 6.0, 7.0]), ("swap", 5.0, [1.0, 2.0, 6.0, 7.0])],
)
def test_a_repeated_prefill_gives_a_token_and_a_swap_in_none(
    mode: str, decode_start_s: float, times_s: list[float]
) -> None:
    # Preempted at 2 s while another decodes on to 5 s; then it prefills again, or is back and decodes.
    requests = engine_request_table(
        [0.0], output_tokens=4, first_token_s=1.0, decode_start_s=decode_start_s, finish_s=7.0
    )
    preemptions = preemption_table([2.0], request_id=0, mode=mode, decode_start_s=1.0)
    iterations = iteration_table(
        [0.0, 1.0, 2.0, 5.0, 6.0],
        [1.0, 2.0, 5.0, 6.0, 7.0],
        num_iterations=[1, 1, 3, 1, 1],
        decode_seqs=[0, 2, 1, 0 if mode == "recompute" else 2, 2],
    )

    assert token_times_s(0, requests, iterations, preemptions).tolist() == times_s
    assert as_dict(itl(requests, iterations, preemptions)) == {1.0: 2, 4.0: 1}
    assert worst_gap_s(requests, iterations, preemptions).tolist() == [4.0]


def test_a_swap_before_the_prompt_was_complete_leaves_the_first_token_to_the_prefill() -> None:
    requests = engine_request_table([0.0], output_tokens=2, first_token_s=4.0, finish_s=5.0)
    preemptions = preemption_table([1.0], request_id=0, mode="swap", decode_start_s=np.nan)
    iterations = iteration_table([0.0, 3.0, 4.0], [1.0, 4.0, 5.0], decode_seqs=[0, 0, 1])

    assert token_times_s(0, requests, iterations, preemptions).tolist() == [4.0, 5.0]


def test_replicas_do_not_mix() -> None:
    requests = engine_request_table(
        [0.0, 0.0], gpu_id=[0, 1], output_tokens=[3, 2], first_token_s=[1.0, 1.0], finish_s=[3.0, 4.0]
    )
    iterations = iteration_table([1.0, 1.0, 2.0], [2.0, 4.0, 3.0], gpu_id=[0, 1, 0], decode_seqs=[1, 1, 1])

    assert as_dict(itl(requests, iterations, NO_PREEMPTIONS)) == {1.0: 2, 3.0: 1}
    assert worst_gap_s(requests, iterations, NO_PREEMPTIONS).tolist() == [1.0, 3.0]


def test_one_token_answers_and_unfinished_requests_have_no_gaps() -> None:
    requests = engine_request_table(
        [0.0, 0.0],
        output_tokens=[1, 9],
        first_token_s=2.0,
        finish_s=[2.0, np.nan],
        status=["finished", STRANDED],
    )

    assert itl(requests, ITERATIONS, NO_PREEMPTIONS).total == 0
    assert np.isnan(worst_gap_s(requests, ITERATIONS, NO_PREEMPTIONS)).all()
    assert num_tokens(requests, ITERATIONS, NO_PREEMPTIONS).tolist() == [1, 0]
    assert len(token_times_s(1, requests, ITERATIONS, NO_PREEMPTIONS)) == 0


def test_nothing_at_all_has_no_gaps() -> None:
    nothing = engine_request_table([]), iteration_table([], []), NO_PREEMPTIONS

    assert np.isnan(itl(*nothing).mean)
    assert len(worst_gap_s(*nothing)) == 0


@dice
def test_tokens_are_read_back_from_the_log_as_they_came(seed: int, num_gpus: int) -> None:
    run = dice_run(seed, num_gpus=num_gpus)

    counted = num_tokens(*tables(run.records))

    assert counted.tolist() == run.records.requests["output_tokens"].tolist()
    for request_id in (0, 3, 6):
        times_s = token_times_s(request_id, *tables(run.records))
        assert times_s.tolist() == run.times_s[request_id].tolist()


@dice
def test_gaps_are_those_between_the_tokens_each_as_often_as_it_was_seen(seed: int, num_gpus: int) -> None:
    run = dice_run(seed, num_gpus=num_gpus)

    values, weights = itl(*tables(run.records)).written_out()

    one_by_one = np.sort(np.concatenate([np.diff(times_s) for times_s in run.times_s]))
    assert np.repeat(values, weights.astype(int)).tolist() == one_by_one.tolist()


@dice
def test_percentiles_of_gaps_are_those_of_all_tokens(seed: int, num_gpus: int) -> None:
    run = dice_run(seed, num_gpus=num_gpus)
    percents = [0, 25, 50, 75, 100]  # their shares are exact

    gaps = itl(*tables(run.records))

    one_by_one = np.concatenate([np.diff(times_s) for times_s in run.times_s])
    expected = np.percentile(one_by_one, percents, method="inverted_cdf")
    assert gaps.percentiles(percents).tolist() == expected.tolist()


@dice
def test_the_gaps_of_all_requests_fill_the_time_from_first_token_to_finish(seed: int, num_gpus: int) -> None:
    run = dice_run(seed, num_gpus=num_gpus)
    requests = run.records.requests

    gaps = itl(*tables(run.records))

    assert gaps.sum == (requests["finish_s"] - requests["first_token_s"]).sum()
    assert gaps.total == (requests["output_tokens"] - 1).sum()


@dice
def test_the_worst_gap_is_the_largest_between_two_tokens(seed: int, num_gpus: int) -> None:
    run = dice_run(seed, num_gpus=num_gpus)

    worst_s = worst_gap_s(*tables(run.records))

    assert np.nan_to_num(worst_s).tolist() == [np.diff(times_s).max(initial=0) for times_s in run.times_s]


@dice
def test_the_mean_gap_of_one_request_is_its_tpot(seed: int, num_gpus: int) -> None:
    run = dice_run(seed, num_gpus=num_gpus)
    requests, iterations, preemptions = tables(run.records)

    means_s = [itl(requests.iloc[[row]], iterations, preemptions).mean for row in (0, 3, 6)]

    assert means_s == pytest.approx(tpot_s(requests)[[0, 3, 6]].tolist(), rel=1e-12, nan_ok=True)


@dice
def test_spans_and_single_iterations_give_the_same_gaps(seed: int, num_gpus: int) -> None:
    in_spans = dice_run(seed, num_gpus=num_gpus).records
    one_by_one = dice_run(seed, num_gpus=num_gpus, may_merge=False).records

    assert as_dict(itl(*tables(in_spans))) == as_dict(itl(*tables(one_by_one)))
    worst_s, expected_s = (worst_gap_s(*tables(records)) for records in (in_spans, one_by_one))
    assert np.array_equal(worst_s, expected_s, equal_nan=True)


@dice
def test_gaps_of_some_requests_leave_out_the_others(seed: int, num_gpus: int) -> None:
    run = dice_run(seed, num_gpus=num_gpus)
    requests, iterations, preemptions = tables(run.records)

    gaps = itl(requests.iloc[4:], iterations, preemptions)
    worst_s = worst_gap_s(requests.iloc[4:], iterations, preemptions)

    assert gaps.total == (requests["output_tokens"] - 1)[4:].sum()
    assert np.array_equal(worst_s, worst_gap_s(requests, iterations, preemptions)[4:], equal_nan=True)


def test_the_worst_gap_of_long_runs_is_found_among_thousands_of_spans() -> None:
    rng = np.random.default_rng(1)
    ends_s = np.cumsum(rng.integers(1, 1_000_000, 3000)) / 1024
    begin, length = rng.integers(0, 1000, 300), rng.integers(1, 2000, 300)
    requests = engine_request_table(
        np.zeros(300), output_tokens=length + 1, first_token_s=ends_s[begin], finish_s=ends_s[begin + length]
    )
    iterations = iteration_table(np.concatenate([[0.0], ends_s[:-1]]), ends_s, decode_seqs=1)

    worst_s = worst_gap_s(requests, iterations, NO_PREEMPTIONS)

    gaps_s = np.diff(ends_s)
    assert worst_s.tolist() == [gaps_s[b : b + n].max() for b, n in zip(begin, length, strict=True)]


def test_a_run_after_a_pause_has_no_token_at_its_start_though_one_gave_way_as_it_had_ended() -> None:
    requests = pd.DataFrame(
        {"request_id": [7], "gpu_id": [0], "status": ["finished"], "decode_start_s": [3.0], "finish_s": [4.0]}
    )
    iterations = pd.DataFrame(
        {
            "gpu_id": [0, 0, 0],
            "start_s": [1.0, 2.0, 3.0],
            "finish_s": [2.0, 3.0, 4.0],
            "num_iterations": [1, 1, 1],
            "first_iteration_s": [1.0, 1.0, 1.0],
            "decode_seqs": [1, 1, 1],
        }
    )
    preemptions = pd.DataFrame(
        {
            "request_id": [7, 7],
            "gpu_id": [0, 0],
            "time_s": [2.0, 4.0],
            "mode": ["pause", "recompute"],
            "decode_start_s": [1.0, np.nan],
        }
    )

    assert num_tokens(requests, iterations, preemptions).tolist() == [3]
