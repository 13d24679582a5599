"""What AIConfigurator itself predicts of the published points, beside what is predicted here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from batchsim.errors import TraceError
from batchsim.files import write_whole
from batchsim.files.tables import csv_text, read_csv
from batchsim.validation.error_ranges import errors_of

_COLUMNS = ("row", "metric", "predicted_s")
_METRICS = ("TTFT", "TPOT")
_ERRORS = ("signed median", "median error", "mean error")
PEER_COLUMNS = ("rows", *(f"{who}: {what}" for who in ("batchsim", "AIConfigurator") for what in _ERRORS))


def write_peers(points: pd.DataFrame, path: Path) -> None:
    """Write what was predicted, by row of the file of measurements; nothing that was measured."""
    write_whole(path, csv_text(points[list(_COLUMNS)]))


def read_peers(path: str | Path) -> pd.DataFrame:
    """Read it again; `TraceError` if the file is none such."""
    table = read_csv(Path(path))
    table.need(list(_COLUMNS))
    metric = table.words("metric")
    if not metric.isin(_METRICS).all():
        raise TraceError(
            f"{path}: metric is {metric[~metric.isin(_METRICS)].iloc[0]!r:.60}; known: {', '.join(_METRICS)}"
        )
    row = table.counts("row", least=0, most=10**6)
    return pd.DataFrame({"row": row, "metric": metric, "predicted_s": table.times("predicted_s", 1.0)})


def beside(points: pd.DataFrame, peers: pd.DataFrame) -> pd.DataFrame:
    """The points that both predict, with ``predicted_s_by_peer``."""
    return points.merge(peers, on=["row", "metric"], suffixes=("", "_by_peer"))


def peer_rows(both: pd.DataFrame, by: Sequence[str]) -> list[list[str]]:
    """One row of text for each group: names, then `PEER_COLUMNS`."""
    ours = errors_of(both)
    theirs = errors_of(both.assign(predicted_s=both["predicted_s_by_peer"]))
    return [
        [*map(str, names), f"{len(group):,}", *_told(group), *_told(theirs.loc[group.index])]
        for names, group in ours.groupby([both[name] for name in by])
    ]


def _told(error: pd.Series[float]) -> list[str]:
    return [f"{error.median():+.1%}", f"{error.abs().median():.1%}", f"{error.abs().mean():.1%}"]
