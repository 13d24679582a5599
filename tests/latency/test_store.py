import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchsim.errors import ConfigError
from batchsim.latency.analytic import AffineBatchLatency, NoisyLatency, PhaseBatchLatency
from batchsim.latency.base import BatchLatency, BatchShape, Domain, IterationDomain, LatencyInfo
from batchsim.latency.grid import TableLatency
from batchsim.latency.iteration_grid import TableIterationLatency
from batchsim.latency.linear import LINEAR_COEFFICIENTS, LinearIterationLatency
from batchsim.latency.noise import NoisyIterationLatency
from batchsim.latency.roofline import RooflineLatency
from batchsim.latency.store import (
    as_batch_latency,
    as_iteration_latency,
    default_latency,
    load_latency,
    refuse_outside,
    save_latency,
)
from batchsim.specs import load_gpu, load_model

INFO = LatencyInfo("a model", "measured", {"gpu": "h200", "fit": {"r2": 0.5}})
AFFINE = AffineBatchLatency(0.05, 0.1 / 3, 0.3, "output", Domain(batch_size=(1, 32), length=(2, 9)), INFO)
QWEN, L4 = load_model("qwen3-1.7b"), load_gpu("l4")

MODELS = [
    AFFINE,
    PhaseBatchLatency(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, Domain(prompt_tokens=(1, 8)), INFO),
    TableLatency(((1, 2), (5, 9)), (1.0, 2.0, 3.0, 4.0), "output", INFO),
    RooflineLatency(QWEN, L4, 0.5, 0.7, 0.002, info=LatencyInfo("r", "derived")),
    RooflineLatency(replace(QWEN, num_layers=5), replace(L4, name="mine"), 0.5, 0.7, 0.0, tensor_parallel=2),
    LinearIterationLatency(
        0.1 / 3,
        1e-5,
        0,
        1e-3,
        1e-8,
        2e-3,
        Domain((1, 8)),
        IterationDomain((0, 512), context_tokens=(0, 9)),
        INFO,
    ),
    TableIterationLatency(
        (0, 64), (0, 4), (10, 99), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), Domain((1, 4)), INFO
    ),
]


@pytest.mark.parametrize("model", MODELS)
def test_model_is_the_same_after_it_was_written_and_read(model: BatchLatency, tmp_path: Path) -> None:
    path = tmp_path / "latency.json"

    save_latency(model, path)

    assert load_latency(path) == model
    assert [entry.name for entry in tmp_path.iterdir()] == ["latency.json"]


def test_linear_file_that_knows_no_cost_of_a_prompt_is_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    tree = affine_file(family="linear", coefficients=dict.fromkeys(LINEAR_COEFFICIENTS, 1.0))
    path.write_text(json.dumps(tree), encoding="utf-8")

    model = load_latency(path)

    assert isinstance(model, LinearIterationLatency)
    assert (model.per_context_token_s, model.per_prefill_seq_s) == (1.0, 0.0)


def test_shipped_specs_are_written_by_name(tmp_path: Path) -> None:
    save_latency(MODELS[3], tmp_path / "latency.json")

    coefficients = json.loads((tmp_path / "latency.json").read_text(encoding="utf-8"))["coefficients"]
    assert (coefficients["model"], coefficients["gpu"]) == ("qwen3-1.7b", "l4")


def test_default_is_derived_and_unbounded() -> None:
    latency = load_latency()

    assert latency.info.provenance == "derived"
    assert "nothing" in str(latency.info.details["measured"])
    assert latency.domain == Domain()
    assert latency.batch_time(BatchShape(8, 500, 200)).first_token_s > 0


def test_default_for_other_hardware_keeps_efficiencies_and_overhead() -> None:
    packaged, other = load_latency(), default_latency(QWEN, L4, tensor_parallel=2)

    assert isinstance(packaged, RooflineLatency)
    assert (other.model, other.gpu, other.tensor_parallel) == (QWEN, L4, 2)
    assert (other.compute_efficiency, other.overhead_s) == (packaged.compute_efficiency, packaged.overhead_s)
    assert default_latency(packaged.model, packaged.gpu) == packaged
    assert default_latency(packaged.model, packaged.gpu, 4).tensor_parallel == 4


@pytest.mark.parametrize("model", MODELS[3:])
def test_models_of_iterations_do_for_both_worlds(model: BatchLatency) -> None:
    assert as_iteration_latency(model) is model
    assert as_batch_latency(model) is model


