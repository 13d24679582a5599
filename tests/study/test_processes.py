import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SWEEP = """
name = "long"
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


def wait_for(claim: object, patience_s: float = 60.0, pause_s: float = 0.05) -> bool:
    end_s = time.monotonic() + patience_s
    while not claim() and time.monotonic() < end_s:  # type: ignore[operator]
        time.sleep(pause_s)
    return bool(claim())  # type: ignore[operator]


def children_of(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")  # of each of its threads
    return [int(child) for one in lists for child in one.read_text().split()]


def has_loaded(pid: int, library: str) -> bool:
    try:
        return library in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def heed_ctrl_c() -> None:
    """What a shell starts in the background is deaf to it, and so would be all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes have no list of their children")
@pytest.mark.parametrize("instant", ["started", "importing", "running"])
def test_workers_leave_ctrl_c_to_their_parent_at_any_time(tmp_path: Path, instant: str) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP, encoding="utf-8")
    (tmp_path / "sleeper.py").write_text(SLEEPER, encoding="utf-8")
    command = [sys.executable, "-m", "batchsim", "sweep", "sweep.toml", "-o", "out", "--jobs", "2"]
    parent = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=heed_ctrl_c
    )

    def are_running() -> bool:
        return len(list(tmp_path.glob("*.pid"))) == 2

    has_come = {
        "started": lambda: len(children_of(parent.pid)) == 2,
        "importing": lambda: sum(has_loaded(one, "numpy") for one in children_of(parent.pid)) == 2,
        "running": are_running,
    }[instant]
    try:
        came = wait_for(lambda: has_come() or parent.poll() is not None, pause_s=0.005)
        workers = children_of(parent.pid)
        for worker in workers:  # as a terminal does, but before the parent can end them
            os.kill(worker, signal.SIGINT)
        run = wait_for(are_running)
        same = {int(file.stem) for file in tmp_path.glob("*.pid")} == set(workers)
        os.killpg(parent.pid, signal.SIGINT)
        stderr = parent.communicate(timeout=300)[1].decode()
        ended = wait_for(lambda: not any(map(is_alive, workers)), patience_s=20.0)
    finally:
        parent.kill()
        parent.wait()

    assert came
    assert run
    assert same
    assert "long: interrupted; 0 of 4 runs are saved" in stderr
    assert "Traceback" not in stderr
    assert ended


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
