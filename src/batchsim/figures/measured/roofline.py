"""Times predicted by a roofline against those measured, a colour and a marker for each GPU."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from batchsim.figures.save import save
from batchsim.figures.style import PALETTE, look

# The colours of the palette that differ most, first.
_COLOURS = [PALETTE[index] for index in (0, 1, 2, 4, 7, 9, 8, 3, 5, 6)]
_TITLES = {"batch": "Static batches", "TPOT": "TPOT, closed loop", "TTFT": "TTFT, closed loop"}


def plot_roofline_errors(points: pd.DataFrame, path_stem: str | Path) -> Path:
    """Draw a panel for each metric, with lines where the prediction is exact, half and double; PDF and PNG.

    Returns
    -------
    Path
        The PNG; the PDF lies beside it.
    """
    metrics = [metric for metric in _TITLES if (points["metric"] == metric).any()]
    gpus = sorted(points["gpu"].unique())
    looks: dict[str, dict[str, Any]] = {
        gpu: {"color": colour, "marker": marker}
        for gpu, colour, marker in zip(gpus, cycle(_COLOURS), cycle("os^Dv"))
    }
    with look():
        figure = Figure(figsize=(7, 3.3), layout="constrained")
        panels = figure.subplots(1, max(len(metrics), 1), squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=False):
            some = points[points["metric"] == metric]
            ends = np.array([some[["measured_s", "predicted_s"]].min().min() / 1.5,
                             some[["measured_s", "predicted_s"]].max().max() * 1.5])  # fmt: skip
            axes.plot(ends, ends, color=".3", lw=1)
            for factor in (0.5, 2.0):
                axes.plot(ends, factor * ends, color=".6", lw=0.8, ls="--")
            for gpu, group in some.groupby("gpu"):
                axes.scatter(
                    group["measured_s"],
                    group["predicted_s"],
                    s=5,
                    alpha=0.6,
                    lw=0,
                    **looks[str(gpu)],
                )
            axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="Measured (s)")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(subs=(1,) if ends[1] > 100 * ends[0] else (1, 2, 5)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_locator(NullLocator())
            axes.set_title(f"{_TITLES[metric]} ({len(some):,})", fontsize=8)
        panels[0].set_ylabel("Predicted (s)")
        handles = [Line2D([], [], lw=0, markersize=4, label=gpu, **looks[gpu]) for gpu in gpus]
        handles.append(Line2D([], [], color=".3", lw=1, label="exact"))
        handles.append(Line2D([], [], color=".6", lw=0.8, ls="--", label="half, double"))
        figure.legend(handles=handles, loc="outside upper left", ncols=5, frameon=False)
        return save(figure, path_stem)
