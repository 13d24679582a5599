"""What a figure found, in a sentence made from its table: the title; empty where nothing can be claimed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from batchsim.figures.axes import facet_title, label_of

Finding = Callable[[pd.DataFrame], str]

#: Share of the requests within the limit that counts as meeting it.
ENOUGH = 0.9
_ENOUGH = f"{100 * ENOUGH:.0f} %"


def no_finding(table: pd.DataFrame) -> str:
    """Claim nothing: the title says what is shown."""
    return ""


def within_slo(by: str, x: str, metric: str = "slo_attainment") -> Finding:
    """How far each may go on the x axis while enough requests stay within the limit, best beside first."""

    def finding(table: pd.DataFrame) -> str:
        if metric not in table or _has_facets(table, by, x):
            return ""
        reached = {
            str(name): _reached(part.sort_values(x), x, metric)
            for name, part in table.groupby(by, sort=False)
        }
        first, best = next(iter(reached)), max(reached, key=lambda name: reached[name])
        held = f"with {_ENOUGH} within the limit"
        if reached[best] <= 0:
            return f"No {by} keeps {_ENOUGH} of the requests within the limit"
        at_least = "at least " if reached[best] >= table[x].max() else ""
        most = facet_title([x], [float(f"{reached[best]:.2g}")])
        if len(reached) > 1 and reached[best] < 1.05 * min(reached.values()):
            return f"All: {at_least}{most} {held}"
        if best == first or reached[best] < 1.05 * reached[first] or reached[first] <= 0:
            return f"{best}: {at_least}{most} {held}"
        return f"{best}: {at_least}{reached[best] / reached[first]:.2g}x the load of {first} {held}"

    return finding


def contrast(by: str, metric: str, x: str | None = None, *, at: str = "max") -> Finding:
    """Best beside worst: at one end of the x axis, in the last row of panels.

    Times are compared where no run is saturated, or too short to tell; differences that lie within the
    intervals, where there are any, are not claimed.
    """

    def finding(table: pd.DataFrame) -> str:
        if metric not in table:
            return ""
        part = _settled(table, metric, x).dropna(subset=[metric])
        facets = _facets(table, by, x)
        for key in facets:
            part = part[part[key] == part[key].iloc[-1]] if len(part) else part
        if x is not None and len(part):
            part = part[part[x] == getattr(part[x], at)()]
        part = part.sort_values(metric, kind="stable")
        if len(part) < 2:
            return ""
        low, high = part.iloc[0], part.iloc[-1]
        keys = [*([x] if x is not None else []), *facets]
        where = f" at {facet_title(keys, [high[key] for key in keys])}" if keys else ""
        return _compare(low, high, by, metric, where)

    return finding


def gain(by: str, x: str, metric: str) -> Finding:
    """One end of the x axis beside the other, of whoever changes most, in the last row of panels."""

    def finding(table: pd.DataFrame) -> str:
        if metric not in table:
            return ""
        for key in _facets(table, by, x):
            table = table[table[key] == table[key].iloc[-1]]
        ends: dict[str, tuple[float, float]] = {
            str(name): tuple(part.sort_values(x)[metric].iloc[[0, -1]])
            for name, part in table.groupby(by, sort=False)
        }
        ratios = {name: last / first for name, (first, last) in ends.items() if first > 0 and last > 0}
        if not ratios:
            return ""
        name = max(ratios, key=lambda name: abs(math.log(ratios[name])))
        least, most = (facet_title([x], [end]) for end in (table[x].min(), table[x].max()))
        if abs(math.log(ratios[name])) < math.log(1.05):
            return f"{_words(metric)}: the same within 5 % from {least} to {most}"
        change = f"grows {ratios[name]:.2g}x" if ratios[name] > 1 else f"falls {1 / ratios[name]:.2g}x"
        return f"{name}: {_words(metric)} {change} from {least} to {most}"

    return finding


def _compare(low: pd.Series[Any], high: pd.Series[Any], by: str, metric: str, where: str) -> str:
    gap, widths = high[metric] - low[metric], high[f"{metric}_ci95"] + low[f"{metric}_ci95"]
    if gap <= widths:  # false where there is no interval
        return f"{_words(metric)}: no difference beyond the intervals{where}"
    if low[metric] <= 0 or high[metric] > 100 * low[metric]:
        unit = " s" if metric.endswith("_s") and not metric.endswith("per_s") else ""
        least, most = (f"{row[by]} {row[metric]:.3g}{unit}" for row in (low, high))
        return f"{_words(metric)}: {least}, {most}{where}"
    ratio = high[metric] / low[metric]
    if ratio < 1.05:
        return f"{_words(metric)}: all within 5 %{where}"
    return f"{high[by]}: {ratio:.2g}x the {_words(metric)} of {low[by]}{where}"


def _settled(table: pd.DataFrame, metric: str, x: str | None) -> pd.DataFrame:
    """Leave out, of a time, the settings at which some run's time says how long the run was."""
    if not metric.endswith("_s") or metric.endswith("per_s"):
        return table
    unsettled = table["num_saturated"] + table["num_transient"] > 0
    return table[~unsettled] if x is None else table[~table[x].isin(table.loc[unsettled, x])]


def _facets(table: pd.DataFrame, by: str, x: str | None) -> list[str]:
    """Settings that have rows of panels: all that stand before ``by``, as drawing functions order them."""
    before = list(table.columns[: list(table.columns).index(by)])
    return [key for key in before if key != x]


def _has_facets(table: pd.DataFrame, by: str, x: str) -> bool:
    return any(len(table[key].unique()) > 1 for key in _facets(table, by, x))


def _reached(part: pd.DataFrame, x: str, metric: str) -> float:
    """The largest x up to which a metric stays at or above `ENOUGH`, between the points by a line.

    What saturates is not reached, whatever those who were served met.
    """
    xs, ys = part[x].to_numpy(dtype=np.float64), part[metric].to_numpy(dtype=np.float64)
    below = np.flatnonzero(~(ys >= ENOUGH) | (part["num_saturated"] > 0))
    if len(below) == 0:
        return float(xs[-1])
    if below[0] == 0:
        return 0.0
    i = below[0]
    share = (ys[i - 1] - ENOUGH) / (ys[i - 1] - ys[i]) if ys[i] < ENOUGH else 0.0
    return float(xs[i - 1] + share * (xs[i] - xs[i - 1]))


def _words(metric: str) -> str:
    """The label of a metric inside a sentence: without its unit."""
    words: Sequence[str] = label_of(metric).split(" (")
    return words[0] if words[0][:2].isupper() or words[0].startswith("E2E") else words[0].lower()
