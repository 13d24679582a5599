import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from batchsim.config import SloConfig
from batchsim.metrics.efficiency import Hardware
from batchsim.metrics.summary import laws, summarise
from batchsim.records import ABANDONED, BATCH_COLUMNS, FINISHED, REFUSED, STATUSES, STRANDED, Records
from batchsim.specs import load_gpu, load_model
from tests.metrics.engine_world import dice_run
from tests.metrics.worlds import (
    batch_table,
    engine_records,
    engine_request_table,
    iteration_table,
    poisson_queue,
    records,
    request_table,
    single_server,
)

SLO = SloConfig(e2e_ms=5000)
NO_BATCHES = batch_table(
    [], [], **{name: [] for name in BATCH_COLUMNS if name not in ("start_s", "finish_s")}
)


def two_batches() -> Records:
    """Three requests in two batches on one of two GPUs; a fourth is refused, a fifth left behind."""
    requests = request_table(
        [0.0, 1.0, 2.0, 3.0, 4.0],
        prompt_tokens=[10, 20, 30, 999, 5],
        output_tokens=[4, 2, 5, 9, 9],
        scheduled_s=[0.0, 4.0, 4.0, np.nan, np.nan],
        first_token_s=[1.0, 6.0, 6.0, np.nan, np.nan],
        finish_s=[4.0, 10.0, 10.0, np.nan, np.nan],
        num_evictions=[0, 2, 0, 0, 0],
        status=[FINISHED] * 3 + [REFUSED, STRANDED],
    )
    batches = batch_table(
        [0.0, 4.0],
        [4.0, 10.0],
        batch_size=[1, 2],
        size_limit=4,
        is_flush=[False, True],
        max_prompt_tokens=[10, 30],
        sum_prompt_tokens=[10, 50],
        max_output_tokens=[4, 5],
        sum_output_tokens=[4, 7],
        kv_tokens=[14, 70],
        is_extrapolated=[True, False],
    )
    return records(requests, batches, num_replicas=2)


def test_a_tiny_run_is_summed_up_exactly() -> None:
    expected = {
        "num_requests": 5,
        "num_finished": 3,
        "num_refused": 1,
        "num_stranded": 1,
        "num_abandoned": 0,
        "num_flushed": 2,
        "num_evicted": 2,
        "num_batches": 2,
        "num_extrapolated_batches": 1,
        "num_replicas": 2,
        "num_warmup": 0,
        "num_covered": 5,
        "num_covered_finished": 3,
        "window": "whole run",
        "window_start_s": 0.0,
        "window_end_s": 10.0,
        "makespan_s": 10.0,
        "request_throughput_per_s": None,
        "goodput_requests_per_s": None,
        "whole_run_request_throughput_per_s": 0.3,
        "whole_run_output_throughput_tokens_per_s": 1.1,
        "whole_run_total_throughput_tokens_per_s": 7.1,
        "e2e_mean_s": 7.0,
        "e2e_mean_ci95_low_s": None,
        "e2e_mean_ci95_high_s": None,
        "e2e_p50_s": 8.0,
        "queueing_mean_s": pytest.approx(5 / 3),
        "ttft_p99_s": pytest.approx(4.98),
        "tpot_mean_s": 2.0,
        "normalized_latency_mean_s": pytest.approx((1 + 4.5 + 1.6) / 3),
        "slo_attainment": 0.2,
        "slo_attainment_e2e": 0.2,
        "slo_attainment_ttft": None,
        "whole_run_goodput_requests_per_s": 0.1,
        "busy_fraction": 0.5,
        "batch_size_mean": 1.5,
        "batch_size_p50": 1.5,
        "batch_size_max": 2,
        "batch_fill": pytest.approx((4 * 0.25 + 6 * 0.5) / 10),
        "padding_waste_output": pytest.approx(1 - 11 / 14),
        "padding_waste_prompt": pytest.approx(1 - 60 / 70),
        "kv_use_mean": pytest.approx((4 * 0.14 + 6 * 0.7) / 20),
        "kv_use_max": 0.7,
    }

    summary = summarise(two_batches(), SLO, "auto")

    assert {key: summary[key] for key in expected} == expected


def test_the_summary_is_plain_json() -> None:
    summary = summarise(two_batches(), SloConfig(), "auto")

    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert all(value is None or type(value) in (bool, int, float, str) for value in summary.values())


