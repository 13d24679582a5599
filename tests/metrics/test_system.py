import math

import numpy as np
import pytest

from batchsim.config import SloConfig
from batchsim.errors import TraceError
from batchsim.metrics.engine import kv_use as kv_block_use
from batchsim.metrics.system import (
    Window,
    batch_fill,
    busy_fraction,
    goodput_requests_per_s,
    kv_use,
    padding_waste_output,
    padding_waste_prompt,
    slo_attainment,
    slo_met,
    throughput,
    waiting_mean,
)
from batchsim.records import ABANDONED, FINISHED, REFUSED, STRANDED
from tests.metrics.worlds import batch_table, iteration_table, request_table

BATCHES = batch_table(
    [0.0, 2.0, 8.0],
    [4.0, 4.0, 12.0],
    gpu_id=[0, 1, 0],
    batch_size=[1, 4, 2],
    size_limit=[4, 4, 4],
    max_prompt_tokens=[10, 10, 10],
    sum_prompt_tokens=[10, 25, 15],
    max_output_tokens=[8, 5, 10],
    sum_output_tokens=[8, 15, 15],
    kv_tokens=[20, 60, 40],
)
WINDOW = Window(0.0, 10.0)


def test_throughput_counts_what_finishes_inside_the_window() -> None:
    requests = request_table(
        [0.0] * 4, finish_s=[1.0, 2.0, 6.0, np.nan], prompt_tokens=[5, 6, 7, 8], output_tokens=[1, 2, 3, 4]
    )

    assert throughput(requests, Window(2.0, 6.0)) == (2 / 4, 5 / 4, 18 / 4)


def test_a_window_without_length_has_no_rate() -> None:
    assert all(map(math.isnan, throughput(request_table([1.0], finish_s=[1.0]), Window(1.0, 1.0))))


def test_busy_fraction_is_the_gpu_time_running_inside_the_window() -> None:
    # 4 s and 2 s on the first two, and 2 of the 4 s of the last, of 2 GPUs times 10 s.
    assert busy_fraction(BATCHES, 2, WINDOW) == 8 / 20


def test_batch_fill_weighs_batches_by_running_time() -> None:
    assert batch_fill(BATCHES, WINDOW) == pytest.approx((4 * 0.25 + 2 * 1.0 + 2 * 0.5) / 8)


def test_padding_waste_is_the_share_of_slots_no_one_asked_for() -> None:
    assert padding_waste_output(BATCHES) == pytest.approx(1 - 38 / (8 + 20 + 20))
    assert padding_waste_prompt(BATCHES) == pytest.approx(1 - 50 / 70)


def test_kv_use_counts_idle_time_as_empty() -> None:
    assert kv_use(BATCHES, 2, 100, WINDOW) == pytest.approx((4 * 0.2 + 2 * 0.6 + 2 * 0.4) / 20)


#: One batch or span after another, full all the time, at times whose differences are rounded.
TIMES_S = np.concatenate([[0.0], np.cumsum(np.random.default_rng(0).exponential(0.1, 999))])
SATURATED = {"start_s": TIMES_S[:-1], "finish_s": TIMES_S[1:]}
WHOLE_RUNS = [Window(0.0, float(end_s)) for end_s in TIMES_S[1::5]]


def test_no_share_of_time_is_rounded_to_more_than_one() -> None:
    full = {"batch_size": [7] * 999, "size_limit": [7] * 999, "kv_tokens": [7] * 999}
    batches = batch_table(SATURATED["start_s"], SATURATED["finish_s"], **full)
    spans = iteration_table(**SATURATED, kv_blocks=[7] * 999)

    shares = np.array(
        [
            [
                busy_fraction(batches, 1, window),
                batch_fill(batches, window),
                kv_use(batches, 1, 7, window),
                kv_block_use(spans, [7], window),
            ]
            for window in WHOLE_RUNS
        ]
    )

    assert shares.max(axis=0).tolist() == [1, 1, 1, 1]
    assert shares.min() == pytest.approx(1, rel=1e-12)


def test_a_share_of_time_beyond_rounding_is_an_error() -> None:
    twice = batch_table([0.0, 0.0], [4.0, 4.0], kv_tokens=[20, 20])
    spans = iteration_table(start_s=[0.0], finish_s=[4.0], kv_blocks=[8])

    with pytest.raises(TraceError, match=r"busy fraction is 2\.0, more than 1"):
        busy_fraction(twice, 1, Window(0.0, 4.0))
    with pytest.raises(TraceError, match=r"KV memory is 2\.0, more than 1"):
        kv_use(twice, 1, 20, Window(0.0, 4.0))
    with pytest.raises(TraceError, match=r"KV blocks is 1\.142"):
        kv_block_use(spans, [7], Window(0.0, 4.0))
    with pytest.raises(TraceError, match=r"batch fill is 1\.5"):
        batch_fill(batch_table([0.0], [4.0], batch_size=[3], size_limit=[2]), Window(0.0, 4.0))


def test_attainment_asks_every_request_for_every_limit() -> None:
    requests = request_table(
        [0.0] * 6,
        output_tokens=[1, 11, 11, 11, 1, 1],
        first_token_s=[1.0, 1.0, 1.0, 3.0, np.nan, np.nan],
        finish_s=[1.0, 2.0, 6.0, 4.0, np.nan, np.nan],
        status=[FINISHED] * 4 + [REFUSED, ABANDONED],
    )
    slo = SloConfig(ttft_ms=2000, tpot_ms=100, e2e_ms=5000)

    met = slo_met(requests, slo)

    assert met["e2e"].tolist() == [True, True, False, True, False, False]
    assert met["ttft"].tolist() == [True, True, True, False, False, False]
    assert met["tpot"].tolist() == [True, True, False, True, False, False]
    assert slo_attainment(requests, slo) == 2 / 6
    assert goodput_requests_per_s(requests, slo, WINDOW) == 2 / 10


def test_goodput_counts_good_requests_that_finish_inside_the_window() -> None:
    requests = request_table([0.0, 0.0, 0.0], finish_s=[1.0, 3.0, 9.0])

    assert goodput_requests_per_s(requests, SloConfig(e2e_ms=5000), Window(2.0, 10.0)) == 1 / 8


def test_attainment_is_unknown_without_limits_or_without_first_token_times() -> None:
    requests = request_table([0.0], finish_s=[1.0])

    assert math.isnan(slo_attainment(requests, SloConfig()))
    assert math.isnan(slo_attainment(requests, SloConfig(ttft_ms=100)))
    assert math.isnan(goodput_requests_per_s(requests, SloConfig(ttft_ms=100, e2e_ms=5000), WINDOW))


def test_who_is_not_yet_scheduled_waits_until_served_or_given_up() -> None:
    requests = request_table(
        [0.0, 4.0, 5.0, 6.0, 7.0],
        scheduled_s=[0.5, 12.0, np.nan, np.nan, np.nan],
        status=[FINISHED, FINISHED, STRANDED, REFUSED, ABANDONED],
    )
    left = requests.assign(left_s=[np.nan, np.nan, np.nan, np.nan, 9.0])

    assert waiting_mean(left, 1, Window(0.0, 10.0)) == (0.5 + 6 + 5 + 2) / 10
    assert waiting_mean(requests, 1, Window(0.0, 10.0)) == (0.5 + 6 + 5) / 10  # when one left is not known
