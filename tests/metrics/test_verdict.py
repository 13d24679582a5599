import math

import numpy as np
import pytest

from batchsim.metrics.verdict import judge, verdict
from batchsim.records import ABANDONED, FAILED, FINISHED, REFUSED, STRANDED
from tests.metrics.worlds import request_table
from tests.trust.queues import QUEUES, Times, engine, m_d_1, m_m_1, poisson, servers, single_server
from tests.trust.verdict_table import verdicts

#: The verdict on batches of exponential length needs far more than 50,000 requests: `docs/trust.md`.
HELD = [name for name in QUEUES if name != "batches of 16, exponential"]


def name_of(times: Times) -> str:
    return judge(*times).name


@pytest.mark.parametrize("rho", [0.5, 0.95])
@pytest.mark.parametrize("queue", HELD)
def test_a_stable_queue_is_not_called_saturated(queue: str, rho: float) -> None:
    assert verdicts(QUEUES[queue], rho, 2000, num_seeds=20)["saturated"] <= 1


@pytest.mark.parametrize("queue", HELD)
def test_a_long_run_tells_a_load_of_95_from_one_of_102_percent(queue: str) -> None:
    assert verdicts(QUEUES[queue], 0.95, 50_000, num_seeds=3) == {"stable": 3}
    assert verdicts(QUEUES[queue], 1.02, 50_000, num_seeds=3) == {"saturated": 3}


def test_a_short_run_that_is_well_overloaded_is_nearly_always_called_saturated() -> None:
    assert verdicts(m_m_1, 1.2, 2000, num_seeds=20)["saturated"] >= 19
    assert verdicts(m_d_1, 1.1, 2000, num_seeds=20)["saturated"] >= 18


def test_answers_that_take_long_do_not_count_as_waiting() -> None:
    random = np.random.default_rng(0)
    arrival_s = poisson(6.0, 1000, random)  # 120 of 1,024 seats

    judged = judge(arrival_s, arrival_s + 0.01, arrival_s + 20.01)

    assert judged.name == "stable"
    assert judged.growth_per_s == 0


def test_a_run_in_which_the_seats_do_not_fill_cannot_tell() -> None:
    judged = judge(*engine(0.98, 1100, np.random.default_rng(0)))

    assert judged.name == "transient"
    assert "take 20 s each" in judged.reason


def test_requests_that_come_at_once_cannot_tell() -> None:
    judged = judge(np.zeros(5000), np.arange(5000.0), np.arange(1.0, 5001.0))

    assert judged.name == "transient"
    assert math.isnan(judged.growth_per_s)
    assert name_of(Times(np.linspace(0, 1e-320, 500), np.arange(500.0), np.arange(500.0) + 1)) == "transient"


@pytest.mark.parametrize("num", [0, 1, 199])
def test_few_requests_cannot_tell(num: int) -> None:
    arrival_s = np.arange(num, dtype=np.float64)

    assert judge(arrival_s, arrival_s, arrival_s).name == "transient"


def test_a_few_batches_cannot_tell() -> None:
    arrival_s = np.arange(1000.0)
    start_s = np.where(np.arange(1000) < 512, 512.0, 1000.0)

    judged = judge(arrival_s, start_s, start_s + 1)

    assert judged.name == "transient"
    assert "began fewer than 10 times" in judged.reason


def test_waiting_for_a_batch_to_fill_is_no_overload() -> None:
    arrival_s = np.arange(4000.0)
    start_s = arrival_s - arrival_s % 128 + 128

    assert judge(arrival_s, start_s, start_s + 1).name == "stable"


def test_clients_that_all_begin_at_once_do_not_overload() -> None:
    clients, num = 64, 3000
    start_s = np.arange(num, dtype=np.float64)
    arrival_s = np.concatenate([np.zeros(clients), start_s[: num - clients] + 1])  # sent when one is done

    assert judge(arrival_s, start_s, start_s + 1).name == "stable"


def test_hours_of_overload_inside_a_run_are_seen_though_the_queue_is_empty_in_the_end() -> None:
    rate_per_s = np.repeat([0.1, 3.0, 0.1], [2000, 1000, 2000])
    arrival_s = np.cumsum(np.random.default_rng(0).exponential(1.0, 5000) / rate_per_s)

    judged = judge(*single_server(arrival_s, np.ones(5000)))

    assert judged.name == "saturated"
    assert judged.growth_per_s == pytest.approx(0, abs=1e-3)
    assert judged.reason.startswith("for 20% of the arrivals")


def test_the_order_of_service_does_not_matter() -> None:
    times = m_m_1(1.2, 4000, np.random.default_rng(1))
    is_short = np.random.default_rng(2).random(4000) < 0.8

    # The short ones never wait; the others, who arrive first, wait until all of them are done.
    start_s = np.where(is_short, times.arrival_s, times.finish_s.max() - times.arrival_s / 2)

    assert judge(times.arrival_s, start_s, start_s + 1).name == "saturated"


