"""Models to measure: any causal language model of Hugging Face, or a shape of ours with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from batchsim.errors import ConfigError, nearest
from batchsim_calibration.serving.attention import ATTENTIONS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_CONFIGS = resources.files("batchsim_calibration") / "configs"
#: Names of the shapes that ship with this package.
MODELS = tuple(
    sorted(file.name.removesuffix(".json") for file in _CONFIGS.iterdir() if file.name.endswith(".json"))
)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model on its device, ready to run.

    Attributes
    ----------
    name
        ``qwen2.5-1.5b`` for ``Qwen/Qwen2.5-1.5B``.
    weights
        Whether they are real or random: what a pass takes does not depend on it.
    """

    model: PreTrainedModel
    name: str
    weights: Literal["random", "real"]
    dtype: str
    attention: str
    device: torch.device
    vocab_size: int


def load_model(
    name_or_path: str,
    *,
    random_weights: bool = False,
    dtype: str = "bf16",
    attention: str = "sdpa",
    device: str = "cuda",
    seed: int = 0,
) -> LoadedModel:
    """Load a model, or build it with random weights.

    Parameters
    ----------
    name_or_path
        With real weights, a name on the Hugging Face Hub or a directory. With random ones, a name of
        `MODELS`, a ``config.json`` or a directory that holds one, or a name on the Hub, of which only that
        file is fetched.

    Raises
    ------
    ConfigError
        If the device or dtype cannot be had, the name is not known, or the model attends otherwise than
        this engine does.
    """
    where = _device(device, dtype)
    if attention not in ATTENTIONS:
        raise ConfigError(f"attention is {attention!r}; known: {', '.join(ATTENTIONS)}")
    settings = {"dtype": DTYPES[dtype], "attn_implementation": ATTENTIONS[attention]}
    config = _config(name_or_path, random_weights=random_weights)
    _check_attention(config, name_or_path)
    if random_weights:
        torch.manual_seed(seed)
        with where:
            model = _from_config(config, **settings)
    else:
        model = _from_pretrained(name_or_path, settings).to(where)
    model.eval()
    return LoadedModel(
        model=model,
        name=_short_name(name_or_path),
        weights="random" if random_weights else "real",
        dtype=dtype,
        attention=attention,
        device=where,
        vocab_size=config.vocab_size,
    )


def prepare_device(device: torch.device) -> None:
    """Let a CPU work with one thread: several of them share a core with whatever else runs there."""
    if device.type == "cpu":
        torch.set_num_threads(1)


def has_bf16() -> bool:
    """Whether the CUDA device computes in bf16 by itself; torch would also emulate it, slowly."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def shape_file(name: str) -> Path:
    """Where the configuration of a shape of `MODELS` lies."""
    return Path(str(_CONFIGS / f"{name}.json"))


def _device(name: str, dtype: str) -> torch.device:
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; known: {', '.join(DTYPES)}")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}; cuda, cuda:1 ... or cpu is needed") from error
    if device.type not in ("cuda", "cpu"):
        raise ConfigError(f"device is {name!r}; cuda, cuda:1 ... or cpu is needed")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"no CUDA device is usable by torch {torch.__version__}; install a CUDA build of torch, or "
            "measure the CPU with a small model: --device cpu (make calibrate DEVICE=cpu)"
        )
    if device.type == "cuda" and dtype == "bf16" and not has_bf16():
        raise ConfigError(f"{torch.cuda.get_device_name(device)} has no bf16; choose --dtype fp16")
    if device.type == "cpu" and dtype == "fp16":
        raise ConfigError("fp16 on a CPU takes longer than fp32; choose --dtype fp32 or bf16")
    return device


def _config(name_or_path: str, *, random_weights: bool) -> Any:
    if random_weights and name_or_path in MODELS:
        return AutoConfig.from_pretrained(shape_file(name_or_path))
    if random_weights and "/" not in name_or_path and not Path(name_or_path).exists():
        raise ConfigError(
            f"model {name_or_path!r} is no shape of ours, no file and no owner/name of the Hugging Face Hub; "
            f"{nearest(name_or_path, MODELS)}"
        )
    try:
        return AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model {name_or_path!r} cannot be loaded ({_first_line(error)}); shapes that need no download: "
            f"{', '.join(MODELS)} (--random-weights)"
        ) from error


def _from_config(config: Any, **settings: object) -> Any:
    try:
        return AutoModelForCausalLM.from_config(config, **settings)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ConfigError(f"no causal language model can be built ({_first_line(error)})") from error


def _from_pretrained(name_or_path: str, settings: dict[str, object]) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(name_or_path, **settings)
    except (OSError, ValueError) as error:
        reason = _first_line(error)
        raise ConfigError(f"the weights of {name_or_path!r} cannot be loaded ({reason})") from error


def _check_attention(config: Any, name: str) -> None:
    other_layers = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    if other_layers or getattr(config, "sliding_window", None):
        what = ", ".join(sorted(other_layers)) or f"a sliding window of {config.sliding_window} tokens"
    elif not hasattr(config, "num_key_value_heads") or hasattr(config, "kv_lora_rank"):
        what = f"attention as in {config.model_type}"
    else:
        return
    raise ConfigError(
        f"model {name!r} has {what}; only models can be measured whose layers all attend to every token by "
        "grouped-query attention"
    )


def _short_name(name_or_path: str) -> str:
    path = Path(name_or_path)
    if path.name == "config.json":
        path = path.resolve().parent
    return (path.stem if path.suffix == ".json" else path.name).lower()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
