"""``docs/fidelity-hardware.md``: published closed loops of today's models, without a calibration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from batchsim.config.hardware import HOST_TIMES
from batchsim.files import write_whole
from batchsim.latency.profiles.aiconfigurator import package_version
from batchsim.validation.error_ranges import (
    Range,
    error_range,
    errors_of,
    held_out_ranges,
    share_within,
    told_ranges,
    with_e2e,
    write_ranges,
)
from batchsim.validation.operators import closed_loops
from batchsim.validation.operators.peers import PEER_COLUMNS, beside, peer_rows
from batchsim.validation.points import Points
from batchsim.validation.tables import Statistics, error_rows, markdown, skipped_rows

STATISTICS: Statistics = {
    "rows": lambda error: f"{len(error):,}",
    "signed median": lambda error: f"{error.median():+.1%}",
    "median error": lambda error: f"{error.abs().median():.1%}",
    "mean error": lambda error: f"{error.abs().mean():.1%}",
    "within 25 %": lambda error: f"{(error.abs() <= 0.25).mean():.0%}",
}
#: Metrics that the table of ranges tells of.
_METRICS = ("TPOT", "TTFT", "E2E")
#: Names of what is the same model, or of its size and layers, in other precisions.
_SAME = {
    "DeepSeek-R1": "DeepSeek-V3",
    "DeepSeek-V3.1": "DeepSeek-V3",
}
_HOST_COLUMNS = (
    "engine",
    "server: ms a request",
    "us a token of its prompt",
    "ms a pass",
    "ms a pass with prompts",
    "us a token of them",
)
#: Clients of the groups of a table.
_CLIENTS = (0, 4, 16, 64, 256, closed_loops.MOST_CLIENTS)


def write_operators_report(points: Points, output_dir: str | Path, peers: pd.DataFrame | None = None) -> Path:
    """Write ``fidelity-hardware.md``; return its path.

    Parameters
    ----------
    peers
        What AIConfigurator predicts of the same table: `peers.read_peers`.
    """
    page = Path(output_dir) / "fidelity-hardware.md"
    write_whole(page, "\n\n".join(_page(points, peers)) + "\n")
    return page


def write_operators_ranges(points: Points, path: str | Path) -> None:
    """Put what runs on these operators could be off by, by engine, into the file that runs read it from."""
    table = with_e2e(points.table)
    ranges = {
        str(name): told_ranges(of_engine, of_engine["model"].map(family))
        for name, of_engine in table.groupby("framework")
    }
    write_ranges(path, "aiconfigurator", "batchsim fidelity-hardware", ranges)


def family(model: str) -> str:
    """A model's name without its publisher and precision: what is left out together."""
    name = model.rpartition("/")[2].removesuffix("-NVFP4").removesuffix("-FP8")
    return _SAME.get(name, name)


def _page(points: Points, peers: pd.DataFrame | None) -> Iterator[str]:
    table = points.table
    table = table.assign(clients=pd.cut(table["batch_size"], _CLIENTS).map(_bounds))
    yield _HEAD.format(
        release=package_version(),
        num_rows=points.num_rows,
        num_predicted=len(table) // 2,
        rounds=closed_loops.ROUNDS,
    )
    yield _error_table(table, ["framework", "metric"])
    both = None if peers is None else beside(table, peers)
    if both is not None:
        yield "Beside AIConfigurator's own predictions, of the rows that both predict:"
        yield _peer_table(both, ["framework", "metric"])
    yield "## What an answer could be off by\n\n" + _RANGES
    yield _range_table(with_e2e(table))
    yield "## Host times\n\n" + _HOST
    yield markdown(_HOST_COLUMNS, _host_rows(), 1)
    yield "## By model, GPU and precision\n\n" + _BY_MODEL
    by_model = ["framework", "model", "gpu", "precision"]
    for metric in ("TPOT", "TTFT"):
        yield f"{metric}:"
        yield _held_out_table(table[table["metric"] == metric], by_model)
    if both is not None:
        yield "Of the rows that both predict, beside AIConfigurator's own predictions:"
        yield _peer_table(both, ["metric", *by_model])
    yield "## By clients"
    yield _error_table(table, ["framework", "metric", "clients"])
    yield "## Left out\n\nRows without a prediction:"
    yield markdown(["why", "rows", "which"], skipped_rows(points.skipped), 3)
    yield _TRUST


def _range_table(points: pd.DataFrame) -> str:
    rows = []
    for name, of_engine in points.groupby("framework"):
        for metric in _METRICS:
            error = errors_of(of_engine[of_engine["metric"] == metric])
            models = of_engine.loc[error.index, "model"].map(family)
            bounds, without = error_range(error, models), held_out_ranges(error, models)
            held_out = [without[model] for model in models]
            shares = (share_within(error, bounds), share_within(error, held_out))
            within = [f"{share:.0%}" for share in shares]
            rows.append([str(name), metric, f"{len(error):,}", f"{len(without)}", _ends(bounds), *within])
    columns = ["framework", "metric", "rows", "models", "range", "within it", "within, model left out"]
    return markdown(columns, rows, 2)


