import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from batchsim.cli import main
from batchsim.config import load_config
from batchsim.errors import ConfigError
from batchsim.study.capacity import Capacity, find_capacity
from batchsim.study.cheapest import cheapest, for_gpus

SMALL: dict[str, Any] = {
    "policy": {"preset": "vllm_v1"},
    "cluster": {"model": "llama-3.1-8b"},
    "workload": {"request_rate": 20.0, "num_requests": 300},
    "slo": {"ttft_ms": 2000},
}


def found(gpus: list[str], **prices: float) -> dict[str, Capacity]:
    base = load_config({**SMALL, "cost": {"usd_per_gpu_hour": prices}})
    return {gpu: find_capacity(config) for gpu, config in for_gpus(base, gpus).items()}


def test_the_cheapest_kind_is_not_that_of_which_the_fewest_are_needed() -> None:
    kinds = found(["h100", "l40s"], h100=10.0, l40s=1.0)

    assert kinds["h100"].num_gpus < kinds["l40s"].num_gpus < 10 * kinds["h100"].num_gpus
    assert cheapest(kinds) == "l40s"
    assert cheapest(found(["h100", "l40s"], h100=1.0, l40s=1.0)) == "h100"


def test_costs_of_a_rate_are_price_over_rate() -> None:
    (one,) = found(["l40s"], l40s=1.8).values()

    assert one.best.usd_per_hour == pytest.approx(1.8 * one.num_gpus)
    assert one.usd_per_request == pytest.approx(1.8 * one.num_gpus / 3600 / 20)
    assert one.usd_per_million_output_tokens == pytest.approx(
        1e6 * one.usd_per_request / one.best.mean_output_tokens
    )


def test_a_kind_without_a_price_or_a_rate_is_not_compared() -> None:
    base = load_config({**SMALL, "workload": {"num_requests": 100}, "slo": {"ttft_ms": 0.001}})
    none = {gpu: find_capacity(config) for gpu, config in for_gpus(base, ["h100"]).items()}

    assert none["h100"].usd_per_request is None
    assert cheapest(none) is None
    assert cheapest(found(["mi300x"])) is None


def test_own_gpus_have_their_own_prices(tmp_path: Path) -> None:
    files = []
    for name in ("mine", "yours"):
        files.append(str(tmp_path / f"{name}.json"))
        spec = {"name": name, "memory_bytes": 10**11, "flop_per_s": 1e15, "memory_bytes_per_s": 2e12}
        Path(files[-1]).write_text(json.dumps(spec))

    base = load_config({**SMALL, "cost": {"usd_per_gpu_hour": {"mine": 1.0, "yours": 2.0, "h100": 3.0}}})

    configs = for_gpus(base, [*files, "h100"])
    prices = [config.cost.usd_per_gpu_hour for config in configs.values()]
    assert prices == [{"mine": 1.0, "h100": 3.0}, {"yours": 2.0, "h100": 3.0}, {"h100": 3.0}]


@pytest.mark.parametrize(
    ("settings", "gpus", "message"),
    [
        ({}, ["h100", "NVIDIA H100 80GB HBM3"], "h100, h100 are to be compared; each may be named once"),
        ({}, ["h1000"], "unknown GPU 'h1000'.*did you mean h100"),
        ({"latency": {"file": "mine.json"}}, ["h100"], "latency.file is mine.json, of one kind of GPU"),
        (
            {"latency": {"family": "aiconfigurator", "system": "h200_sxm", "model": "Qwen/Qwen3-32B"}},
            ["h100"],
            "latency.system is h200_sxm, of one kind of GPU",
        ),
        ({"cost": {"usd_per_gpu_hour": {"h1000": 1.0}}}, ["h100"], "unknown GPU 'h1000'; did you mean h100"),
    ],
)
def test_kinds_that_cannot_be_compared_are_refused(
    settings: dict[str, Any], gpus: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        for_gpus(load_config({**SMALL, **settings}), gpus)


def capacity(*words: str) -> Result:
    few = ["--num-requests", "60", "--parts", "2", "--policy", "vllm_v1", "--slo", "ttft:2000"]
    return CliRunner().invoke(main, ["capacity", *few, "--request-rate", "10", *words])


def test_command_names_the_cheapest_kind_and_why_another_is_none(tmp_path: Path) -> None:
    words = ["--gpu", "h100,l40s", "--gpu", "l4", "--set", "cluster.model=qwen3-32b"]

    shown = capacity(*words, "-o", str(tmp_path / "out"))
    printed = capacity(*words, "--json")

    assert shown.exit_code == printed.exit_code == 0, shown.output
    results = json.loads(printed.stdout)
    assert json.loads((tmp_path / "out" / "capacity.json").read_text()) == results
    assert list(results) == [f"vllm_v1 on {gpu}" for gpu in ("h100", "l40s", "l4")]
    assert results["vllm_v1 on l40s"]["failure"].startswith("qwen3-32b does not fit l40s")
    assert results["vllm_v1 on h100"]["is_cheapest"]
    assert f"cheapest: vllm_v1 on {results['vllm_v1 on h100']['num_gpus']} h100, " in shown.stdout
    assert "Warning: vllm_v1 on l4: qwen3-32b does not fit l4" in shown.stderr


def test_command_fails_where_no_kind_will_do() -> None:
    result = capacity("--gpu", "l40s,l4", "--set", "cluster.model=qwen3-32b")

    assert result.exit_code == 2
    assert "qwen3-32b does not fit l4" in result.stderr


def test_command_says_which_kind_lacks_a_price() -> None:
    result = capacity("--gpu", "mi300x,h100", "--set", "cluster.model=llama-3.1-8b")

    assert result.exit_code == 0, result.output
    assert "mi300x: no price is known" in result.stderr
    assert re.search(r"cheapest: vllm_v1 on \d+ h100, ", result.stdout)
