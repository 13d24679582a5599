"""What counts as a GPU, and which hardware a latency model brings."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import batchsim
from batchsim.config import ReplicaConfig, load_config
from batchsim.config.section import MOST_GPUS
from batchsim.errors import ConfigError
from batchsim.latency.base import LatencyInfo
from batchsim.latency.linear import LinearIterationLatency
from batchsim.latency.store import default_latency, save_latency
from batchsim.records import (
    BATCH_COLUMNS,
    CONTROLLER_COLUMNS,
    ITERATION_COLUMNS,
    ITERATION_REQUEST_COLUMNS,
    PREEMPTION_COLUMNS,
    REQUEST_COLUMNS,
)
from batchsim.specs import Sharing, gpu_activation_bytes, kv_capacity_tokens, load_gpu, load_model
from batchsim.study.capacity import find_capacity
from batchsim.study.setup.hardware import adopt_hardware, describe_cluster
from tests.study.test_run import workload
from tests.theory.worlds import AS_LONG_AS_THE_LONGEST, requests_of

LLAMA_4 = {"model": "llama-3.1-70b", "gpu": "h100", "tensor_parallel": 4}


def measured(**details: object) -> LinearIterationLatency:
    info = LatencyInfo("the file", "measured", details)
    return LinearIterationLatency(0.01, 1e-5, 0.0, 1e-4, 1e-8, info=info)


@pytest.mark.parametrize(
    ("cluster", "heading"),
    [
        ({}, "1 GPU"),
        ({"num_gpus": 4}, "4 GPUs"),
        ({"tensor_parallel": 4}, "4 GPUs = 1 replica of 4"),
        ({"tensor_parallel": 2, "num_gpus": 8}, "8 GPUs = 4 replicas of 2"),
        ({"tensor_parallel": 2, "pipeline_parallel": 3, "num_replicas": 2}, "12 GPUs = 2 replicas of 6"),
        ({"data_parallel": 8, "expert_parallel": 8}, "8 GPUs = 1 replica of 8"),
        (
            {
                "tensor_parallel": 2,
                "replicas": [{"gpu": "h100", "data_parallel": 4}, {"pipeline_parallel": 2}],
            },
            "12 GPUs = 1 replica of 8 h100 + 1 replica of 4 rtx4080-laptop",
        ),
        (
            {"replicas": [{"gpu": "h100", "tensor_parallel": 4}, {"count": 2, "gpu": "l4"}]},
            "6 GPUs = 1 replica of 4 h100 + 2 replicas of 1 l4",
        ),
        ({"replicas": [{"model": "qwen2.5-7b"}]}, "1 GPU = 1 replica of 1 rtx4080-laptop with qwen2.5-7b"),
    ],
)
def test_a_heading_says_gpus_and_the_replicas_they_make(cluster: dict[str, Any], heading: str) -> None:
    assert describe_cluster(load_config({"cluster": cluster})) == heading


def test_a_run_counts_gpus_and_replicas() -> None:
    config = {"policy": {"preset": "vllm_v1"}, "cluster": {**LLAMA_4, "num_gpus": 8}}

    result = batchsim.simulate(config, workload(60))

    assert (result.summary["num_gpus"], result.summary["num_replicas"]) == (8, 2)
    assert result.summary["cluster"] == "8 GPUs = 2 replicas of 4"
    assert set(result.requests["gpu_id"]) == {0, 1}


def test_a_rate_per_gpu_counts_gpus() -> None:
    config = {
        "policy": {"preset": "vllm_v1"},
        "cluster": LLAMA_4,
        "workload": {"request_rate_per_gpu": 0.5},
    }

    assert batchsim.simulate(config, workload(60)).summary["request_rate_per_s"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (
            {"tensor_parallel": 2, "data_parallel": 2, "num_gpus": 6},
            "cluster.num_gpus is 6, which replicas of 4 GPUs (cluster.tensor_parallel * data_parallel) do "
            "not divide; 8 would be a whole number of replicas",
        ),
        (
            {"tensor_parallel": 4, "expert_parallel": 2},
            "cluster.expert_parallel is 2; tensor_parallel * data_parallel = 4 is needed, all GPUs that "
            "share a layer, or 1",
        ),
        ({"replicas": [{"expert_parallel": 2}]}, "cluster.expert_parallel is 2; tensor_parallel * data"),
    ],
)
def test_gpus_that_make_no_replica_are_refused(cluster: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config({"cluster": cluster})


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (
            {"data_parallel": 2},
            "data_parallel is 2, but qwen2.5-1.5b has no experts to share; so many replicas",
        ),
        ({"pipeline_parallel": 29}, "pipeline_parallel is 29; qwen2.5-1.5b has 28 layers"),
        ({"tensor_parallel": 8}, "tensor_parallel is 8; a divisor of the 12 query heads of qwen2.5-1.5b"),
    ],
)
@pytest.mark.parametrize("preset", ["vllm_v1", "static_fifo"])
def test_gpus_that_cannot_share_the_model_are_refused(
    cluster: dict[str, Any], message: str, preset: str
) -> None:
    config = {"policy": {"preset": preset}, "cluster": {"gpu": "h100", **cluster}}

    with pytest.raises(ConfigError, match=message):
        batchsim.simulate(config, workload(10))


def test_groups_with_attention_of_their_own_are_one_engine_with_the_seats_of_all() -> None:
    config = {
        "policy": {"preset": "vllm_v1", "batch_size": 3, "batching": {"max_num_batched_tokens": 100}},
        "cluster": {"model": "qwen3-30b-a3b", "gpu": "h200", "data_parallel": 4, "expert_parallel": 4},
        "workload": {"request_rate": 1000.0},
    }

    result = batchsim.simulate(config, workload(60))

    spans = result.iterations
    assert result.summary["cluster"] == "4 GPUs = 1 replica of 4"
    assert (spans["decode_seqs"] + spans["prefill_seqs"]).max() == 12
    assert spans["prefill_tokens"].max() > 100
    model, gpu = load_model("qwen3-30b-a3b"), load_gpu("h200")
    sharing = Sharing(data_parallel=4, expert_parallel=4)
    activations = gpu_activation_bytes(model, sharing, tokens=100, sequences=3)
    held = kv_capacity_tokens(model, gpu, 0.1, sharing, activation_bytes=activations)
    assert result.records.kv_capacity_tokens == held // 16 * 16


@pytest.mark.parametrize(
    "cluster",
    [
        {"model": "qwen3-30b-a3b", "data_parallel": 3, "expert_parallel": 3},
        {"model": "gpt-oss-120b", "tensor_parallel": 2},
        {"model": "deepseek-v3", "tensor_parallel": 8, "pipeline_parallel": 2},
    ],
)
def test_spans_of_todays_models_are_their_iterations(cluster: dict[str, Any]) -> None:
    config = {
        "policy": {"preset": "vllm_v1"},
        "cluster": {"gpu": "h200", **cluster},
        "workload": {"request_rate": 50.0},
    }

    spans, exact = (
        batchsim.simulate({**config, "engine": {"exact_iterations": is_exact}}, workload(40))
        for is_exact in (False, True)
    )

    assert len(spans.iterations) < len(exact.iterations)
    for time in ("first_token_s", "finish_s"):
        np.testing.assert_allclose(spans.requests[time], exact.requests[time], rtol=1e-9)


def test_a_batch_that_runs_to_completion_is_shared_by_groups_too() -> None:
    config = {
        "policy": {"preset": "static_fifo", "batch_size": 8},
        "cluster": {"model": "qwen3-30b-a3b", "gpu": "h200"},
    }

    one, four = (
        batchsim.simulate(
            {**config, "cluster": {**config["cluster"], "num_gpus": 4, "data_parallel": degree}}, workload(50)
        )
        for degree in (1, 4)
    )

    assert (one.summary["num_replicas"], four.summary["num_replicas"]) == (4, 1)
    assert (one.summary["num_gpus"], four.summary["num_gpus"]) == (4, 4)
    assert four.records.kv_capacity_tokens > 4 * one.records.kv_capacity_tokens  # experts lie there but once


def test_batches_that_run_to_completion_know_gpus_that_share_a_model() -> None:
    two, four = (
        batchsim.simulate(
            {"cluster": {"gpu": "h100", "num_gpus": 4, "tensor_parallel": degree}}, workload(100)
        )
        for degree in (2, 4)
    )

    assert (two.summary["num_replicas"], four.summary["num_replicas"]) == (2, 1)
    model, gpu = load_model("qwen2.5-1.5b"), load_gpu("h100")
    # Its two KV heads lie on two GPUs, or twice on four.
    left_bytes = 0.9 * gpu.memory_bytes - model.weight_bytes / 2
    assert two.records.kv_capacity_tokens == pytest.approx(
        2 * left_bytes / model.kv_bytes_per_token, rel=1e-3
    )
    assert four.records.kv_capacity_tokens == pytest.approx(two.records.kv_capacity_tokens, rel=0.02)


def test_the_fewest_gpus_are_those_of_whole_replicas() -> None:
    # One request a second, each 2.5 s long: three replicas are needed, of two GPUs each.
    config = {
        "policy": {"preset": "static_fifo", "batch_size": 1},
        "cluster": {"tensor_parallel": 2, "kv_capacity_tokens": 10**9},
        "workload": {"request_rate": 1.0},
        "slo": {"e2e_ms": 2500},
    }
    requests = requests_of(np.arange(400), np.full(400, 2.5))

    found = find_capacity(config, requests, latency=AS_LONG_AS_THE_LONGEST, share=1.0, num_parts=2)

    assert found.num_gpus == 6
    assert {trial.num_gpus for trial in found.trials} == {2, 4, 6, 8}


def test_a_model_that_does_not_fit_one_gpu_is_told_of_more() -> None:
    config = {"policy": {"preset": "vllm_v1"}, "cluster": {"model": "llama-3.1-70b", "gpu": "h100"}}

    with pytest.raises(ConfigError, match=r"does not fit h100.*cluster\.tensor_parallel"):
        batchsim.simulate(config, workload(10))


@pytest.mark.parametrize(
    "columns",
    [
        REQUEST_COLUMNS,
        ITERATION_REQUEST_COLUMNS,
        BATCH_COLUMNS,
        ITERATION_COLUMNS,
        PREEMPTION_COLUMNS,
        CONTROLLER_COLUMNS,
    ],
)
def test_every_table_can_number_the_most_gpus(columns: Mapping[str, Any]) -> None:
    assert np.iinfo(columns["gpu_id"]).max >= MOST_GPUS


@pytest.mark.parametrize("is_file", [True, False])
def test_a_latency_file_brings_its_model_and_gpu(tmp_path: Path, is_file: bool) -> None:
    latency = measured(model="meta-llama/Llama-2-7b-hf", gpu="NVIDIA A100-SXM4-80GB", tensor_parallel=2)
    given: dict[str, Any] = {"policy": {"preset": "vllm_v1"}}
    if is_file:
        save_latency(latency, tmp_path / "latency.json")
        given["latency"] = {"file": str(tmp_path / "latency.json")}

    result = batchsim.simulate(given, workload(50), latency=None if is_file else latency)

    model, gpu = load_model("llama-2-7b"), load_gpu("a100-80g")
    sharing = Sharing(2)
    activations = gpu_activation_bytes(model, sharing, tokens=2048, sequences=256)
    tokens = kv_capacity_tokens(model, gpu, 0.1, sharing, activation_bytes=activations)
    assert result.records.kv_capacity_tokens == tokens // 16 * 16
    assert result.summary["cluster"] == "2 GPUs = 1 replica of 2"
    assert result.manifest["notices"] == []
    assert result.manifest["config"]["cluster"]["model"] == "llama-2-7b"
    assert result.summary["mfu"] is not None


def test_a_roofline_file_brings_its_specs(tmp_path: Path) -> None:
    save_latency(default_latency(load_model("qwen3-32b"), load_gpu("h200"), 2), tmp_path / "l.json")

    config, notices = adopt_hardware(load_config({"latency": {"file": str(tmp_path / "l.json")}}))

    assert (config.cluster.model, config.cluster.gpu, config.cluster.num_gpus) == ("qwen3-32b", "h200", 2)
    assert notices == []


def test_a_roofline_file_brings_how_its_gpus_share_the_model(tmp_path: Path) -> None:
    sharing = Sharing(data_parallel=2, expert_parallel=2)
    model, gpu = load_model("qwen3-30b-a3b"), load_gpu("h200")
    save_latency(default_latency(model, gpu, sharing=sharing), tmp_path / "l.json")
    file = {"latency": {"file": str(tmp_path / "l.json")}}

    adopted, notices = adopt_hardware(load_config(file))
    other, contradictions = adopt_hardware(load_config({**file, "cluster": {"tensor_parallel": 4}}))

    assert (adopted.cluster.sharing(ReplicaConfig()), notices) == (sharing, [])
    assert other.cluster.sharing(ReplicaConfig()) == Sharing(4)
    assert contradictions == [
        "cluster.tensor_parallel is 4, but latency model roofline of qwen3-30b-a3b on h200 is of 1: its "
        "seconds go with the memory of the other"
    ]


def test_a_file_of_operators_brings_stages_and_experts_but_no_other_replicas() -> None:
    details = {"model": "qwen3-30b-a3b", "gpu": "h200", "tensor_parallel": 2, "pipeline_parallel": 2}

    own, _ = adopt_hardware(load_config(), measured(**details, expert_parallel=2))
    others, _ = adopt_hardware(load_config(), measured(**details, expert_parallel=8, data_parallel=4))

    assert own.cluster.sharing(ReplicaConfig()) == Sharing(2, 2, 1, 2)
    assert others.cluster.sharing(ReplicaConfig()) == Sharing(2, 2)


def test_what_kv_memory_stands_on_is_said_where_the_file_does_not_tell() -> None:
    _, unsaid = adopt_hardware(load_config(), measured())
    _, unknown = adopt_hardware(load_config({"cluster": {"gpu": "h100"}}), measured(model="tiny", gpu="EPYC"))

    assert unsaid == [
        "latency model the file does not say its model and gpu; KV memory is that of cluster.model = "
        "qwen2.5-1.5b and cluster.gpu = rtx4080-laptop"
    ]
    assert unknown == [
        "latency model the file is of tiny, of which no spec ships; KV memory is that of "
        "cluster.model = qwen2.5-1.5b"
    ]


@pytest.mark.parametrize(
    "given", [{"cluster": {"kv_capacity_tokens": 1000}}, {"engine": {"num_kv_blocks": 100}}]
)
def test_nothing_is_assumed_where_the_memory_is_given(given: dict[str, Any]) -> None:
    assert adopt_hardware(load_config(given), measured())[1] == []


def test_settings_that_contradict_the_file_win_and_are_told() -> None:
    given = {"cluster": {"model": "qwen2.5-7b", "gpu": "h100"}}

    config, notices = adopt_hardware(
        load_config(given), measured(model="qwen2.5-1.5b", gpu="NVIDIA H100 80GB")
    )

    assert config.cluster.model == "qwen2.5-7b"
    assert notices == [
        "cluster.model is qwen2.5-7b, but latency model the file is of qwen2.5-1.5b: its seconds go with the "
        "memory of the other"
    ]


def test_a_gpu_of_a_known_name_with_other_memory_is_not_taken_for_it() -> None:
    nvl = measured(model="qwen2.5-7b", gpu="NVIDIA H100 NVL", memory_bytes=100 * 10**9)

    config, notices = adopt_hardware(load_config(), nvl)

    assert config.cluster.gpu == "rtx4080-laptop"
    assert "no spec ships" in notices[0]


def test_a_replica_takes_the_hardware_of_its_own_latency_file(tmp_path: Path) -> None:
    save_latency(measured(model="qwen2.5-7b", gpu="NVIDIA L4"), tmp_path / "l4.json")
    replicas = [{"latency_file": str(tmp_path / "l4.json")}, {"gpu": "h100"}]

    config, _ = adopt_hardware(load_config({"cluster": {"replicas": replicas}}))

    assert describe_cluster(config) == "2 GPUs = 1 replica of 1 l4 with qwen2.5-7b + 1 replica of 1 h100"


def quality(kind: str, by_size: float | None, by_length: float | None) -> dict[str, object]:
    return {"kind": kind, "heldout_batch_size_mape": by_size, "heldout_length_mape": by_length}


DOUBTFUL = {
    "model": "qwen2.5-7b",
    "gpu": "NVIDIA L4",
    "qualities": [quality("prefill", 0.25, None), quality("decode", 0.1, 0.36)],
    "drift": 0.89,
    "median_spread": 0.52,
}
DOUBT = (
    "latency model the file is doubtful: at decode points of a length held out of its fit, the error was "
    "36%; the machine's speed drifted by 89% while it was measured; the trials of a point spread by 52%"
)


def test_a_latency_file_whose_fit_is_doubtful_is_told_of_in_one_sentence() -> None:
    assert adopt_hardware(load_config(), measured(**DOUBTFUL))[1] == [DOUBT]


@pytest.mark.parametrize(
    "details",
    [
        {"qualities": [quality("decode", 0.1, None)], "drift": 0.04, "median_spread": 0.02},
        {"qualities": [quality("decode", 0.1, 0.1)], "drift": 0.89, "median_spread": 0.52, "clock": "cpu_s"},
        {"qualities": "good", "drift": "none", "median_spread": None},
        {"qualities": [1, {"kind": "decode", "heldout_length_mape": "36 %"}], "drift": True},
    ],
)
def test_a_latency_file_that_tells_of_no_large_errors_is_not_doubted(details: dict[str, object]) -> None:
    told = measured(model="qwen2.5-7b", gpu="NVIDIA L4", **details)

    assert adopt_hardware(load_config(), told)[1] == []


def test_doubtful_files_of_replicas_are_told_of_once_each(tmp_path: Path) -> None:
    save_latency(measured(**DOUBTFUL), tmp_path / "l4.json")
    replicas = [{"latency_file": str(tmp_path / "l4.json"), "num_kv_blocks": num} for num in (100, 200)]

    _, notices = adopt_hardware(load_config({"cluster": {"replicas": replicas}}))

    assert notices == [DOUBT]


def test_a_capacity_says_what_its_latency_model_is_worth() -> None:
    config = {"policy": {"preset": "vllm_v1"}, "slo": {"e2e_ms": 10}}

    found = find_capacity(config, workload(20), latency=measured(**DOUBTFUL), num_parts=2)

    assert found.notices[0] == DOUBT


def test_a_run_names_the_latency_model_of_each_kind_of_replica(tmp_path: Path) -> None:
    save_latency(measured(model="qwen2.5-1.5b"), tmp_path / "own.json")
    replicas = [
        {"count": 2, "gpu": "h100"},
        {"gpu": "l4"},
        {"gpu": "l4", "latency_file": str(tmp_path / "own.json")},
    ]

    result = batchsim.simulate(
        {"policy": {"preset": "vllm_v1"}, "cluster": {"replicas": replicas}}, workload(30)
    )

    on_h100, on_l4 = (f"roofline of qwen2.5-1.5b on {gpu}" for gpu in ("h100", "l4"))
    assert result.summary["latency_model"] == f"{on_h100} + {on_l4} + the file"
    assert result.summary["latency_provenance"] == "derived + measured"
    assert [one["name"] for one in result.manifest["latency"]] == [on_h100, on_l4, "the file"]
    assert result.manifest["latency"][2]["details"] == {"model": "qwen2.5-1.5b"}


LENGTHS = pd.DataFrame(
    {"arrival_s": [0.0, 0.1, 0.2, 0.3], "prompt_tokens": [90, 91, 10, 200], "output_tokens": [10, 10, 10, 1]}
)


@pytest.mark.parametrize("preset", ["static_fifo", "vllm_v1", "orca"])
@pytest.mark.parametrize("clients", [{}, {"kind": "closed_loop", "concurrency": 1}])
def test_requests_longer_than_the_model_takes_are_refused(preset: str, clients: dict[str, Any]) -> None:
    config = {"policy": {"preset": preset}, "engine": {"max_model_len": 100}, "clients": clients}

    result = batchsim.simulate(config, batchsim.Workload.from_frame(LENGTHS))

    assert result.requests["status"].tolist() == ["finished", "refused", "finished", "refused"]
    assert result.manifest["refusals"]["1"] == "asks for 101 tokens, prompt and answer; max_model_len is 100"
    assert result.summary["num_refused"] == 2


def test_the_model_gives_the_limit_that_is_left_out() -> None:
    frame = LENGTHS.assign(prompt_tokens=[4000, 4090, 4095, 5000])
    config = {"policy": {"preset": "vllm_v1"}, "cluster": {"model": "llama-2-7b", "gpu": "h100"}}

    result = batchsim.simulate(config, batchsim.Workload.from_frame(frame))

    assert result.requests["status"].tolist() == ["finished", "refused", "refused", "refused"]


def test_a_latency_model_of_nothing_known_has_no_limit() -> None:
    frame = LENGTHS.assign(prompt_tokens=[40_000, 1, 1, 1])
    config = {"policy": {"preset": "vllm_v1"}, "engine": {"num_kv_blocks": 10_000}}

    result = batchsim.simulate(config, batchsim.Workload.from_frame(frame), latency=measured())

    assert set(result.requests["status"]) == {"finished"}