@pytest.mark.parametrize("warmup", ["auto", "mser5", 0.5])
@pytest.mark.parametrize("status", STATUSES[1:])
def test_a_run_where_nothing_finished_is_summed_up_in_silence(status: str, warmup: Any) -> None:
    unserved = records(request_table([0.0, 1.0], status=status), NO_BATCHES)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = summarise(unserved, SLO, warmup)

    assert summary[f"num_{status}"] == 2
    assert summary["slo_attainment"] == 0.0
    assert not summary["saturated"]
    for key in ("e2e_mean_s", "tpot_p99_s", "batch_size_mean", "makespan_s", "request_throughput_per_s"):
        assert summary[key] is None


def test_all_keys_are_there_whatever_happened() -> None:
    unserved = records(request_table([0.0], status=REFUSED), NO_BATCHES)

    assert summarise(unserved, SLO, "auto").keys() == summarise(two_batches(), SLO, "auto").keys()


def test_a_model_without_first_tokens_leaves_their_times_unknown() -> None:
    run = two_batches()
    run.requests["first_token_s"] = np.nan

    summary = summarise(run, SloConfig(ttft_ms=1, e2e_ms=5000), "auto")

    assert summary["ttft_mean_s"] is None
    assert summary["slo_attainment_ttft"] is None
    assert summary["slo_attainment"] is None
    assert summary["slo_attainment_e2e"] == 0.2


def test_the_window_is_steady_from_the_first_covered_to_the_last_arrival() -> None:
    run = poisson_queue(0.5, 400, np.random.default_rng(0))
    arrival_s = run.requests["arrival_s"]

    summary = summarise(run, SLO, 0.5)

    assert (summary["window"], summary["num_warmup"], summary["num_covered"]) == ("steady", 200, 200)
    assert (summary["window_start_s"], summary["window_end_s"]) == (arrival_s[200], arrival_s[399])
    assert summarise(run, SLO, "auto")["num_warmup"] == 0


def long_answers(num: int) -> Records:
    """One arrives each second and is in service for 100 s, never waiting."""
    arrival_s = np.arange(num, dtype=np.float64)
    requests = request_table(arrival_s, scheduled_s=arrival_s, finish_s=arrival_s + 100.0)
    return records(requests, batch_table(arrival_s, arrival_s + 100.0), num_replicas=100)


def test_requests_that_arrive_until_the_system_is_full_are_warmup() -> None:
    summary = summarise(long_answers(500), SLO, "auto")

    assert (summary["num_warmup"], summary["window"], summary["verdict"]) == (95, "steady", "stable")
    assert (summary["window_start_s"], summary["window_end_s"]) == (95.0, 499.0)
    assert summary["request_throughput_per_s"] == pytest.approx(1.0, rel=0.02)
    assert summary["busy_fraction"] == pytest.approx(1.0, rel=0.001)


def test_a_run_that_hardly_fills_has_rates_of_the_whole_run_alone() -> None:
    summary = summarise(long_answers(250), SLO, "auto")

    assert (summary["num_warmup"], summary["window"], summary["verdict"]) == (0, "whole run", "transient")
    assert summary["request_throughput_per_s"] is None
    assert summary["whole_run_request_throughput_per_s"] == pytest.approx(250 / 349)
    assert summary["service_mean_s"] == 100.0


def test_rates_of_the_steady_window_leave_the_drain_out() -> None:
    num = 3000
    run = single_server(np.arange(num) * 1.0, np.full(num, 1.25))

    summary = summarise(run, SLO, 0.0)

    assert summary["window"] == "steady"  # though it takes as long again to drain
    assert summary["request_throughput_per_s"] == pytest.approx(0.8, abs=1e-3)
    assert summary["busy_fraction"] == pytest.approx(1.0)
    assert summary["saturated"]
    assert summary["waiting_growth_per_s"] == pytest.approx(0.2, rel=1e-2)


def test_auto_cuts_nothing_where_an_empty_system_is_nothing_unusual() -> None:
    arrival_s = np.arange(1000) * 10.0
    run = single_server(arrival_s, np.where(np.arange(1000) < 100, 1.0, 2.0))

    assert summarise(run, SLO, "auto")["num_warmup"] == 0
    assert summarise(run, SLO, "mser5")["num_warmup"] == 100


def test_the_warmup_does_not_bias_the_mean_of_a_queue() -> None:
    runs = [poisson_queue(0.8, 4000, np.random.default_rng(seed)) for seed in range(25)]

    means_s = [summarise(run, SLO, "auto")["e2e_mean_s"] for run in runs]

    assert np.mean(means_s) == pytest.approx(5.0, abs=2 * np.std(means_s, ddof=1) / 5)


