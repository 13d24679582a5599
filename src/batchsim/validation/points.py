"""Published measurements and what is predicted of them: points, and the rows that have no prediction."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pandas as pd

from batchsim.files import MAX_COUNT
from batchsim.files.tables import CsvTable, read_csv

POINT_COLUMNS = (
    "row",  # of the file, counted from 0
    "kind",  # "static batch" or "closed loop"
    "gpu",
    "model",
    "framework",
    "num_gpus",
    "precision",
    "batch_size",  # sequences, or clients of a closed loop
    "prompt_tokens",
    "output_tokens",
    "metric",  # "batch", "TTFT" or "TPOT"
    "measured_s",
    "predicted_s",
)

Row = dict[Any, Any]

#: Columns of text, by our names, and the largest count of the others.
_WORDS = ("gpu", "framework", "model", "precision", "mode", "source")
_MOST = 1_000_000


class Unpredictable(Exception):  # noqa: N818 -- a state of a row, nobody's fault
    """A row that is left out: why, and what about it in particular."""


class Time(NamedTuple):
    """A time that was measured and predicted, and the least that the data sheet allows."""

    metric: str
    measured_s: float
    predicted_s: float
    least_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Times that were measured and predicted, and the rows that could not be.

    Attributes
    ----------
    table
        `POINT_COLUMNS`, one row per time.
    num_rows
        Rows of the file.
    skipped
        Rows left out, by reason and detail.
    """

    table: pd.DataFrame
    num_rows: int
    skipped: Counter[tuple[str, str]]


def read_columns(path: Path, names: Mapping[str, str]) -> pd.DataFrame:
    """Read these columns of a table under names of our own; what is not there is NaN.

    Raises
    ------
    TraceError
        If the file cannot be read, a column is missing, or a value is none of its kind.
    """
    table = read_csv(path)
    table.need(list(names))
    return pd.DataFrame({ours: table.recorded(name, _kind(name, ours)) for name, ours in names.items()})


def _kind(name: str, ours: str) -> Callable[[CsvTable], pd.Series[Any]]:
    if ours in _WORDS:
        return lambda table: table.words(name)
    if ours.endswith("_per_s"):
        return lambda table: table.numbers(name, 0, MAX_COUNT)
    if ours.endswith(("_s", "_ms")):
        return lambda table: table.times(name, 1e-3 if ours.endswith("_ms") else 1.0)
    # Some tables write 0 for a kind of parallelism that a model cannot have.
    return lambda table: table.counts(name, least=0 if ours.endswith("_parallel") else 1, most=_MOST)


def counts(row: Row, *names: str) -> list[int]:
    """Whole numbers of a row; it is left out where one of them is not there."""
    for name in names:
        if pd.isna(row[name]):
            leave_out("a number that is not there", name)
    return [int(row[name]) for name in names]


def gpus_of(row: Row) -> tuple[int, int, int, int]:
    """Tensor-, pipeline-, data- and expert-parallel GPUs of a row of NVIDIA's serving points.

    As many data-parallel groups as tensor-parallel GPUs are taken to name the same GPUs twice, as groups of
    one each: as given, they would fill several machines. Experts that GPUs cannot share out are shared by
    all that share a layer.
    """
    tensor, pipeline, data, expert = (
        _at_least_one(row[f"{kind}_parallel"]) for kind in ("tensor", "pipeline", "data", "expert")
    )
    if tensor == data > 1:
        tensor, expert = 1, min(expert, data)
    return tensor, pipeline, data, expert if tensor * data % expert == 0 else tensor * data


def _at_least_one(number: float) -> int:
    return 1 if pd.isna(number) else max(1, int(number))


def predict_rows(table: pd.DataFrame, predict: Callable[[Row], tuple[Row, list[Time]]]) -> Points:
    """Predict row by row: what a row is and its times, or `Unpredictable`."""
    rows: list[Row] = []
    skipped: Counter[tuple[str, str]] = Counter()
    for number, row in enumerate(table.to_dict("records")):
        try:
            what, times = predict(row)
            for time in times:
                if not math.isfinite(time.measured_s):
                    leave_out("a time that is not there", time.metric)
                if not math.isfinite(time.predicted_s):
                    leave_out("a time that its requests do not have", time.metric)  # TPOT, of one token
                if time.measured_s < time.least_s:
                    leave_out("faster than the data sheet allows", f"{what['framework']} on {what['gpu']}")
        except Unpredictable as why:
            skipped[why.args[0], why.args[1]] += 1
        else:
            rows += [
                {
                    "row": number,
                    **what,
                    **{name: value for name, value in time._asdict().items() if name != "least_s"},
                }
                for time in times
            ]
    return Points(pd.DataFrame(rows, columns=list(POINT_COLUMNS)), len(table), skipped)


def leave_out(reason: str, detail: str) -> NoReturn:
    """Leave the row out, for a reason that is counted."""
    raise Unpredictable(reason, detail)
