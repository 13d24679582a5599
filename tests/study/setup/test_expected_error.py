import json
import math
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from batchsim.cli import main
from batchsim.config import EngineConfig
from batchsim.latency.analytic import AffineBatchLatency
from batchsim.latency.base import LatencyInfo
from batchsim.latency.store import default_latency, save_latency
from batchsim.specs import load_gpu, load_model
from batchsim.study.run import simulate
from batchsim.study.setup import expected_error as told
from batchsim.study.setup.expected_error import ErrorRange, ExpectedError, expected_error
from batchsim.study.setup.hardware import AnyLatency
from tests.latency.flat_passes import flat_passes


def error(low: float, high: float, coverage: float | None) -> dict[str, Any]:
    return {"low": low, "high": high, "held_out_coverage": coverage}


def of(num_points: int, *, has_experts: bool = False, **errors: dict[str, Any]) -> dict[str, Any]:
    return {"num_points": num_points, "num_groups": 2, "errors": errors, "has_experts": has_experts}


PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    told.PASSES: {"vllm": of(10, tpot=error(-0.15, 0.3, 0.75), ttft=error(-0.4, 0.2, 0.8))},
    told.LOOPS: {
        "h100": of(20, tpot=error(-0.2, 0.25, 0.5), e2e=error(-0.3, 0.1, 0.5)),
        "b200": of(5, tpot=error(-0.1, 0.1, None)),
        told.ANY_GPU: of(25, tpot=error(-0.3, 0.3, 0.6)),
    },
    told.BATCHES: {
        "h100": of(30, batch=error(-0.3, 0.1, 0.7)),
        "mi300x": of(30, batch=error(-0.9, -0.5, 0.8)),
        told.ANY_GPU: of(60, batch=error(-0.8, 0.1, 0.7)),
    },
}


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for what ships, which is made anew now and then."""
    monkeypatch.setattr(told, "_published", lambda kind: PUBLISHED[kind])


def with_details(latency: AnyLatency, **details: object) -> AnyLatency:
    return replace(latency, info=LatencyInfo("mine", "derived", details))  # type: ignore[type-var]


def roofline(gpu: str, model: str = "llama-3.1-8b") -> AnyLatency:
    return default_latency(load_model(model), load_gpu(gpu))


def answer(*latencies: AnyLatency, is_iteration_level: bool = True, **engine: Any) -> ExpectedError:
    return expected_error(latencies, EngineConfig(**engine), is_iteration_level=is_iteration_level)


PASSES = with_details(flat_passes(), imported_as="aiconfigurator", engine="vllm 0.24.0")


def test_passes_are_off_as_published_points_of_their_engine() -> None:
    one = answer(PASSES, frontend="vllm")

    assert (one.tpot, one.ttft, one.e2e) == (ErrorRange(-0.15, 0.3), ErrorRange(-0.4, 0.2), None)
    assert str(one) == (
        "times could be off by TPOT -15 to +30 %, TTFT -40 to +20 % (as 8 in 10 published closed loops of "
        "vllm; of a model left out, 75 to 80 %)"
    )


@pytest.mark.parametrize("engine", [{}, {"frontend": "sglang"}, {"frontend": "vllm", "launch_s": 0.0}])
def test_without_the_host_s_times_published_points_tell_nothing(engine: dict[str, Any]) -> None:
    one = answer(PASSES, **engine)

    assert not one.ranges
    assert 'engine.frontend = "vllm"' in str(one)


def test_an_engine_without_points_is_not_known() -> None:
    other = with_details(flat_passes(), imported_as="aiconfigurator", engine="mine 1.0")

    assert str(answer(other)) == (
        "how far times could be off is not known: no published point of mine was predicted"
    )


def test_a_roofline_is_off_as_points_on_its_gpu() -> None:
    assert answer(roofline("h100")).ranges == {
        "tpot": ErrorRange(-0.2, 0.25), "e2e": ErrorRange(-0.3, 0.1),
    }  # fmt: skip
    assert answer(roofline("h100"), is_iteration_level=False).ranges == {"e2e": ErrorRange(-0.3, 0.1)}
    assert "all of one model" in answer(roofline("b200")).basis


def test_a_gpu_without_closed_loops_is_off_as_its_static_batches() -> None:
    one = answer(roofline("mi300x"))

    assert one.ranges == {"e2e": ErrorRange(-0.9, -0.5)}
    assert "-90 to -50 %" in str(one)


def test_a_gpu_without_points_is_off_as_others() -> None:
    one = answer(roofline("l40s"))

    assert one.tpot == ErrorRange(-0.3, 0.3)
    assert "on GPUs other than l40s; of a GPU left out, 60 %" in str(one)


def test_a_roofline_of_other_efficiencies_is_not_known() -> None:
    other = replace(roofline("h100"), compute_efficiency=0.9)  # type: ignore[type-var]

    assert not answer(other).ranges


def test_points_of_dense_models_tell_nothing_of_experts() -> None:
    one = answer(default_latency(load_model("mixtral-8x7b"), load_gpu("h100"), 2))

    assert not one.ranges
    assert "experts" in one.basis


def test_a_fit_is_off_by_what_it_erred_where_points_were_held_out() -> None:
    qualities = [
        {"kind": "decode", "heldout_batch_size_mape": 0.02, "heldout_length_mape": 0.05},
        {"kind": "prefill", "heldout_batch_size_mape": None, "heldout_length_mape": math.nan},
    ]

    one = answer(with_details(roofline("h100"), qualities=qualities))

    assert one.ranges == {"tpot": ErrorRange(-0.05, 0.05)}
    assert not answer(with_details(roofline("h100"), qualities=[])).ranges


def test_a_profile_is_off_by_uneven_contexts() -> None:
    uneven = {"heldout_mape": 0.02, "low": -0.2, "high": 0.25}  # a pass could take, against what is told

    assert answer(with_details(flat_passes(), uneven_contexts=uneven)).tpot == pytest.approx((-0.2, 0.25))
    assert not answer(with_details(flat_passes(), uneven_contexts={"low": "some"})).ranges


def test_given_coefficients_are_not_known() -> None:
    given = AffineBatchLatency(1.0, 0.0, 0.0, "output", info=LatencyInfo("mine", "synthetic"))

    assert "mine (synthetic)" in str(answer(given, is_iteration_level=False))


def test_replicas_that_differ_are_off_by_the_widest() -> None:
    one = answer(roofline("h100"), roofline("b200"), roofline("h100"))

    assert one.ranges == {"tpot": ErrorRange(-0.2, 0.25)}
    assert one.basis.count(";") == 2
    assert not answer(roofline("h100"), PASSES).ranges


def test_summary_holds_the_sentence_and_both_ends() -> None:
    summary = simulate({"policy": {"preset": "vllm_v1"}, "workload": {"num_requests": 20}}).summary

    assert summary["expected_error_tpot_low"] == -0.3
    assert summary["expected_error_tpot_high"] == 0.3
    assert summary["expected_error_ttft_low"] is None
    assert str(summary["expected_error"]).startswith("times could be off by TPOT -30 to +30 % (")


@pytest.mark.parametrize("command", ["run", "compare", "capacity"])
def test_commands_say_how_far_times_could_be_off(command: str, tmp_path: Path) -> None:
    save_latency(PASSES, tmp_path / "latency.json")
    options = ["--latency", str(tmp_path / "latency.json"), "--num-requests", "50"]
    asked = {
        "run": ["--policy", "vllm_v1"],
        "compare": ["--policy", "vllm_v1,vllm_v0"],
        "capacity": ["--policy", "vllm_v1", "--slo", "ttft:1000"],
    }

    ended = CliRunner().invoke(main, [command, *options, *asked[command], "--set", "engine.frontend=vllm"])

    assert ended.exit_code == 0, ended.output
    assert "TTFT -40 to +20 %" in " ".join(ended.stdout.split())


def test_what_ships_holds_ranges_of_every_kind() -> None:
    text = (files("batchsim.latency") / "data" / told.PUBLISHED).read_text(encoding="utf-8")

    shipped = json.loads(text)
    assert set(shipped) == set(PUBLISHED)
    for kind in shipped.values():
        assert {"made_by", "date"} < set(kind)
        for one in kind["ranges"].values():
            assert all(bounds["low"] < bounds["high"] for bounds in one["errors"].values())
