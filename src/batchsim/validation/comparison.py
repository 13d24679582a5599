"""A measured run beside a prediction of it: errors, how far the measurement itself varies, what follows.

Both sides are tables of requests with the columns `NEEDED`, a simulation's or a real server's; times count
from any zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from batchsim.errors import ConfigError
from batchsim.metrics import requests as per_request
from batchsim.metrics.load import PERCENTILES

#: Columns of a table of requests; times are NaN where they never came, ``finish_s`` if it did not finish.
NEEDED = ("request_id", "arrival_s", "first_token_s", "finish_s", "output_tokens")

TIMES = {name: per_request.TIMES[name] for name in ("ttft", "tpot", "e2e")}
THROUGHPUT = "throughput"
MAPE = "mape"

#: Errors up to which a prediction passes, and the spread of repeats below which that can be told.
BAR, TAIL_BAR = 0.05, 0.1
_TAILS = ("p90", "p95", "p99")

#: Traces whose arrivals take longer or shorter by more than this share are not the same.
_SAME_SPAN = 0.01

Verdict = Literal["pass", "fail", "inconclusive", "not judged"]


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Measured repeats of one run against one prediction.

    Attributes
    ----------
    errors
        One row per ``metric`` (`TIMES`, `THROUGHPUT`) and ``statistic``: ``measured`` and ``predicted`` in
        seconds (throughput: per second), means over the repeats; ``error``, predicted / measured - 1;
        ``spread`` of the repeats (`relative_half_range`, NaN for a single one), ``bar``, ``verdict``. Times
        are of the requests that both sides finished, throughput of all that each finished. Rows of
        statistic `MAPE` hold the mean of the absolute relative errors of single requests, in ``error``
        alone. A metric that one side does not know has no rows.
    num_requests
        Finished on both sides, in the repeat that has the fewest.
    only_measured, only_predicted
        Ids of requests that, in any repeat, one side alone finished.
    """

    errors: pd.DataFrame
    num_requests: int
    only_measured: tuple[int, ...]
    only_predicted: tuple[int, ...]

    @property
    def num_unpaired(self) -> int:
        """Requests that one side alone finished."""
        return len(self.only_measured) + len(self.only_predicted)

    @property
    def worst_time(self) -> tuple[str, float]:
        """Which statistic of a time is furthest off, e.g. ``TTFT P99``, and its error; NaN of none."""
        times = self.errors[~self.errors["metric"].eq(THROUGHPUT) & self.errors["statistic"].ne(MAPE)]
        if times.empty:
            return "nothing", math.nan
        worst = times.iloc[int(times["error"].abs().to_numpy().argmax())]
        return f"{worst['metric'].upper()} {worst['statistic'].replace('p', 'P')}", float(worst["error"])


def compare_requests(measured: Sequence[pd.DataFrame], predicted: pd.DataFrame) -> Comparison:
    """Compare repeats of a measured run with what was predicted for it, request by request.

    Raises
    ------
    ConfigError
        If a table lacks a column, names a request twice, or the two sides did not serve the same requests.
    """
    tables, only_measured, only_predicted, num_requests = [], set[int](), set[int](), []
    for repeat in measured:
        sides = _finished(repeat, "measured"), _finished(predicted, "predicted")
        ids = sides[0].index.intersection(sides[1].index)
        _check_alike(sides[0].loc[ids], sides[1].loc[ids])
        only_measured |= set(sides[0].index.difference(ids).tolist())
        only_predicted |= set(sides[1].index.difference(ids).tolist())
        num_requests.append(len(ids))
        rows = [*_times(sides[0].loc[ids], sides[1].loc[ids]), *_throughput(*sides)]
        tables.append(pd.DataFrame(rows, columns=["metric", "statistic", "measured", "predicted", "error"]))
    return Comparison(
        _judged(pd.concat(tables)),
        min(num_requests),
        tuple(sorted(only_measured)),
        tuple(sorted(only_predicted)),
    )


def relative_half_range(values: ArrayLike) -> float:
    """Half of largest less smallest, per mean: so far from the middle do repeats lie. NaN for one value."""
    repeats = np.asarray(values, dtype=np.float64)
    return float(np.ptp(repeats) / 2 / repeats.mean()) if len(repeats) > 1 else math.nan


def bar_of(statistic: str) -> float:
    """Error up to which a statistic passes: 10 % from P90 on, else 5 %."""
    return TAIL_BAR if statistic in _TAILS else BAR


