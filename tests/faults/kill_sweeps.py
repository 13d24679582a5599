"""Kill sweeps at random moments, resume them, and hold the results to those of one that was let alone.

Each trial starts a sweep in processes of its own, kills a worker, the parent or all of them after a random
time, half of the trials under ``--overwrite`` over results that are there, and runs the same command again
to its end. It prints how many datasets came out identical, what was left of half-written runs, and how many
processes were still there a few seconds after their parent had died.

``python tests/faults/kill_sweeps.py --trials 40`` takes some minutes; the default is for a look in between.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

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
policy.preset = ["static_fifo", "multi_bin"]
workload.request_rate_per_gpu = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
"""

#: A worker ends as soon as it notices that its parent is gone.
PATIENCE_S = 5.0


def main() -> int:
    """Run the trials; exit 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "sweep.toml").write_text(SWEEP, encoding="utf-8")
        start_s = time.monotonic()
        sweep(home, "alone").wait()
        alone_s = time.monotonic() - start_s
        expected = dataset(home / "alone")
        identical = leftovers = survivors = 0
        for number in range(given.trials):
            target = ("worker", "parent", "group")[number % 3]
            options = ["--overwrite"] if number // 3 % 2 else []
            outcome = trial(home, f"trial{number}", target, rng.uniform(0.2, 1.0) * alone_s, options)
            survivors += outcome
            left = len(list((home / f"trial{number}").rglob("*.partial")))
            leftovers += left
            is_same = dataset(home / f"trial{number}") == expected
            identical += is_same
            print(
                f"{target}{' --overwrite' if options else ''}: identical {is_same}, leftovers {left}, "
                f"survivors {outcome}",
                flush=True,
            )
    print(f"identical {identical} of {given.trials}, leftovers {leftovers}, survivors {survivors}")
    return 0 if (identical, leftovers, survivors) == (given.trials, 0, 0) else 1


def trial(home: Path, output: str, target: str, after_s: float, options: list[str]) -> int:
    """Kill a sweep and resume it; return how many of its processes outlived their parent."""
    if options:
        sweep(home, output).wait()
    parent = sweep(home, output, *options)
    wait_for_end(parent, after_s)
    workers = children(parent.pid)
    if parent.poll() is None:
        if target == "worker" and workers:
            os.kill(workers[0], signal.SIGKILL)
        elif target == "parent":
            parent.send_signal(random.choice((signal.SIGTERM, signal.SIGKILL)))
        elif target == "group":
            os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()
    end_s = time.monotonic() + PATIENCE_S
    while (alive := [pid for pid in workers if is_alive(pid)]) and time.monotonic() < end_s:
        time.sleep(0.05)
    sweep(home, output).wait()
    return len(alive)


def sweep(home: Path, output: str, *options: str) -> subprocess.Popen[bytes]:
    """Start the sweep in a process group of its own."""
    command = [sys.executable, "-m", "batchsim", "sweep", "sweep.toml", "-o", output, "--jobs", "2", *options]
    return subprocess.Popen(command, cwd=home, stderr=subprocess.DEVNULL, start_new_session=True)


def wait_for_end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Wait so long, or until it ends."""
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        return


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


def dataset(output: Path) -> tuple[str, dict[str, str]]:
    """The table of a sweep, and what the tables of its runs hold."""
    runs = sorted((output / "small" / "runs").glob("*/requests.parquet"))
    hashes = {file.parent.name: str(pd.util.hash_pandas_object(pd.read_parquet(file)).sum()) for file in runs}
    return (output / "small" / "results.csv").read_text(encoding="utf-8"), hashes


if __name__ == "__main__":
    sys.exit(main())
