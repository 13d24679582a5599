"""What a fresh interpreter loads: modules are counted, not seconds."""

import json
import subprocess
import sys
from typing import Any

HEAVY = ("scipy", "pandas", "matplotlib", "pyarrow", "simpy", "rich")

#: Runs commands as a shell would and tells after each what of `HEAVY` is loaded.
DOOR = """
import json, os, sys
import batchsim
from batchsim.cli import main

heavy = sys.argv[1].split(",")
loaded = {"import": [name for name in heavy if name in sys.modules]}

def call(line, **env):
    os.environ.update(env)
    sys.argv = ["batchsim", *line.split()]
    try:
        main(prog_name="batchsim")
    except SystemExit as end:
        status = end.code
    loaded[f"{line or env} ({status})"] = [name for name in heavy if name in sys.modules]

for line in ("--help", "--version", "policies", "polices", *(f"{name} --help" for name in main.commands)):
    call(line)
call("", _BATCHSIM_COMPLETE="bash_complete", COMP_WORDS="batchsim run --", COMP_CWORD="2")
print(json.dumps(loaded))
"""

SIMULATION = """
import json, sys
import batchsim

summary = batchsim.simulate({"workload": {"num_requests": 10}}).summary
print(json.dumps([summary["num_finished"], [name for name in sys.argv[1].split(",") if name in sys.modules]]))
"""


def run(code: str, *arguments: str) -> tuple[Any, str, str]:
    """What the code printed last, what before, and what on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    *before, last = done.stdout.splitlines()
    return json.loads(last), "\n".join(before), done.stderr


def test_help_policies_completion_and_mistakes_load_nothing_heavy() -> None:
    loaded, stdout, stderr = run(DOOR, ",".join(HEAVY))

    assert not {call: names for call, names in loaded.items() if names}
    assert {"import", "--help (0)", "policies (0)", "polices (2)", "fit --help (0)"} <= loaded.keys()
    assert "did you mean policies" in stderr
    assert "auto-iteration" in stdout  # a choice that `fit --help` offers
    assert "plain,--num-requests" in stdout  # what completion offers


def test_a_default_simulation_does_without_the_slow_parts_of_scipy() -> None:
    (num_finished, loaded), _, _ = run(SIMULATION, "scipy.stats,scipy.optimize,matplotlib,rich,joblib")

    assert num_finished == 10
    assert loaded == []
