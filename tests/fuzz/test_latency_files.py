"""Damaged latency files: one sentence, or a model whose times are those of another reading of the file."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from batchsim.errors import ConfigError
from batchsim.latency.base import BatchLatency, BatchShape, IterationLatency, IterationShape
from batchsim.latency.families import FAMILIES
from batchsim.latency.store import load_latency, save_latency
from tests.fuzz.mutations import fuzz, mutated_json, one_sentence
from tests.latency.test_store import MODELS

Tree = dict[str, Any]


def written(model: BatchLatency, folder: Path) -> Tree:
    save_latency(model, folder / "valid.json")
    tree: Tree = json.loads((folder / "valid.json").read_text(encoding="utf-8"))
    return tree


@given(data=st.data())
@fuzz
@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_damaged_file_is_refused_or_gives_the_times_it_says(
    model: BatchLatency, data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "latency.json"
    path.write_bytes(data.draw(mutated_json(written(model, tmp_path))))

    read = one_sentence(lambda: load_latency(path))

    if read is not None:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
        assert read.info.provenance == tree["provenance"]
        check_batches(read, tree)
        if hasattr(read, "iteration_s"):
            check_iterations(read, tree)
        save_latency(read, tmp_path / "again.json")
        assert load_latency(tmp_path / "again.json") == read


def check_batches(model: BatchLatency, tree: Tree) -> None:
    for shape in itertools.starmap(BatchShape, itertools.product((1, 2, 7), (1, 6, 300), (1, 2, 9))):
        time = one_sentence(lambda shape=shape: model.batch_time(shape))
        if time is None:
            continue
        assert 0 < time.total_s < math.inf
        assert math.isnan(time.first_token_s) or 0 < time.first_token_s <= time.total_s
        if tree["family"] in BATCH_S:
            expected_s = BATCH_S[tree["family"]](tree["coefficients"], *shape)
            assert time.total_s == pytest.approx(expected_s, rel=1e-9, abs=1e-300)


def check_iterations(model: IterationLatency, tree: Tree) -> None:
    for tokens, seqs, context in ((5, 0, 0), (0, 1, 7), (0, 3, 60), (2, 2, 30), (700, 9, 9000)):
        shape = IterationShape(tokens, seqs, context, int(tokens > 0), tokens**2 / 2)
        time_s = one_sentence(lambda shape=shape: model.iteration_s(shape))
        if time_s is None:
            continue
        assert 0 < time_s < math.inf
        if tree["family"] in ITERATION_S:
            expected_s = ITERATION_S[tree["family"]](tree["coefficients"], shape)
            assert time_s == pytest.approx(expected_s, rel=1e-9, abs=1e-300)
        if not tokens:
            first_s, growth_s, num_linear = model.decode_line(seqs, context)
            assert first_s == pytest.approx(time_s, rel=1e-9)
            assert num_linear >= 1
            assert math.isfinite(growth_s)


def affine_s(c: Tree, batch_size: int, prompt: int, output: int) -> float:
    length = output + (prompt if c["length"] == "prompt+output" else 0)
    return float(c["alpha_s"]) + c["beta_s_per_token"] * length * (1 + c["gamma"] * (1 - 1 / batch_size))


def phase_s(c: Tree, batch_size: int, prompt: int, output: int) -> float:
    time_s = c["prefill_s"] + c["prefill_s_per_token"] * batch_size * prompt
    time_s += c["prefill_s_per_token2"] * batch_size * prompt**2
    for step in range(output - 1):
        time_s += c["decode_s"] + c["decode_s_if_batched"] * (batch_size > 1)
        time_s += c["decode_s_per_seq"] * batch_size + c["decode_s_per_kv_token"] * batch_size * (
            prompt + step
        )
    return float(time_s)


def table_s(c: Tree, batch_size: int, prompt: int, output: int) -> float:
    position = {"output": [output], "prompt+output": [prompt + output], "prompt,output": [prompt, output]}
    return from_grid(c["axes"], c["total_s"], [batch_size, *position[c["length"]]])


def linear_s(c: Tree, shape: IterationShape) -> float:
    return (
        c["fixed_s"]
        + c["per_prefill_token_s"] * shape.prefill_tokens
        + c["per_prefill_pair_s"] * shape.prefill_pairs
        + c.get("per_prefill_seq_s", 0) * shape.prefill_seqs
        + c["per_decode_seq_s"] * shape.decode_seqs
        + c["per_context_token_s"] * shape.context_tokens
        + c.get("if_several_tokens_s", 0) * (shape.prefill_tokens + shape.decode_seqs >= 2)
    )


def iteration_table_s(c: Tree, shape: IterationShape) -> float:
    axes = [c["prefill_tokens"], c["decode_seqs"], c["mean_context_tokens"]]
    mean = shape.context_tokens / shape.decode_seqs if shape.decode_seqs else axes[2][0]
    of_prompts_s = c.get("pair_s", 0) * shape.prefill_pairs + c.get("prompt_s", 0) * shape.prefill_seqs
    return of_prompts_s + from_grid(axes, c["grid_s"], [shape.prefill_tokens, shape.decode_seqs, mean])


def from_grid(axes: list[list[int]], seconds: list[float], position: list[float]) -> float:
    """Interpolate by scipy, on the axes that have more than one point."""
    kept = [which for which, axis in enumerate(axes) if len(axis) > 1]
    values = np.reshape(seconds, [len(axes[which]) for which in kept] or [1]).astype(np.float64)
    if not kept:
        return float(values[0])
    grid = RegularGridInterpolator(
        [np.asarray(axes[which], dtype=np.float64) for which in kept],
        values,
        bounds_error=False,
        fill_value=None,
    )
    return float(grid([position[which] for which in kept])[0])


BATCH_S: dict[str, Callable[..., float]] = {"affine": affine_s, "phase": phase_s, "table": table_s}
ITERATION_S: dict[str, Callable[..., float]] = {"linear": linear_s, "iteration_table": iteration_table_s}


def test_every_family_is_damaged() -> None:
    assert {type(model) for model in MODELS} == set(FAMILIES.values())


def test_undamaged_files_are_read(tmp_path: Path) -> None:
    for model in MODELS:
        tree = written(model, tmp_path)
        check_batches(model, tree)
        if hasattr(model, "iteration_s"):
            check_iterations(model, tree)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        load_latency(tmp_path)
