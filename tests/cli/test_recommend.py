import json
import shlex
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from batchsim.cli import main
from batchsim.cli.recommend import parse_vary
from batchsim.errors import ConfigError

POISSON = (
    'workload.generator={kind="poisson", rate_per_s=10.0, prompt={kind="fixed", tokens=200}, '
    'output={kind="fixed", tokens=20}}'
)


def recommend(*words: str, slo: str = "e2e:700") -> Result:
    few = [
        "--set",
        POISSON,
        "--set",
        "cluster.model=llama-3.1-8b",
        "--num-requests",
        "60",
        "--slo",
        slo,
    ]
    return CliRunner().invoke(
        main, ["recommend", *few, "--policy", "vllm_v1", "--attainment", "60%", "--confidence", "0.9", *words]
    )


def test_the_cheapest_is_printed_with_what_separates_it_and_drawn(tmp_path: Path) -> None:
    out = tmp_path / "out"

    shown = recommend("--gpu", "h100,l40s,l4", "--vary", "num_gpus=1,2", "-o", str(out))

    assert shown.exit_code == 0, shown.output
    best = json.loads((out / "recommendation.json").read_text())["best"]
    assert (best["gpu"], best["num_gpus"]) == ("l40s", 1)
    assert "cheapest that attains, 90 % sure: vllm_v1 on l40s, num_gpus 1; 2.25 USD/hour" in shown.stdout
    table = pd.read_csv(out / "candidates.csv")
    assert list(table["verdict"]) == ["best", "dearer", "not run", "not run", "cannot run", "cannot run"]
    assert table["reason"][4].startswith("no price of l4 is known")
    assert table["on_cost_front"].sum() >= 1
    assert {path.name for path in out.iterdir()} == {
        "candidates.csv", "recommendation.json", "pareto.pdf", "pareto.png", "pareto.figure.json",
    }  # fmt: skip
    pictures = {path.name: path.read_bytes() for path in out.glob("pareto.*")}
    told = json.loads(pictures["pareto.figure.json"])
    assert told["title"].startswith("vllm_v1 on l40s, num_gpus 1 is the cheapest that attains")
    assert "Wanted: 60% of the requests within E2E <= 700 ms, 90 % sure." in told["caption"]
    assert told["searched_with"].startswith("batchsim recommend --set ")
    assert shlex.split(told["searched_with"])[-2:] == ["-o", str(out)]
    for name in pictures:
        (out / name).unlink()

    again = CliRunner().invoke(main, shlex.split(told["command"])[1:])

    assert again.exit_code == 0, again.output
    assert {path.name: path.read_bytes() for path in out.glob("pareto.*")} == pictures


def test_where_a_statistic_alone_is_limited_no_share_is_told_as_one_of_good_requests(tmp_path: Path) -> None:
    shown = recommend("--gpu", "h100", "-o", str(tmp_path / "out"), slo="e2e_mean:900")

    assert shown.exit_code == 0, shown.output
    assert "% of the requests are within the limit" in shown.stdout
    assert "good" not in shown.stdout
    assert json.loads((tmp_path / "out" / "recommendation.json").read_text())["share"] is None
    told = json.loads((tmp_path / "out" / "pareto.figure.json").read_text())
    assert "the share of requests within the limit that is the tightest" in told["caption"]
    assert told["title"].endswith("% within the limit")


def test_a_recommendation_is_replaced_if_that_is_asked_for_alone(tmp_path: Path) -> None:
    out = ["--gpu", "l40s", "--vary", "num_gpus=1", "-o", str(tmp_path / "out")]
    assert recommend(*out).exit_code == 0
    (tmp_path / "out" / "candidates.csv").write_text("old", encoding="utf-8")

    refused, replaced = recommend(*out), recommend(*out, "--overwrite")

    assert refused.exit_code == 2
    assert "holds a recommendation already" in refused.stderr
    assert replaced.exit_code == 0, replaced.output
    assert len(pd.read_csv(tmp_path / "out" / "candidates.csv")) == 1


def test_a_recommendation_has_one_figure_and_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "recommendation.json").write_text('{"share": 0.9, "wanted": ""}', encoding="utf-8")
    (tmp_path / "candidates.csv").write_text("name,policy\na,b\n", encoding="utf-8")

    results = [CliRunner().invoke(main, ["figures", str(tmp_path), *names]) for names in (["front"], [])]

    assert [result.exit_code for result in results] == [2, 2]
    assert "there is the figure pareto alone" in results[0].stderr
    assert "candidates.csv: cannot be drawn" in results[1].stderr


def test_json_is_the_same_in_two_processes() -> None:
    words = ["--gpu", "h100,l40s", "--vary", "num_gpus=1,2", "--json"]

    alone, shared = recommend(*words), recommend(*words, "--jobs", "2")

    assert alone.exit_code == shared.exit_code == 0, alone.output
    assert json.loads(alone.stdout) == json.loads(shared.stdout)


def test_where_nothing_attains_the_nearest_is_named() -> None:
    result = recommend("--gpu", "l40s", "--vary", "num_gpus=1,2", "--slo", "e2e:10", "--json")

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["best"] is None
    assert {one["verdict"] for one in found["candidates"]} == {"misses"}
    assert "no configuration is sure to attain the SLO; the nearest: vllm_v1 on l40s" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--gpu", "l40s", "--vary", "num_gpu=1,2"],
            "num_gpu names no setting to vary; did you mean num_gpus or",
        ),
        (
            ["--gpu", "l40s", "--vary", "cluster.gpu"],
            "which values of cluster.gpu are to be tried is not said",
        ),
        (
            ["--vary", "num_gpus=1"],
            "no price of rtx4080-laptop is known; cost.usd_per_gpu_hour gives one; GPUs to",
        ),
        (["--gpu", "l40s", "--vary", "engine.nonsense=1"], "unknown key engine.nonsense"),
        (["--gpu", "l40s", "--vary", "workload.request_rate=1,2"], "is the same for all configurations"),
        (["--gpu", "l40s", "--vary", "num_gpus=1,1"], "each value may be given once"),
        (["--gpu", "l4", "--vary", "num_gpus=1"], "no price of l4 is known; cost.usd_per_gpu_hour gives one"),
        (["--gpu", "l40s", "--set", "cluster.model=qwen3-32b"], "qwen3-32b does not fit l40s"),
        (["--gpu", "l40s", "--attainment", "1"], "share is 1; a number in"),
        (["--gpu", "l40s", "--confidence", "sure"], "--confidence 'sure': write a share, e.g. 2% or 0.02"),
        (["--gpu", "l40s", "--set", "workload.load=0.5"], "all candidates are to meet the same requests"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(words: list[str], message: str) -> None:
    result = recommend(*words)

    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())


def test_settings_to_vary_are_told_from_values() -> None:
    given = parse_vary(
        ["num_gpus=2,4,tensor_parallel,batch_size=64", "policy.routing.kind=RoundRobin,Random"]
    )

    assert given == {
        "num_gpus": [2, 4],
        "tensor_parallel": [],
        "batch_size": [64],
        "policy.routing.kind": ["RoundRobin", "Random"],
    }
    with pytest.raises(ConfigError, match="num_gpus is given twice"):
        parse_vary(["num_gpus=2,num_gpus"])
