import json
from pathlib import Path
from typing import Any

import pytest

from batchsim.errors import ConfigError
from batchsim.latency.analytic import AffineBatchLatency
from batchsim.latency.base import IterationDomain, LatencyInfo
from batchsim.latency.store import save_latency
from batchsim.study.run import simulate
from batchsim.validation.replays.gates import Gate, end_to_end_gate, logic_gate, model_gates
from batchsim.validation.replays.measured_replay import read_recording
from batchsim.validation.replays.validate import Validation, validate
from tests.validation.replays.measured_worlds import MACHINE, engine, measure, requests, settled

QUIET = {"noise": 0.002}
LIGHT, CROWDED = (30, 0.5), (60, 4.0)


def latency_file(folder: Path, slowness: float = 1.0, **given: Any) -> Path:
    save_latency(engine(slowness, **given), folder / "latency.json")
    return folder / "latency.json"


def repeats(folder: Path, preset: str = "static_fifo", num: int = 2, **given: Any) -> Path:
    for number in range(1, num + 1):
        measure(folder / f"{preset}-{number}", preset, seed=number, **{"trace": LIGHT, **QUIET, **given})
    return folder


def gate(validation: Validation, name: str) -> Gate:
    (only,) = (gate for gate in validation.gates if gate.gate == name)
    return only


def test_a_right_model_passes_end_to_end_where_repeats_agree(tmp_path: Path) -> None:
    runs = repeats(tmp_path / "runs")

    validation = validate([runs], latency_file(tmp_path))

    (case,) = validation.cases
    assert (case.name, case.policy, len(case.measured)) == ("static_fifo", "static_fifo", 2)
    assert [gate.verdict for gate in validation.gates if gate.gate == "logic"] == ["pass", "pass"]
    assert gate(validation, "end to end").verdict == "pass"
    assert validation.runs["bias"].tolist() == pytest.approx([0, 0], abs=0.003)


def test_a_model_that_is_too_slow_fails_end_to_end_but_not_the_logic(tmp_path: Path) -> None:
    runs = repeats(tmp_path / "runs", "vllm_v1")

    validation = validate([runs], latency_file(tmp_path, slowness=1.3))

    assert validation.is_logic_sound
    assert gate(validation, "end to end").verdict == "fail"
    assert validation.runs["bias"].tolist() == pytest.approx([0.3, 0.3], abs=0.01)


