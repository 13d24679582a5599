"""What was predicted of a run beside what was measured: distributions of TTFT, TPOT and E2E time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from batchsim.figures.save import save
from batchsim.figures.style import PALETTE, look
from batchsim.validation.fidelity.engine_run import MeasuredRun
from batchsim.validation.fidelity.predict import Prediction

_LABELS = {"ttft": "TTFT (s)", "tpot": "TPOT (s)", "e2e": "E2E (s)"}


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
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    with look():
        for axes, metric in zip(figure.subplots(1, 3, sharey=True), _LABELS, strict=True):
            for name, requests, style in curves:
                sample = np.sort(_seconds(requests, metric))
                axes.plot(sample, np.arange(1, len(sample) + 1) / len(sample), label=name, **style)
            axes.set(xlabel=_LABELS[metric], xlim=(0, None), ylim=(0, 1.02))
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        figure.axes[0].set_ylabel("Requests")
        figure.axes[-1].legend(fontsize=8, loc="lower right")
        figure.suptitle(f"{run.name}: from the engine's queue on", x=0.01, ha="left", fontsize=10)
        return save(figure, path_stem)


def _seconds(requests: pd.DataFrame, metric: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    start = requests["queued_s"].fillna(requests["arrival_s"])
    if metric == "tpot":
        several = requests[requests["output_tokens"] > 1]
        seconds = (several["last_token_s"] - several["first_token_s"]) / (several["output_tokens"] - 1)
    else:
        seconds = requests["first_token_s" if metric == "ttft" else "last_token_s"] - start
    return np.asarray(seconds.to_numpy(dtype=np.float64))
