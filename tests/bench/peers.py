"""Speed of the iteration-level world beside other simulators of LLM serving, on the same trace and one core.

    python tests/bench/peers.py [--peers-python .venv-peers/bin/python] [--compiled build/compiled]

Every run is a process of its own, pinned to one core; CPU time is the process's, system time included. Peers
are NVIDIA Dynamo's offline replay (Rust) and sched-sim (Python). All follow vLLM V1: running requests first,
prompts chunked into what the token budget leaves, blocks of 16 tokens, no prefix reuse. One law gives the
length of every iteration: `PREFILL_S` if it has prompt tokens, plus `DECODE_S` if it has decodes. Nothing is
asserted: machines differ. This file runs in the peers' environment too, so its own imports are the standard
library's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

PREFILL_S, DECODE_S = 0.015, 0.010
BLOCK_SIZE, NUM_KV_BLOCKS, MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS = 16, 16384, 256, 2048
#: sched-sim is slow, and as slow with fewer requests.
SCHED_SIM_REQUESTS = 5000


class Load(NamedTuple):
    """So many requests per second and replica, and what that makes of the replica."""

    name: str
    rate_per_s: float
    num_replicas: int = 1


#: A replica's capacity is 80 requests/s, with `MAX_NUM_SEQS` running; one that is idle at times runs a few.
LOADS = (
    Load("40 % busy", 0.4),
    Load("60 % busy", 0.7),
    Load("80 % busy", 1.25),
    Load("40 % of capacity", 32.0),
    Load("60 % of capacity", 48.0),
    Load("80 % of capacity", 64.0),
    Load("60 %, 4 replicas", 48.0, 4),
)


class Row(NamedTuple):
    """One request as a trace has it; all simulators are given this and nothing more."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


def write_trace(path: Path, num_requests: int, load: Load, seed: int = 0) -> None:
    """Poisson arrivals, lognormal lengths (means 630 and 127 tokens), as Mooncake's JSON lines."""
    rng = random.Random(seed)
    arrival_s, num_blocks = 0.0, 0
    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_requests):
            arrival_s += rng.expovariate(load.rate_per_s * load.num_replicas)
            prompt_tokens = min(4000, max(8, round(rng.lognormvariate(math.log(630) - 0.9**2 / 2, 0.9))))
            output_tokens = min(2000, max(1, round(rng.lognormvariate(math.log(127) - 0.8**2 / 2, 0.8))))
            first, num_blocks = num_blocks, num_blocks + math.ceil(prompt_tokens / BLOCK_SIZE)
            row = {
                "timestamp": arrival_s * 1000,
                "input_length": prompt_tokens,
                "output_length": output_tokens,
                "hash_ids": list(range(first, num_blocks)),  # shared with no other request
            }
            file.write(json.dumps(row) + "\n")


