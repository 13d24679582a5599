"""What came of holding our engine against vLLM's, as a page to read."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

#: Ways to run a workload, with what they set.
MODES: Mapping[str, Mapping[str, bool]] = {
    "plain": {"async_scheduling": False, "scheduler_reserve_full_isl": True},
    "plain, first chunk": {"async_scheduling": False, "scheduler_reserve_full_isl": False},
    "asynchronous": {"async_scheduling": True, "scheduler_reserve_full_isl": True},
    "asynchronous, first chunk": {"async_scheduling": True, "scheduler_reserve_full_isl": False},
}


@dataclass(frozen=True)
class Outcome:
    """A workload run in one mode by one version and by us.

    `difference` is the first one in words, None if there is none; `known` why that is, if it is known;
    `reason` why a workload was left out.
    """

    version: str
    workload: str
    mode: str
    num_requests: int = 0
    num_iterations: int = 0
    num_preemptions: int = 0
    difference: str | None = None
    reason: str | None = None
    known: str | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether there is a difference that nobody has explained."""
        return self.difference is not None and self.known is None


HEADER = """\
# Conformance

*Does the engine take the decisions that vLLM takes?*

vLLM's own scheduler, with its KV cache manager, driven by a simulated clock and without a model, beside
`vllm_v1`: the same requests, token by token, and the same seconds for an iteration (2^-7 s, and mostly
2^-20 s for each token in it, so that sums are exact). *Identical* means equal to the last bit in all of
these: the start of every iteration, the tokens that it computes of each request, who is preempted for it,
the KV blocks that are free while it runs, and every request's first token and end; and the times of all
requests once more, where equal iterations are one event. vLLM has one KV block more than we, for it keeps
one as its null block.

A workload is run in four ways: with and without asynchronous scheduling, and admitting a request if its
whole prompt fits the free KV blocks (vLLM's default from 0.19.0 on), or if its first chunk does. Numbers
are sums over the four.

V0, vLLM's engine before V1, is taken from 0.6.6.post1 and stands beside `vllm_v0`: its scheduler, its block
manager and its sequences are vLLM's own files, what else these import is put in place, and it has no block
more than we. It runs in one way, without asynchronous scheduling. Left out are the prefix caching,
priorities, chunked prefill and swapping that it has, with the workloads that are about these; the token
budget and the KV blocks are raised where it would refuse a request.

Written by `make conformance`; the workloads are made from seeds in `tests/conformance/workloads.py`.
"""


def page(outcomes: Sequence[Outcome]) -> str:
    """Write the page."""
    parts = [HEADER]
    for version, group in groupby(outcomes, key=lambda one: one.version):
        of_version = list(group)
        total = sum(one.num_iterations for one in of_version)
        parts.append(f"## vLLM {version}\n\n{_table(of_version)}\n\n{total:,} iterations in all.\n")
    return "\n".join(parts)


def _table(outcomes: Iterable[Outcome]) -> str:
    rows = [
        "| workload | requests | iterations | preemptions | result |",
        "|---|---:|---:|---:|---|",
    ]
    for name, group in groupby(outcomes, key=lambda one: one.workload):
        runs = list(group)
        numbers = (
            max(one.num_requests for one in runs),
            sum(one.num_iterations for one in runs),
            sum(one.num_preemptions for one in runs),
        )
        cells = [name, *(f"{number:,}" for number in numbers), _result(runs)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _result(runs: Sequence[Outcome]) -> str:
    if runs[0].reason:
        return f"not run: {runs[0].reason}"
    differing = [one for one in runs if one.difference]
    if not differing:
        return "identical"
    told = [f"{one.mode}: {one.difference}" for one in differing]
    known = dict.fromkeys(f"Known: {one.known}" for one in differing if one.known)
    return ". ".join(
        [f"identical in {len(runs) - len(told)} of {len(runs)} ways; {told[0]}", *told[1:], *known]
    )
