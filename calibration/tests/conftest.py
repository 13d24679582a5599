"""What the tests share: a small model whose answers vary, and an engine that runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from batchsim_calibration.serving.models import LoadedModel, load_model

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    # Untied and wide: a random model with tied, narrow weights only repeats its last token.
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def varied_model(tmp_path: Path) -> Callable[..., LoadedModel]:
    """Make a random model of a family whose greedy answers are diverse."""

    def make(family: str = "qwen2", attention: str = "sdpa", dtype: str = "fp32") -> LoadedModel:
        path = tmp_path / family / "config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"model_type": family, **SHAPE}))
        return load_model(
            str(path), random_weights=True, dtype=dtype, attention=attention, device="cpu", seed=3
        )

    return make
