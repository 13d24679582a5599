"""``docs/roofline.md``: how far the roofline, without any calibration, is from published measurements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from batchsim.errors import ConfigError
from batchsim.files import write_whole
from batchsim.latency.store import default_latency
from batchsim.specs import load_gpu, load_model
from batchsim.validation.error_ranges import told_ranges, with_e2e, write_ranges
from batchsim.validation.points import POINT_COLUMNS
from batchsim.validation.roofline import closed_loops, static_batches
from batchsim.validation.roofline.closed_loops import predict_closed_loops
from batchsim.validation.roofline.static_batches import predict_static_batches
from batchsim.validation.tables import Statistics, error_rows, markdown, skipped_rows
from batchsim.workload.tables import read_table

Plot = Callable[[pd.DataFrame, Path], Path]

#: By how much answers differ where clients are not to keep in step.
SPREAD = 0.1
#: Up to so many sequences or clients count as few.
FEW = 16

_HEADINGS = {"gpu": "GPU", "batch_size": "batch size", "num_gpus": "GPUs"}
STATISTICS: Statistics = {
    "points": lambda error: f"{len(error):,}",
    "median error": lambda error: f"{error.median():+.0%}",
    "mean absolute error": lambda error: f"{error.abs().mean():.0%}",
    "within 25 %": lambda error: f"{(error.abs() <= 0.25).mean():.0%}",
    "within 50 %": lambda error: f"{(error.abs() <= 0.5).mean():.0%}",
}


@dataclass(slots=True, eq=False)
class RooflineErrors:
    """Everything that could be predicted, and what was left out.

    Attributes
    ----------
    points
        `POINT_COLUMNS`.
    out_of_step
        The closed loops once more, with answers that differ by `SPREAD`.
    num_rows
        Rows of all files.
    skipped
        Rows left out, by reason and detail.
    """

    points: pd.DataFrame
    out_of_step: pd.DataFrame
    num_rows: int = 0
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def num_skipped(self) -> int:
        """Rows that were left out."""
        return self.skipped.total()


def predict_tables(paths: Sequence[str | Path]) -> RooflineErrors:
    """Predict all rows of some tables; each is known by its columns.

    Raises
    ------
    ConfigError
        If a table is of neither kind.
    TraceError
        If a file cannot be read.
    """
    points: list[pd.DataFrame] = []
    out_of_step: list[pd.DataFrame] = []
    errors = RooflineErrors(_no_points(), _no_points())
    for path in map(Path, paths):
        columns = set(read_table(path).table.columns)
        if columns >= set(static_batches.COLUMNS):
            found = predict_static_batches(path)
        elif columns >= set(closed_loops.COLUMNS):
            found = predict_closed_loops(path)
            out_of_step.append(predict_closed_loops(path, SPREAD).table)
        else:
            raise ConfigError(
                f"{path}: neither a table of static batches ({', '.join(static_batches.COLUMNS)}) nor one of "
                f"closed loops ({', '.join(closed_loops.COLUMNS)})"
            )
        points.append(found.table)
        errors.num_rows += found.num_rows
        errors.skipped += found.skipped
    errors.points = _together(points)
    errors.out_of_step = _together(out_of_step)
    return errors


def write_roofline_report(errors: RooflineErrors, output_dir: str | Path, plot: Plot) -> list[Path]:
    """Write ``roofline.md`` with tables and a picture; return all paths that were written."""
    output_dir = Path(output_dir)
    picture = plot(errors.points, output_dir / "roofline")
    page = output_dir / "roofline.md"
    write_whole(page, "\n\n".join(_page(errors, picture.name)) + "\n")
    return [page, picture, picture.with_suffix(".pdf")]


def write_roofline_ranges(errors: RooflineErrors, path: str | Path) -> None:
    """Put what a run on the default roofline could be off by into the file that runs read it from.

    Of closed loops those whose clients get out of step count, as requests of a trace do.
    """
    made_by, static = "batchsim roofline-error", errors.points["kind"] == "static batch"
    for kind, points in (
        ("closed loops", with_e2e(errors.out_of_step)),
        ("static batches", errors.points[static]),
    ):
        if len(points):
            write_ranges(path, f"roofline, {kind}", made_by, _ranges(points))


def _ranges(points: pd.DataFrame) -> dict[str, Any]:
    """By GPU, each of its models alike; of any other GPU, each of these alike."""
    told = {str(gpu): _told(of_gpu, of_gpu["model"]) for gpu, of_gpu in points.groupby("gpu")}
    return {**told, "any": _told(points, points["gpu"])}


def _told(points: pd.DataFrame, group: pd.Series[str]) -> dict[str, Any]:
    has_experts = any(load_model(name).num_experts for name in points["model"].unique())
    return {**told_ranges(points, group), "has_experts": has_experts}


def _page(errors: RooflineErrors, picture: str) -> Iterator[str]:
    latency = default_latency(load_model("llama-3.1-8b"), load_gpu("h100"))
    yield _HEAD.format(
        compute=latency.compute_efficiency,
        bandwidth=latency.bandwidth_efficiency,
        overhead_ms=latency.overhead_s * 1000,
        num_rows=errors.num_rows,
        num_predicted=errors.num_rows - errors.num_skipped,
        num_points=len(errors.points),
    )
    yield f"![Predicted against measured seconds]({picture})"
    points = errors.points.assign(
        clients=errors.points["batch_size"].gt(FEW).map({False: f"up to {FEW}", True: f"over {FEW}"}),
        layers=errors.points["model"].map(_layers),
    )
    static, loops = (points[points["kind"] == kind] for kind in ("static batch", "closed loop"))
    if len(static):
        yield _STATIC
        yield _error_table(static, ["gpu"])
        yield "By framework, by kind of model, by batch size and by number of GPUs:"
        yield _error_table(static, ["gpu", "framework"])
        yield _error_table(static, ["gpu", "layers"])
        yield _error_table(static, ["gpu", "batch_size"])
        yield _error_table(static, ["gpu", "num_gpus"])
    if len(loops):
        yield _LOOPS.format(rounds=closed_loops.ROUNDS)
        yield _error_table(loops, ["metric", "gpu"])
        yield f"The same, with answers that differ by up to {SPREAD:.0%}, so that clients get out of step:"
        yield _error_table(errors.out_of_step, ["metric", "gpu"])
        yield "By model, by engine, by number of GPUs, and by number of clients (answers of one length):"
        yield _error_table(loops, ["metric", "layers", "model", "precision"])
        yield _error_table(loops, ["metric", "gpu", "framework", "precision"])
        yield _error_table(loops, ["metric", "gpu", "num_gpus"])
        yield _error_table(loops, ["metric", "gpu", "clients"])
    yield f"## Left out\n\n{errors.num_skipped:,} of {errors.num_rows:,} rows have no prediction:"
    yield markdown(["why", "rows", "which"], skipped_rows(errors.skipped), 3)
    yield _TRUST


def _layers(model: str) -> str:
    return "experts" if load_model(model).num_experts else "dense"


def _error_table(points: pd.DataFrame, by: Sequence[str]) -> str:
    columns = [*(_HEADINGS.get(name, name) for name in by), *STATISTICS]
    return markdown(columns, error_rows(points, by, STATISTICS), len(by))


def _together(tables: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True) if tables else _no_points()


def _no_points() -> pd.DataFrame:
    return pd.DataFrame(columns=list(POINT_COLUMNS))


_HEAD = """\
# The roofline against published measurements