def test_a_saturated_run_has_no_interval() -> None:
    run = poisson_queue(1.2, 20_000, np.random.default_rng(0))

    assert summarise(run, SLO, "auto")["e2e_mean_ci95_low_s"] is None


def test_the_warmup_is_counted_in_requests_also_where_some_are_refused() -> None:
    num = 2000
    run = single_server(np.arange(num) * 10.0, np.where(np.arange(num) < 100, 1.0, 2.0))
    is_refused = np.arange(num) % 2 == 1
    requests = run.requests.assign(
        finish_s=run.requests["finish_s"].mask(is_refused),
        status=np.where(is_refused, REFUSED, FINISHED),
    )

    assert summarise(replace(run, requests=requests), SLO, "mser5")["num_warmup"] == 100


def test_percentiles_are_those_of_an_exponential_sojourn() -> None:
    runs = [poisson_queue(0.5, 40_000, np.random.default_rng(seed)) for seed in range(10)]

    summaries = [summarise(run, SLO, "auto") for run in runs]

    # M/M/1 at half load: times in system are exponential with mean 1 / (1 - 0.5).
    for key, expected in {
        "e2e_mean_s": 2.0,
        "e2e_p50_s": 2 * np.log(2),
        "e2e_p99_s": 2 * np.log(100),
    }.items():
        values = [summary[key] for summary in summaries]
        assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values, ddof=1) / np.sqrt(10))
    assert np.mean([summary["busy_fraction"] for summary in summaries]) == pytest.approx(0.5, abs=0.01)
    assert not any(summary["saturated"] for summary in summaries)


@pytest.mark.parametrize("utilisation", [0.5, 0.95, 1.2])
def test_laws_hold_for_a_queue_that_obeys_them(utilisation: float) -> None:
    run = poisson_queue(utilisation, 5000, np.random.default_rng(1))

    assert laws(run) == pytest.approx({"little": 0, "utilisation": 0, "flow": 0, "overbooked": 0}, abs=1e-9)


def test_laws_catch_lost_members_and_overlapping_batches() -> None:
    run = two_batches()
    overlapping = run.batches.assign(start_s=[0.0, 3.0])
    lost = run.batches.assign(batch_size=[1, 1])

    assert laws(replace(run, batches=overlapping, num_replicas=1))["overbooked"] == 1
    assert laws(replace(run, batches=lost))["flow"] == 1


def test_laws_of_a_run_where_nothing_ran_have_no_residual() -> None:
    unserved = records(request_table([0.0, 1.0], status=ABANDONED), NO_BATCHES)

    assert set(laws(unserved).values()) == {0.0}


def two_replicas() -> Records:
    """Three requests on two engines, one of them with half of its prompt cached; a fourth is refused."""
    requests = engine_request_table(
        [0.0, 1.0, 4.0, 5.0],
        gpu_id=[0, 1, 0, -1],
        prompt_tokens=[8, 8, 4, 999],
        cached_tokens=[4, 0, 0, 0],
        output_tokens=[4, 1, 2, 9],
        scheduled_s=[0.0, 1.0, 8.0, np.nan],
        first_token_s=[2.0, 3.0, 9.0, np.nan],
        finish_s=[8.0, 3.0, 10.0, np.nan],
        status=[FINISHED] * 3 + [REFUSED],
    )
    iterations = iteration_table(
        [0.0, 1.0, 2.0, 8.0, 9.0],
        [2.0, 3.0, 8.0, 9.0, 10.0],
        gpu_id=[0, 1, 0, 0, 0],
        num_iterations=[1, 1, 3, 1, 1],
        first_iteration_s=[2.0, 2.0, 1.0, 1.0, 1.0],
        host_s=0.25,
        prefill_tokens=[4, 8, 0, 4, 0],
        decode_seqs=[0, 0, 1, 0, 1],
        kv_blocks=[2, 2, 3, 1, 2],
        is_extrapolated=[False, False, True, False, False],
    )
    return engine_records(requests, iterations, kv_blocks=(10, 10))