def verdict(error: float, spread: float, bar: float) -> Verdict:
    """Judge an error, if the measurement varies by less than the bar; else it can tell neither way."""
    if not spread < bar:
        return "inconclusive"
    return "pass" if abs(error) <= bar else "fail"


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict for several: the first of fail, inconclusive, not judged that occurs, else pass."""
    graver: tuple[Verdict, ...] = ("fail", "inconclusive", "not judged")
    return next((one for one in graver if one in verdicts), "pass" if verdicts else "not judged")


def _finished(requests: pd.DataFrame, side: str) -> pd.DataFrame:
    missing = [name for name in NEEDED if name not in requests]
    if missing:
        raise ConfigError(
            f"the {side} requests have no column {', '.join(missing)}; {', '.join(NEEDED)} are needed"
        )
    finished = requests[requests["finish_s"].notna()].set_index("request_id").sort_index()
    if not finished.index.is_unique:
        repeated = finished.index[finished.index.duplicated()][0]
        raise ConfigError(f"request {repeated} stands more than once among the {side} requests")
    return finished


def _check_alike(measured: pd.DataFrame, predicted: pd.DataFrame) -> None:
    if measured.empty:
        raise ConfigError("no request was finished on both sides; the two must serve the same requests")
    tokens = [side["output_tokens"].to_numpy() for side in (measured, predicted)]
    differs = tokens[0] != tokens[1]
    if differs.any():
        row = int(differs.argmax())
        raise ConfigError(
            f"request {measured.index[row]} has {tokens[0][row]} output tokens in the measured run and "
            f"{tokens[1][row]} in the predicted one; the two must serve the same requests"
        )
    spans_s = [float(np.ptp(side["arrival_s"].to_numpy())) for side in (measured, predicted)]
    if abs(spans_s[1] - spans_s[0]) > _SAME_SPAN * max(spans_s):
        raise ConfigError(
            f"the requests arrive within {spans_s[0]:.6g} s in the measured run and {spans_s[1]:.6g} s in "
            "the predicted one; the same trace at the same rate is needed"
        )


_Row = tuple[str, str, float, float, float]


def _times(measured: pd.DataFrame, predicted: pd.DataFrame) -> list[_Row]:
    rows: list[_Row] = []
    for name, metric in TIMES.items():
        pair = pd.DataFrame({"measured": metric(measured), "predicted": metric(predicted)}).dropna()
        if pair.empty:
            continue
        rows.append(_row(name, "mean", *pair.mean()))
        for percentage in PERCENTILES:
            rows.append(_row(name, f"p{percentage}", *pair.quantile(percentage / 100)))
        errors = (pair["predicted"] / pair["measured"] - 1).abs()
        rows.append((name, MAPE, math.nan, math.nan, float(errors.mean())))
    return rows


def _throughput(measured: pd.DataFrame, predicted: pd.DataFrame) -> list[_Row]:
    """From the first arrival to the last finish of each side."""
    rates = []
    for side in (measured, predicted):
        taken_s = float(side["finish_s"].max() - side["arrival_s"].min())
        rates.append((len(side) / taken_s, float(side["output_tokens"].sum()) / taken_s))
    return [
        _row(THROUGHPUT, statistic, *values)
        for statistic, values in zip(("requests", "output tokens"), zip(*rates, strict=True), strict=True)
    ]


def _row(metric: str, statistic: str, measured: float, predicted: float) -> _Row:
    return metric, statistic, measured, predicted, predicted / measured - 1


def _judged(repeats: pd.DataFrame) -> pd.DataFrame:
    """One row per statistic, from those of all repeats."""
    by_statistic = repeats.groupby(["metric", "statistic"], sort=False)
    errors = by_statistic[["measured", "predicted", "error"]].mean()
    is_share = errors["measured"].isna()
    errors["error"] = (errors["predicted"] / errors["measured"] - 1).where(~is_share, errors["error"])
    errors["spread"] = by_statistic["measured"].agg(relative_half_range)
    errors = errors.reset_index()
    errors["bar"] = errors["statistic"].map(bar_of).mask(errors["statistic"] == MAPE)
    errors["verdict"] = [
        "not judged" if statistic == MAPE else verdict(error, spread, bar)
        for statistic, error, spread, bar in zip(
            errors["statistic"], errors["error"], errors["spread"], errors["bar"], strict=True
        )
    ]
    return errors
