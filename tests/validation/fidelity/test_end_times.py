import json
from pathlib import Path
from typing import Any

import pytest

from batchsim.errors import TraceError
from batchsim.validation.fidelity.end_times import timeline_ends
from tests.latency.profiles.test_v0 import write_profile
from tests.shared_data import shared_path

MODEL = {
    "num_hidden_layers": 10,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "tie_word_embeddings": False,
}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return make_world(tmp_path)


def make_world(tmp_path: Path) -> Path:
    write_profile(tmp_path / "data/profiles_v0/toy/org/Tiny-1/tp1")
    (tmp_path / "data/models/org").mkdir(parents=True)
    (tmp_path / "data/models/org/Tiny-1.json").write_text(json.dumps(MODEL), encoding="utf-8")
    for folder in ("runs/toy", "runs/workloads"):
        (tmp_path / folder).mkdir(parents=True)
    request = {"input_toks": 32, "output_toks": 501, "arrival_time_ns": 1_000_000_000}
    (tmp_path / "runs/workloads/sent_tiny.jsonl").write_text(json.dumps(request) + "\n", encoding="utf-8")
    return tmp_path


def write_run(
    world: Path,
    name: str,
    throughput: str = "throughput",
    roles: tuple[str | None, ...] = (None,),
    **given: Any,
) -> None:
    one = {"model_name": "org/Tiny-1", "npu_mem": {"mem_size": 1}, **given}
    cluster = {"link_bw": 1, "nodes": [{"instances": [{**one, "pd_type": role} for role in roles]}]}
    folder = world / "runs/toy"
    (folder / f"{name}_config.json").write_text(json.dumps(cluster), "utf-8")
    lines = "".join(f"{second},{5 if second in (1, 2) else 0}\n" for second in range(5))
    (folder / f"{name}_throughput.measured_vllm.csv").write_text(f"time_s,{throughput}\n{lines}", "utf-8")


def test_end_counts_from_the_clock_of_the_workload(world: Path) -> None:
    write_run(world, "A")

    (end,) = timeline_ends(world / "runs", world / "data")

    # Chunk and decodes as in the profile's tests, each with its gaps; the request comes after a second.
    chunk_s = (100 + 1000 + 10 * (20 + 5 + 32)) * 1e-6
    decode_s = (100 + 1000 + 10 * (20 + 5 + 10)) * 1e-6
    gaps_s = 501 * (2 + 10 * 3) * 0.5e-6
    assert end.predicted_s == pytest.approx(1 + chunk_s + 500 * decode_s + gaps_s, rel=1e-4)
    assert (end.name, end.measured_s, end.num_replicas) == ("toy/A", 2.0, 1)
    assert end.error == pytest.approx(end.predicted_s / 1.5 - 1)


def test_kv_crosses_the_link_between_prefill_and_decode(world: Path) -> None:
    write_run(world, "A")
    write_run(world, "B", roles=("prefill", "decode"))

    (together, apart) = timeline_ends(world / "runs", world / "data")

    # 32 tokens of 10 layers, 2 heads of 16 numbers, keys and values, 2 bytes each, at 1 GB/s.
    carried_s = 32 * 10 * 2 * 16 * 2 * 2 / 1e9
    assert together.predicted_s is not None is not apart.predicted_s
    assert apart.predicted_s - together.predicted_s == pytest.approx(carried_s, rel=1e-3)
    assert apart.num_replicas == 2


def test_what_cannot_be_predicted_says_why(world: Path) -> None:
    write_run(world, "A", roles=("prefill",))
    write_run(world, "B", model_name="org/Other")

    disaggregated, unknown = timeline_ends(world / "runs", world / "data")

    assert disaggregated.predicted_s is None is disaggregated.error
    assert disaggregated.reason == "instances of pd_type prefill are not simulated"
    assert unknown.reason == "no config.json of org/Other"


def test_a_workload_of_which_nothing_fits_has_no_end(world: Path) -> None:
    write_run(world, "A")
    sent = {"input_toks": 10**7, "output_toks": 2, "arrival_time_ns": 0}
    (world / "runs/workloads/sent_tiny.jsonl").write_text(json.dumps(sent) + "\n", encoding="utf-8")

    (end,) = timeline_ends(world / "runs", world / "data")

    assert end.predicted_s is None
    assert end.reason == "no request of sent_tiny.jsonl fits the memory that is left for KV"


def test_another_table_is_refused(world: Path) -> None:
    write_run(world, "A", throughput="tokens")

    with pytest.raises(TraceError, match="column throughput missing; found time_s, tokens"):
        list(timeline_ends(world / "runs", world / "data"))


def test_measured_runs_end_within_three_percent() -> None:
    directory = shared_path("groundtruth/llmservingsim-ispass26")

    ends = {end.name: end for end in timeline_ends(directory, shared_path("groundtruth/llmservingsim"))}

    errors = [ends[name].error for name in ("A6000/MD", "A6000/SD_PC", "A6000/PDD")]
    assert all(error is not None and abs(error) < 0.03 for error in errors), errors
