"""Let things go wrong in sweeps, resume them, and hold the results to those of one that was let alone.

Each trial starts a sweep in processes of its own and kills a worker, the parent or all of them at a random
moment, or lets files end at a size (``disk``), a file system of its own be full (``full``, where one can be
mounted without being root), a policy fail, or a file be cut afterwards; half of the trials under
``--overwrite`` over results that are there. Then it runs the same command again to its end. It prints how
the first one ended, how many datasets came out identical to the last byte, what was left of half-written
runs, and how many processes were still there a few seconds after their parent had died.

``python tests/faults/kill_sweeps.py --trials 40`` takes some minutes; the default is for a look in between.
With ``--backend dask`` the sweeps that go wrong, and no other, run on a Dask cluster of two workers.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

SWEEP = """
name = "small"
figure = "scheduler_comparison"
save = "tables"
[base]
workload.num_requests = 300
workload.training_fraction = 0.1
workload.generator.kind = "poisson"
workload.generator.rate_per_s = 1.0
workload.generator.prompt = {kind = "fixed", tokens = 10}
workload.generator.output = {kind = "uniform", low = 1, high = 90}
[grid]
policy.preset = ["static_fifo", "multi_bin", "flaky:flaky"]
workload.request_rate_per_gpu = [0.5, 1.0, 2.0, 3.0]
"""
NUM_RUNS = 12

#: Fails, and takes its process with it, for as long as the files say so.
FLAKY = """
import os
from dataclasses import dataclass
from pathlib import Path
from batchsim.policies.batching import Greedy
from batchsim.policies.presets import Preset
from batchsim.policies.queueing import Fifo
from batchsim.policies.sizing import FixedSize

@dataclass
class Flaky(FixedSize):
    def prepare(self, setting):
        if Path(__file__).with_name("die").exists():
            os._exit(3)
        if Path(__file__).with_name("fail").exists():
            raise ValueError("not today")

flaky = Preset(Fifo(), Flaky(), Greedy())
"""

#: What goes wrong, one after the other.
FAULTS = ("worker", "parent", "group", "disk", "full", "fail", "die", "cut")
#: Sizes of files up to which they can be written: that of some, not of others.
DISK_BYTES = (1_000, 12_000)
#: What is left on a file system: enough for some runs, or for none.
FULL_KIB = (4, 400)

#: Runs a command that writes to a file system of its own, with so much left on it, and keeps what came of it.
ON_FULL = """
left=$1 disk=$2 kept=$3; shift 3
mkdir -p "$disk" "$kept"
mount -t tmpfs -o size=16m none "$disk" && cp -a "$kept/." "$disk" || exit 99
head -c "$(($(df -k --output=avail "$disk" | tail -n 1) - left))K" /dev/zero > "$disk/ballast"
"$@"; status=$?
rm -rf "$kept" && cp -a "$disk" "$kept" && rm "$kept/ballast"
exit $status
"""
OWN_MOUNTS = ("unshare", "--map-root-user", "--mount")

#: A worker ends as soon as it notices that its parent is gone.
PATIENCE_S = 5.0


def main() -> int:
    """Run the trials; exit 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=len(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", choices=FAULTS, help="this one in every trial")
    parser.add_argument("--backend", choices=["processes", "dask"], default="processes")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "sweep.toml").write_text(SWEEP, encoding="utf-8")
        (home / "flaky.py").write_text(FLAKY, encoding="utf-8")
        sweep(home, "alone").wait()
        expected = dataset(home / "alone")
        identical = leftovers = survivors = num_skipped = 0
        for number in range(given.trials):
            fault = given.fault or FAULTS[number % len(FAULTS)]
            if fault == "full" and not can_mount(home):
                print("full: skipped, for nothing can be mounted here without being root (unshare)")
                num_skipped += 1
                continue
            options = ["--overwrite"] if number // len(FAULTS) % 2 else []
            status, alive = trial(home, f"trial{number}", fault, [*options, "--backend", given.backend], rng)
            survivors += alive
            left = len(list((home / f"trial{number}").rglob("*.partial")))
            leftovers += left
            is_same = dataset(home / f"trial{number}") == expected
            identical += is_same
            print(
                f"{fault} {' '.join(options)}: status {status}, identical {is_same}, leftovers {left}, "
                f"survivors {alive}",
                flush=True,
            )
    num_trials = given.trials - num_skipped
    print(f"identical {identical} of {num_trials}, leftovers {leftovers}, survivors {survivors}")
    return 0 if (identical, leftovers, survivors) == (num_trials, 0, 0) else 1


