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
    """How far each may go on the x axis while enough requests stay within the limit.

    The best stands beside the next best, and beside the first, which is the baseline; not beside those of
    whom only runs that are too short to tell went further.
    """

    def finding(table: pd.DataFrame) -> str:
        if metric not in table or _has_facets(table, by, x):
            return ""
        parts = {str(name): part.sort_values(x) for name, part in table.groupby(by, sort=False)}
        reached = {name: _reached(part, x, metric) for name, part in parts.items()}
        untold = [name for name, part in parts.items() if _is_untold_beyond(part, x, metric, reached[name])]
        first, best = next(iter(reached)), max(reached, key=lambda name: reached[name])
        held = f"with {_ENOUGH} within the limit"
        if reached[best] <= 0:
            return "" if untold else f"No {by} keeps {_ENOUGH} of the requests within the limit"

        def at_least(*names: str) -> str:
            is_end = reached[best] >= table[x].max() or any(name in untold for name in names)
            return "at least " if is_end else ""

        most = facet_title([x], [float(f"{reached[best]:.2g}")])
        if len(reached) > 1 and reached[best] < 1.05 * min(reached.values()):
            return f"All: {at_least(*reached)}{most} {held}"
        held += _not_sustained(table, by, x, metric)
        beside = [name for name in reached if name != best and reached[name] > 0]
        if not beside:
            return f"{best}: {at_least(best)}{most} {held}"
        second = max(beside, key=lambda name: reached[name])
        if reached[best] < 1.05 * reached[second]:
            held += _too_short(untold, best, second)
            return f"{best} and {second}: {at_least(best, second)}{most} {held}"
        held += _too_short(untold, best)
        told = [name for name in beside if name not in untold]
        if not told:
            return f"{best}: {at_least(best)}{most} {held}"
        second = max(told, key=lambda name: reached[name])
        gains = f"{reached[best] / reached[second]:.2g}x the load of {second}"
        if first not in (best, second) and first in told:
            gains += f", the next best, and {reached[best] / reached[first]:.2g}x that of {first},"
        return f"{best}: {at_least(best)}{gains} {held}"

    return finding


def within_slo_in_each(by: str, x: str, metric: str = "slo_attainment") -> Finding:
    """As `within_slo`, for each row of panels: the best, beside the first, which is the baseline."""

    def finding(table: pd.DataFrame) -> str:
        if metric not in table:
            return ""
        facets = _facets(table, by, x)
        rows = table.groupby(facets, sort=False) if facets else [((), table)]
        said = []
        for values, row in rows:
            parts = {str(name): part.sort_values(x) for name, part in row.groupby(by, sort=False)}
            reached = {name: _reached(part, x, metric) for name, part in parts.items()}
            first, best = next(iter(reached)), max(reached, key=lambda name: reached[name])
            if reached[first] <= 0:
                continue
            near = [name for name in reached if name != first and reached[best] < 1.05 * reached[name]]
            is_open = reached[best] >= row[x].max() or _is_untold_beyond(
                parts[best], x, metric, reached[best]
            )
            words = (
                f"{' and '.join(near)} {'at least ' if is_open else ''}{reached[best] / reached[first]:.2g}x"
            )
            if reached[best] < 1.05 * reached[first]:
                words = "nobody 5 % more"
            said.append(f"{facet_title(facets, values)}, {words}" if facets else words)
        start = f"Load with {_ENOUGH} within the limit, beside {table[by].iloc[0]}: "
        return start + "; ".join(said) if said else ""

    return finding


def _is_untold_beyond(part: pd.DataFrame, x: str, metric: str, reached: float) -> bool:
    """Whether the next run attains enough, but is too short to tell."""
    beyond = part[part[x] > reached].head(1)
    return bool(((beyond["num_transient"] > 0) & (beyond[metric] >= ENOUGH)).any())


def _too_short(untold: Sequence[str], *named: str) -> str:
    """Name those who may go further than is told, but for those whose own load is given as the least."""
    others = [name for name in untold if name not in named]
    return f" ({', '.join(others)}: too short to tell)" if others else ""


def _not_sustained(table: pd.DataFrame, by: str, x: str, metric: str) -> str:
    """Name those who are within the limit at the highest x, but only while their queue grows."""
    last = table[table[x] == table[x].max()]
    names = last.loc[(last[metric] >= ENOUGH) & (last["num_saturated"] > 0), by]
    return f" and no growing queue ({', '.join(map(str, names))}: growing)" if len(names) else ""


