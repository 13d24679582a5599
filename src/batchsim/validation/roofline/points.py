"""Which of our specs the GPUs and models of published tables are, and what a roofline says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from batchsim.errors import ConfigError
from batchsim.latency.roofline import RooflineLatency
from batchsim.specs import GPUSpec, ModelSpec, Sharing, in_fp8, kv_capacity_tokens, load_gpu, load_model
from batchsim.validation.points import Row, gpus_of, leave_out

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
    "b300_sxm": "b300",
    "gb200": "gb200",
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
    "nvidia/Qwen3-32B-NVFP4": "qwen3-32b",
    "mistralai/Mixtral-8x7B-v0.1": "mixtral-8x7b",
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3-235b-a22b-fp8",
    "deepseek-ai/DeepSeek-R1": "deepseek-r1",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-r1",
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "moonshotai/Kimi-K2.5": "kimi-k2.5",
    "MiniMaxAI/MiniMax-M2.5": "minimax-m2.5",
    "openai/gpt-oss-120b": "gpt-oss-120b",
}
#: Precisions that specs have of their own, if not bf16; gpt-oss has mxfp4, which is multiplied in bf16.
_OWN: Mapping[str, str] = {
    "qwen3-235b-a22b-fp8": "fp8",
    "deepseek-r1": "fp8",
    "deepseek-v3": "fp8",
    "kimi-k2.5": "int4",
    "minimax-m2.5": "fp8",
    "gpt-oss-120b": "fp4",
}
#: Bytes of a weight in NVFP4: a scale of one byte for 16 of half a byte.
_NVFP4_BYTES = 0.5 + 1 / 16

#: GPUs of a machine, and of those whose links reach further.
_MACHINE = 8
_LINKED = {"gb200": 72}

#: Share of the GPUs' memory that weights and KV do not get, as in vLLM.
MEMORY_MARGIN = 0.1


def hardware(gpu: str, model: str, precision: str) -> tuple[ModelSpec, GPUSpec]:
    """The specs of a row; it is left out where we have none, or none in this precision."""
    if gpu not in GPUS:
        leave_out("GPU without a spec", gpu)
    if model not in MODELS:
        leave_out("model without a spec", model)
    model_spec, gpu_spec = load_model(MODELS[model]), load_gpu(GPUS[gpu])
    own = _OWN.get(model_spec.name, "bf16")
    if precision == "fp8" and own == "bf16" and gpu_spec.fp8_flop_per_s is not None:
        return in_fp8(model_spec, gpu_spec), gpu_spec
    if precision == "fp4" and own != "fp4" and gpu_spec.fp4_flop_per_s is not None:
        return in_fp4(model_spec), gpu_spec
    if precision != own:
        leave_out("quantisation without a spec", f"{precision} on {gpu_spec.name}")
    return model_spec, gpu_spec


def in_fp4(model: ModelSpec) -> ModelSpec:
    """Weights of feed-forward blocks and experts in NVFP4, and of attention, if there are no experts."""
    return replace(
        model,
        bytes_per_weight=_NVFP4_BYTES,
        bytes_per_expert_weight=_NVFP4_BYTES if model.num_experts else None,
        bytes_per_attention_weight=model.attention_bytes if model.num_experts else _NVFP4_BYTES,
        bytes_per_kept_weight=model.kept_bytes,
        arithmetic="fp4",
    )


def sharing_of(row: Row, model: ModelSpec, gpu: GPUSpec) -> Sharing:
    """How the GPUs of a row share its model; it is left out where they cannot, or lie too far apart."""
    tensor, pipeline, data, expert = gpus_of(row)
    try:
        sharing = Sharing(tensor, pipeline, data, tensor * data if expert > 1 and model.num_experts else 1)
        sharing.check(model)
    except ConfigError as error:
        leave_out("GPUs that cannot share the model", str(error).partition(";")[0])
    if sharing.num_gpus > _LINKED.get(gpu.name, _MACHINE):
        leave_out("GPUs of several machines", f"{sharing.num_gpus} {gpu.name}")
    return sharing


def kv_tokens(model: ModelSpec, gpu: GPUSpec, sharing: Sharing, activation_bytes: int = 0) -> int:
    """Tokens of KV that some GPUs hold together beside the weights."""
    try:
        return kv_capacity_tokens(model, gpu, MEMORY_MARGIN, sharing, activation_bytes=activation_bytes)
    except ConfigError:  # not even the weights
        return 0


def ideal(latency: RooflineLatency) -> RooflineLatency:
    """The same at the peaks of the data sheet, without overhead and all-reduces: no engine is faster."""
    gpu, num_gpus = latency.gpu, latency.sharing.num_gpus
    together = replace(
        gpu,
        flop_per_s=gpu.flop_per_s * num_gpus,
        fp8_flop_per_s=gpu.fp8_flop_per_s and gpu.fp8_flop_per_s * num_gpus,
        fp4_flop_per_s=gpu.fp4_flop_per_s and gpu.fp4_flop_per_s * num_gpus,
        memory_bytes_per_s=gpu.memory_bytes_per_s * num_gpus,
    )
    return RooflineLatency(latency.model, together, 1.0, 1.0, 0.0)
