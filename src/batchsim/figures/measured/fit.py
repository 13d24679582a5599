"""A fit of a latency model beside the calibration it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from batchsim.figures.save import save
from batchsim.figures.style import look
from batchsim.latency.base import BatchLatency, BatchShape
from batchsim.latency.families import as_iteration_latency
from batchsim.latency.fitting.fit import ITERATION_FAMILIES, FitReport
from batchsim.latency.fitting.iterations import iteration_shapes
from batchsim.latency.tables.table import Calibration

_LENGTHS = {
    "batch": "Length (tokens)",
    "prefill": "Prompt (tokens)",
    "decode": "Context of each sequence (tokens)",
    "mixed": "Context of each decoding sequence (tokens)",
    "chunk": "Tokens before the chunk",
}


def plot_fit(calibration: Calibration, report: FitReport, path_stem: str | Path) -> Path:
    """Draw the points of a calibration, the fit and its errors over length, as PDF and PNG.

    Returns
    -------
    Path
        The PNG; the PDF lies beside it.
    """
    table = fit_table(calibration, report)
    kinds = [quality.kind for quality in report.qualities]
    figure = Figure(figsize=(4.6 * len(kinds) + 1.4, 5.6), layout="constrained")
    sizes, prompts = (sorted(table[name].dropna().unique()) for name in ("batch_size", "prompt_tokens"))
    colors = dict(zip(sizes, sns.color_palette("turbo", len(sizes)), strict=True))
    marks = dict(zip(prompts, zip("os^Dv<>", cycle(["-", "--", ":", "-."]), strict=False), strict=False))
    with look():
        panels = figure.subplots(2, len(kinds), squeeze=False, sharex="col", height_ratios=[2, 1])
        for kind, quality, upper, lower in zip(kinds, report.qualities, *panels, strict=True):
            _draw(table[table["kind"] == kind], upper, lower, colors, marks)
            upper.set_title(
                f"{kind}{', not fitted to' if quality.is_unseen else ''}: R2 {quality.r2:.4f}\n"
                f"held out {quality.heldout_batch_size_mape:.1%} (batch size), "
                f"{quality.heldout_length_mape:.1%} (length)",
                loc="left",
                fontsize=8,
            )
            lower.set_xlabel(_LENGTHS[kind])
        clock = "" if calibration.clock == "wall_s" else f", by {calibration.clock}"
        figure.legend(handles=_handles(colors, marks), loc="outside right upper", frameon=False)
        figure.suptitle(
            f"{report.family} fit of {calibration.name}, {calibration.provenance}{clock}", x=0.01, ha="left"
        )
        return save(figure, path_stem)


def fit_table(calibration: Calibration, report: FitReport) -> pd.DataFrame:
    """Return one row per point: kind, batch size, prompt, length, seconds given and fitted, relative error.

    A prompt is given where the length is not that of prompts: of whole batches, mixed iterations and chunks.
    """
    parts = []
    for quality in report.qualities:
        points = calibration.of_kind(quality.kind)
        length, fitted_s = _fitted(points, quality.kind, report)
        columns = points[["kind", "batch_size", "prompt_tokens", "mean_s", "std_s"]]
        if quality.kind not in ("batch", "mixed", "chunk"):
            columns = columns.assign(prompt_tokens=np.nan)
        parts.append(columns.assign(length=length, fitted_s=fitted_s))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(error=table["fitted_s"] / table["mean_s"] - 1)


def _fitted(points: pd.DataFrame, kind: str, report: FitReport) -> tuple[list[int], list[float]]:
    """Return the length of each point, and the fit's seconds for it."""
    if kind != "batch" and report.family in ITERATION_FAMILIES:
        model = as_iteration_latency(report.model)
        length = points["prompt_tokens" if kind == "prefill" else "context_tokens"].astype("int64")
        return length.tolist(), [model.iteration_s(shape) for shape in iteration_shapes(points)]
    shapes = _shapes(points, kind, report)
    lengths = [prompt + (output if kind == "batch" else 0) for _, prompt, output in shapes]
    return lengths, [_fitted_s(report.model, kind, shape) for shape in shapes]


def _shapes(points: pd.DataFrame, kind: str, report: FitReport) -> list[BatchShape]:
    """Return the batch that each point stands for; of a decode step, one that does it as its last."""
    prompt: Any
    output: Any
    if kind == "prefill":
        prompt, output = points["prompt_tokens"], 1
    elif kind == "decode":
        prompt, output = points["context_tokens"], 2
    elif points["max_seq_len"].isna().all():
        prompt, output = points["prompt_tokens"], points["output_tokens"]
    elif getattr(report.model, "length", None) == "output":
        prompt, output = 0, points["max_seq_len"]
    else:
        prompt, output = points["max_seq_len"], 0
    shapes = pd.DataFrame({"batch_size": points["batch_size"], "prompt": prompt, "output": output}).astype(
        "int64"
    )
    return [BatchShape(*shape) for shape in shapes.itertuples(index=False)]


def _fitted_s(model: BatchLatency, kind: str, shape: BatchShape) -> float:
    first_token_s, total_s = model.batch_time(shape)
    return {"batch": total_s, "prefill": first_token_s, "decode": total_s - first_token_s}[kind]


def _handles(colors: Mapping[Any, Any], marks: Mapping[Any, tuple[str, str]]) -> list[Line2D]:
    """Name the colours, and the markers and dashes of prompts where there are several."""
    handles = [Line2D([], [], color=color, label=f"batch size {size}") for size, color in colors.items()]
    if len(marks) > 1:
        handles += [
            Line2D([], [], color=".4", ls=dashes, marker=marker, ms=3.5, label=f"{prompt:.0f} prompt tokens")
            for prompt, (marker, dashes) in marks.items()
        ]
    return handles


def _draw(
    points: pd.DataFrame,
    upper: Axes,
    lower: Axes,
    colors: Mapping[Any, Any],
    marks: Mapping[Any, tuple[str, str]],
) -> None:
    for (size, prompt), row in points.groupby(["batch_size", "prompt_tokens"], dropna=False):
        line: Any = row.sort_values("length")
        marker, dashes = marks.get(prompt, ("o", "-"))
        look: dict[str, Any] = {"color": colors[size], "marker": marker, "ms": 3.5}
        upper.errorbar(line["length"], line["mean_s"], line["std_s"].fillna(0), ls="", capsize=2, **look)
        upper.plot(line["length"], line["fitted_s"], color=colors[size], lw=1, ls=dashes)
        lower.plot(line["length"], line["error"], lw=0.6, ls=dashes, **look)
    upper.set(xscale="log", ylabel="Seconds (points: calibration, lines: fit)")
    upper.set_yscale("log", nonpositive="clip")
    upper.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    upper.yaxis.set_major_formatter("{x:g}")
    upper.yaxis.set_minor_formatter(NullFormatter())
    lower.axhline(0, color=".4", lw=0.8)
    lower.set_ylabel("Error of the fit")
    lower.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    largest = float(np.abs(points["error"]).max())
    lower.set_ylim(-max(1.1 * largest, 0.01), max(1.1 * largest, 0.01))
    lengths = sorted(points["length"].unique())
    lower.set_xticks(lengths, [f"{length}" for length in lengths], rotation=45)
    lower.set_xticks([], minor=True)
