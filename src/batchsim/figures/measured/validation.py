"""Measured runs beside their prediction: the distributions of TTFT, TPOT and E2E time.

`plot_validation` for runs of this project's own replay, `plot_fidelity` for those of engines of others.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from batchsim.figures.save import save
from batchsim.figures.style import PALETTE, color_of, look
from batchsim.validation.comparison import TIMES
from batchsim.validation.fidelity.engine_run import MeasuredRun
from batchsim.validation.fidelity.predict import Prediction
from batchsim.validation.replays.cases import Case, Validation

_MOST_NAMED = 4  # repeats that have a name of their own in the legend
_LABELS = {"ttft": "TTFT (s)", "tpot": "TPOT (s)", "e2e": "E2E (s)"}


def plot_validation(validation: Validation, folder: str | Path) -> list[Path]:
    """Draw one figure per case, ``validation_<case>``, as PDF and PNG.

    Returns
    -------
    list of Path
        The PNGs; the PDFs lie beside them.
    """
    return [
        _draw(case, validation.prediction, Path(folder) / f"validation_{case.name}")
        for case in validation.cases
    ]


def distributions(case: Case) -> Mapping[str, tuple[list[pd.Series[float]], pd.Series[float]]]:
    """Return, for each time that both sides know, its values in each repeat and as predicted."""
    return {
        name: ([known.dropna() for known in measured], predicted.dropna())
        for name, metric in TIMES.items()
        for measured, predicted in [([metric(one) for one in case.measured], metric(case.predicted))]
        if predicted.notna().any() and all(one.notna().any() for one in measured)
    }


def _draw(case: Case, prediction: str, stem: Path) -> Path:
    drawn = distributions(case)
    with look():
        figure = Figure(figsize=(7, 2.9))
        figure.set_layout_engine("constrained", rect=(0, 0.14, 1, 0.71))
        panels = figure.subplots(1, len(drawn), squeeze=False, sharey=True)[0]
        for axes, (name, (measured, predicted)) in zip(panels, drawn.items(), strict=True):
            _draw_panel(axes, measured, predicted, color_of(case.policy))
            axes.set_xlabel(_LABELS[name])
            axes.set_title(_errors(case, name), loc="left", fontsize=7)
        panels[0].set_ylabel("Requests")
        panels[0].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        width = figure.get_figwidth()
        figure.text(
            0.1 / width, 0.98, f"{case.name}: measured and predicted", va="top", fontweight="bold", fontsize=9
        )
        figure.legend(
            handles=_handles(case),
            loc="upper left",
            bbox_to_anchor=(0, 0.94),
            ncols=1 + _MOST_NAMED,
            frameon=False,
        )
        footer = textwrap.fill(_conditions(case, prediction), int(20 * width))
        figure.text(0.1 / width, 0.02, footer, va="bottom", fontsize=7, color=".35")
        return save(figure, stem)


def _draw_panel(
    axes: Axes, measured: list[pd.Series[float]], predicted: pd.Series[float], color: object
) -> None:
    axes.ecdf(predicted.to_numpy(), color=color, lw=2.4)
    for shade, values in zip(_shades(len(measured)), measured, strict=True):
        axes.ecdf(values.to_numpy(), color=shade, lw=0.8)
    low, high = np.quantile(np.concatenate([*measured, predicted]), (0.01, 0.99))
    if low > 0 and high > 10 * low:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.1, high * 1.1)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.05 * (high - low) or 0.05 * high
        axes.set_xlim(low - margin, high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(5))


def _errors(case: Case, metric: str) -> str:
    errors = case.comparison.errors
    of_metric = errors[errors["metric"] == metric].set_index("statistic")["error"]
    return ", ".join(f"{name.capitalize()} {of_metric[name]:+.1%}" for name in ("mean", "p50", "p99"))


def _handles(case: Case) -> list[Line2D]:
    shades = _shades(len(case.measured))
    if len(shades) == 1:
        names = ["measured"]
    elif len(shades) <= _MOST_NAMED:
        names = [f"measured, run {number}" for number in range(1, len(shades) + 1)]
    else:
        names = [f"measured ({len(shades)} runs)"]
    measured = [
        Line2D([], [], color=shade, lw=0.8, label=name) for shade, name in zip(shades, names, strict=False)
    ]
    return [Line2D([], [], color=color_of(case.policy), lw=2.4, label="predicted"), *measured]


def _shades(num: int) -> list[str]:
    """Greys of the repeats, the first the darkest."""
    return [f"{shade:.2f}" for shade in np.linspace(0.1, 0.65 if num > 1 else 0.1, num)]


def _conditions(case: Case, prediction: str) -> str:
    load = "load unknown" if math.isnan(case.load) else f"load {case.load:.0%}"
    return (
        f"Measured: {case.measured_on}. Predicted: {prediction}. {case.comparison.num_requests:,} requests, "
        f"{load}. Above the panels: predicted / measured - 1. Axes span 98 % of the values."
    )


def plot_fidelity(run: MeasuredRun, prediction: Prediction, path_stem: str | Path) -> Path:
    """Draw cumulative distributions, measured, predicted and the peer's, as PDF and PNG.

    Returns
    -------
    Path
        The PNG; the PDF lies beside it.
    """
    curves = [
        (name, requests, style)
        for name, requests, style in (
            ("measured", run.requests, {"color": ".25", "lw": 2.2}),
            (f"predicted ({prediction.family})", prediction.requests, {"color": PALETTE[0], "lw": 1.4}),
            (run.peer_name, run.peer, {"color": PALETTE[1], "lw": 1.2, "ls": "--"}),
        )
        if requests is not None
    ]
    with look():
        figure = Figure(figsize=(7, 2.6), layout="constrained")
        for axes, metric in zip(figure.subplots(1, 3, sharey=True), _LABELS, strict=True):
            for name, requests, style in curves:
                sample = np.sort(_seconds(requests, metric))
                axes.plot(sample, np.arange(1, len(sample) + 1) / len(sample), label=name, **style)
            axes.set(xlabel=_LABELS[metric], xlim=(0, None), ylim=(0, 1.02))
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        figure.axes[0].set_ylabel("Requests")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        figure.suptitle(f"{run.name}: from the engine's queue on", x=0.01, ha="left", fontsize=9)
        return save(figure, path_stem)


def _seconds(requests: pd.DataFrame, metric: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    start = requests["queued_s"].fillna(requests["arrival_s"])
    if metric == "tpot":
        several = requests[requests["output_tokens"] > 1]
        seconds = (several["last_token_s"] - several["first_token_s"]) / (several["output_tokens"] - 1)
    else:
        seconds = requests["first_token_s" if metric == "ttft" else "last_token_s"] - start
    return np.asarray(seconds.to_numpy(dtype=np.float64))
