import pytest

from batchsim.specs.names import known_gpu, known_model


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100-PCIE-40GB", "a100-40g"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA GeForce RTX 4080 Laptop GPU", "rtx4080-laptop"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("a100-80gb", "a100-80g"),
        ("NVIDIA L40", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4080", None),
        ("NVIDIA GH200 480GB", None),
        ("AMD EPYC", None),
        ("", None),
    ],
)
def test_what_a_driver_calls_a_gpu_is_its_spec(name: str, spec: str | None) -> None:
    assert known_gpu(name) == spec


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", "qwen2.5-1.5b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("llama2-70b", "llama-2-70b"),  # as splitwise-sim writes it
        ("llamas-7b", None),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("mistralai/Mistral-7B-v0.1", "mistral-7b"),
        ("llama-3.1-70b", "llama-3.1-70b"),
        ("Qwen/Qwen2.5-Coder-1.5B", None),
        ("tiny", None),
        ("", None),
    ],
)
def test_a_name_of_hugging_face_is_its_spec(name: str, spec: str | None) -> None:
    assert known_model(name) == spec
