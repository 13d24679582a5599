"""The main job on real input: every preset over the public traces at hand, and over the shipped one.

The presets of one world at a time, so that several processes have something to do.
"""

import pytest

from batchsim.metrics.summary import laws
from batchsim.policies.presets import names_of
from batchsim.study.compare import Comparison, compare
from batchsim.workload.load import embedded_trace, load_trace
from tests.shared_data import shared_path


def check(comparison: Comparison) -> None:
    for name, result in comparison.results.items():
        status = result.requests["status"].value_counts()
        assert status.sum() == len(result.requests), name
        assert status["finished"] + status["refused"] == len(result.requests), name
        finished = result.requests[result.requests["status"] == "finished"]
        assert (finished["scheduled_s"] >= finished["arrival_s"]).all(), name
        assert (finished["finish_s"] > finished["scheduled_s"]).all(), name
        assert (result.batches["kv_tokens"] <= result.manifest["kv_capacity_tokens"]).all(), name
        assert all(abs(residual) < 1e-9 for residual in laws(result.records).values()), name


@pytest.mark.parametrize("is_iteration_level", [True, False], ids=["engines", "batches"])
@pytest.mark.parametrize(
    ("name", "num_rows", "num_gpus"),
    [
        ("azure_llm_2023_conv.csv", 19366, 4),
        ("azure_llm_2023_code.csv", 8819, 4),
        ("mooncake_conversation.jsonl.gz", 12031, 8),
        ("burstgpt1_head400.csv", 383, 1),
    ],
)
def test_every_preset_serves_a_real_trace(
    name: str, num_rows: int, num_gpus: int, is_iteration_level: bool
) -> None:
    path = shared_path(f"traces/{name}")
    config = {"workload": {"trace": str(path)}, "cluster": {"num_gpus": num_gpus}}

    comparison = compare(config, names_of(is_iteration_level=is_iteration_level))

    check(comparison)
    first = next(iter(comparison.results.values()))
    assert len(first.requests) + first.summary["num_training"] == num_rows
    assert first.summary["workload_kind"] == "published format, origin not known"


@pytest.mark.parametrize("is_iteration_level", [True, False], ids=["engines", "batches"])
def test_every_preset_serves_the_shipped_trace(is_iteration_level: bool) -> None:
    config = {"workload": {"num_requests": 8000, "request_rate": 6.0}, "cluster": {"num_gpus": 4}}

    comparison = compare(config, names_of(is_iteration_level=is_iteration_level))

    check(comparison)
    assert load_trace(embedded_trace()).source.kind == "synthetic"
    # Without a preemption, swapping and recomputing are the same.
    assert len(comparison.twins) == is_iteration_level
    assert all("vllm_v0 and vllm_v0_swap" in sentence for sentence in comparison.twins)
