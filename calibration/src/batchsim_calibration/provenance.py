"""Where a calibration comes from: the content of the JSON file beside its table.

Nothing in it tells of the machine's paths or its name.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from batchsim.errors import ConfigError
from batchsim_calibration.measuring.outcome import Outcome
from batchsim_calibration.serving.models import LoadedModel

#: What every provenance says, null where the machine does not tell.
REQUIRED = (
    "kind",
    "model",
    "weights",
    "dtype",
    "attention",
    "execution",
    "device",
    "gpu",
    "memory_bytes",
    "driver",
    "cuda",
    "torch",
    "transformers",
    "python",
    "os",
    "threads",
    "command",
    "date",
    "git_revision",
    "configuration",
    "state_before",
    "state_after",
    "drift",
    "rows_by_status",
    "taken_s",
)
#: How passes run: the engine has no other way yet.
EXECUTION = "static KV cache, no CUDA graphs"
_STATE = {
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "power_limit_w": "power.limit",
    "power_draw_w": "power.draw",
    "temperature_c": "temperature.gpu",
}
#: The name of today, and that of drivers before 535.
_THROTTLE = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
#: Bits of the throttle reasons, as the NVIDIA management library numbers them.
_THROTTLE_REASONS = (
    "idle",
    "application clocks",
    "software power cap",
    "hardware slowdown",
    "sync boost",
    "software thermal slowdown",
    "hardware thermal slowdown",
    "hardware power brake",
    "display clocks",
)


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware and software, as far as they bear on speed; the same for the whole of a run."""
    is_cuda = device.type == "cuda"
    return {
        "device": device.type,
        "gpu": device_name(device),
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory
        if is_cuda
        else psutil.virtual_memory().total,
        "driver": _ask_driver(device, ["driver_version"])[0] if is_cuda else None,
        "cuda": torch.version.cuda if is_cuda else None,
        **{name: version_of(name) for name in ("torch", "transformers", "batchsim-calibration")},
        "python": platform.python_version(),
        "os": f"{platform.system()} {_numbers_of(platform.release())}",
        "threads": torch.get_num_threads(),
    }


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the CPU where that is the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def device_state(device: torch.device) -> dict[str, Any]:
    """Clocks, power, temperature and throttling at this moment; null where the machine does not tell."""
    if device.type != "cuda":
        frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
        return {"cpu_clock_mhz": frequency.current if frequency else None}
    values = _ask_driver(device, [*_STATE.values()])
    state: dict[str, Any] = {name: _number(value) for name, value in zip(_STATE, values, strict=True)}
    # Asked for one by one: one word that a driver does not know fails a whole query.
    masks = (_ask_driver(device, [name])[0] for name in _THROTTLE)
    return {**state, "throttle_reasons": throttle_reasons(next(filter(None, masks), None))}


def throttle_reasons(mask: str | None) -> list[str] | None:
    """Names of the bits of a mask such as ``0x0000000000000004``; None if there is no mask."""
    try:
        bits = int(mask or "", 16)
    except ValueError:
        return None
    return [name for bit, name in enumerate(_THROTTLE_REASONS) if bits >> bit & 1]


def provenance(
    identity: Mapping[str, Any],
    device: torch.device,
    outcome: Outcome,
    *,
    configuration: Mapping[str, Any],
    state_before: Mapping[str, Any],
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Put together what is known of a run that has just ended.

    ``identity`` holds what `model_identity`, or another engine's, and `machine` tell.
    """
    return checked(
        {
            "kind": "measured",
            **identity,
            "command": shown_command(sys.argv if command is None else command),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "git_revision": git_revision(),
            "configuration": dict(configuration),
            "state_before": dict(state_before),
            "state_after": device_state(device),
            **{name: None if value != value else value for name, value in asdict(outcome).items()},
            "warnings_of_measurement": outcome.warnings(),
        }
    )


def model_identity(loaded: LoadedModel) -> dict[str, str]:
    """What of a model, and of the engine that runs it, bears on its speed."""
    return {
        "model": loaded.name,
        "weights": loaded.weights,
        "dtype": loaded.dtype,
        "attention": loaded.attention,
        "execution": EXECUTION,
    }


def checked(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return a provenance as it is; raise `ConfigError` if it leaves something out."""
    missing = [name for name in REQUIRED if name not in details]
    if missing:
        raise ConfigError(f"provenance lacks {', '.join(missing)}; null is for what a machine does not tell")
    return dict(details)


def shown_command(argv: Sequence[str]) -> str:
    """Return a command line as another user would type it: of a path of this machine its last name."""
    words = ["batchsim-calibrate"]
    for word in argv[1:]:
        option, equals, value = word.rpartition("=")
        words.append(f"{option}{equals}{Path(value).name if _is_path(value) else value}")
    return shlex.join(words)


def version_of(package: str) -> str | None:
    """Version of an installed package; None where it runs from its sources."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """Return the project's revision, ``-dirty`` if changed since; None if not run from its repository."""
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *words], capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", here.name
        )  # an installed copy may lie in someone else's repository
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def slug(name: str) -> str:
    """Short form of a device's name: ``NVIDIA GeForce RTX 4080 Laptop GPU`` is ``rtx4080-laptop``."""
    plain = re.sub(r"\((r|tm|c)\)|@.*", " ", name.lower())
    plain = re.sub(r"\b(nvidia|geforce|intel|amd|gpu|cpu|processor|core|\d+-core)\b", " ", plain)
    plain = re.sub(r"\b(rtx|gtx|rx) (?=\d)", r"\1", " ".join(plain.split()))
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-") or "unknown"


def nvidia_smi(queries: Sequence[str], *options: str) -> list[str | None]:
    """Answers of the driver's own tool, which comes with it on Linux and Windows; None where it has none."""
    nothing: list[str | None] = [None] * len(queries)
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return nothing
    try:
        done = subprocess.run(
            [tool, f"--query-gpu={','.join(queries)}", "--format=csv,noheader,nounits", *options],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return nothing
    answers = [answer.strip() for answer in done.stdout.partition("\n")[0].split(",")]
    return [*answers] if len(answers) == len(queries) else nothing


def _is_path(text: str) -> bool:
    """Whether it tells of this machine's folders; a path inside the working folder does not."""
    path = Path(text)
    return path.is_absolute() or text.startswith("~") or ".." in path.parts


def _ask_driver(device: torch.device, queries: Sequence[str]) -> list[str | None]:
    # By UUID: the tool numbers devices by bus, and does not look at CUDA_VISIBLE_DEVICES.
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return nvidia_smi(queries, *([f"--id=GPU-{uuid}"] if uuid else []))


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:  # "[N/A]"
        return None


def _cpu_name() -> str:
    with_names = Path("/proc/cpuinfo")
    if with_names.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", with_names.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or os.environ.get("PROCESSOR_IDENTIFIER") or platform.machine()


def _numbers_of(release: str) -> str:
    """Return a kernel's version without what those who built it added: that names places."""
    found = re.match(r"\d+(\.\d+)*", release)
    return found[0] if found else ""
