"""Which of our specs the GPUs and models of published tables are, and what a roofline says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from batchsim.errors import ConfigError
from batchsim.latency.roofline import RooflineLatency
from batchsim.specs import GPUSpec, ModelSpec, in_fp8, kv_capacity_tokens, load_gpu, load_model
from batchsim.validation.points import leave_out

#: GPUs as the tables name them. LLM-Inference-Bench does not name its variants: its A100 are those of Polaris
#: (40 GB SXM), its H100 "80GB HBM3" (SXM). Its MI250 are cards of two dies: Llama-2-70B in fp16 was run on
#: two, and fits four dies only.
GPUS: Mapping[str, str] = {
    "Nvidia A100 GPU": "a100-40g",
    "Nvidia H100 GPU": "h100",
    "Nvidia GH200 GPU": "gh200-96g",
    "AMD MI250 GPU": "mi250",
    "AMD MI300X GPU": "mi300x",
    "h100_sxm": "h100",
    "h200_sxm": "h200",
    "b200_sxm": "b200",
    "l40s": "l40s",
}

#: Models by their name on Hugging Face; those of equal shape share a spec.
MODELS: Mapping[str, str] = {
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Llama-2-13b-hf": "llama-2-13b",
    "meta-llama/Llama-2-70b-hf": "llama-2-70b",
    "meta-llama/Meta-Llama-3-8B": "llama-3.1-8b",
    "meta-llama/Meta-Llama-3-70B": "llama-3.1-70b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
    "mistralai/Mistral-7B-v0.1": "mistral-7b",
    "Qwen/Qwen2-7B": "qwen2.5-7b",
    "Qwen/Qwen2-72B": "qwen2-72b",
    "Qwen/Qwen3-32B": "qwen3-32b",
}


#: Share of the GPUs' memory that weights and KV do not get, as in vLLM.
MEMORY_MARGIN = 0.1


def hardware(gpu: str, model: str, precision: str) -> tuple[ModelSpec, GPUSpec]:
    """The specs of a row; it is left out where we have none, or none in this precision."""
    if gpu not in GPUS:
        leave_out("GPU without a spec", gpu)
    if model not in MODELS:
        leave_out("model without a spec", model)
    model_spec, gpu_spec = load_model(MODELS[model]), load_gpu(GPUS[gpu])
    if precision == "bf16":
        return model_spec, gpu_spec
    if precision != "fp8" or gpu_spec.fp8_flop_per_s is None:
        leave_out("quantisation without a spec", f"{precision} on {gpu_spec.name}")
    return in_fp8(model_spec, gpu_spec), gpu_spec


def kv_tokens(model: ModelSpec, gpu: GPUSpec, num_gpus: int) -> int:
    """Tokens of KV that some GPUs hold together beside the weights."""
    together = replace(gpu, memory_bytes=gpu.memory_bytes * num_gpus)
    try:
        return kv_capacity_tokens(model, together, MEMORY_MARGIN)
    except ConfigError:  # not even the weights
        return 0


def ideal(latency: RooflineLatency) -> RooflineLatency:
    """The same at the peaks of the data sheet, without overhead and all-reduces: no engine is faster."""
    gpu, num_gpus = latency.gpu, latency.tensor_parallel
    together = replace(
        gpu,
        flop_per_s=gpu.flop_per_s * num_gpus,
        fp8_flop_per_s=gpu.fp8_flop_per_s and gpu.fp8_flop_per_s * num_gpus,
        memory_bytes_per_s=gpu.memory_bytes_per_s * num_gpus,
    )
    return RooflineLatency(latency.model, together, 1.0, 1.0, 0.0)