def read_trace(path: Path) -> list[Row]:
    """Rows of a file that `write_trace` wrote."""
    with path.open(encoding="utf-8") as file:
        rows = map(json.loads, file)
        return [Row(row["timestamp"] / 1000, row["input_length"], row["output_length"]) for row in rows]


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """User and system time of one call, all threads, and what it returned."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    result = work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, result


def run_batchsim(trace: Path, num_replicas: int) -> dict[str, Any]:
    """Ours: preparation, simulation and summary; the simulation alone is timed within."""
    import numpy as np

    import batchsim
    from batchsim.latency.base import DecodeLine, IterationShape, LatencyInfo
    from batchsim.study import run

    class FixedPhases:
        info = LatencyInfo("fixed prefill and decode times")
        is_bounded = False

        def covers(self, shape: IterationShape) -> bool:
            return True

        def iteration_s(self, shape: IterationShape) -> float:
            return PREFILL_S * (shape.prefill_tokens > 0) + DECODE_S * (shape.decode_seqs > 0)

        def decode_line(self, decode_seqs: int, context_tokens: int) -> DecodeLine:
            return DecodeLine(DECODE_S, 0.0, math.inf)

    rows = read_trace(trace)
    arrival_s, prompt_tokens, output_tokens = map(np.array, zip(*rows, strict=True))
    workload = batchsim.Workload(np.arange(len(rows)), arrival_s, prompt_tokens, output_tokens)
    config = {
        "policy": {
            "preset": "vllm_v1",
            "batch_size": MAX_NUM_SEQS,
            "batching": {"max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS},
            "routing": {"kind": "RoundRobin"},
        },
        "cluster": {"num_gpus": num_replicas},
        "engine": {"num_kv_blocks": NUM_KV_BLOCKS, "block_size": BLOCK_SIZE, "prefix_caching": False},
        "metrics": {"warmup": 0.0},
    }
    inner, simulation_s = run.run_replicas, []

    def timed(*args: Any, **kwargs: Any) -> Any:
        spent_s, records = cpu_seconds(lambda: inner(*args, **kwargs))
        simulation_s.append(spent_s)
        return records

    run.run_replicas = timed
    spent_s, result = cpu_seconds(lambda: batchsim.simulate(config, workload, latency=FixedPhases()))
    requests = result.requests
    return {
        "version": batchsim.__version__,
        "num_requests": len(rows),
        "output_tokens": int(requests["output_tokens"].sum()),
        "whole_s": spent_s,
        "simulation_s": sum(simulation_s),
        "ttft_s": float((requests["first_token_s"] - requests["arrival_s"]).mean()),
        "e2e_s": float((requests["finish_s"] - requests["arrival_s"]).mean()),
        "busy_fraction": result.summary["busy_fraction"],
    }


def run_dynamo(trace: Path, num_replicas: int) -> dict[str, Any]:
    """Dynamo reads the trace itself; a replay that ends before the first request tells how long it takes."""
    from dynamo._core import run_mocker_trace_replay

    engine = {
        "block_size": BLOCK_SIZE,
        "num_gpu_blocks": NUM_KV_BLOCKS,
        "max_num_seqs": MAX_NUM_SEQS,
        "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": False,
        "timing_model": {"type": "fixed", "prefill_ms": PREFILL_S * 1000, "decode_ms": DECODE_S * 1000},
    }

    def replay(max_sim_time_ms: float | None) -> Any:
        return run_mocker_trace_replay(
            [trace],
            extra_engine_args={"engine": engine},
            num_workers=num_replicas,
            router_mode="round_robin",
            trace_block_size=BLOCK_SIZE,
            capture_planner_details=False,
            max_sim_time_ms=max_sim_time_ms,
        )

    reading_s, _ = cpu_seconds(lambda: replay(1e-6))
    spent_s, result = cpu_seconds(lambda: replay(None))
    summary = result.summary
    return {
        "version": version("ai-dynamo-runtime"),
        "num_requests": summary["completed_requests"],
        "output_tokens": summary["total_output_tokens"],
        "whole_s": spent_s,
        "simulation_s": spent_s - reading_s,
        "ttft_s": summary["mean_ttft_ms"] / 1000,
        "e2e_s": summary["mean_e2e_latency_ms"] / 1000,
    }


def run_sched_sim(trace: Path, num_replicas: int) -> dict[str, Any]:
    """sched-sim has one replica, no limit on running requests here, and n decodes for n tokens."""
    from sched_sim.core.event_engine import Simulator
    from sched_sim.core.request import Request
    from sched_sim.hardware.profile import HardwareProfile
    from sched_sim.schedulers.factory import create_scheduler

    class FixedPhases:
        launch_overhead_s = 0.0

        def compute_prefill_step_time(self, num_prefill_tokens: int) -> float:
            return PREFILL_S

        def compute_decode_step_time(self, batch_size: int, total_context_tokens: int) -> float:
            return DECODE_S

        def compute_mixed_step_time(
            self, prefill_tokens: int, num_decodes: int, context_tokens: int
        ) -> float:
            return PREFILL_S + DECODE_S

    if num_replicas > 1:
        raise ValueError("it simulates one replica only")
    hardware = HardwareProfile()
    kv_bytes = (NUM_KV_BLOCKS + 0.5) * BLOCK_SIZE * hardware.kv_bytes_per_token
    hardware.vram_gb = hardware.model_weights_gb + 0.5 + kv_bytes / 2**30
    scheduler = create_scheduler(
        "chunked", hardware, token_budget=MAX_NUM_BATCHED_TOKENS, max_batch_size=MAX_NUM_SEQS
    )
    assert scheduler.block_manager.total_gpu_blocks == NUM_KV_BLOCKS
    scheduler.latency_model = FixedPhases()
    simulator = Simulator(hardware, scheduler, block_size=BLOCK_SIZE)
    requests = [
        Request(
            request_id=str(number),
            arrived_at=row.arrival_s,
            prompt_tokens=row.prompt_tokens,
            output_tokens=row.output_tokens,
        )
        for number, row in enumerate(read_trace(trace)[:SCHED_SIM_REQUESTS])
    ]
    simulator.submit_workload(requests)
    spent_s, metrics = cpu_seconds(simulator.run)
    return {
        "version": version("sched-sim"),
        "num_requests": metrics.completed_requests,
        "output_tokens": sum(request.decoded_tokens for request in requests),
        "whole_s": spent_s,
        "simulation_s": spent_s,
        "ttft_s": metrics.ttft_ms.mean / 1000,
        "e2e_s": metrics.e2e_ms.mean / 1000,
    }


OURS = {"batchsim": run_batchsim, "compiled batchsim": run_batchsim}
PEERS = {"Dynamo": run_dynamo, "sched-sim": run_sched_sim}
WORKERS = OURS | PEERS


def measure(name: str, options: argparse.Namespace, trace: Path, num_replicas: int) -> dict[str, Any] | str:
    """Run a simulator in a process of its own; what it says, or one line on why there is nothing."""
    python = options.peers_python if name in PEERS else sys.executable
    command = [python, __file__, "--worker", name, str(trace), str(num_replicas)]
    environment = dict(os.environ)
    if name.startswith("compiled"):
        if not (options.compiled / ".built").exists():
            return "make compiled has not been run"
        environment["PYTHONPATH"] = str(options.compiled)
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if ended.returncode:
        return (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
    return json.loads(ended.stdout.splitlines()[-1])


def measure_all(
    options: argparse.Namespace, trace: Path, num_replicas: int
) -> dict[str, dict[str, Any] | str]:
    """The quickest run of each; they take turns, so that other load on the machine meets them all."""
    best: dict[str, dict[str, Any] | str] = {}
    for _ in range(options.repeats):
        for name in WORKERS:
            known = best.get(name)
            if isinstance(known, str):
                continue
            row = measure(name, options, trace, num_replicas)
            if known is None or isinstance(row, str) or row["simulation_s"] < known["simulation_s"]:
                best[name] = row
    return best


def show(load: Load, name: str, row: dict[str, Any]) -> None:
    """Print a line of the table."""
    num_requests, whole_s, simulation_s = row["num_requests"], row["whole_s"], row["simulation_s"]
    print(
        f"{load.name:18} {name + ' ' + row['version']:23} {num_requests / simulation_s:12,.0f}"
        f" {num_requests / whole_s:12,.0f} {row['output_tokens'] / simulation_s:12,.0f}"
        f" {row['ttft_s'] * 1000:9.1f} {row['e2e_s']:9.3f} {load.rate_per_s * row['e2e_s']:8.1f}"
        + (f" {row['busy_fraction']:6.2f}" if "busy_fraction" in row else ""),
        flush=True,
    )


def compare(load: Load, rows: dict[str, dict[str, Any]]) -> list[str]:
    """Our speeds over the fastest peer's, and how far apart the results are; empty if either is missing."""
    peers = {name: rows[name]["num_requests"] / rows[name]["simulation_s"] for name in PEERS if name in rows}
    if not peers:
        return []
    fastest = max(peers, key=peers.__getitem__)
    lines = []
    for name in OURS:
        if (ours := rows.get(name)) is None:
            continue
        # A peer's simulation ends with its summary, so ours counts with it.
        ratio = ours["num_requests"] / ours["whole_s"] / peers[fastest]
        apart = abs(ours["e2e_s"] / rows[fastest]["e2e_s"] - 1)
        lines.append(f"{load.name:18} {name:17} {ratio:5.2f}x {fastest}; mean E2E apart by {apart:.1e}")
    return lines


