from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import pytest
import torch

from batchsim.errors import ConfigError
from batchsim_calibration.measuring.outcome import Outcome
from batchsim_calibration.provenance import (
    REQUIRED,
    checked,
    device_state,
    machine,
    model_identity,
    nvidia_smi,
    provenance,
    shown_command,
    slug,
    throttle_reasons,
)
from batchsim_calibration.serving.models import load_model

OUTCOME = Outcome({"ok": 3}, 3, 0, 0, 0, 0, 0, 0.1, float("nan"), 0, 1.5)


def a_provenance(command: list[str]) -> dict[str, object]:
    loaded = load_model("tiny", random_weights=True, dtype="fp32", attention="sdpa", device="cpu")
    return provenance(
        {**model_identity(loaded), **machine(loaded.device)},
        loaded.device,
        OUTCOME,
        configuration={"profile": "smoke"},
        state_before=device_state(loaded.device),
        command=command,
    )


def test_a_provenance_says_all_that_is_required_and_is_json() -> None:
    details = a_provenance(["batchsim-calibrate", "measure"])

    assert json.loads(json.dumps(details, allow_nan=False)) == details
    assert set(REQUIRED) <= set(details)
    assert (details["kind"], details["model"], details["weights"]) == ("measured", "tiny", "random")
    assert details["gpu"]  # names the fit
    assert details["drift"] is None  # unknown


@pytest.mark.parametrize("name", REQUIRED)
def test_a_provenance_that_leaves_something_out_is_refused(name: str) -> None:
    details = {one: None for one in REQUIRED if one != name}

    with pytest.raises(ConfigError, match=f"provenance lacks {name};"):
        checked(details)


def test_a_provenance_tells_nothing_of_the_machines_folders(tmp_path: Path) -> None:
    command = [
        str(tmp_path / "bin" / "batchsim-calibrate"),
        "measure",
        "-o",
        str(tmp_path),
        f"--name={tmp_path}",
    ]

    text = json.dumps(a_provenance(command))

    assert str(tmp_path.parent) not in text
    assert str(Path.cwd()) not in text
    assert str(Path.home()) not in text


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("--model Qwen/Qwen2.5-1.5B --trials=3", "--model Qwen/Qwen2.5-1.5B --trials=3"),
        ("-o results/calibration", "-o results/calibration"),
        ("-o /home/somebody/tables", "-o tables"),
        ("-o ../../somebody/tables", "-o tables"),
        ("--model=~/models/mine", "--model=mine"),
    ],
)
def test_a_command_is_shown_as_another_user_would_type_it(typed: str, shown: str) -> None:
    command = ["/opt/calibration/__main__.py", "measure", *typed.split()]

    assert shown_command(command) == f"batchsim-calibrate measure {shown}"


def test_a_system_is_named_without_what_its_builders_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "6.8.0-45-somebodys-cloud")
    monkeypatch.setattr(platform, "system", lambda: "Linux")

    assert machine(torch.device("cpu"))["os"] == "Linux 6.8.0"


class _Properties:
    uuid = "some-uuid"


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for the tool is a shell script")
@pytest.mark.parametrize("word", ["clocks_event_reasons", "clocks_throttle_reasons"])
def test_drivers_of_either_age_tell_why_a_gpu_throttles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *{word}.active*id=GPU-some-uuid*) echo 0x4;; *_reasons*) exit 2;; '
        '*) echo "1980, 2619, 700.00, 650.12, 71";; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: _Properties())

    state = device_state(torch.device("cuda"))

    assert state["throttle_reasons"] == ["software power cap"]
    assert (state["sm_clock_mhz"], state["power_limit_w"], state["temperature_c"]) == (1980, 700, 71)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA GeForce RTX 4080 Laptop GPU", "rtx4080-laptop"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
        ("Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz", "xeon-platinum-8370c"),
        ("AMD EPYC 7763 64-Core Processor", "epyc-7763"),
        ("CPU", "unknown"),
    ],
)
def test_device_names_become_short(name: str, short: str) -> None:
    assert slug(name) == short


def test_throttle_reasons_are_named() -> None:
    assert throttle_reasons("0x0000000000000000") == []
    assert throttle_reasons("0x0000000000000024") == ["software power cap", "software thermal slowdown"]
    assert throttle_reasons("[N/A]") is None
    assert throttle_reasons(None) is None


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for the tool is a shell script")
def test_the_drivers_tool_is_asked_and_may_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\ncase "$1" in *unknown*) exit 2;; esac\necho "1980, [N/A]"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    assert nvidia_smi(["clocks.sm", "power.limit"]) == ["1980", "[N/A]"]
    assert nvidia_smi(["unknown", "power.limit"]) == [None, None]
    assert nvidia_smi(["clocks.sm"]) == [None]


def test_without_a_driver_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert nvidia_smi(["driver_version", "clocks.sm"]) == [None, None]


def test_a_cpu_has_a_state_too() -> None:
    assert set(device_state(torch.device("cpu"))) == {"cpu_clock_mhz"}
