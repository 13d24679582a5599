"""Hold batchsim's engine against vLLM's own scheduler, and write down what came of it."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from batchsim.files.writing import write_whole
from batchsim.workload import read_trace
from tests.conformance import ours, report, v0
from tests.conformance.compare import Log, effect, first_difference, request_difference
from tests.conformance.environment import is_v0
from tests.conformance.report import MODES, Outcome
from tests.conformance.shrink import shrink
from tests.conformance.vllm_process import VllmProcess
from tests.conformance.workloads import WORKLOADS, Case, from_rows, make, small_world, with_engine
from tests.shared_data import shared_path

VERSIONS = ("0.6.6.post1", "0.19.1", "0.32.0")

AZURE = "azure_llm_2023_conv.csv"
AZURE_REQUESTS = 400
SPEEDS = {"azure": 1.0, "azure-4x": 4.0}
SMALL_WORLDS = "small-worlds"

#: A few workloads that meet most of the rules, for a quick look.
QUICK = ("pressure", "prefixes-pressure", "priority", "threshold-pressure", SMALL_WORLDS)

#: Versions with a fault that we do not follow, and what it does; without it, nothing may differ.
KEPT = {
    "0.19.1": (
        "where one gives way by priority whose last token is under way, vLLM passes over one that runs (its "
        "issue 49097, closed since); with that mended there, identical"
    )
}


class Bench:
    """vLLM's process beside our engine."""

    def __init__(self, vllm: VllmProcess) -> None:
        self.vllm = vllm

    def outcome(self, case: Case, mode: str) -> Outcome:
        """Run a case in both."""
        case = self._as_run(case, mode)
        self.vllm.start(case)  # meanwhile, it is our turn
        our_log, error = self._ours(case)
        their_log = self.vllm.finish()
        outcome = Outcome(
            self.vllm.version,
            case["name"],
            mode,
            len(case["requests"]),
            len(their_log["rows"]),
            sum(len(preempted) for _, _, preempted, _ in their_log["rows"]),
            error or self._difference(case, their_log, our_log),
        )
        if error or not outcome.difference or not self._is_kept(case, our_log):
            return outcome
        told = effect(their_log, our_log, [one["arrival_s"] for one in case["requests"]])
        return replace(outcome, difference=f"{outcome.difference} ({told})", known=KEPT[self.vllm.version])

    def shrunk(self, case: Case, mode: str) -> Case:
        """Make a case that differs small."""
        case = self._as_run(case, mode)
        return shrink(case, lambda smaller: self.outcome(smaller, mode).is_unknown)

    def _as_run(self, case: Case, mode: str) -> Case:
        case = with_engine(case, **MODES[mode])
        return v0.as_v0(case) if is_v0(self.vllm.version) else case

    def _ours(self, case: Case) -> tuple[Log, str | None]:
        try:
            return ours.run(case, self.vllm.version), None
        except Exception as error:  # what must not happen is a difference like any other
            return {}, f"ours ends with {type(error).__name__}: {error}"

    def _difference(self, case: Case, their_log: Log, our_log: Log) -> str | None:
        difference = first_difference(their_log, our_log)
        if difference or not their_log["finish_s"]:
            return difference  # or there is no end
        difference = request_difference(their_log, ours.run(case, self.vllm.version, is_exact=False))
        return f"in spans: {difference}" if difference else None

    def _is_kept(self, case: Case, our_log: Log) -> bool:
        """Whether nothing differs any more without the fault of this version."""
        if self.vllm.version not in KEPT:
            return False
        return self._difference(case, self.vllm.run({**case, "is_mended": True}), our_log) is None


