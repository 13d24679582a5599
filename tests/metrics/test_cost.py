import numpy as np
import pytest

from batchsim.config import SloConfig
from batchsim.metrics.cost import Expense, Power, mean_watts, usd_per_hour
from batchsim.metrics.summary import summarise
from batchsim.metrics.system import Window
from batchsim.records import Records
from tests.metrics.worlds import (
    batch_table,
    engine_records,
    engine_request_table,
    iteration_table,
    poisson_queue,
    records,
    request_table,
)

TWO_BIG = Expense("big", 2, 3.0, Power(600.0, 400.0, 100.0), 700.0)
ONE_SMALL = Expense("small", 1, 1.2, Power(300.0, 200.0, None), 350.0)


def two_engines() -> Records:
    """Ten seconds: one engine is always busy, 3 s with prompts; the other computes a prompt for 2 s."""
    requests = engine_request_table(
        [0.0, 1.0, 4.0],
        gpu_id=[0, 1, 0],
        prompt_tokens=[8, 8, 4],
        output_tokens=[4, 1, 2],
        scheduled_s=[0.0, 1.0, 8.0],
        first_token_s=[2.0, 3.0, 9.0],
        finish_s=[8.0, 3.0, 10.0],
    )
    iterations = iteration_table(
        [0.0, 1.0, 2.0, 8.0, 9.0],
        [2.0, 3.0, 8.0, 9.0, 10.0],
        gpu_id=[0, 1, 0, 0, 0],
        num_iterations=[1, 1, 3, 1, 1],
        prefill_tokens=[8, 8, 0, 4, 0],
        decode_seqs=[0, 0, 1, 0, 1],
    )
    return engine_records(requests, iterations, kv_blocks=(10, 10))


def test_engines_of_two_kinds_cost_what_is_reckoned_by_hand() -> None:
    summary = summarise(two_engines(), SloConfig(), 0.0, None, (TWO_BIG, ONE_SMALL))

    # 2 * 3 + 1.2 USD an hour; seven output and twenty prompt tokens in ten seconds.
    assert summary["usd_per_hour"] == pytest.approx(7.2)
    assert summary["gpu_hours"] == pytest.approx(3 * 10 / 3600)
    assert summary["usd_total"] == pytest.approx(0.02)
    assert summary["whole_run_usd_per_million_output_tokens"] == pytest.approx(0.02 / 7 * 1e6)
    assert summary["whole_run_usd_per_million_tokens"] == pytest.approx(0.02 / 27 * 1e6)
    assert summary["usd_per_million_output_tokens"] is None  # there is no steady window


def test_energy_of_engines_is_that_of_their_phases_and_of_idle_seconds_where_known() -> None:
    # Two GPUs: 3 s of prompts, 7 s of decodes. One GPU: 2 s of prompts, 8 s idle.
    busy_joules = 2 * (3 * 600 + 7 * 400) + 2 * 300
    told = Expense("small", 1, power=Power(300.0, 200.0, 50.0))

    unknown, known = (
        mean_watts((TWO_BIG, small), two_engines(), Window(0.0, 10.0)) for small in (ONE_SMALL, told)
    )

    assert unknown == pytest.approx(busy_joules / 10)
    assert known == pytest.approx((busy_joules + 8 * 50) / 10)


def test_energy_counts_what_lies_in_the_window() -> None:
    # From 1 to 9 s: prompts for 2 s, decodes for 6; on the other prompts for 2 s.
    watts = mean_watts((TWO_BIG, ONE_SMALL), two_engines(), Window(1.0, 9.0))

    assert watts == pytest.approx((2 * (2 * 600 + 6 * 400) + 2 * 300) / 8)


def test_energy_of_an_output_token_holds_that_of_prompts_and_has_a_bound() -> None:
    summary = summarise(two_engines(), SloConfig(), 0.0, None, (TWO_BIG, ONE_SMALL))

    assert summary["whole_run_joules_per_output_token"] == pytest.approx((2 * 4600 + 600) / 7)
    assert summary["whole_run_joules_per_output_token_at_most"] == pytest.approx((2 * 700 + 350) * 10 / 7)


def test_batches_draw_as_prefills_up_to_their_first_token() -> None:
    requests = request_table([0.0], scheduled_s=[0.0], first_token_s=[1.0], finish_s=[4.0], output_tokens=[5])
    batches = batch_table([0.0], [4.0], first_token_s=[1.0])
    untold = batch_table([0.0], [4.0], first_token_s=[np.nan])

    told, without = (
        mean_watts((ONE_SMALL,), records(requests, one), Window(0.0, 4.0)) for one in (batches, untold)
    )

    assert told == pytest.approx((300 + 3 * 200) / 4)
    assert np.isnan(without)


def test_a_token_of_the_steady_window_costs_price_over_throughput() -> None:
    run = poisson_queue(0.5, 2000, np.random.default_rng(1))

    summary = summarise(run, SloConfig(), "auto", None, (Expense("small", 1, 1.8, None, 350.0),))

    assert summary["window"] == "steady"
    for tokens in ("output", "total"):
        key = "usd_per_million_output_tokens" if tokens == "output" else "usd_per_million_tokens"
        rate_per_s = summary[f"{tokens}_throughput_tokens_per_s"]
        assert summary[key] == pytest.approx(1.8 / 3600 / rate_per_s * 1e6, rel=1e-12)
    assert summary["joules_per_output_token_at_most"] == pytest.approx(
        350.0 / summary["output_throughput_tokens_per_s"]
    )


@pytest.mark.parametrize("expenses", [(), (TWO_BIG, Expense("small", 1))])
def test_what_is_not_known_of_every_replica_is_not_told(expenses: tuple[Expense, ...]) -> None:
    summary = summarise(two_engines(), SloConfig(), 0.0, None, expenses)

    untold = [key for key in summary if key.removeprefix("whole_run_").startswith(("usd_", "joules_"))]
    assert len(untold) == 10
    assert all(summary[key] is None for key in untold)
    assert np.isnan(usd_per_hour(expenses))
    assert (summary["gpu_hours"] is None) == (not expenses)