def _held_out_table(points: pd.DataFrame, by: Sequence[str]) -> str:
    """Errors of each group, and the range that the other models of its engine tell of it."""
    error = errors_of(points)
    without: dict[tuple[str, str], Range] = {}
    for name, of_engine in error.groupby(points["framework"]):
        models = points.loc[of_engine.index, "model"].map(family)
        of_others = held_out_ranges(of_engine, models)
        without |= {(str(name), model): bounds for model, bounds in of_others.items()}
    rows = error_rows(points, by, STATISTICS)
    for row, (_, group) in zip(rows, error.groupby([points[one] for one in by]), strict=True):
        bounds = without[row[0], family(row[1])]
        row += [_ends(bounds), f"{share_within(group, bounds):.0%}"]
    return markdown([*by, *STATISTICS, "range by others", "within it"], rows, len(by))


def _ends(bounds: Range) -> str:
    return f"{bounds.low:+.0%} to {bounds.high:+.0%}"


def _peer_table(both: pd.DataFrame, by: Sequence[str]) -> str:
    return markdown([*by, *PEER_COLUMNS], peer_rows(both, by), len(by))


def _host_rows() -> list[list[str]]:
    return [
        [name, *(f"{value * unit:g}" for value, unit in zip(host, (1e3, 1e6, 1e3, 1e3, 1e6), strict=True))]
        for name, host in HOST_TIMES.items()
        if name != "none"
    ]


def _bounds(group: pd.Interval) -> str:
    return f"{group.left + 1} to {group.right}"


def _error_table(points: pd.DataFrame, by: Sequence[str]) -> str:
    return markdown([*by, *STATISTICS], error_rows(points, by, STATISTICS), len(by))


_HEAD = """\
# Today's GPUs and models, without a calibration

Generated by `make fidelity-hardware`; do not edit. Published serving points of vLLM, SGLang and
TensorRT-LLM (InferenceMAX and NVIDIA's own, as aiconfigurator collects them): so many clients, each sends
its next request when it has its answer. Predicted from the operator times of aiconfigurator-core
{release} alone ([aiconfigurator.md](aiconfigurator.md)), by the preset `vllm_v1` whatever the engine,
{rounds} requests a client, 8,192 tokens and up to 1,024 sequences a pass, KV memory as the package
estimates it at 90 % of the GPUs' memory. **Nothing is fitted to a row or a model**; host times by engine
are those of the rows with 1 to 4 clients, below. {num_predicted:,} of {num_rows:,} rows have a
prediction. Errors are predicted / measured - 1; mean and median error are those of their size.
AIConfigurator's own predictions of the same rows: [fidelity-peers.md](fidelity-peers.md)."""

_RANGES = """\
A run on these operators says by how much its times could be off (`expected_error` in its summary): the 10th
to the 90th of 100 errors of its engine, where each model counts the same, however many rows it has. Nothing
is fitted to a model, but the models of tomorrow are others: so each is left out in turn, in all its
precisions, and its rows are held against the range of the rest. E2E is TTFT and all later tokens at TPOT. In
a closed loop the throughput is off by as much the other way; below capacity it is the rate that comes in."""

_BY_MODEL = """\
*Range by others*: what would be said without this model, and the share of its rows within."""

_HOST = """\
What the operators leave out, `engine.frontend` in a run file, told from InferenceMAX's rows with 1 to 4
clients, where hardly anything waits. A time for each pass is the median by which TPOT is longer than the
operators say. A constant and a time for each token of a prompt give the medians by which TTFT is longer,
of prompts of 1,024 and of 8,192 tokens (for TensorRT-LLM, where the second would be below 0, the median
of both). Few clients do not tell whether that is of the pass, whose kernels are launched one by one where
it is too large for a CUDA graph, or of the server before it. For vLLM it is put into the pass: at the
server, the rows with more clients, which were not used for it, came out 39 % too short in TTFT and 11 %
in TPOT for 65 to 256 clients, and in the pass they do not. In TensorRT-LLM's passes it would make TPOT 20
% too long for 65 to 256 clients, and SGLang's is larger still: these two stay at the server. (Runs of
vLLM inside one process, without a server, have 1 ms at the least between arrival and queue, and beyond
that a wait for the pass that runs, which is simulated.)"""

_TRUST = """\
## How to read it

- **Lengths.** InferenceMAX draws them between 80 and 100 % of what a row says, and measures all requests,
  the first rush included. Of NVIDIA's own points no more than the mean is said; lengths of 90 to 100 %
  are taken, and the first two rounds left out.
- **Versions.** The operators are those of one version of each engine, whatever version a row ran.
- **Data-parallel attention.** Rows of one node that give as many data-parallel groups as tensor-parallel
  GPUs, and their product as GPUs that share experts, are taken to name the same GPUs twice, and so as
  groups of one GPU, with the clients of one group. That is a reading of the table: as groups of so many
  GPUs, the median error of vLLM's TPOT would be 119 % for them, not 14 %.
- **Blocks of fp8** under vLLM take the times of products that are scaled by tensor, see
  [aiconfigurator.md](aiconfigurator.md).
- **Many clients.** TTFT comes out too short for more than 256 clients, and under SGLang and TensorRT-LLM
  for more than 16: requests do not wait for each other at the server here, and the scheduling is that of
  vLLM.
- **Memory** that is full decides the TTFT, by a factor of ten and more either way."""
