"""Times predicted by a roofline against those measured, a colour for each GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from batchsim.figures.save import save
from batchsim.figures.style import PALETTE, look

_TITLES = {"batch": "Static batches", "TPOT": "TPOT, closed loop", "TTFT": "TTFT, closed loop"}


def plot_roofline_errors(points: pd.DataFrame, path_stem: str | Path) -> Path:
    """Draw a panel for each metric, with lines where the prediction is exact, half and double; PDF and PNG.

    Returns
    -------
    Path
        The PNG; the PDF lies beside it.
    """
    metrics = [metric for metric in _TITLES if (points["metric"] == metric).any()]
    colours = dict(zip(sorted(points["gpu"].unique()), PALETTE, strict=False))
    with look():
        figure = Figure(figsize=(7, 2.8), layout="constrained")
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
                    color=colours[gpu],
                    label=f"{gpu} ({len(group):,})",
                )
            axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="Measured (s)")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(subs=(1,) if ends[1] > 100 * ends[0] else (1, 2, 5)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_locator(NullLocator())
            axes.set_title(_TITLES[metric], fontsize=8)
            axes.legend(fontsize=5.5, markerscale=2, loc="upper left")
        panels[0].set_ylabel("Predicted (s)")
        return save(figure, path_stem)
