import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from batchsim.errors import ConfigError, TraceError
from batchsim.policies.parts.engine_versions import NEWEST
from batchsim.specs import load_gpu
from batchsim.specs.sharing import CUDA_BYTES, LOGIT_BYTES
from batchsim.validation.fidelity.engine_run import GIB, EngineSettings, MeasuredRun, read_measured_run
from batchsim.validation.fidelity.errors import AGGREGATES, aggregates, compare_with_measured
from batchsim.validation.fidelity.kv_memory import kv_blocks, read_model_config
from batchsim.validation.fidelity.predict import (
    PREDICTED_COLUMNS,
    Prediction,
    next_boundary_s,
    predict,
    profile_of_model,
    read_workload,
)
from batchsim.validation.fidelity.report import find_cases, write_fidelity_report
from tests.shared_data import shared_path
from tests.validation.fidelity.fidelity_worlds import META, MODEL, write_world


def predict_world(root: Path, run: MeasuredRun, **settings: Any) -> Prediction:
    workload, names = read_workload(root / "workloads" / "sent.jsonl", run.num_requests)
    return predict(replace(run.settings, **settings), root / "profiles", MODEL, workload, names)


def test_every_time_of_a_small_run_is_as_reckoned_by_hand(tmp_path: Path) -> None:
    run = read_measured_run(write_world(tmp_path))

    requests = predict_world(tmp_path, run).requests

    # b arrives while a decodes: seen at 0.9 ms, when the iteration up to 1.2 ms is planned already.
    assert requests["request_id"].tolist() == ["a", "b"]
    assert requests["arrival_s"].tolist() == pytest.approx([0.0, 0.0007])
    assert requests["queued_s"].tolist() == pytest.approx([0.0, 0.0009])
    assert requests["first_token_s"].tolist() == pytest.approx([0.0006, 0.0018])
    assert requests["last_token_s"].tolist() == pytest.approx([0.0021, 0.0024])


def test_without_asynchronous_scheduling_a_request_is_admitted_where_it_is_queued(tmp_path: Path) -> None:
    run = read_measured_run(write_world(tmp_path))

    requests = predict_world(tmp_path, run, async_scheduling=False).requests

    assert requests["queued_s"].tolist() == pytest.approx([0.0, 0.0009])
    assert requests["first_token_s"].tolist() == pytest.approx([0.0006, 0.0015])


def test_extra_seconds_are_added_to_every_iteration(tmp_path: Path) -> None:
    run = read_measured_run(write_world(tmp_path))

    requests = predict_world(tmp_path, run, extra_s=0.001).requests

    # b arrives in the first iteration, so a has one decode before the pass with its prompt
    assert requests["first_token_s"].tolist() == pytest.approx([0.0016, 0.0016 + 0.0013 + 0.0016])


def test_errors_count_from_the_queue_and_from_the_client_and_stand_beside_the_peers(tmp_path: Path) -> None:
    run = read_measured_run(write_world(tmp_path))

    report = compare_with_measured(run, predict_world(tmp_path, run))

    queued, arrival = (report["bases"][basis]["aggregates"] for basis in ("queued", "arrival"))
    assert tuple(queued) == tuple(arrival) == AGGREGATES
    assert queued["ttft_mean_s"]["measured"] == pytest.approx((0.001 + 0.0012) / 2)
    assert queued["ttft_mean_s"]["predicted"] == pytest.approx((0.0006 + 0.0009) / 2)
    assert queued["ttft_mean_s"]["peer"] == pytest.approx((0.0011 + 0.0013) / 2)
    assert arrival["ttft_mean_s"]["measured"] == pytest.approx((0.0011 + 0.0013) / 2)
    assert arrival["ttft_mean_s"]["predicted"] == pytest.approx((0.0006 + 0.0011) / 2)
    assert queued["tpot_mean_s"]["measured"] == pytest.approx((0.0005 + 0.001) / 2)
    assert queued["output_tokens_per_s"]["predicted"] == pytest.approx(8 / 0.0024)
    assert queued["e2e_p50_s"]["error"] == pytest.approx((0.0021 + 0.0015) / (0.003 + 0.0032) - 1)
    assert report["bases"]["queued"]["e2e_mape"] == pytest.approx(1 - (0.0021 / 0.003 + 0.0015 / 0.0032) / 2)
    errors = [row["error"] for row in queued.values()]
    assert report["bases"]["queued"]["mean_absolute_error"] == pytest.approx(np.mean(np.abs(errors)))
    assert (report["peer"], report["num_compared"]) == ("toysim", 2)


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    run = read_measured_run(write_world(tmp_path))
    assert run.requests is not None
    unqueued = replace(run, requests=run.requests.assign(queued_s=np.nan), peer=None)
    unknown = replace(run, requests=None, peer=None)

    prediction = predict_world(tmp_path, run)

    assert list(compare_with_measured(unqueued, prediction)["bases"]) == ["arrival"]
    assert (
        "peer"
        not in compare_with_measured(unqueued, prediction)["bases"]["arrival"]["aggregates"]["e2e_p50_s"]
    )
    assert compare_with_measured(unknown, prediction)["bases"] == {}