def main() -> None:
    """Run all and print, or run one worker."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers-python", default=".venv-peers/bin/python")
    parser.add_argument(
        "--compiled", type=Path, default=Path("build/compiled"), help="what make compiled built"
    )
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=2, help="processes per figure; the quickest counts")
    parser.add_argument("--worker", nargs=3, metavar=("NAME", "TRACE", "REPLICAS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        name, trace, num_replicas = options.worker
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        print(json.dumps(WORKERS[name](Path(trace), int(num_replicas))))
        return

    print(
        f"{options.requests:,} requests, Poisson arrivals, lognormal lengths, means 630 and 127 tokens\n"
        f"sched-sim: the first {SCHED_SIM_REQUESTS:,}; no limit on sequences, and n decodes for n tokens"
    )
    print(
        f"iteration: {PREFILL_S * 1000:g} ms if it has prompt tokens + {DECODE_S * 1000:g} ms if any decode; "
        f"{NUM_KV_BLOCKS} blocks of {BLOCK_SIZE}, {MAX_NUM_SEQS} sequences, {MAX_NUM_BATCHED_TOKENS} tokens\n"
    )
    print(
        f"{'load':18} {'simulator':23} {'requests':>12} {'with in/out':>12} {'tokens':>12}"
        f" {'TTFT ms':>9} {'E2E s':>9} {'running':>8} {'busy':>6}\n{'':42} {'per CPU s':>12}"
        f" {'per CPU s':>12} {'per CPU s':>12} {'mean':>9} {'mean':>9} {'mean':>8}"
    )
    ratios = []
    with tempfile.TemporaryDirectory() as directory:
        trace = Path(directory) / "trace.jsonl"
        for load in LOADS:
            write_trace(trace, options.requests, load)
            rows = measure_all(options, trace, load.num_replicas)
            for name, row in rows.items():
                if isinstance(row, str):
                    print(f"{load.name:18} {name}: not measured ({row})", flush=True)
                else:
                    show(load, name, row)
            ratios += compare(load, {name: row for name, row in rows.items() if not isinstance(row, str)})
    if ratios:
        print("\nours with preparation and summary, to the fastest peer without its reading, in requests/s:")
        print("  " + "\n  ".join(ratios))


if __name__ == "__main__":
    main()
