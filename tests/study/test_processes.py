import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SWEEP = """
name = "long"
figure = "scaling"
[base]
policy.preset = "sleeper:sleeper"
workload.num_requests = 5
workload.generator.kind = "all_at_once"
workload.generator.prompt = {kind = "fixed", tokens = 1}
workload.generator.output = {kind = "fixed", tokens = 1}
[grid]
seed = [1, 2, 3, 4]
"""

SLEEPER = """
import os, time
from dataclasses import dataclass
from pathlib import Path
from batchsim.policies.batching import Greedy
from batchsim.policies.presets import Preset
from batchsim.policies.queueing import Fifo
from batchsim.policies.sizing import FixedSize

@dataclass
class Sleeper(FixedSize):
    def prepare(self, setting):
        Path(f"{os.getpid()}.pid").touch()
        while True:
            time.sleep(0.01)

sleeper = Preset(Fifo(), Sleeper(), Greedy())
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def wait_for(claim: object, patience_s: float = 60.0) -> bool:
    end_s = time.monotonic() + patience_s
    while not claim() and time.monotonic() < end_s:  # type: ignore[operator]
        time.sleep(0.05)
    return bool(claim())  # type: ignore[operator]


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_no_worker_outlives_its_parent(tmp_path: Path, how: str) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP, encoding="utf-8")
    (tmp_path / "sleeper.py").write_text(SLEEPER, encoding="utf-8")
    code = "from batchsim.study.sweep import run_sweep; run_sweep('sweep.toml', 'out', jobs=2)"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        started = wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
        workers = [int(file.stem) for file in tmp_path.glob("*.pid")]

        parent.send_signal(getattr(signal, how))
        code_of_parent = parent.wait(60)
        ended = wait_for(lambda: not any(map(is_alive, workers)), patience_s=20.0)
    finally:
        parent.kill()
        parent.wait()

    assert started
    assert code_of_parent != 0
    assert ended