def test_a_run_of_other_requests_is_refused(tmp_path: Path) -> None:
    run = read_measured_run(write_world(tmp_path))
    assert run.requests is not None
    other = replace(run, requests=run.requests.assign(request_id=["c", "d"]))

    with pytest.raises(
        ConfigError, match=r"no measured request has an id of the workload, e\.g\. 'c' against 'a'"
    ):
        compare_with_measured(other, predict_world(tmp_path, run))


def test_arrivals_are_taken_in_between_iterations_and_at_once_while_idle() -> None:
    spans = pd.DataFrame(
        {
            "start_s": [1.0, 10.0],
            "finish_s": [7.0, 11.0],  # iterations of 1, 2 and 3 seconds, then one of 1
            "num_iterations": [3, 1],
            "first_iteration_s": [1.0, 1.0],
        }
    )

    queued_s = next_boundary_s(np.array([0.0, 1.0, 1.5, 2.0, 2.5, 4.5, 7.0, 8.0, 10.5, 12.0]), spans)

    assert queued_s.tolist() == [0.0, 1.0, 2.0, 2.0, 4.0, 7.0, 7.0, 8.0, 11.0, 12.0]


def test_single_tokens_have_no_tpot() -> None:
    requests = pd.DataFrame(
        {
            "queued_s": [0.0, 0.0],
            "first_token_s": [1.0, 1.0],
            "last_token_s": [1.0, 3.0],
            "output_tokens": [1, 5],
        }
    )

    values = aggregates(requests, "queued")

    assert (values["tpot_mean_s"], values["e2e_mean_s"], values["output_tokens_per_s"]) == (0.5, 2.0, 2.0)


def test_settings_are_found_wherever_and_however_they_are_spelt(tmp_path: Path) -> None:
    meta = {
        "engine": {"tp_size": 2, "max-num-seqs": 16, "token_budget": 512, "enable_prefix_caching": False},
        "vllm_version": "0.11.0",
        "cache": {"num_gpu_blocks": 1234, "block_size": "auto"},
        "cluster": {"link_bw": 16, "link_latency": 20000, "cpu_mem": {"mem_size": 512}},
        "hardware": "RTX4090",
    }

    settings = read_measured_run(write_world(tmp_path, meta=meta, measured=None)).settings

    assert settings == EngineSettings(
        tensor_parallel=2,
        max_num_seqs=16,
        max_num_batched_tokens=512,
        num_kv_blocks=1234,
        memory_bytes=load_gpu("rtx4090").memory_bytes,
        prefix_caching=False,
        async_scheduling=False,
        engine_version="0.11.0",
        link_bytes_per_s=16e9,
        link_latency_s=pytest.approx(20e-6),
    )


def test_what_nobody_recorded_is_vllms_default_and_said_so(tmp_path: Path) -> None:
    run = read_measured_run(write_world(tmp_path, meta={"gpu_memory_gb": 96}, measured=None))

    assert (run.settings.max_num_seqs, run.settings.max_num_batched_tokens) == (1024, 8192)
    assert [notice.split()[0] for notice in run.settings.notices] == [
        "max_num_seqs",
        "max_num_batched_tokens",
        "version",
    ]


def test_kv_blocks_are_what_weights_and_activations_leave_of_the_memory() -> None:
    settings = EngineSettings(
        max_num_seqs=8, max_num_batched_tokens=64, memory_bytes=4 * GIB, memory_utilization=0.5
    )

    blocks, notice = kv_blocks(settings, MODEL)

    weights = 64 * 16 * (2 * 4 + 2 * 2) + 3 * 64 * 128 + 2 * 64 * 1000 + 3 * 64
    logits = 8 * 1000 * LOGIT_BYTES + 2 * 64 * 64
    left = 2 * GIB - 2 * weights - logits - CUDA_BYTES
    assert blocks == left // (2 * 2 * 16 * 2 * 16)
    assert notice.startswith(f"the number of KV blocks is not recorded; {blocks} are taken")


