"""What a sweep costs besides its runs: processor time per run, a call that finds all finished, memory.

Some of the runs are simulated alone in this process first; what the sweep's processes take beyond that is its
own work: planning, handing out, looking whether files changed, saving, collecting. It prints milliseconds per
run, seconds of the call that finds all finished, and how much the parent grew from a tenth of the runs on.
Then how much sooner two processes end a few equal runs than one, by the clock on the wall, with the time in
which two start and without: on a quiet machine, that is::

    python tests/bench/sweep_overhead.py [--num-runs N] [--jobs N] [--backend dask]
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

from batchsim.study.run import simulate
from batchsim.study.sweep import SweepProgress, plan, read_sweep_file, run_sweep

SWEEP = """
name = "tiny"
[base]
workload.num_requests = 5
workload.generator.kind = "poisson"
workload.generator.rate_per_s = 1.0
workload.generator.prompt = {{kind = "fixed", tokens = 10}}
workload.generator.output = {{kind = "fixed", tokens = 20}}
[grid]
seed = {seeds}
"""
NUM_ALONE = 300

#: Equal runs, of about half a second each, for one process and for two in turn: how often.
EQUAL = """
name = "equal"
[base]
workload.num_requests = {num_requests}
workload.generator.kind = "poisson"
workload.generator.rate_per_s = 0.2
workload.generator.prompt = {{kind = "fixed", tokens = 100}}
workload.generator.output = {{kind = "fixed", tokens = 50}}
[grid]
seed = {seeds}
"""
NUM_EQUAL, NUM_REQUESTS, NUM_TURNS = 8, 18_000, 3


def cpu_s() -> float:
    """Processor time of this process and of those that it has started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def resident_mib() -> float:
    """What this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def print_speedup(folder: Path) -> None:
    """Print how many times as long as two processes one takes for equal runs, each turn."""

    def took_s(num_requests: int, num_runs: int, jobs: int) -> float:
        path = folder / "equal.toml"
        path.write_text(
            EQUAL.format(num_requests=num_requests, seeds=list(range(num_runs))), encoding="utf-8"
        )
        start_s = time.perf_counter()
        run_sweep(path, folder, jobs=jobs, overwrite=True)
        return time.perf_counter() - start_s

    turns = [
        (took_s(NUM_REQUESTS, NUM_EQUAL, 1), took_s(NUM_REQUESTS, NUM_EQUAL, 2), took_s(1, 2, 2))
        for _ in range(NUM_TURNS)
    ]
    whole = ", ".join(f"{one / two:.2f}" for one, two, _ in turns)
    without = ", ".join(f"{one / (two - start):.2f}" for one, two, start in turns)
    print(f"{NUM_EQUAL} equal runs, one process: {whole} times as long as two; {without} without their start")


def main() -> int:
    """Measure; exit 1 if the overhead is above 20 ms a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-runs", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--backend", choices=["processes", "dask"], default="processes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.toml"
        path.write_text(SWEEP.format(seeds=list(range(given.num_runs))), encoding="utf-8")
        configs = [run.config for run in plan(read_sweep_file(path))[:NUM_ALONE]]
        simulate(configs[0])  # which imports and reads
        start_s = cpu_s()
        for config in configs:
            simulate(config)
        alone_s = (cpu_s() - start_s) / len(configs)

        held: list[float] = []
        at_mib = [given.num_runs // 10, given.num_runs]

        def watch(state: SweepProgress) -> None:
            if state.num_ended in at_mib:
                held.append(resident_mib())

        start_s, wall_s = cpu_s(), time.perf_counter()
        run_sweep(path, folder, jobs=given.jobs, backend=given.backend, on_progress=watch)
        sweep_s, wall_s = (cpu_s() - start_s) / given.num_runs, time.perf_counter() - wall_s
        again_s, again_wall_s = cpu_s(), time.perf_counter()
        run_sweep(path, folder, jobs=given.jobs, backend=given.backend)
        again_s, again_wall_s = cpu_s() - again_s, time.perf_counter() - again_wall_s
    overhead_s = sweep_s - alone_s
    print(f"{given.num_runs:,} runs, {given.backend}, {given.jobs} at once: {wall_s:.0f} s")
    print(
        f"processor time of a run: {1000 * sweep_s:.1f} ms, alone {1000 * alone_s:.1f} ms, "
        f"overhead {1000 * overhead_s:.1f} ms"
    )
    print(f"all finished: {again_s:.1f} s of processor time, {again_wall_s:.1f} s")
    print(f"parent: {held[0]:.0f} MiB after a tenth of the runs, {held[-1]:.0f} MiB after all")
    with tempfile.TemporaryDirectory() as folder:
        print_speedup(Path(folder))
    return 0 if overhead_s < 0.02 else 1


if __name__ == "__main__":
    sys.exit(main())