def test_repeats_that_vary_leave_it_inconclusive_however_wrong_the_model(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for number, slowness in ((1, 1.0), (2, 1.6)):
        measure(runs / f"vllm_v1-{number}", "vllm_v1", trace=LIGHT, slowness=slowness, **QUIET)

    validation = validate([runs], latency_file(tmp_path, slowness=3.0))

    times = validation.errors[validation.errors["metric"].isin(["tpot", "e2e"])]
    assert set(times["verdict"][times["bar"].notna()]) == {"inconclusive"}
    assert gate(validation, "end to end").verdict == "inconclusive"
    assert "the machine varies by up to" in gate(validation, "end to end").finding


def test_repeats_that_agree_by_chance_prove_nothing_where_others_show_that_the_machine_varies(
    tmp_path: Path,
) -> None:
    runs = repeats(tmp_path / "runs")
    alone = validate([runs], latency_file(tmp_path, slowness=1.3))
    for number, slowness in ((1, 1.0), (2, 1.6)):
        measure(runs / f"vllm_v1-{number}", "vllm_v1", trace=LIGHT, slowness=slowness, **QUIET)

    validation = validate([runs], latency_file(tmp_path, slowness=1.3))

    beside = next(one for one in validation.gates if (one.gate, one.subject) == ("end to end", "static_fifo"))
    assert (gate(alone, "end to end").verdict, beside.verdict) == ("fail", "inconclusive")
    assert "its speed by 23" in beside.finding  # half of 1.3 / 1 less 1.3 / 1.6, over their mean


def test_one_run_alone_is_inconclusive(tmp_path: Path) -> None:
    runs = repeats(tmp_path / "runs", num=1)

    validation = validate([runs], latency_file(tmp_path))

    assert gate(validation, "end to end").verdict == "inconclusive"
    assert "one run does not tell how far the machine varies" in gate(validation, "end to end").finding


def test_a_run_given_twice_is_no_repeat_of_itself(tmp_path: Path) -> None:
    runs = repeats(tmp_path / "runs", num=1)

    validation = validate([runs, runs / "static_fifo-1"], latency_file(tmp_path))

    assert len(validation.runs) == 1


def test_a_busy_engine_is_not_judged_end_to_end(tmp_path: Path) -> None:
    runs = repeats(tmp_path / "runs", trace=CROWDED)

    validation = validate([runs], latency_file(tmp_path))

    assert validation.cases[0].load > 0.6
    assert gate(validation, "end to end").verdict == "not judged"
    assert set(validation.errors["verdict"]) == {"not judged"}


def test_runs_of_another_trace_policy_or_machine_are_no_repeats(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    measure(runs / "static_fifo-1", "static_fifo", trace=LIGHT, **QUIET)
    measure(runs / "static_fifo-2", "static_fifo", trace=(30, 0.5, 1), **QUIET)
    measure(runs / "static_fifo-3", "static_fifo", trace=LIGHT, provenance={**MACHINE, "gpu": "B"}, **QUIET)
    measure(runs / "vllm_v1-1", "vllm_v1", trace=LIGHT, **QUIET)

    validation = validate([runs], latency_file(tmp_path))

    assert [case.name for case in validation.cases] == [
        "static_fifo",
        "static_fifo_2",
        "static_fifo_3",
        "vllm_v1",
    ]
    assert validation.cases[2].measured_on == "tiny, bf16 on B"


def test_operations_outside_the_range_of_the_model_are_counted(tmp_path: Path) -> None:
    runs = repeats(tmp_path / "runs", "vllm_v1", num=1)
    narrow = latency_file(tmp_path, iteration_domain=IterationDomain(decode_seqs=(0, 1)))

    validation = validate([runs], narrow)

    operations = read_recording(runs / "vllm_v1-1").operations
    assert validation.runs["num_outside"].tolist() == [(operations["decode_seqs"] > 1).sum()]
    assert (validation.cases[0].num_extrapolated or 0) > 0


def test_the_bias_of_batches_counts_members_that_were_thrown_out(tmp_path: Path) -> None:
    measure(tmp_path / "run", "static_fifo", trace=CROWDED, predicted_tokens=8, noise=0.0)

    validation = validate([tmp_path / "run"], latency_file(tmp_path))

    assert read_recording(tmp_path / "run").operations["num_evicted"].sum() > 0
    assert validation.runs["bias"].tolist() == pytest.approx([0.0], abs=1e-12)


def test_the_wrong_policy_in_a_manifest_fails_the_logic(tmp_path: Path) -> None:
    right = measure(tmp_path / "right", "static_fifo", trace=CROWDED)
    wrong = measure(tmp_path / "wrong", "static_fifo", trace=CROWDED, changes={"policy.batch_size": 2})

    verdicts = [logic_gate(read_recording(directory)) for directory in (right, wrong)]

    assert [gate.verdict for gate in verdicts] == ["pass", "fail"]
    assert verdicts[0].finding.endswith("operations alike, every request at its time")
    assert "first difference: operation" in verdicts[1].finding


def test_held_out_errors_are_judged_by_the_larger_and_unknown_ones_not_at_all() -> None:
    def quality(kind: str, size: float | None, length: float | None) -> dict[str, Any]:
        return {"kind": kind, "heldout_batch_size_mape": size, "heldout_length_mape": length}

    details = {
        "qualities": [
            quality("prefill", 0.02, 0.09),
            quality("decode", 0.11, 0.01),
            quality("mixed", None, 0.05),
            quality("batch", None, None),
        ]
    }

    gates = model_gates(details)

    assert [(gate.subject, gate.verdict) for gate in gates] == [
        ("prefill", "pass"),
        ("decode", "fail"),
        ("mixed", "pass"),
        ("batch", "not judged"),
    ]
    assert "11.0% (batch size held out), 1.0% (length held out)" in gates[1].finding


def test_a_held_out_error_that_the_noise_of_the_points_explains_is_inconclusive() -> None:
    quality = {"kind": "decode", "heldout_batch_size_mape": 0.13, "heldout_length_mape": 0.12}

    quiet, noisy = (
        model_gates({"qualities": [quality], "noise": {"decode": noise}})[0] for noise in (0.05, 0.12)
    )

    assert (quiet.verdict, noisy.verdict) == ("fail", "inconclusive")  # 12 % and 5 % beside the noise
    assert "the measured points themselves are unsure by 12.0%" in noisy.finding


def test_a_model_that_was_not_fitted_has_no_held_out_errors_to_judge() -> None:
    (gate,) = model_gates({})

    assert gate.verdict == "not judged"


def test_requests_lost_on_one_side_fail_end_to_end(tmp_path: Path) -> None:
    runs = repeats(tmp_path / "runs")
    case = validate([runs], latency_file(tmp_path)).cases[0]
    without = case.comparison.__class__(case.comparison.errors, 59, (3,), ())

    gate = end_to_end_gate(case.name, without, case.load)

    assert gate.verdict == "fail"
    assert "1 requests finished on one side only" in gate.finding


def test_a_run_directory_predicts_without_gates(tmp_path: Path) -> None:
    runs = repeats(tmp_path / "runs")
    simulate(settled("static_fifo"), requests(*LIGHT), latency=engine()).save(tmp_path / "simulated")

    validation = validate([runs], tmp_path / "simulated")

    assert validation.gates == []
    assert validation.is_logic_sound
    assert validation.prediction == "simulated: unnamed (synthetic)"
    assert validation.errors["error"].abs().max() < 0.05


def test_a_run_directory_cannot_predict_runs_of_several_policies_or_of_another_one(tmp_path: Path) -> None:
    runs = repeats(tmp_path / "runs", num=1)
    simulate(settled("multi_bin"), requests(*LIGHT), latency=engine()).save(tmp_path / "simulated")

    with pytest.raises(ConfigError, match="a run of multi_bin; the measured ones are of static_fifo"):
        validate([runs], tmp_path / "simulated")
    repeats(runs, "vllm_v1", num=1)
    with pytest.raises(ConfigError, match="one run cannot predict static_fifo, vllm_v1"):
        validate([runs], tmp_path / "simulated")


def test_a_model_of_batches_cannot_tell_of_iterations(tmp_path: Path) -> None:
    runs = repeats(tmp_path / "runs", "vllm_v1", num=1)
    save_latency(
        AffineBatchLatency(0.1, 0.01, 0.5, "output", info=LatencyInfo("classic")), tmp_path / "latency.json"
    )

    with pytest.raises(ConfigError, match="classic tells the time of whole batches only"):
        validate([runs], tmp_path / "latency.json")


def test_all_that_is_said_fits_json(tmp_path: Path) -> None:
    runs = repeats(tmp_path / "runs", num=1)

    content = validate([runs], latency_file(tmp_path)).to_json()

    again = json.loads(json.dumps(content, allow_nan=False))
    assert again["cases"][0]["errors"][0]["spread"] is None
    assert [gate["gate"] for gate in again["gates"]] == ["logic", "model", "end to end"]


def test_measured_data_do_not_say_what_code_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil.py").write_text("open('was_run', 'w')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (runs,) = repeats(tmp_path / "runs", num=1).iterdir()
    manifest = json.loads((runs / "manifest.json").read_text(encoding="utf-8"))
    manifest["config"]["policy"]["preset"] = "evil:preset"
    (runs / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    with pytest.raises(ConfigError, match=r"'evil:preset' is none of batchsim's own"):
        read_recording(runs)

    assert not (tmp_path / "was_run").exists()
