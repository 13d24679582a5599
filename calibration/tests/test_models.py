"""Which models can be loaded, and what is said of those that cannot."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from batchsim.errors import ConfigError
from batchsim.specs import load_model as load_spec
from batchsim_calibration.serving.models import MODELS, load_model


def test_the_same_seed_gives_the_same_weights() -> None:
    first, again, other = (
        load_model("tiny", random_weights=True, dtype="fp32", device="cpu", seed=seed) for seed in (0, 0, 1)
    )

    weights = [loaded.model.lm_head.weight for loaded in (first, again, other)]

    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_loaded_model_says_what_it_is() -> None:
    loaded = load_model("tiny", random_weights=True, dtype="bf16", attention="eager", device="cpu")

    assert (loaded.name, loaded.weights, loaded.dtype, loaded.attention) == (
        "tiny",
        "random",
        "bf16",
        "eager",
    )
    assert loaded.model.lm_head.weight.dtype == torch.bfloat16
    assert loaded.vocab_size == 4096
    assert not loaded.model.training


def test_weights_saved_to_a_directory_are_loaded_as_real_ones(tmp_path: Path) -> None:
    built = load_model("tiny", random_weights=True, dtype="fp32", device="cpu")
    built.model.config._attn_implementation = "sdpa"
    built.model.save_pretrained(tmp_path / "My-Model")

    loaded = load_model(str(tmp_path / "My-Model"), dtype="fp32", device="cpu")

    assert (loaded.name, loaded.weights) == ("my-model", "real")
    assert torch.equal(loaded.model.lm_head.weight, built.model.lm_head.weight)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name_or_path": "qwen2.5-0.5"}, "Hub; did you mean qwen2.5-0.5b"),
        ({"dtype": "fp16"}, "fp16 on a CPU takes longer than fp32; choose --dtype fp32 or bf16"),
        ({"dtype": "int8"}, "dtype is 'int8'; known: fp32, bf16, fp16"),
        ({"attention": "flash"}, "attention is 'flash'; known: sdpa, eager"),
        ({"device": "tpu"}, "device is 'tpu'; cuda, cuda:1 ... or cpu is needed"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_a_sentence(settings: dict[str, str], sentence: str) -> None:
    given = {"name_or_path": "tiny", "dtype": "fp32", "device": "cpu", **settings}

    with pytest.raises(ConfigError, match=sentence):
        load_model(random_weights=True, **given)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_cuda_the_cpu_is_offered() -> None:
    with pytest.raises(ConfigError, match=r"--device cpu \(make calibrate DEVICE=cpu\)"):
        load_model("tiny", random_weights=True, device="cuda")


def test_a_gpu_that_only_emulates_bf16_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)

    with pytest.raises(ConfigError, match="Tesla T4 has no bf16; choose --dtype fp16"):
        load_model("tiny", random_weights=True, dtype="bf16", device="cuda")


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1},
            "has sliding_attention;",
        ),
        ({"model_type": "mistral", "sliding_window": 4096}, "has a sliding window of 4096 tokens;"),
        ({"model_type": "gpt2"}, "has attention as in gpt2;"),
        ({"model_type": "deepseek_v3"}, "has attention as in deepseek_v3;"),
        ({"model_type": "t5"}, "has attention as in t5;"),
    ],
)
def test_a_model_that_attends_otherwise_is_refused(
    tmp_path: Path, shape: dict[str, object], sentence: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"num_hidden_layers": 2, **shape}))

    with pytest.raises(ConfigError, match=sentence):
        load_model(str(path), random_weights=True, dtype="fp32", device="cpu")


@pytest.mark.parametrize("name", [name for name in MODELS if name != "tiny"])
def test_the_shapes_are_those_that_the_simulator_knows(name: str) -> None:
    shape, spec = _config(name), load_spec(name)

    assert (shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size, shape.vocab_size) == (
        spec.num_layers,
        spec.hidden_size,
        spec.intermediate_size,
        spec.vocab_size,
    )
    assert (shape.num_attention_heads, shape.num_key_value_heads) == (spec.num_query_heads, spec.num_kv_heads)
    assert shape.tie_word_embeddings == spec.tied_embeddings


def _config(name: str) -> Any:
    with resources.as_file(resources.files("batchsim_calibration") / "configs" / f"{name}.json") as path:
        return AutoConfig.from_pretrained(path)