def can_mount(folder: Path) -> bool:
    """Whether a file system can be mounted over a folder, where this process alone sees it."""
    command = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", str(folder)]
    with suppress(FileNotFoundError):
        return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    return False


def trial(home: Path, output: str, fault: str, options: list[str], rng: random.Random) -> tuple[int, int]:
    """Let a sweep go wrong and resume it.

    Returns
    -------
    tuple[int, int]
        How the first one ended, and how many of its processes outlived it.
    """
    if "--overwrite" in options or fault == "cut":
        sweep(home, output).wait()
    if fault == "cut":
        cut(rng.choice(sorted(file for file in (home / output).rglob("*") if file.is_file())), rng)
    if fault in ("fail", "die"):
        (home / fault).touch()
    start_s = time.time()
    parent = sweep(
        home,
        output,
        *options,
        most_bytes=rng.randint(*DISK_BYTES) if fault == "disk" else None,
        kib_left=rng.randint(*FULL_KIB) if fault == "full" else None,
    )
    is_killed = fault in ("worker", "parent", "group")
    wait(parent, home / output, start_s, rng.randrange(1, NUM_RUNS) if is_killed else math.inf)
    time.sleep(rng.uniform(0, 0.1) if is_killed else 0)
    workers = children(parent.pid)
    if parent.poll() is None:
        if fault == "worker" and workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
        elif fault == "parent":
            parent.send_signal(rng.choice((signal.SIGTERM, signal.SIGKILL)))
        elif fault == "group":
            os.killpg(parent.pid, signal.SIGKILL)
    status = parent.wait()
    (home / "fail").unlink(missing_ok=True)
    (home / "die").unlink(missing_ok=True)
    end_s = time.monotonic() + PATIENCE_S
    while (alive := [pid for pid in workers if is_alive(pid)]) and time.monotonic() < end_s:
        time.sleep(0.05)
    sweep(home, output).wait()
    return status, len(alive)


def cut(file: Path, rng: random.Random) -> None:
    """Leave a part of a file, or nothing."""
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])


def sweep(
    home: Path, output: str, *options: str, most_bytes: int | None = None, kib_left: int | None = None
) -> subprocess.Popen[bytes]:
    """Start the sweep in a process group of its own, with no file larger than so much, or so much left."""
    before, place = [], output
    if kib_left is not None:
        place = f"{output}.disk"
        before = [*OWN_MOUNTS, "sh", "-c", ON_FULL, "sh", str(kib_left), place, output]
    command = [sys.executable, "-m", "batchsim", "sweep", "sweep.toml", "-o", place, "--jobs", "2", *options]
    limit = None if most_bytes is None else partial(limit_files, most_bytes)
    own = {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH")))),
        "PYTHONDONTWRITEBYTECODE": "1",  # of a module that is larger, Python would keep a part
    }
    return subprocess.Popen(
        [*before, *command],
        cwd=home,
        env=os.environ | own,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=limit,
    )


def limit_files(most_bytes: int) -> None:
    """Let writing beyond a size fail, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))


def wait(process: subprocess.Popen[bytes], output: Path, start_s: float, num_runs: float) -> None:
    """Wait until a sweep has written so many runs since its start, or ends."""
    while process.poll() is None and num_written(output, start_s) < num_runs:
        time.sleep(0.01)


def num_written(output: Path, start_s: float) -> int:
    """Count the runs that were saved since then."""
    num = 0
    for file in (output / "small" / "runs").glob("[!.]*/manifest.json"):
        with suppress(FileNotFoundError):  # it is just being replaced
            num += file.stat().st_mtime > start_s
    return num


def children(pid: int) -> list[int]:
    """Processes that a process has started and that run."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(line) for line in listed.stdout.split()]


def is_alive(pid: int) -> bool:
    """Whether a process runs, and is not merely waiting to be reaped."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return state.stdout.strip() not in ("", "Z", "Zs", "Zl")


def dataset(output: Path) -> dict[str, str]:
    """What a sweep leaves, by file, but for the manifests, which say when each run was made."""
    files = [file for file in sorted((output / "small").rglob("*")) if file.is_file()]
    return {
        str(file.relative_to(output)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.name != "manifest.json"
    }


if __name__ == "__main__":
    sys.exit(main())
