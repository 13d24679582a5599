import numpy as np

from batchsim.metrics.requests import (
    e2e_s,
    host_s,
    normalized_latency_s,
    prefill_s,
    queueing_s,
    tpot_s,
    ttft_s,
)
from tests.metrics.worlds import engine_request_table, iteration_table, request_table

REQUESTS = request_table(
    [0.0, 1.0, 2.0],
    output_tokens=[5, 1, 4],
    scheduled_s=[1.0, 1.5, np.nan],
    first_token_s=[2.0, 3.0, np.nan],
    finish_s=[4.0, 3.0, np.nan],
)


def test_times_are_counted_from_the_arrival() -> None:
    assert queueing_s(REQUESTS)[:2].tolist() == [1.0, 0.5]
    assert ttft_s(REQUESTS)[:2].tolist() == [2.0, 2.0]
    assert e2e_s(REQUESTS)[:2].tolist() == [4.0, 2.0]
    assert normalized_latency_s(REQUESTS)[:2].tolist() == [0.8, 2.0]


def test_tpot_spreads_the_time_after_the_first_token_over_the_later_ones() -> None:
    tpot = tpot_s(REQUESTS)

    assert tpot[0] == 0.5
    assert np.isnan(tpot[1])


def test_a_request_that_never_ran_has_no_times() -> None:
    for metric in (queueing_s, ttft_s, e2e_s, tpot_s, normalized_latency_s):
        assert np.isnan(metric(REQUESTS)[2])


def test_the_time_to_first_token_is_queueing_prefill_and_host_time() -> None:
    requests = engine_request_table(
        [0.0, 1.0, 1.0, 2.0],
        gpu_id=[0, 0, 1, -1],
        scheduled_s=[0.0, 2.0, 1.0, np.nan],
        first_token_s=[2.0, 5.0, 3.0, np.nan],
    )
    iterations = iteration_table(
        [0.0, 2.0, 3.0, 1.0], [2.0, 3.0, 5.0, 3.0], gpu_id=[0, 0, 0, 1], host_s=[0.5, 0.25, 0.25, 1.0]
    )

    host, prefill = host_s(requests, iterations), prefill_s(requests, iterations)

    assert host[:3].tolist() == [0.5, 0.5, 1.0]
    assert prefill[:3].tolist() == [1.5, 2.5, 1.0]
    assert (queueing_s(requests) + prefill + host)[:3].tolist() == ttft_s(requests)[:3].tolist()
    assert np.isnan(host[3])
    assert np.isnan(prefill[3])
