import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

import batchsim
from batchsim.cli import main
from batchsim.config import load_config
from batchsim.errors import ConfigError
from batchsim.latency.base import LatencyInfo
from batchsim.latency.linear import LinearIterationLatency
from batchsim.specs import load_gpu
from batchsim.specs.prices import list_prices
from batchsim.study.setup.cost import expenses


def requests(num: int = 30) -> batchsim.Workload:
    frame = {"arrival_s": [0.1 * row for row in range(num)], "prompt_tokens": 100, "output_tokens": 20}
    return batchsim.Workload.from_frame(pd.DataFrame(frame))


def simulated(cost: Any = None, **cluster: Any) -> dict[str, Any]:
    given = {} if cost is None else {"cost": {"usd_per_gpu_hour": cost}}
    hardware = {"gpu": "h100", "model": "qwen2.5-7b", **cluster}
    config = {"policy": {"preset": "vllm_v1"}, "cluster": hardware, **given}
    return dict(batchsim.simulate(config, requests()).summary)


def test_every_list_price_is_of_a_gpu_that_ships_with_its_date_and_source() -> None:
    for gpu, price in list_prices().items():
        assert load_gpu(gpu).name == gpu
        assert load_config({"cost": {"usd_per_gpu_hour": price.usd_per_gpu_hour}})
        assert pd.Timestamp(price.date) > pd.Timestamp("2026-01-01")
        assert price.seller in ("CoreWeave on demand",)  # of one seller: prices of two do not compare
        assert "coreweave.com" in price.source


@pytest.mark.parametrize(
    ("cost", "usd", "said"),
    [
        (None, 2 * 6.155, "list price of CoreWeave on demand"),
        (2.5, 5.0, "h100 at 2.5 USD/hour"),
        ({"NVIDIA H100 80GB HBM3": 3}, 6.0, "h100 at 3 USD/hour"),
        ({"l40s": 1.0}, 2 * 6.155, "list price of CoreWeave on demand"),
    ],
)
def test_a_configured_price_wins_over_the_list(cost: Any, usd: float, said: str) -> None:
    summary = simulated(cost, num_gpus=2)

    assert summary["usd_per_hour"] == pytest.approx(usd)
    assert said in summary["prices"]


def test_replicas_that_differ_are_summed_by_their_own_prices() -> None:
    replicas = [{"gpu": "h100", "tensor_parallel": 4}, {"gpu": "l40s", "count": 3}]

    summary = simulated({"l40s": 1.0}, replicas=replicas)

    assert summary["usd_per_hour"] == pytest.approx(4 * 6.155 + 3 * 1.0)
    assert summary["gpu_hours"] == pytest.approx(7 * summary["makespan_s"] / 3600)
    assert summary["prices"].endswith(", l40s at 1 USD/hour")


def test_a_gpu_without_a_price_leaves_the_cost_open() -> None:
    alone, among = simulated(gpu="mi300x"), simulated(replicas=[{"gpu": "h100"}, {"gpu": "mi300x"}])

    assert (alone["usd_total"], alone["prices"]) == (None, None)
    assert among["usd_total"] is None
    assert among["prices"].endswith("mi300x of unknown price")


def test_batches_that_run_to_completion_cost_their_gpus() -> None:
    config = {
        "policy": {"preset": "static_fifo"},
        "cluster": {"gpu": "h100", "model": "qwen2.5-7b", "tensor_parallel": 2, "num_gpus": 4},
        "cost": {"usd_per_gpu_hour": 2.0},
    }

    summary = batchsim.simulate(config, requests()).summary

    assert summary["usd_per_hour"] == 8.0
    assert summary["usd_total"] == pytest.approx(8.0 * summary["makespan_s"] / 3600)


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (-1, "usd_per_gpu_hour is -1: the price of one GPU for an hour is needed, in US dollars"),
        (250, "usd_per_gpu_hour is 250: the price .* from 0.01 to 50"),
        (True, "usd_per_gpu_hour is True: the price"),
        ("cheap", "usd_per_gpu_hour is 'cheap': the price"),
        ({"h100": 250}, r"usd_per_gpu_hour: h100 is 250; the price .* \(not cents\)"),
        ({"h100": 2, "NVIDIA H100 80GB HBM3": 3}, "name a GPU twice"),
    ],
)
def test_what_is_no_price_is_refused_in_a_sentence(cost: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({"cost": {"usd_per_gpu_hour": cost}})


def test_a_price_of_an_unknown_gpu_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"cost.usd_per_gpu_hour: unknown GPU 'h1000'; did you mean h100"):
        simulated({"h1000": 2.0})


def test_a_gpu_of_ones_own_is_priced_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(
        json.dumps({"name": "mine", "memory_bytes": 10**11, "flop_per_s": 1e15, "memory_bytes_per_s": 2e12})
    )

    assert simulated({"mine": 1.5}, gpu=str(file))["usd_per_hour"] == 1.5


def measured_at(power_watts: object) -> LinearIterationLatency:
    details = {"gpu": "a100-80g", "model": "qwen2.5-7b", "power_watts": power_watts}
    return LinearIterationLatency(0.01, 1e-4, 0.0, 1e-4, 1e-7, info=LatencyInfo("of mine", details=details))


def test_energy_follows_from_the_watts_that_a_latency_model_was_measured_at() -> None:
    alike = measured_at({"prefill": 300, "decode": 300, "idle": 300})

    summary = batchsim.simulate({"policy": {"preset": "vllm_v1"}}, requests(), latency=alike).summary

    # 300 W all the time, over 30 answers of 20 tokens; at most the 400 W of the data sheet.
    joules = 300 * summary["makespan_s"] / 600
    assert summary["whole_run_joules_per_output_token"] == pytest.approx(joules)
    assert summary["whole_run_joules_per_output_token_at_most"] == pytest.approx(joules * 4 / 3)


@pytest.mark.parametrize(
    "power",
    [300, {"prefill": 300}, {"prefill": 0.6, "decode": 0.4}, {"prefill": 9, "decode": 9, "idle": "x"}],
)
def test_power_that_is_none_is_refused_by_model(power: object) -> None:
    with pytest.raises(
        ConfigError, match=r"latency model of mine: details.power_watts is .*; watts of a GPU"
    ):
        expenses(load_config().cost, [(load_gpu("h100"), 1, measured_at(power).info)])


def test_costs_are_printed_where_prices_are_known(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},10,10\n" for i in range(20)))
    words = ["run", "--policy", "vllm_v1", "--trace", str(trace)]

    without, with_it = (
        CliRunner().invoke(main, [*words, *more]).stdout
        for more in ([], ["--set", "cost.usd_per_gpu_hour.rtx4080-laptop=0.5"])
    )

    assert "USD" not in without
    assert "USD/million output tokens" in with_it
    assert "rtx4080-laptop at 0.5" in with_it
