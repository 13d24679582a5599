import builtins
import importlib.util
from typing import Any

import pytest

from batchsim.errors import ConfigError
from batchsim.latency.base import IterationShape
from batchsim.latency.profiles import aiconfigurator
from batchsim.latency.profiles.aiconfigurator import SetUp, aiconfigurator_latency
from batchsim.latency.profiles.aiconfigurator_passes import OperatorEstimator, Operators
from batchsim.latency.profiles.pass_sampling import Range

SMALL = Range(max_tokens=512, max_seqs=32, max_context=1024)
QWEN = SetUp("h200_sxm", "Qwen/Qwen3-235B-A22B-FP8", tensor_parallel=4, expert_parallel=4)
LLAMA = SetUp("h200_sxm", "meta-llama/Meta-Llama-3.1-70B", tensor_parallel=4)

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None, reason="aiconfigurator-core is not installed"
)


class Engine:
    """Stands in for the package's: a product of matrices, attention, and an operator from a formula."""

    def __init__(self, empirical_ms: float = 0.01) -> None:
        self.empirical_ms = empirical_ms

    def run_static_per_op(
        self, *, batch_size: int, isl: int, osl: int, prefix: int, mode: str
    ) -> tuple[Operators, Operators]:
        chunk = isl - prefix
        tokens = batch_size * chunk
        return self._pass("context", tokens, 1e-6 * tokens * (prefix + chunk / 2)), []

    def decode_step_per_op(self, decode_seqs: int, isl: int, osl: int) -> Operators:
        return self._pass("generation", decode_seqs, 1e-5 * decode_seqs * (isl + 1))

    def _pass(self, kind: str, tokens: int, attention_ms: float) -> Operators:
        return [
            (f"{kind}_gemm", 5.0 + 0.01 * tokens, 0.0, "silicon"),
            (f"{kind}_attention", 0.1 + attention_ms, 0.0, "mixed"),
            (f"{kind}_norm", self.empirical_ms, 0.0, "empirical"),
        ]


def test_attention_is_told_by_what_it_follows() -> None:
    estimator = OperatorEstimator(Engine())

    assert estimator.prefill_attention == {"context_attention"}
    assert estimator.decode_attention == {"generation_attention"}
    assert estimator.tokens_s(100) == pytest.approx(0.00601)
    assert estimator.prefill_s(2, 50, 50) == pytest.approx(0.1e-3 + 1e-9 * 100 * 75)
    assert estimator.decode_s(4, 100) == pytest.approx(0.1e-3 + 1e-8 * 400)


def test_what_is_mostly_measured_is_not_doubted() -> None:
    assert OperatorEstimator(Engine()).doubts() == []


def test_passes_that_formulas_tell_are_doubted() -> None:
    doubts = OperatorEstimator(Engine(empirical_ms=100.0)).doubts()

    assert doubts == [
        "78% of a prompt pass is estimated, not measured",
        "93% of a decode pass is estimated, not measured",
    ]


def test_tables_of_other_backends_count_where_the_model_uses_them() -> None:
    messages = [
        f"Loading low-fidelity fallback rows for {table}_perf.parquet from /x. Queries"
        for table in ("attention_context", "mla_context", "attention_context")
    ]

    assert aiconfigurator._fallbacks(messages, {"context", "attention"}) == [
        "attention_context_perf comes in part from another backend"
    ]


def test_without_the_package_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiconfigurator, "is_installed", lambda: False)

    with pytest.raises(ConfigError, match=r"pip install 'batchsim\[hardware\]'"):
        aiconfigurator_latency(QWEN)


