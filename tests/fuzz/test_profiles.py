"""Damaged specs and profiles of others: one sentence, or a model of finite times."""

import gzip
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.latency.base import BatchShape, IterationShape
from batchsim.latency.profiles.importing import (
    Wanted,
    import_distserve,
    import_operators,
    import_splitwise,
)
from batchsim.latency.profiles.operator_profile import read_operator_profile
from batchsim.specs import load_gpu, load_model
from tests.fuzz.mutations import fuzz, mutated_bytes, mutated_csv, mutated_json, one_sentence
from tests.latency.profiles import test_operator_profile, test_v0
from tests.latency.profiles.test_importing import write_distserve, write_splitwise

GPU = asdict(load_gpu("h100"))
MODEL = asdict(load_model("qwen3-1.7b"))
HUGGING_FACE = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}


@given(data=st.data())
@fuzz
@pytest.mark.parametrize(
    ("tree", "load"),
    [(GPU, load_gpu), (MODEL, load_model), (HUGGING_FACE, load_model)],
    ids=["gpu", "ours", "hf"],
)
def test_damaged_spec_is_refused_or_holds_what_it_says(
    tree: dict[str, Any], load: Callable[[Path], Any], data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "spec.json"
    path.write_bytes(data.draw(mutated_json(tree)))

    spec = one_sentence(lambda: load(path))

    if spec is not None:
        said = json.loads(path.read_text(encoding="utf-8-sig"))
        assert all(said[name] == value for name, value in asdict(spec).items() if name in said)
        numbers = [value for value in asdict(spec).values() if isinstance(value, int | float)]
        assert all(0 <= value < math.inf for value in numbers)
        assert load is load_gpu or 0 < spec.flop_per_token < math.inf


@given(data=st.data())
@fuzz
@pytest.mark.parametrize("name", ["dense", "per_sequence", "attention", "moe", "skew", "meta", "config"])
def test_damaged_operator_profile_is_refused_or_gives_finite_times(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("profile")
    tables = {"moe": test_operator_profile.EXPERTS, "skew": test_operator_profile.SKEW}
    where = test_operator_profile.write_profile(folder / "tp1", **tables)
    config = folder / "config.json"
    config.write_text(json.dumps(test_operator_profile.MOE), encoding="utf-8")
    if name == "config":
        config.write_bytes(data.draw(mutated_json(test_operator_profile.MOE)))
    elif name == "meta":
        (folder / "meta.json").write_bytes(
            data.draw(mutated_json({"gpu": "a", "model": "b", "vllm_version": "1"}))
        )
    else:
        path = where / f"{name}.csv"
        path.write_bytes(data.draw(mutated_csv(path.read_text(encoding="utf-8"))))

    model = one_sentence(lambda: import_operators(folder, config, Wanted()))

    if model is not None:
        for shape in (
            IterationShape(2, 0, 0, 1, 2.0),
            IterationShape(0, 2, 40),
            IterationShape(3, 2, 40, 1, 4.5),
        ):
            time_s = one_sentence(lambda shape=shape: model.iteration_s(shape))
            assert time_s is None or 0 < time_s < math.inf


@given(data=st.data())
@fuzz
@pytest.mark.parametrize("name", ["layers", "attention"])
def test_damaged_profile_of_the_first_form_is_refused_or_gives_finite_times(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("profile")
    path = test_v0.write_profile(folder / "tp1") / f"{name}.csv"
    path.write_bytes(data.draw(mutated_csv(path.read_text(encoding="utf-8"))))

    model = one_sentence(lambda: read_operator_profile(folder, test_v0.CONFIG, memory_bytes_per_s=1e12))

    if model is not None:
        time_s = model.iteration_s(IterationShape(0, 2, 80))
        assert 0 < time_s < math.inf


@given(data=st.data())
@fuzz
@pytest.mark.parametrize("kind", ["distserve", "splitwise"])
def test_damaged_files_of_others_are_refused_or_give_finite_times(
    kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("others")
    if kind == "distserve":
        path = write_distserve(folder)
        path.write_bytes(data.draw(mutated_json(json.loads(path.read_text(encoding="utf-8")))))
        model = one_sentence(lambda: import_distserve(path, Wanted(tensor_parallel=2)))
    else:
        path = write_splitwise(folder)
        path.write_bytes(data.draw(mutated_csv(path.read_text(encoding="utf-8"))))
        model = one_sentence(lambda: import_splitwise(path, Wanted(tensor_parallel=8)))

    if model is not None:
        assert 0 < model.batch_time(BatchShape(2, 10, 3)).total_s < math.inf


@given(data=st.data())
@fuzz
def test_damaged_zip_is_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("zipped")
    path = write_splitwise(folder)
    zipped = path.with_suffix(".csv.gz")
    zipped.write_bytes(data.draw(mutated_bytes(gzip.compress(path.read_bytes()))))

    model = one_sentence(lambda: import_splitwise(zipped, Wanted(tensor_parallel=8)))

    assert model is None or model.batch_time(BatchShape(2, 10, 3)).total_s > 0