def test_who_never_begins_waits_to_the_end() -> None:
    arrival_s = np.arange(2000.0)
    is_served = np.arange(2000) % 5 != 0
    requests = request_table(
        arrival_s,
        scheduled_s=np.where(is_served, arrival_s, np.nan),
        finish_s=np.where(is_served, arrival_s + 1, np.nan),
        status=np.where(is_served, FINISHED, STRANDED),
    )

    assert verdict(requests).name == "saturated"
    assert verdict(requests.assign(status=np.where(is_served, FINISHED, REFUSED))).name == "stable"
    assert verdict(requests.assign(status=np.where(is_served, FINISHED, FAILED))).name == "stable"


def impatient(rho: float, patience_s: float, num: int = 4000) -> Times:
    """A server of one, exponential service; who has waited so long leaves."""
    random = np.random.default_rng(0)
    arrival_s, free_s = poisson(rho, num, random), 0.0
    start_s, finish_s = np.full(num, np.nan), np.full(num, np.nan)
    for row, (arrival, service) in enumerate(zip(arrival_s, random.exponential(1.0, num), strict=True)):
        start = max(free_s, arrival)
        if start - arrival <= patience_s:
            start_s[row], finish_s[row], free_s = start, start + service, start + service
    return Times(arrival_s, start_s, finish_s)


@pytest.mark.parametrize(("rho", "name"), [(0.5, "stable"), (1.3, "saturated")])
def test_those_who_give_up_do_not_hide_an_overload(rho: float, name: str) -> None:
    times = impatient(rho, patience_s=10.0)
    left_s = np.where(np.isnan(times.start_s), times.arrival_s + 10.0, np.nan)

    assert judge(*times, left_s).name == name


def test_impatience_at_low_load_is_no_overload() -> None:
    times = impatient(0.5, patience_s=0.5)
    left_s = np.where(np.isnan(times.start_s), times.arrival_s + 0.5, np.nan)
    requests = request_table(
        times.arrival_s,
        scheduled_s=times.start_s,
        finish_s=times.finish_s,
        status=np.where(np.isnan(left_s), FINISHED, ABANDONED),
    )

    assert np.isfinite(left_s).mean() > 0.1
    assert verdict(requests.assign(left_s=left_s)).name == "stable"


def test_an_engine_with_seats_to_spare_is_stable_whatever_it_is_busy_with() -> None:
    random = np.random.default_rng(3)
    times = servers(poisson(50.0, 20_000, random), random.exponential(2.0, 20_000), 1024)

    assert name_of(times) == "stable"


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_the_time_above_capacity_is_that_of_the_busy_hours(share: float) -> None:
    random = np.random.default_rng(3)
    calm, busy = 20_000 * (1 - share) * 0.5, 20_000 * share * 2.0  # requests: half, and twice, the capacity
    gaps_s = np.concatenate([random.exponential(2.0, int(calm / 2)), random.exponential(0.5, int(busy))])
    arrival_s = np.cumsum(np.concatenate([gaps_s, random.exponential(2.0, int(calm / 2))]))
    judged = judge(*single_server(arrival_s, np.ones(len(arrival_s))))
    assert judged.overload_time_share == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("queue", ["M/M/1", "M/M/16", "batches of 16", "1,024 seats, fixed"])
def test_a_stable_system_is_hardly_ever_above_its_capacity(queue: str) -> None:
    shares = [
        judge(*QUEUES[queue](0.9, 20_000, np.random.default_rng(seed))).overload_time_share
        for seed in range(10)
    ]
    assert np.count_nonzero(shares) <= 1
    assert max(shares) < 0.05


def test_a_system_at_twice_its_load_is_above_its_capacity_all_the_time() -> None:
    assert judge(*QUEUES["M/M/1"](2.0, 5000, np.random.default_rng(0))).overload_time_share == 1


def test_few_requests_do_not_tell_for_how_long_they_were_too_many() -> None:
    assert math.isnan(judge(*QUEUES["M/M/1"](2.0, 300, np.random.default_rng(0))).overload_time_share)


def test_two_who_wait_in_the_end_are_no_overload() -> None:
    arrival_s = np.arange(300.0)
    start_s = arrival_s + 0.5  # the request that has just come waits, but for the first; in the end, two
    start_s[0], start_s[-2] = 0.0, 300.0

    assert judge(arrival_s, start_s, start_s + 1).name == "stable"


def test_a_flood_is_no_shortness_however_long_a_batch_takes() -> None:
    arrival_s = np.arange(5000) / 8.0
    start_s = 60.0 * (1 + np.arange(5000) // 80)  # batches of 80 begin every minute, and take four

    judged = judge(arrival_s, start_s, start_s + 240)

    assert judged.name == "saturated"
    assert judged.growth_per_s == pytest.approx(8 - 80 / 60, rel=0.02)