def main() -> int:
    """Run what is asked for; 1 if anything differs that is not known to."""
    options = _options()
    outcomes: list[Outcome] = []
    for version in options.version or VERSIONS:
        names = options.workload or (QUICK if options.quick else (*WORKLOADS, *SPEEDS, SMALL_WORLDS))
        modes, driver = options.mode or MODES, "vllm_driver"
        if is_v0(version):
            names = [name for name in names if name in v0.WORKLOADS]
            modes, driver = [mode for mode in modes if mode == v0.MODE], "vllm_v0_driver"
        with VllmProcess(options.environments / version / "bin" / "python", driver) as vllm:
            bench = Bench(vllm)
            for name in names:
                for outcome in _outcomes(bench, name, modes, options):
                    print(_line(outcome), file=sys.stderr, flush=True)
                    outcomes.append(outcome)
    if options.output:
        write_whole(options.output, report.page(outcomes))
    unknown = [one for one in outcomes if one.is_unknown]
    print(f"{len(outcomes) - len(unknown)} of {len(outcomes)} runs are as they should be", file=sys.stderr)
    return 1 if unknown else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--environments", type=Path, default=Path(".venv-conformance"), metavar="DIR")
    parser.add_argument("--version", action="append", metavar="VERSION", help="of vLLM; repeatable")
    parser.add_argument("--workload", action="append", metavar="NAME", help="repeatable; all if left out")
    parser.add_argument("--mode", action="append", choices=MODES, help="repeatable; all if left out")
    parser.add_argument("--quick", action="store_true", help="a few workloads")
    parser.add_argument("--seed", type=int, default=0, help="of the workloads")
    parser.add_argument("--small-worlds", type=int, default=300, metavar="NUM")
    parser.add_argument("--shrink", action="store_true", help="print what differs as a small case")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write a page")
    return parser.parse_args()


def _outcomes(
    bench: Bench, name: str, modes: Iterable[str], options: argparse.Namespace
) -> Iterator[Outcome]:
    """Run a workload in these modes."""
    try:
        cases = _cases(name, options)
    except pytest.skip.Exception as skipped:
        yield Outcome(bench.vllm.version, name, "", reason=str(skipped))
        return
    for mode in modes:
        outcomes = []
        for case in cases:
            outcomes.append(bench.outcome(case, mode))
            if outcomes[-1].is_unknown and options.shrink:
                _show(bench.shrunk(case, mode), bench, mode)
                break
        yield _together(name, cases, outcomes)


def _cases(name: str, options: argparse.Namespace) -> list[Case]:
    if name in SPEEDS:
        return [_azure(name)]
    if name == SMALL_WORLDS:
        first = options.seed * options.small_worlds
        return [small_world(seed) for seed in range(first, first + options.small_worlds)]
    return [make(name, options.seed)]


def _azure(name: str) -> Case:
    trace = read_trace(shared_path(f"traces/{AZURE}")).take(slice(AZURE_REQUESTS))
    rows = zip(
        trace.arrival_s.tolist(), trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True
    )
    return from_rows(
        name, list(rows), SPEEDS[name], num_blocks=3000, max_num_seqs=128, max_num_batched_tokens=2048
    )


def _together(name: str, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> Outcome:
    """Many small cases are one row."""
    if len(cases) == 1:
        return outcomes[0]
    differing = sorted((one for one in outcomes if one.difference), key=lambda one: not one.is_unknown)
    difference = known = None
    if differing:
        first = differing[0]
        difference = f"{len(differing)} of {len(outcomes)} differ; {first.workload}: {first.difference}"
        known = first.known
    return replace(
        outcomes[0],
        workload=name,
        num_requests=sum(one.num_requests for one in outcomes),
        num_iterations=sum(one.num_iterations for one in outcomes),
        num_preemptions=sum(one.num_preemptions for one in outcomes),
        difference=difference,
        known=known,
    )


def _show(case: Case, bench: Bench, mode: str) -> None:
    """Print a small case: what the engine is, then a line for each request."""
    print(f"{case['name']}, {mode}, vLLM {bench.vllm.version}: {bench.outcome(case, mode).difference}")
    print(json.dumps(case["engine"]), json.dumps(case["latency"]))
    for number, one in enumerate(case["requests"]):
        print(f"  {number}: {json.dumps(one)}")


def _line(outcome: Outcome) -> str:
    said = outcome.reason or outcome.difference or "identical"
    where = f"{outcome.version} {outcome.workload} ({outcome.mode})"
    return f"{where}, {outcome.num_iterations:,} iterations: {said}"


if __name__ == "__main__":
    sys.exit(main())