@pytest.mark.parametrize("model", MODELS[:3])
def test_whole_batch_model_cannot_tell_the_time_of_an_iteration(model: BatchLatency) -> None:
    with pytest.raises(ConfigError) as refusal:
        as_iteration_latency(model)

    assert str(refusal.value) == (
        "latency model a model tells the time of whole batches only; this policy needs that of single "
        "iterations: choose a model of one of the families roofline, linear, iteration_table, operators"
    )


def test_model_of_iterations_alone_cannot_tell_the_time_of_a_batch() -> None:
    linear = LinearIterationLatency(1.0, 0, 0, 0, 0, info=LatencyInfo("mine"))

    with pytest.raises(
        ConfigError, match=r"mine tells the time of single iterations only; .* affine, phase, t"
    ):
        as_batch_latency(NoisyIterationLatency(linear, 0.1, np.random.default_rng(0)))


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    save_latency(AFFINE, path)

    with pytest.raises(ConfigError, match="cannot be written"):
        save_latency(replace(AFFINE, info=LatencyInfo(details={"r2": float("nan")})), path)

    assert load_latency(path) == AFFINE


def test_model_without_a_file_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="NoisyLatency has no file form; known: affine, phase, table, roofline, linear"
    ):
        save_latency(NoisyLatency(AFFINE, 0.1, np.random.default_rng(0)), tmp_path / "latency.json")


def affine_file(**changes: object) -> dict[str, Any]:
    coefficients = {"alpha_s": 1.0, "beta_s_per_token": 1.0, "gamma": 0.3, "length": "output"}
    return {"family": "affine", "provenance": "synthetic", "coefficients": coefficients, **changes}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([1], "the file holds .* an object is needed"),
        (affine_file(family="afine"), "unknown family 'afine'; did you mean affine"),
        (affine_file(provenance="real"), "provenance is 'real'; known: measured, derived, synthetic"),
        (
            affine_file(coefficients={"alpha_s": 1.0}),
            "coefficient beta_s_per_token of the family affine is missing",
        ),
        (
            affine_file(coefficients={**affine_file()["coefficients"], "delta": 1}),
            "unknown coefficient 'delta'",
        ),
        (affine_file(coefficients={**affine_file()["coefficients"], "gamma": float("nan")}), "gamma is nan"),
        (affine_file(coefficients={**affine_file()["coefficients"], "alpha_s": "1"}), "alpha_s is '1'"),
        (affine_file(domian={}), "unknown key 'domian'; did you mean domain"),
        (affine_file(domain={"batch": [1, 2]}), "unknown domain 'batch'; did you mean batch_size"),
        (affine_file(domain={"batch_size": [4, 2]}), "domain of batch_size is"),
        (
            affine_file(domain={"batch_size": [0, 2]}),
            "domain of batch_size is .* with whole 1 <= low <= high",
        ),
        (affine_file(iteration_domain={}), "the family affine has no iteration_domain"),
        (
            affine_file(
                family="linear",
                coefficients=dict.fromkeys(LINEAR_COEFFICIENTS, 1.0),
                iteration_domain={"decode_seqs": [-1, 2]},
            ),
            "domain of decode_seqs is .* with whole 0 <= low <= high",
        ),
        ({"family": "affine"}, "provenance is missing"),
        (
            affine_file(family="table", coefficients={"axes": 3, "total_s": [], "length": "output"}),
            "3 stands where a list is needed",
        ),
    ],
)
def test_file_that_holds_no_model_is_refused_by_name(tree: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    path.write_text(json.dumps(tree), encoding="utf-8")

    with pytest.raises(ConfigError, match=f"latency.json: {message}"):
        load_latency(path)


def test_absent_and_broken_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")

    with pytest.raises(ConfigError, match=r"none.json: cannot be read"):
        load_latency(tmp_path / "none.json")
    with pytest.raises(ConfigError, match=r"broken.json: not valid JSON"):
        load_latency(tmp_path / "broken.json")


def test_refusal_names_model_range_shape_and_the_way_out() -> None:
    with pytest.raises(ConfigError) as refusal:
        refuse_outside(AFFINE, BatchShape(64, 3, 5))

    assert str(refusal.value) == (
        "latency model a model holds for batch size 1 to 32, prompt + output tokens 2 to 9; a batch of 64 "
        "with 3 prompt and 5 output tokens lies outside: choose another model, smaller batches, or "
        'latency.outside = "extrapolate"'
    )