def contrast(by: str, metric: str, x: str | None = None, *, at: str = "max") -> Finding:
    """Best beside worst: at one end of the x axis, in the last row of panels.

    Times are compared where no run is saturated, or too short to tell, rates where none is too short;
    differences that lie within the intervals, where there are any, are not claimed. Of more than two, the
    best rate stands beside the next best, too.
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
        next_best = part.iloc[-2] if metric.endswith("per_s") and len(part) > 2 else None
        return _compare(low, high, by, metric, where, next_best)

    return finding


def gain(by: str, x: str, metric: str) -> Finding:
    """One end of the x axis beside the other, of whoever changes most, in the last row of panels.

    Both ends must tell, as for `contrast`.
    """

    def finding(table: pd.DataFrame) -> str:
        if metric not in table:
            return ""
        facets = _facets(table, by, x)
        for key in facets:
            table = table[table[key] == table[key].iloc[-1]]
        where = f" at {facet_title(facets, [table[key].iloc[0] for key in facets])}" if facets else ""
        told = _settled(table, metric, None).index
        at_ends = {
            str(name): part.sort_values(x).iloc[[0, -1]] for name, part in table.groupby(by, sort=False)
        }
        ends = {name: tuple(rows[metric]) for name, rows in at_ends.items() if rows.index.isin(told).all()}
        ratios = {name: last / first for name, (first, last) in ends.items() if first > 0 and last > 0}
        if not ratios:
            return ""
        name = max(ratios, key=lambda name: abs(math.log(ratios[name])))
        least, most = (facet_title([x], [end]) for end in (table[x].min(), table[x].max()))
        if abs(math.log(ratios[name])) < math.log(1.05):
            return f"{_words(metric)}: the same within 5 % from {least} to {most}{where}"
        change = f"grows {ratios[name]:.2g}x" if ratios[name] > 1 else f"falls {1 / ratios[name]:.2g}x"
        return f"{name}: {_words(metric)} {change} from {least} to {most}{where}"

    return finding


def _compare(
    low: pd.Series[Any],
    high: pd.Series[Any],
    by: str,
    metric: str,
    where: str,
    next_best: pd.Series[Any] | None = None,
) -> str:
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
    if metric.endswith("_s") and not metric.endswith("per_s"):  # a time: less is better
        return f"{low[by]}: {_words(metric)} lower than {high[by]} by a factor of {ratio:.2g}{where}"
    if next_best is not None and high[metric] < 1.05 * next_best[metric]:
        best = f"{next_best[by]} and {high[by]}"
    else:
        best = str(high[by])
    beside = ""
    if next_best is not None and high[metric] >= 1.05 * next_best[metric]:
        beside = f" and {high[metric] / next_best[metric]:.2g}x that of {next_best[by]}"
    return f"{best}: {ratio:.2g}x the {_words(metric)} of {low[by]}{beside}{where}"


def _settled(table: pd.DataFrame, metric: str, x: str | None) -> pd.DataFrame:
    """Leave out the settings at which some run's value says how long the run was.

    A rate of a saturated run is what it can serve. Where all requests are there at the start, no setting is
    settled in this sense, and the rate is that of all the work.
    """
    is_rate = metric.endswith("per_s")
    if not metric.endswith("_s") or (is_rate and (table["num_transient"] > 0).all()):
        return table
    unsettled = table["num_transient"] + (0 if is_rate else table["num_saturated"]) > 0
    return table[~unsettled] if x is None else table[~table[x].isin(table.loc[unsettled, x])]


def _facets(table: pd.DataFrame, by: str, x: str | None) -> list[str]:
    """Settings that have rows of panels: all that stand before ``by``, as drawing functions order them."""
    before = list(table.columns[: list(table.columns).index(by)])
    return [key for key in before if key != x]


def _has_facets(table: pd.DataFrame, by: str, x: str) -> bool:
    return any(len(table[key].unique()) > 1 for key in _facets(table, by, x))


def _reached(part: pd.DataFrame, x: str, metric: str) -> float:
    """The largest x up to which a metric stays at or above `ENOUGH`, between the points by a line.

    What saturates is not reached, whatever those who were served met, nor what is too short to tell.
    """
    xs, ys = part[x].to_numpy(dtype=np.float64), part[metric].to_numpy(dtype=np.float64)
    below = np.flatnonzero(~(ys >= ENOUGH) | (part["num_saturated"] + part["num_transient"] > 0))
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
