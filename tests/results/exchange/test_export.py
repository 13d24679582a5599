"""What is written for others, read back by our readers of their files: the same times, to the nanosecond."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from batchsim.errors import ConfigError
from batchsim.metrics.tokens import itl
from batchsim.records import FINISHED
from batchsim.results.exchange.answers import _check_pieces
from batchsim.results.exchange.export import FORMS, export_run
from batchsim.results.measured_tables import MeasuredRun, read_measured
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate

LENGTHS = {"kind": "uniform", "low": 1, "high": 60}
WORKLOAD = {
    "num_requests": 60,
    "generator": {"kind": "poisson", "rate_per_s": 8.0, "prompt": LENGTHS, "output": LENGTHS},
}
ENGINE = {"policy": {"preset": "vllm_v1"}, "workload": WORKLOAD}
WORLDS: dict[str, dict[str, Any]] = {
    "engine": ENGINE,
    "little memory": {**ENGINE, "engine": {"num_kv_blocks": 9}},
    "drafts": {**ENGINE, "engine": {"speculation": {"num_speculative_tokens": 3, "acceptance": 0.6}}},
    "failures": {
        **ENGINE,
        "cluster": {"num_gpus": 2},
        "failures": {"at": [[2.0, 0], [3.0, 1]], "repair_s": 1.0, "on_failure": "retry"},
    },
    "batches": {"policy": {"preset": "static_fifo"}, "workload": WORKLOAD},
}


@pytest.fixture(scope="module")
def runs() -> dict[str, SimulationResult]:
    return {name: simulate(config) for name, config in WORLDS.items()}


def exported(result: SimulationResult, folder: Path, form: str) -> tuple[Path, MeasuredRun]:
    result.save(folder / "run")
    export_run(folder / "run", folder / "file", form)
    (read,) = read_measured(folder / "file")
    return folder / "file", read


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("world", WORLDS)
def test_requests_come_back_as_they_were(
    world: str, form: str, runs: dict[str, SimulationResult], tmp_path: Path
) -> None:
    simulated = runs[world].requests

    _, read = exported(runs[world], tmp_path, form)

    assert read.tool == {"vllm-bench": "vLLM bench", "aiperf": "AIPerf"}[form]
    assert read.is_simulated
    assert "simulated by batchsim, not measured" in read.notices[-1]
    assert (simulated["status"] == FINISHED).all()
    start_s = simulated["arrival_s"].iloc[0]
    for name in ("arrival_s", "first_token_s", "finish_s"):
        np.testing.assert_allclose(read.requests[name], simulated[name] - start_s, rtol=0, atol=3e-9)
    for name in ("prompt_tokens", "output_tokens"):
        assert read.requests[name].tolist() == simulated[name].tolist()


@pytest.mark.parametrize("world", [name for name in WORLDS if name != "batches"])
def test_gaps_are_those_of_the_simulation(
    world: str, runs: dict[str, SimulationResult], tmp_path: Path
) -> None:
    run = runs[world]

    file, _ = exported(run, tmp_path, "vllm-bench")

    tree = json.loads(file.read_text(encoding="utf-8"))
    gaps = [gap for row in tree["itls"] for gap in row]
    told = itl(run.requests, run.iterations, run.preemptions)
    assert len(gaps) == told.total
    assert np.mean(gaps) == pytest.approx(told.mean, rel=1e-7)
    assert tree["mean_itl_ms"] == pytest.approx(told.mean * 1e3, rel=1e-7)
    if world != "drafts":
        assert [len(row) + 1 for row in tree["itls"]] == tree["output_lens"]


def test_worlds_are_what_they_are_called(runs: dict[str, SimulationResult]) -> None:
    assert len(runs["little memory"].preemptions) > 5
    assert len(runs["drafts"].decode_steps) > 5
    assert set(runs["failures"].preemptions["mode"]) & {"failure", "restart"}


def test_the_summary_of_vllm_is_that_of_its_lists(runs: dict[str, SimulationResult], tmp_path: Path) -> None:
    file, _ = exported(runs["engine"], tmp_path, "vllm-bench")

    tree = json.loads(file.read_text(encoding="utf-8"))
    times_ms = {
        "ttft": np.array(tree["ttfts"]) * 1e3,
        "e2el": np.array([ttft + sum(gaps) for ttft, gaps in zip(tree["ttfts"], tree["itls"], strict=True)])
        * 1e3,
    }
    for name, values in times_ms.items():
        assert tree[f"mean_{name}_ms"] == pytest.approx(values.mean())
        assert tree[f"median_{name}_ms"] == pytest.approx(np.median(values))
        assert tree[f"std_{name}_ms"] == pytest.approx(values.std())
        assert tree[f"p99_{name}_ms"] == pytest.approx(np.percentile(values, 99))
    ends_s = np.array(tree["start_times"]) + times_ms["e2el"] / 1e3
    assert tree["duration"] == pytest.approx(ends_s.max() - tree["start_times"][0])
    assert tree["completed"] == tree["num_prompts"] == 60
    assert tree["output_throughput"] == pytest.approx(sum(tree["output_lens"]) / tree["duration"])
    assert tree["request_goodput"] is None
    assert tree["errors"] == tree["generated_texts"] == [""] * 60


def test_peaks_are_those_that_vllm_counts_second_by_second(
    runs: dict[str, SimulationResult], tmp_path: Path
) -> None:
    file, _ = exported(runs["engine"], tmp_path, "vllm-bench")

    tree = json.loads(file.read_text(encoding="utf-8"))
    tokens, under_way = Counter[int](), Counter[int]()
    for start_s, ttft_s, gaps_s in zip(tree["start_times"], tree["ttfts"], tree["itls"], strict=True):
        sent_s = start_s - tree["start_times"][0]
        tokens_s = sent_s + np.cumsum([ttft_s, *gaps_s])
        tokens.update(tokens_s.astype(int).tolist())
        under_way.update(range(int(sent_s), int(tokens_s[-1]) + 1))
    assert len(tokens) > 5
    assert tree["max_output_tokens_per_s"] == max(tokens.values())
    assert tree["max_concurrent_requests"] == max(under_way.values())


def test_all_at_once_is_an_unlimited_rate(tmp_path: Path) -> None:
    config = {
        "policy": {"preset": "vllm_v1"},
        "workload": {
            "num_requests": 3,
            "generator": {
                "kind": "all_at_once",
                "prompt": {"kind": "fixed", "tokens": 10},
                "output": {"kind": "fixed", "tokens": 20},
            },
        },
    }

    file, _ = exported(simulate(config), tmp_path, "vllm-bench")

    tree = json.loads(file.read_text(encoding="utf-8"))
    assert tree["duration"] < 1.0
    assert tree["max_output_tokens_per_s"] == 60
    assert tree["max_concurrent_requests"] == 3
    assert tree["request_rate"] == "inf"


def test_what_was_not_answered_says_why(tmp_path: Path) -> None:
    config = {**ENGINE, "patience_s": 0.05, "engine": {"num_kv_blocks": 4, "block_size": 16}}
    run = simulate(config, overrides={"slo.ttft_ms": 60})
    endings = run.requests["status"].tolist()
    assert {"finished", "abandoned", "refused"} <= set(endings)
    run.save(tmp_path / "run")

    export_run(tmp_path / "run", tmp_path / "vllm", "vllm-bench")
    export_run(tmp_path / "run", tmp_path / "aiperf", "aiperf")

    tree = json.loads((tmp_path / "vllm").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (tmp_path / "aiperf").read_text(encoding="utf-8").splitlines()]
    for status, error, tokens, record in zip(
        endings, tree["errors"], tree["output_lens"], records, strict=True
    ):
        assert (error == "") == (tokens > 0) == (record["error"] is None) == (status == FINISHED)
        if status == "refused":
            assert "KV" in error
            assert record["error"]["message"] == error
        if status == "abandoned":
            assert record["metadata"]["was_cancelled"]
            start_ns, cancelled_ns = (
                record["metadata"][name] for name in ("request_start_ns", "cancellation_time_ns")
            )
            assert cancelled_ns - start_ns == pytest.approx(5e7, abs=2)
    assert tree["failed"] == len(endings) - endings.count(FINISHED)
    assert 0 < tree["request_goodput"] <= tree["request_throughput"]
    for file in ("vllm", "aiperf"):
        (read,) = read_measured(tmp_path / file)
        assert len(read.requests) == endings.count(FINISHED)


def test_metrics_of_aiperf_are_in_the_units_that_they_name(
    runs: dict[str, SimulationResult], tmp_path: Path
) -> None:
    file, _ = exported(runs["engine"], tmp_path, "aiperf")

    simulated = runs["engine"].requests
    for line, row in zip(file.read_text("utf-8").splitlines(), simulated.to_dict("records"), strict=True):
        metrics = json.loads(line)["metrics"]
        assert metrics["time_to_first_token"]["unit"] == "ms"
        gaps_ms = metrics.get("inter_chunk_latency", {"value": []})["value"]
        assert len(gaps_ms) == row["output_tokens"] - 1
        if gaps_ms:
            assert metrics["inter_token_latency"]["value"] == pytest.approx(np.mean(gaps_ms))
            assert metrics["time_to_second_token"]["value"] == gaps_ms[0]
            total_ms = metrics["time_to_first_token"]["value"] + sum(gaps_ms)
            assert metrics["request_latency"]["value"] == pytest.approx(total_ms)


def test_turns_of_a_session_are_numbered(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "arrival_s,prompt_tokens,output_tokens,session_id\n0,9,2,b\n1,9,2,a\n2,9,2,b\n3,9,2,\n",
        encoding="utf-8",
    )
    run = simulate({"policy": {"preset": "vllm_v1"}, "workload": {"trace": str(trace)}})

    file, _ = exported(run, tmp_path, "aiperf")

    found = [json.loads(line)["metadata"] for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(one["session_num"], one["turn_index"]) for one in found] == [(0, 0), (1, 0), (0, 1), (2, 0)]
    assert [one["x_correlation_id"] for one in found][:3] == ["b", "a", "b"]


def test_a_model_without_first_tokens_makes_answers_of_one_piece(
    runs: dict[str, SimulationResult], tmp_path: Path
) -> None:
    runs["batches"].save(tmp_path / "run")
    path = tmp_path / "run" / "requests.parquet"
    pd.read_parquet(path).assign(first_token_s=np.nan).to_parquet(path)

    notices = export_run(tmp_path / "run", tmp_path / "file", "vllm-bench")

    assert notices == ("file: the run does not tell when first tokens came; each answer is one piece",)
    (read,) = read_measured(tmp_path / "file")
    some = read.requests["output_tokens"] > 1
    assert read.requests["first_token_s"][some].isna().all()
    assert read.requests["finish_s"].notna().all()


def test_batches_say_that_what_follows_the_first_token_is_one_piece(
    runs: dict[str, SimulationResult], tmp_path: Path
) -> None:
    runs["batches"].save(tmp_path / "run")

    notices = export_run(tmp_path / "run", tmp_path / "file", "vllm-bench")

    assert len(notices) == 1
    assert notices[0].endswith("what follows the first is one piece")
    assert "mean_itl_ms" not in json.loads((tmp_path / "file").read_text(encoding="utf-8"))


def test_a_run_without_tables_or_columns_is_refused(
    runs: dict[str, SimulationResult], tmp_path: Path
) -> None:
    folder = runs["engine"].save(tmp_path / "run")
    path = folder / "iterations.parquet"
    pd.read_parquet(path).drop(columns="first_iteration_s").to_parquet(path)
    with pytest.raises(ConfigError, match=r"iterations\.parquet: has no column first_iteration_s"):
        export_run(folder, tmp_path / "file", "aiperf")

    for table in folder.glob("*.parquet"):
        table.unlink()
    with pytest.raises(ConfigError, match="saved without its tables"):
        export_run(folder, tmp_path / "file", "aiperf")

    with pytest.raises(ConfigError, match="no run in it"):
        export_run(tmp_path, tmp_path / "file", "aiperf")
    assert not (tmp_path / "file").exists()


def test_tables_of_two_runs_are_no_run(runs: dict[str, SimulationResult], tmp_path: Path) -> None:
    folder, other = runs["engine"].save(tmp_path / "run"), runs["little memory"].save(tmp_path / "other")
    (folder / "iterations.parquet").write_bytes((other / "iterations.parquet").read_bytes())

    with pytest.raises(ConfigError, match=r"request \d+: the table of iterations does not hold its tokens"):
        export_run(folder, tmp_path / "file", "aiperf")


def test_times_in_another_order_are_refused(runs: dict[str, SimulationResult], tmp_path: Path) -> None:
    folder = runs["batches"].save(tmp_path / "run")
    path = folder / "requests.parquet"
    table = pd.read_parquet(path)
    table.loc[2, "first_token_s"] = table.loc[2, "finish_s"] + 1
    table.to_parquet(path)

    with pytest.raises(ConfigError, match=r"requests\.parquet, row 3: request sent at .* are needed"):
        export_run(folder, tmp_path / "file", "aiperf")


def test_a_token_before_its_request_is_none_of_its_own() -> None:
    requests = {"request_id": np.array([7]), "arrival_s": np.array([2.0]), "finish_s": np.array([3.0])}
    is_finished, end_ns = np.array([True]), 3 * 10**9

    _check_pieces([np.array([2 * 10**9, end_ns])], requests, is_finished)
    with pytest.raises(ConfigError, match="request 7: the table of iterations does not hold its tokens"):
        _check_pieces([np.array([10**9, end_ns])], requests, is_finished)


def test_times_that_no_clock_has_are_refused(runs: dict[str, SimulationResult], tmp_path: Path) -> None:
    folder = runs["batches"].save(tmp_path / "run")
    path = folder / "requests.parquet"
    is_odd = pd.read_parquet(path).index == 2
    times = {name: np.where(is_odd, 1e300, 1.0) for name in ("arrival_s", "first_token_s", "finish_s")}
    status = np.where(is_odd, "abandoned", "finished")
    pd.read_parquet(path).assign(**times, status=status).to_parquet(path)

    with pytest.raises(ConfigError, match=r"requests\.parquet, row 3: request sent at 1e\+300 s"):
        export_run(folder, tmp_path / "file", "aiperf")


def test_the_same_run_makes_the_same_bytes(runs: dict[str, SimulationResult], tmp_path: Path) -> None:
    runs["engine"].save(tmp_path / "run")

    for form in FORMS:
        for name in ("one", "two"):
            export_run(tmp_path / "run", tmp_path / name, form)
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