def test_package_is_imported_only_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    original = builtins.__import__

    def watching(name: str, *args: Any, **kwargs: Any) -> Any:
        imported.append(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", watching)
    importlib.reload(aiconfigurator)

    assert not [name for name in imported if name.startswith("aiconfigurator_core")]


@needs_package
@pytest.mark.parametrize(
    ("set_up", "message"),
    [
        (SetUp("h20_sxm", QWEN.model), "knows no system 'h20_sxm'; did you mean h200_sxm"),
        (SetUp("h200_sxm", QWEN.model, "vlm"), "knows no backend 'vlm' on h200_sxm; did you mean vllm"),
        (SetUp("h200_sxm", QWEN.model, version="0.1"), "no version '0.1' of vllm on h200_sxm; known"),
        (SetUp("h200_sxm", "Qwen/Qwen3-23B"), "knows no model 'Qwen/Qwen3-23B'; did you mean Qwen/Qwen3-32B"),
        (SetUp("h200_sxm", QWEN.model, tensor_parallel=4, expert_parallel=3), "must divide the 4 GPUs"),
    ],
)  # fmt: skip
def test_names_that_nobody_knows_are_answered_with_the_nearest(set_up: SetUp, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        aiconfigurator_latency(set_up, SMALL)


@needs_package
def test_tables_are_the_package_s_own_estimate() -> None:
    from aiconfigurator_core.sdk.rust_engine_step import RustForwardPassPerfModel

    native = RustForwardPassPerfModel.from_native(
        {
            "schema_version": 1,
            "model_name": LLAMA.model,
            "system_name": LLAMA.system,
            "backend": "vllm",
            "backend_version": "current",
            "tp_size": 4,
            "pp_size": 1,
            "attention_dp_size": 1,
            "moe_tp_size": 4,
            "moe_ep_size": 1,
        }
    )

    def estimated_s(num_prompts: int, chunk: int, before: int, seqs: int, context: int) -> float:
        scheduled = {
            "num_prefill_requests": num_prompts,
            "sum_prefill_tokens": num_prompts * chunk,
            "sum_prefill_kv_tokens": num_prompts * before,
            "num_decode_requests": seqs,
            "sum_decode_kv_tokens": seqs * context,
        }
        time_ms = native.estimate_forward_pass_time_ms({"version": 1, "scheduled_requests": scheduled})
        assert time_ms is not None
        return time_ms / 1000

    model = aiconfigurator_latency(LLAMA, SMALL)

    for given in ((1, 300, 0, 0, 0), (2, 128, 512, 0, 0), (0, 0, 0, 16, 700), (1, 256, 256, 8, 512)):
        num_prompts, chunk, before, seqs, context = given
        tokens = num_prompts * chunk
        shape = IterationShape(tokens, seqs, seqs * context, num_prompts, tokens * (before + chunk / 2))
        assert model.iteration_s(shape) == pytest.approx(estimated_s(*given), rel=0.01)


@needs_package
def test_details_say_where_the_times_come_from() -> None:
    details = aiconfigurator_latency(QWEN, SMALL).info.details

    assert (details["gpu"], details["model"], details["tensor_parallel"]) == ("h200_sxm", QWEN.model, 4)
    assert str(details["package"]).startswith("aiconfigurator-core ")
    assert details["energy"] == "not given by the package"
    assert details["low_fidelity"] == [
        "products in blocks of fp8 take the times of those that are scaled by tensor"
    ]


@needs_package
def test_attention_that_has_no_times_in_8_bits_is_taken_in_16() -> None:
    set_up = SetUp("h200_sxm", "deepseek-ai/DeepSeek-V3", "sglang", tensor_parallel=8)

    details = aiconfigurator_latency(set_up, SMALL).info.details

    assert (
        "attention of prompts is that in 16 bits, as there are no times in fewer" in details["low_fidelity"]
    )  # type: ignore[operator]


@needs_package
def test_memory_is_told_and_missed() -> None:
    assert aiconfigurator_latency(LLAMA, SMALL).info.details["kv_capacity_tokens"] > 100_000  # type: ignore[operator]

    crammed = aiconfigurator_latency(SetUp("h100_sxm", LLAMA.model), SMALL).info.details

    assert crammed["kv_capacity_tokens"] is None
    assert "the package finds no memory for KV beside the weights" in crammed["low_fidelity"]  # type: ignore[operator]


@needs_package
def test_what_the_package_says_of_other_tables_is_not_on_the_screen(
    capfd: pytest.CaptureFixture[str],
) -> None:
    aiconfigurator_latency(LLAMA, Range(max_tokens=256, max_seqs=16, max_context=512))

    assert capfd.readouterr() == ("", "")
