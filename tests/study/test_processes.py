import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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

RUN = """
policy.preset = "sleeper:sleeper"
cluster.gpu = "h100"
cluster.model = "llama-3.1-8b"
slo.e2e_ms = 1000
workload.num_requests = 5
workload.generator.kind = "all_at_once"
workload.generator.prompt = {kind = "fixed", tokens = 1}
workload.generator.output = {kind = "fixed", tokens = 1}
"""

#: All that do many runs in processes.
COMMANDS = {
    "sweep": ["sweep", "sweep.toml", "-o", "out", "--jobs", "2"],
    "recommend": ["recommend", "run.toml", "--vary", "num_gpus=1,2", "-o", "out", "--jobs", "2"],
}


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


@pytest.fixture
def started(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A command whose two processes never come to an end, in a group of its own; and its name."""
    for name, content in (("sweep.toml", SWEEP), ("run.toml", RUN), ("sleeper.py", SLEEPER)):
        (tmp_path / name).write_text(content, encoding="utf-8")
    parent = subprocess.Popen(
        [sys.executable, "-m", "batchsim", *COMMANDS[request.param]],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    )
    yield request.param, parent
    parent.kill()
    parent.wait()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes have no list of their children")
@pytest.mark.parametrize(
    ("started", "instant"),
    [("sweep", "started"), ("sweep", "importing"), ("sweep", "running"), ("recommend", "running")],
    indirect=["started"],
)
def test_workers_leave_ctrl_c_to_their_parent_at_any_time(
    started: tuple[str, subprocess.Popen[str]], tmp_path: Path, instant: str
) -> None:
    command, parent = started

    def are_running() -> bool:
        return len(list(tmp_path.glob("*.pid"))) == 2

    has_come = {
        "started": lambda: len(children_of(parent.pid)) == 2,
        "importing": lambda: sum(has_loaded(one, "numpy") for one in children_of(parent.pid)) == 2,
        "running": are_running,
    }[instant]
    came = wait_for(lambda: has_come() or parent.poll() is not None, pause_s=0.005)
    workers = children_of(parent.pid)
    for worker in workers:  # as a terminal does, but before the parent can end them
        os.kill(worker, signal.SIGINT)
    run = wait_for(are_running)
    same = {int(file.stem) for file in tmp_path.glob("*.pid")} == set(workers)
    os.killpg(parent.pid, signal.SIGINT)
    stderr = parent.communicate(timeout=300)[1]
    ended = wait_for(lambda: not any(map(is_alive, workers)), patience_s=20.0)

    assert came
    assert run
    assert same
    assert parent.returncode == 1
    assert {"sweep": "long: interrupted; 0 of 4 runs are saved", "recommend": "Aborted!"}[command] in stderr
    assert "Traceback" not in stderr
    assert ended
    assert not list(tmp_path.rglob(".*.partial"))


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("started", "how"),
    [("sweep", "SIGTERM"), ("sweep", "SIGKILL"), ("recommend", "SIGKILL")],
    indirect=["started"],
)
def test_no_worker_outlives_its_parent(
    started: tuple[str, subprocess.Popen[str]], tmp_path: Path, how: str
) -> None:
    _, parent = started
    both = wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    workers = [int(file.stem) for file in tmp_path.glob("*.pid")]

    parent.send_signal(getattr(signal, how))
    code_of_parent = parent.wait(60)
    ended = wait_for(lambda: not any(map(is_alive, workers)), patience_s=20.0)

    assert both
    assert code_of_parent != 0
    assert ended


@pytest.mark.parametrize("started", ["recommend"], indirect=True)
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_race_ends_with_a_process_of_it(started: tuple[str, subprocess.Popen[str]], tmp_path: Path) -> None:
    """What it was at may have been the cheapest; of a sweep its run alone fails."""
    _, parent = started
    both = wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    workers = [int(file.stem) for file in tmp_path.glob("*.pid")]

    os.kill(workers[0], signal.SIGKILL)
    stderr = parent.communicate(timeout=300)[1]

    assert both
    assert parent.returncode == 1
    assert "a replication was not simulated to its end: its process was killed by SIGKILL" in stderr
    assert "Traceback" not in stderr
    assert not any(map(is_alive, workers))
    assert not (tmp_path / "out").exists()