Generated by `make roofline-error`; do not edit. This is what to expect **without a calibration**: the
default roofline ({compute:.0%} of peak FLOP/s, {bandwidth:.0%} of peak bandwidth, {overhead_ms:g} ms a
pass), from a model's config.json and a GPU's data sheet alone. Its three factors are assumptions that
stood before these measurements were looked at; **nothing is fitted to them**. Errors are signed: predicted
/ measured - 1, so a negative one means that the GPU was slower than predicted. {num_predicted:,} of
{num_rows:,} published rows have a prediction, which makes {num_points:,} times."""

_STATIC = """\
## Static batches

[LLM-Inference-Bench](https://arxiv.org/abs/2411.00136): the seconds of a whole batch whose prompts and
answers all have one length, 128 to 2048 tokens, on 1 to 8 GPUs with tensor parallelism, in 16 bits."""

_LOOPS = """\
## Closed loops

Serving points of NVIDIA's aiconfigurator (vLLM, SGLang, TensorRT-LLM): so many clients, each sends its
next request when it has its answer. Whatever the engine, the preset `vllm_v1` is simulated, {rounds}
requests a client, with the KV blocks that 90 % of the memory leave beside weights and activations. Mean
TTFT is prefill and waiting, mean TPOT is decode with the prefills between. Weights are as published (Qwen3,
DeepSeek and MiniMax in fp8, gpt-oss in mxfp4, Kimi in int4), or in the precision that a row names: fp8 in
one byte in all layers, fp4 as NVFP4 in feed-forward blocks and experts and, of models without experts, in
attention, at the GPU's rate of such products; KV in 16 bits. Where a row names data-parallel groups, each
of them has the clients that it names; as many groups as tensor-parallel GPUs are taken to name the same
GPUs twice, as groups of one."""

_TRUST = """\
## How to read it

- **Decode is predicted well, TTFT is not.** Decode hangs on the bandwidth, which a data sheet knows. The
  mean TTFT of a closed loop hangs on whether clients keep in step: prompts that come together wait for
  each other. How far lengths varied in the measurements is not recorded; the two tables are two guesses,
  and stand as far apart as the question is open.
- **Mixtures of experts** are predicted nearly as well as dense models in TPOT (mean error 23 % beside 21
  %), but too short: by 16 % (median), by 29 % with up to 4 clients, where their passes launch more kernels
  than 2 ms hold and experts with a token or two do not reach the bandwidth. On H100 it is 4 %, on H200 29
  %, with Kimi-K2.5's int4 weights 38 %. TTFT is too short by 44 %: nothing of the front end is in it, and
  products of a few tokens for each expert probably do not reach half of the fp8 and fp4 peaks. Static
  batches of Mixtral come out as those of dense models do.
- **Experts shared out** (expert parallelism): the GPU whose experts most tokens chose counts, if they
  choose as by lot ([latency.md](latency.md)). Of 343 such rows the median error of TPOT is 13 %; taken as
  evenly loaded it would be 17 %, and 14 instead of 5 % too short.
- **Several machines** are left out: data sheets tell of the links within one (and of all 72 GPUs of a GB200
  NVL72).
- **KV memory** is a guess too: what 90 % of the memory leave, in 16 bits. Where it is full, it decides the
  TTFT, by a factor of ten and more either way: Qwen3-32B on one H100 leaves room for a few requests only,
  and waited longer than predicted; Llama-3.1-70B in fp8 on one H200 waited less, as an fp8 KV would let
  it.
- **Large batches** take longer than predicted: beside a batch of one on the same GPU, one of 64 is 15 to
  30 % slower. Probably attention over many contexts, and sampling, do not reach the bandwidth that weights
  do.
- **Several GPUs** gain less than predicted: beside one GPU, two to eight are 5 to 25 % slower, in both
  tables. Probably all-reduces take longer than the assumed 10 us and full rate of the links, and the
  host's part of a pass grows.
- **AMD.** The seconds on MI250 and MI300X are those of the software of 2024, far from what the data sheets
  allow; on the MI300X they grow nearly in proportion to the batch. Expect a factor of 2 to 10, and
  measure.
- **What the tables do not say** is taken from elsewhere: weights without a stated precision are in 16
  bits, the A100 are those of Polaris (40 GB), the H100 are SXM, an MI250 is a card of two dies. Taken as
  single dies the MI250 would come out 8 % too fast, not 47 %; but Llama-2-70B in 16 bits ran on two of
  them, and two dies cannot hold it.
- **llama.cpp** is left out: its rows come from llama-bench, whose batch size counts the prompt tokens of a
  pass; one sequence ran, whatever the batch size.
- **Rows faster than the data sheet allows**, at full rate and bandwidth and without any overhead, cannot
  have made all tokens of all answers.
- **Batches that do not fit** the memory ran in waves, which is no static batch."""