def test_a_tiny_run_of_engines_is_summed_up_exactly() -> None:
    expected = {
        "num_requests": 4,
        "num_finished": 3,
        "num_refused": 1,
        "num_replicas": 2,
        "whole_run_output_throughput_tokens_per_s": 0.7,
        "busy_fraction": 12 / 20,
        "running_mean": 12 / 20,
        "running_p95": 1.0,
        "running_max": 1,
        "waiting_mean": 4 / 20,
        "kv_use_mean": pytest.approx((2 * 0.2 + 2 * 0.2 + 6 * 0.3 + 0.1 + 0.2) / 20),
        "kv_use_max": 0.3,
        "num_preemptions": 0,
        "num_preempted_requests": 0,
        "preemptions_per_request": 0.0,
        "recomputed_tokens": 0,
        "recomputed_share": 0.0,
        "prefix_hit_rate": 4 / 20,
        "iterations_total": 7,
        "spans_total": 5,
        "num_extrapolated_iterations": 3,
        "prefill_tokens_total": 16,
        "prefill_tokens_per_iteration_mean": 16 / 7,
        "decode_seqs_per_iteration_mean": 4 / 7,
        "itl_mean_s": 7 / 4,  # gaps of 1, 2 and 3 s, and of 1 s
        "itl_p50_s": 1.0,
        "itl_p90_s": 3.0,
        "itl_max_s": 3.0,
        "worst_gap_p50_s": 2.0,
        "worst_gap_p99_s": pytest.approx(2.98),
        "ttft_mean_s": 3.0,
        "ttft_queueing_mean_s": 4 / 3,
        "ttft_prefill_mean_s": pytest.approx(4.25 / 3),
        "ttft_host_mean_s": 0.25,
    }

    summary = summarise(two_replicas(), SLO, "auto")

    assert {key: summary[key] for key in expected} == expected
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_utilisation_of_the_peaks_needs_the_hardware() -> None:
    hardware = Hardware(load_model("llama-3.1-8b"), load_gpu("a100-80g"))

    without, with_it = (summarise(two_replicas(), SLO, "auto", given) for given in (None, hardware))

    assert with_it.keys() - without.keys() == {"mfu", "mfu_wall", "mbu", "mbu_wall"}
    assert with_it["mfu_wall"] == pytest.approx(with_it["mfu"] * 12 / 20)
    assert with_it["mbu_wall"] == pytest.approx(with_it["mbu"] * 12 / 20)


def test_gaps_are_those_of_the_covered_requests() -> None:
    summary = summarise(two_replicas(), SLO, 1)

    assert (summary["num_warmup"], summary["itl_mean_s"], summary["worst_gap_p50_s"]) == (1, 1.0, 1.0)


def test_engines_that_never_ran_are_summed_up_in_silence() -> None:
    unserved = engine_records(engine_request_table([0.0, 1.0], status=ABANDONED), iteration_table([], []))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = summarise(unserved, SLO, "auto")

    assert summary.keys() == summarise(two_replicas(), SLO, "auto").keys()
    assert summary["itl_p99_s"] is None
    assert summary["iterations_total"] == 0
    assert set(laws(unserved).values()) == {0.0}


def test_engines_that_fall_behind_are_called_saturated() -> None:
    num = 3000
    queue = single_server(np.arange(num) * 1.0, np.full(num, 1.25))
    requests = queue.requests.drop(columns=["batch_id", "batch_size"])
    run = engine_records(
        engine_request_table(**requests.to_dict("series")),
        iteration_table(queue.batches["start_s"], queue.batches["finish_s"]),
    )

    assert summarise(run, SLO, 0.0)["saturated"]


@pytest.mark.parametrize("seed", range(10))
def test_laws_hold_for_an_engine_that_obeys_them(seed: int) -> None:
    run = dice_run(seed, num_gpus=2).records

    residuals = laws(run)

    assert residuals.keys() == {"little", "utilisation", "tokens", "decodes", "overbooked", "overfull"}
    assert residuals == pytest.approx(dict.fromkeys(residuals, 0), abs=1e-12)


def test_laws_catch_lost_tokens_overlapping_spans_and_blocks_from_nowhere() -> None:
    run = two_replicas()
    starts_s, num = run.iterations["start_s"], run.iterations["num_iterations"]

    def broken(**columns: Any) -> dict[str, float]:
        return laws(replace(run, iterations=run.iterations.assign(**columns)))

    assert broken(num_iterations=num.replace(3, 2))["tokens"] == 1
    assert broken(decode_seqs=[0, 0, 2, 0, 1])["decodes"] == 3
    assert broken(start_s=starts_s.replace(8.0, 7.0))["overbooked"] == 1
    assert broken(kv_blocks=[2, 2, 15, 1, 2])["overfull"] == 0.5
