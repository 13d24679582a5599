import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest

from batchsim.errors import BatchsimError, ConfigError
from batchsim.latency.analytic import AffineBatchLatency, NoisyLatency, PhaseBatchLatency
from batchsim.latency.base import (
    BatchLatency,
    BatchShape,
    BatchTime,
    Domain,
    IterationDomain,
    LatencyInfo,
    refuse_outside,
)
from batchsim.latency.families import FAMILIES, as_batch_latency, as_iteration_latency
from batchsim.latency.linear import LINEAR_COEFFICIENTS, LinearIterationLatency
from batchsim.latency.noise import NoisyIterationLatency
from batchsim.latency.operators import Lag, OperatorTable, OperatorTableLatency
from batchsim.latency.passes import PassTableLatency
from batchsim.latency.roofline import RooflineLatency
from batchsim.latency.store import DEFAULT_NAME, default_latency, load_latency, save_latency
from batchsim.latency.tables.grid import TableLatency
from batchsim.latency.tables.iteration_grid import TableIterationLatency
from batchsim.latency.tables.table import read_calibration
from batchsim.specs import ModelSpec, load_gpu, load_model

INFO = LatencyInfo("a model", "measured", {"gpu": "h200", "fit": {"r2": 0.5}})
AFFINE = AffineBatchLatency(0.05, 0.1 / 3, 0.3, "output", Domain(batch_size=(1, 32), length=(2, 9)), INFO)
ROOT = Path(__file__).parents[2]
SHIPPED = [ROOT / "src/batchsim/latency/data" / DEFAULT_NAME, ROOT / "experiments/unit_latency.json"]
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
        (0, 64), (0, 4), (10, 99), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), 1e-9, 2e-4, Domain((1, 4)), INFO
    ),
    OperatorTableLatency(
        OperatorTable(((0, 4),), (1.0, 2.0)),
        OperatorTable(((0, 4),), (0.5, 1)),
        OperatorTable(((1, 2), (0, 3)), (0.1, 0.2, 0.3, 0.4)),
        OperatorTable(((1, 2), (0, 3)), (0.1, 0.2, 0.3, 0.4)),
        OperatorTable(((1, 2), (0, 3), (1, 2), (3, 4)), (0.1 / 3,) * 16),
        decode_lag=Lag((2, 3), (0.1, 0.5)),
    ),
    PassTableLatency(
        OperatorTable(((1, 4),), (1.0, 2.0)),
        OperatorTable(((1, 4),), (0.5, 1)),
        OperatorTable(((1, 2), (1, 2), (0, 3)), (0.1 / 3,) * 8),
        OperatorTable(((1, 2), (0, 3)), (0.1, 0.2, 0.3, 0.4)),
        Domain((1, 4)),
    ),
]


class Peak(NamedTuple):
    """Where a made-up model is slow."""

    batch_size: int
    factor: float


@dataclass(frozen=True, slots=True)
class PeakedLatency:
    """A family that only this test knows, with a field of each kind that a file can hold."""

    fixed_s: float
    peaks: tuple[Peak, ...]
    model: ModelSpec
    rule: Literal["longest", "first"] = "first"
    slowest: Peak | None = None
    domain: Domain = field(default_factory=Domain)
    info: LatencyInfo = field(default_factory=LatencyInfo)

    def batch_time(self, shape: BatchShape) -> BatchTime:
        factors = [peak.factor for peak in self.peaks if peak.batch_size == shape.batch_size]
        return BatchTime(self.fixed_s, self.fixed_s * max(factors, default=1.0))


PEAKED = PeakedLatency(0.5, (Peak(2, 3.0), Peak(4, 5)), QWEN, "longest", Peak(4, 5.0), Domain((1, 4)), INFO)


@pytest.mark.parametrize("model", MODELS)
def test_model_is_the_same_after_it_was_written_and_read(model: BatchLatency, tmp_path: Path) -> None:
    path = tmp_path / "latency.json"

    save_latency(model, path)

    assert load_latency(path) == model
    assert [entry.name for entry in tmp_path.iterdir()] == ["latency.json"]


def test_every_family_is_among_them() -> None:
    assert {type(model) for model in MODELS} == set(FAMILIES.values())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_file_is_written_as_it_was_read(path: Path, tmp_path: Path) -> None:
    save_latency(load_latency(path), tmp_path / "again.json")

    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_family_named_in_one_place_is_written_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "peaked", PeakedLatency)

    save_latency(PEAKED, tmp_path / "latency.json")

    assert load_latency(tmp_path / "latency.json") == PEAKED
    assert json.loads((tmp_path / "latency.json").read_text(encoding="utf-8"))["coefficients"] == {
        "fixed_s": 0.5,
        "peaks": [[2, 3.0], [4, 5]],
        "model": "qwen3-1.7b",
        "rule": "longest",
        "slowest": [4, 5.0],
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fixed_s": True}, "fixed_s is True; a number is needed"),
        ({"peaks": {}}, "peaks is {}; a list is needed"),
        ({"peaks": [[2, 3.0], 4]}, "peaks[1] is 4; a list is needed"),
        ({"peaks": [[2]]}, "peaks[0] is a list of 1; [batch_size, factor] is needed"),
        ({"peaks": [[2.5, 1.0]]}, "peaks[0].batch_size is 2.5; a whole number up to 1e+12 is needed"),
        ({"rule": ["first"]}, "rule is ['first']; known: longest, first"),
        ({"slowest": False}, "slowest is False; a list is needed"),
        ({"model": 7}, "model is 7; a name or an object is needed"),
        ({"model": {}}, "model: name is missing"),
        ({"model": "qwen"}, "unknown model 'qwen'"),
    ],
)
def test_value_of_another_type_is_refused_by_its_place(
    changes: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "peaked", PeakedLatency)
    path = tmp_path / "latency.json"
    save_latency(PEAKED, path)
    tree = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**tree, "coefficients": {**tree["coefficients"], **changes}}))

    with pytest.raises(ConfigError) as refusal:
        load_latency(path)

    assert str(refusal.value).startswith(f"{path}: {message}")


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
        "iterations: choose a model of one of the families roofline, linear, iteration_table, operators, "
        "passes"
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


