"""The recipes of docs/cluster.md on this machine: only what would hand out machines is made up."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from batchsim.study.sweep import run_sweep
from tests.docs.pages import ROOT, blocks

SWEEP = """
name = "small"
save = "tables"
[base]
workload.num_requests = 30
workload.generator.kind = "poisson"
workload.generator.rate_per_s = 1.0
workload.generator.prompt = {kind = "fixed", tokens = 10}
workload.generator.output = {kind = "uniform", low = 1, high = 90}
[grid]
seed = [0, 1, 2]
"""

#: Starts a job, or all of an array, at once and on this machine; each leaves a file with how it ended.
SBATCH = """#!/bin/sh
name="$(mktemp "$(dirname "$0")/job.XXXXXX")"
cp "$1" "$name"
last="$(sed -n 's/^#SBATCH.*--array=1-\\([0-9]*\\).*/\\1/p' "$1")"
for SLURM_ARRAY_TASK_ID in $(seq 1 "${last:-1}"); do
    export SLURM_ARRAY_TASK_ID
    setsid sh -c 'bash "$0"; echo $? > "$0.$SLURM_ARRAY_TASK_ID.ended"' "$name" > "$name.log" 2>&1 &
    echo $! >> "$(dirname "$0")/groups"
done
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/cancelled"
for job in "$@"; do kill -- "-$job"; done
"""

needs = {
    name: pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed")
    for name in ("distributed", "dask_jobqueue", "yaml")
}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="setsid")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the programs of the page, at the head of the PATH; what they leave running is ended."""
    folder = tmp_path / "bin"
    folder.mkdir()
    own = {name: f'#!/bin/sh\nexec "{sys.executable}" -m {name} "$@"\n' for name in ("batchsim", "dask")}
    for name, text in {"sbatch": SBATCH, "scancel": SCANCEL, **own}.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    yield folder
    groups = (folder / "groups").read_text().split() if (folder / "groups").exists() else []
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(int(group), signal.SIGKILL)


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, bytes]:
    """What the sweep gives without any cluster; its file is `small.toml`."""
    (tmp_path / "small.toml").write_text(SWEEP, encoding="utf-8")
    run_sweep(tmp_path / "small.toml", tmp_path / "alone")
    return contents(tmp_path / "alone")


def contents(output: Path) -> dict[str, bytes]:
    """What a sweep leaves, but for when each run was made."""
    files = [file for file in sorted(output.rglob("*")) if file.is_file() and file.name != "manifest.json"]
    return {str(file.relative_to(output)): file.read_bytes() for file in files}


def recipe(language: str, about: str, **smaller: str) -> str:
    """The block of the page that speaks of something, for this machine: other words for some of its own."""
    page = (ROOT / "docs" / "cluster.md").read_text("utf-8")
    (text,) = (one.text for one in blocks(page, "") if one.language == language and about in one.text)
    for old, new in smaller.items():
        assert old in text
        text = text.replace(old, new)
    return text


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for_files(folder: Path, pattern: str, num: int) -> list[Path]:
    end_s = time.monotonic() + 120
    while len(found := sorted(folder.glob(pattern))) < num and time.monotonic() < end_s:
        time.sleep(0.05)
    return found


def test_jobs_of_an_array_share_a_sweep(programs: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    smaller = {
        "1-50": "1-2", "/50": "/2", "--jobs 4": "--jobs 1", "experiments/scaling.toml --full": "small.toml",
    }  # fmt: skip
    (tmp_path / "job.sh").write_text(recipe("sh", "#SBATCH --array", **smaller), encoding="utf-8")

    subprocess.run(["sbatch", "job.sh"], check=True, timeout=60)
    ended = wait_for_files(programs, "*.ended", 2)

    assert [file.read_text() for file in ended] == ["0\n", "0\n"]
    assert contents(tmp_path / "results") == expected


@needs["distributed"]
@needs["dask_jobqueue"]
def test_a_batch_system_starts_the_workers(
    programs: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    port = str(free_port())
    smaller = {"cores=32, processes=32": "cores=1, processes=1", "128GB": "1GB", "8786": port, "=20)": "=1)"}
    code = recipe("python", "SLURMCluster", **smaller)
    smaller = {
        "experiments/scaling.toml --full": "small.toml", "/shared/": "", "login1:8786": f"127.0.0.1:{port}",
    }  # fmt: skip
    command = recipe("sh", "login1:8786", **smaller)

    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as cluster:
        try:
            swept = subprocess.run(["bash", "-c", command], check=False, timeout=120)
            cluster.communicate(b"\n", timeout=60)
        finally:
            cluster.kill()

    assert (swept.returncode, cluster.returncode) == (0, 0)
    assert contents(tmp_path / "results") == expected
    assert (programs / "cancelled").read_text().split() == (programs / "groups").read_text().split()
    assert list(programs.glob("job.??????"))  # it went through `sbatch`


@needs["distributed"]
@needs["yaml"]
def test_the_containers_of_kubernetes_make_a_cluster(
    programs: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    import yaml

    port = str(free_port())
    service, *deployments = yaml.safe_load_all(recipe("yaml", "kind: Deployment"))
    host, (served,) = service["metadata"]["name"], service["spec"]["ports"]
    templates = [one["spec"]["template"] for one in deployments]
    (scheduler,), (worker,) = (one["spec"]["containers"] for one in templates)
    script = recipe("sh", "kubectl apply", **{"/sweeps/experiment.toml": "small.toml", "8786": port})
    command = next(line for line in script.splitlines() if line.startswith("batchsim"))
    processes = []
    for container in (scheduler, worker):
        words = [word.replace(host, "127.0.0.1").replace("8786", port) for word in container["command"]]
        processes.append(subprocess.Popen(words, cwd=programs, start_new_session=True))
    try:
        swept = subprocess.run(command.split(), check=False, timeout=120)
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    assert service["spec"]["selector"] == templates[0]["metadata"]["labels"]
    assert all(
        one["spec"]["selector"]["matchLabels"] == one["spec"]["template"]["metadata"]["labels"]
        for one in deployments
    )
    assert f"tcp://{host}:{served['port']}" in worker["command"]
    assert str(served["port"]) in scheduler["command"]
    assert swept.returncode == 0
    assert contents(tmp_path / "results") == expected