def test_kv_blocks_are_those_of_experts_latents_and_bytes_of_the_config() -> None:
    def blocks(**model: Any) -> int:
        settings = EngineSettings(memory_bytes=GIB, weights_and_kv_share=0.5, data_parallel=2)
        return kv_blocks(settings, {**MODEL, **model})[0]

    in_fp8 = blocks(quantization_config={"quant_method": "fp8"}, kv_cache_dtype="fp8")
    assert in_fp8 == pytest.approx(2 * blocks(), rel=0.001)
    latent = {"kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    assert blocks(**latent) == pytest.approx(2 * blocks(), rel=0.001)  # 32 numbers instead of 64
    experts = {"num_experts": 64, "num_experts_per_tok": 2, "moe_intermediate_size": 1024}
    held = 32 * 3 * 64 * 1024 * 2 / (2 * 2 * 16 * 2 * 16)  # half of them by each replica
    assert blocks() - blocks(**experts) == pytest.approx(held, rel=0.01)


def test_share_of_a_cluster_file_is_that_of_weights_and_blocks_unless_it_is_vllms_own(tmp_path: Path) -> None:
    def settings(share: float, **engine: float) -> EngineSettings:
        meta = {"engine": engine, "npu_mem": {"mem_size": 1, "mem_util": share}}
        (tmp_path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        return read_measured_run(tmp_path).settings

    weights = 2 * (64 * 16 * (2 * 4 + 2 * 2) + 3 * 64 * 128 + 2 * 64 * 1000 + 3 * 64)
    assert kv_blocks(settings(0.5), MODEL)[0] == (GIB // 2 - weights) // (2 * 2 * 16 * 2 * 16)
    assert settings(0.9).weights_and_kv_share is None
    assert settings(0.5, gpu_memory_utilization=0.8).weights_and_kv_share is None
    assert settings(0.5, gpu_memory_utilization=0.8).memory_utilization == 0.8


def test_resolved_settings_of_the_engine_are_found_below_those_that_were_asked_for(tmp_path: Path) -> None:
    meta = {
        "model": "m/n",
        "vllm_version": "0.19.0",
        "engine_kwargs": {"max_num_seqs": None, "max_num_batched_tokens": 512, "data_parallel_size": 2},
        "kv_cache": {"num_gpu_blocks": 321, "block_size": 16, "gpu_memory_utilization": 0.9},
        "hardware": {"name": "NVIDIA GeForce RTX 4090", "total_memory_bytes": 25_000_000_000},
        "resolved_config": {
            "cache_config": {"num_gpu_blocks_override": None, "enable_prefix_caching": False},
            "scheduler_config": {
                "max_num_seqs": 64,
                "max_num_batched_tokens": 8192,
                "async_scheduling": False,
            },
            "parallel_config": {"data_parallel_size": 1, "tensor_parallel_size": 1},
        },
    }

    run = read_measured_run(write_world(tmp_path, meta=meta, measured=None))

    settings = run.settings
    assert (settings.num_kv_blocks, settings.max_num_seqs, settings.max_num_batched_tokens) == (321, 64, 512)
    assert (settings.prefix_caching, settings.async_scheduling, settings.data_parallel) == (False, False, 2)
    assert (run.model, run.gpu) == ("m/n", "NVIDIA GeForce RTX 4090")


@pytest.mark.parametrize(("num_kv_blocks", "num_served"), [(3, 0), (4, 2)])
def test_one_of_the_blocks_that_vllm_counts_is_never_given_out(
    tmp_path: Path, num_kv_blocks: int, num_served: int
) -> None:
    meta = {**META, "num_gpu_blocks": num_kv_blocks}  # and either request comes to hold three
    run = read_measured_run(write_world(tmp_path, meta=meta))

    prediction = predict_world(tmp_path, run)

    assert len(prediction.requests) == num_served


def test_the_null_block_alone_is_too_little(tmp_path: Path) -> None:
    run = read_measured_run(write_world(tmp_path))

    with pytest.raises(ConfigError, match="num_kv_blocks is 1; at least 2 are needed"):
        predict_world(tmp_path, run, num_kv_blocks=1)


@pytest.mark.parametrize(
    ("told", "followed", "said"),
    [
        ("0.18.1", "0.18.0", []),
        ("v0.19.0rc2", "0.19.0", []),
        ("0.7.3", "0.8.0", ["version '0.7.3' is not known; the rules of 0.8.0 are followed"]),
        ("1.2", NEWEST, [f"version '1.2' is not known; the rules of {NEWEST} are followed"]),
        ("main", NEWEST, [f"version 'main' is not known; the rules of {NEWEST} are followed"]),
    ],
)
def test_the_rules_are_those_of_the_version_that_ran_or_the_closest(
    tmp_path: Path, told: str, followed: str, said: list[str]
) -> None:
    run = read_measured_run(write_world(tmp_path, meta={**META, "vllm_version": told}))

    prediction = predict_world(tmp_path, run)

    assert [one for one in prediction.settings.notices if one.startswith("version")] == said
    assert prediction.result.config.policy.batching["engine_version"] == followed


def test_kv_blocks_of_unknown_memory_are_asked_for() -> None:
    with pytest.raises(ConfigError, match="name --num-kv-blocks"):
        kv_blocks(EngineSettings(), MODEL)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("meta.json", '{"max_num_seqs": "many"}', "max_num_seqs is 'many'; a number >= 0 is needed"),
        ("meta.json", "[]", "holds list; an object with the engine's settings is needed"),
        ("meta.json", "{", "not valid JSON"),
        ("measured_requests.csv", "request_id,output_toks\n", "column first_token_s, last_token_s missing"),
    ],
)
def test_a_broken_directory_is_refused_in_one_sentence(
    tmp_path: Path, name: str, text: str, sentence: str
) -> None:
    run = write_world(tmp_path)
    (run / name).write_text(text, encoding="utf-8")

    with pytest.raises((ConfigError, TraceError), match=sentence) as caught:
        read_measured_run(run)

    assert str(run / name) in str(caught.value)


def test_a_linear_model_of_constant_iterations_predicts_the_same(tmp_path: Path) -> None:
    run = read_measured_run(write_world(tmp_path))
    workload, names = read_workload(tmp_path / "workloads" / "sent.jsonl")

    linear = predict(run.settings, tmp_path / "profiles", MODEL, workload, names, "linear")

    of_table = predict_world(tmp_path, run).requests
    for column in PREDICTED_COLUMNS[1:]:
        assert linear.requests[column].tolist() == pytest.approx(of_table[column].tolist(), rel=1e-6)


def test_replicas_share_the_requests(tmp_path: Path) -> None:
    run = read_measured_run(write_world(tmp_path))

    requests = predict_world(tmp_path, run, data_parallel=2).requests

    assert requests["queued_s"].tolist() == pytest.approx([0.0, 0.0007])
    assert requests["first_token_s"].tolist() == pytest.approx([0.0006, 0.0013])


def test_replicas_that_share_experts_run_in_lockstep(tmp_path: Path) -> None:
    run = read_measured_run(write_world(tmp_path))
    # With the gaps between their seven kernels the experts take 0.15 ms.
    points = [f"{tokens},{experts},146.5" for tokens in (1, 64) for experts in (1, 4)]
    text = "\n".join(["tokens,activated_experts,time_us", *points])
    (tmp_path / "profiles/toy/tiny/bf16/tp1/moe.csv").write_text(text, encoding="utf-8")
    settings = replace(run.settings, data_parallel=2, is_expert_parallel=True, link_bytes_per_s=1e18)
    model = {**MODEL, "num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 64}
    workload, names = read_workload(tmp_path / "workloads" / "sent.jsonl")

    prediction = predict(settings, tmp_path / "profiles" / "toy" / "tiny", model, workload, names)

    # A decodes once before the engine knows of B, then beside B's prompt: had it not, B would start at once.
    assert prediction.requests["first_token_s"].tolist() == pytest.approx([0.00075, 0.00195])
    assert any("in every pass" in notice for notice in prediction.settings.notices)


def test_expert_parallelism_means_nothing_without_experts(tmp_path: Path) -> None:
    run = read_measured_run(write_world(tmp_path))

    prediction = predict_world(tmp_path, run, is_expert_parallel=True, data_parallel=2)

    assert prediction.requests["first_token_s"].tolist() == pytest.approx([0.0006, 0.0013])


def test_the_report_has_every_aggregate_and_what_each_part_is_worth(tmp_path: Path) -> None:
    write_world(tmp_path)
    drawn = []

    def plot(run: MeasuredRun, prediction: Prediction, stem: Path) -> Path:
        drawn.append(stem.name)
        return stem.with_suffix(".png")

    page, *_ = write_fidelity_report(tmp_path, tmp_path / "docs", plot)

    text = page.read_text(encoding="utf-8")
    assert all(f"| {name} |" in text for name in AGGREGATES)
    assert drawn == ["fidelity_toy_one"]
    assert "| no asynchronous scheduling | -" in text


def test_the_report_has_predictions_at_both_ends_of_uneven_contexts(tmp_path: Path) -> None:
    # Alike contexts take 100 us, and those of the world's requests differ: between 32 and 37 tokens.
    write_world(tmp_path)
    profile = tmp_path / "profiles" / "toy" / "tiny" / "bf16" / "tp1"
    rising = (profile / "attention.csv").read_text(encoding="utf-8").replace(",64,100\n", ",64,500\n")
    (profile / "attention.csv").write_text(rising, encoding="utf-8")
    skew = "regime,n,t_mean_us,t_max_us,t_skew_us\npure,2,10,20,15\npure,4,10,20,12\npure,8,10,20,11\n"
    (profile / "skew.csv").write_text(skew, encoding="utf-8")

    page, *_ = write_fidelity_report(tmp_path, tmp_path / "docs", lambda _run, _told, stem: stem)

    lines = page.read_text(encoding="utf-8").splitlines()
    heading = next(line for line in lines if "| measured |" in line).split(" | ")
    row = next(line for line in lines if line.startswith("| e2e_mean_s |")).split(" | ")
    low, told, high = (float(row[heading.index(name)]) for name in ("lowest", "predicted", "highest"))
    assert low <= told <= high
    assert low < high
    assert any(line.startswith("Lowest and highest: predicted with the lag") for line in lines)


def test_profile_of_the_runs_model_is_found_among_those_of_others(tmp_path: Path) -> None:
    for name in ("org/One/bf16/tp1", "org/Two/bf16/tp1"):
        (tmp_path / name).mkdir(parents=True)

    assert profile_of_model(tmp_path, "org/Two") == tmp_path / "org" / "Two"
    assert profile_of_model(tmp_path, "Three") == tmp_path
    assert profile_of_model(tmp_path, None) == tmp_path


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one measured run is needed"):
        find_cases(tmp_path)


def _shared_errors(name: str, family: Any = "operator") -> dict[str, Any]:
    root = shared_path("groundtruth/llmservingsim")
    case = next(case for case in find_cases(root) if case.run.name == f"RTXPRO6000/{name}")
    prediction = predict(case.run.settings, case.profile, case.model, case.workload, case.names, family)
    return compare_with_measured(case.run, prediction)


# Nothing is fitted on these runs: the bars are what was found, rounded up.
@pytest.mark.parametrize(
    ("name", "mean_absolute", "mape"), [("Llama-3.1-8B", 0.016, 0.017), ("Qwen3-32B", 0.006, 0.006)]
)
def test_served_runs_are_predicted_from_operators(name: str, mean_absolute: float, mape: float) -> None:
    report = _shared_errors(name)

    for errors in report["bases"].values():
        assert errors["mean_absolute_error"] <= mean_absolute
        assert errors["e2e_mape"] <= mape
        # The median TTFT of the Llama run lies where the engine fills up.
        rest = {name: row["error"] for name, row in errors["aggregates"].items() if name != "ttft_p50_s"}
        assert max(map(abs, rest.values())) <= 0.05
    assert report["num_compared"] == 300
    assert report["num_extrapolated_iterations"] == 0


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Qwen3-32B"])
def test_a_linear_model_is_as_good_for_means(name: str) -> None:
    found = _shared_errors(name, "linear")["bases"]["queued"]["aggregates"]

    assert all(
        abs(found[key]["error"]) <= 0.03 for key in ("e2e_mean_s", "tpot_mean_s", "output_tokens_per_s")
    )
    assert abs(found["ttft_mean_s"]["error"]) <= 0.06


def test_the_models_config_must_have_layers(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"hidden_size": 1}), encoding="utf-8")

    with pytest.raises(ConfigError, match="no num_hidden_layers"):
        read_model_config(path)


def test_a_directory_without_a_record_is_left_to_the_options(tmp_path: Path) -> None:
    run = write_world(tmp_path)
    (run / "meta.json").unlink()

    settings = read_measured_run(run).settings

    assert (settings.num_kv_blocks, settings.memory_bytes, settings.max_num_seqs) == (None, None, 256)