def table_file(**changes: object) -> dict[str, Any]:
    coefficients = {"axes": [[1, 2], [3, 4]], "total_s": [1.0] * 4, "length": "output", **changes}
    return affine_file(family="table", coefficients=coefficients)


def roofline_file(**changes: object) -> dict[str, Any]:
    shares = {"compute_efficiency": 0.5, "bandwidth_efficiency": 0.5, "overhead_s": 0.0}
    return affine_file(
        family="roofline", coefficients={"model": "qwen3-1.7b", "gpu": "l4", **shares, **changes}
    )


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
        (
            affine_file(coefficients={**affine_file()["coefficients"], "gamma": float("nan")}),
            "coefficients.gamma is nan; a finite number is needed",
        ),
        (
            affine_file(coefficients={**affine_file()["coefficients"], "gamma": 1e308}),
            r"gamma is 1e\+308; a finite number >= 0 is needed, up to 1e\+09",
        ),
        (
            affine_file(coefficients={**affine_file()["coefficients"], "gamma": 10**200}),
            "gamma is 1000000",
        ),
        (affine_file(family=["affine"]), r"unknown family \['affine'\]"),
        (affine_file(provenance={}), "provenance is {}; known"),
        (affine_file(name="a\nb"), r"name is 'a\\nb'; one line of text is needed"),
        (affine_file(details=[]), r"details holds \[\]; an object is needed"),
        (affine_file(coefficients=None), "coefficients holds None; an object is needed"),
        (affine_file(domain={"batch_size": [1, 10**13]}), r"domain of batch_size is .* up to 1e\+12"),
        (affine_file(domain={"batch_size": [True, 2]}), "domain of batch_size is"),
        (table_file(axes=[[1, 1], [1, 2]]), "axis .* of the table must hold increasing whole numbers"),
        (table_file(axes=[[2, 1], [1, 2]]), "axis .* of the table must hold increasing whole numbers"),
        (table_file(axes=[[], [1, 2]]), "axis .* of the table must hold increasing whole numbers"),
        (table_file(axes=[]), "a table over output cannot have 0 axes"),
        (table_file(axes=[[1, 10**13], [1, 2]]), r"axes\[0\]\[1\] is 10+; a whole number up to 1e\+12 is"),
        (table_file(total_s=[1.0] * 3), "total_s holds 3 times; the axes ask for 4"),
        (table_file(total_s=[1.0, 1.0, 0.0, 1.0]), "a time in total_s is 0.0; a finite number > 0 is needed"),
        (table_file(total_s=[1.0, 1.0, 1e300, 1.0]), r"a time in total_s is 1e\+300; a finite number > 0"),
        (table_file(total_s=[1.0, 1.0, False, 1.0]), r"total_s\[2\] is False; a number is needed"),
        (
            roofline_file(compute_efficiency=5e-324),
            "compute_efficiency is 5e-324; a share of at most 1 is needed",
        ),
        (roofline_file(gpu={"name": "g", "memory_bytes": 1, "flop_per_s": 5e-324}), "gpu: memory_bytes_per"),
        (roofline_file(gpu="h\n100"), r"gpu is 'h\\n100'; a name or an object is needed"),
        (roofline_file(model="x" * 5000), "unknown model 'xxx"),
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
        ({"date": "20261130"}, "no latency file, as `batchsim fit` writes it: family is missing"),
        (
            affine_file(family="table", coefficients={"axes": 3, "total_s": [], "length": "output"}),
            "axes is 3; a list is needed",
        ),
    ],
)
def test_file_that_holds_no_model_is_refused_by_name(tree: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    path.write_text(json.dumps(tree), encoding="utf-8")

    with pytest.raises(ConfigError, match=f"latency.json: {message}"):
        load_latency(path)


@pytest.mark.parametrize("read", [load_latency, load_model, load_gpu, read_calibration])
def test_every_reader_takes_regular_files_of_text_only(read: Callable[[Path], Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "long.json").touch()
    os.truncate(tmp_path / "long.json", 100_000_000)
    (tmp_path / "latin.json").write_bytes(b"{\xe4")
    (tmp_path / "marked.json").write_text("{\ufeff", encoding="utf-8")

    for name, message in (
        ("pipe", "is a named pipe; a regular file is needed"),
        ("folder", "is a directory; a regular file is needed"),
        ("long", "holds 100,000,000 bytes; a file of at most"),
        ("latin", "byte 0xe4 is no UTF-8"),
        ("marked", "a byte-order mark stands inside the text"),
        ("none", "cannot be read"),
    ):
        with pytest.raises(BatchsimError, match=rf"{name}\.json.*{message}"):
            read(tmp_path / f"{name}.json")


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
        "with 3 prompt and 5 output tokens lies outside: --batch-size 32 keeps their size inside, and "
        '--extrapolate (latency.outside = "extrapolate") goes on and counts what lies outside'
    )


def test_a_calibration_in_place_of_a_latency_file_names_the_fit(tmp_path: Path) -> None:
    (tmp_path / "grid.csv").touch()

    with pytest.raises(
        ConfigError, match=r"grid.csv: is a table, no latency model; `batchsim fit .*grid.csv"
    ):
        load_latency(tmp_path / "grid.csv")
