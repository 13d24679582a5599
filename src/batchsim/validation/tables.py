"""Tables of pages about errors: groups of points, rows without a prediction, and their Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

#: What is said of a group's errors, by the heading of its column.
Statistics = Mapping[str, Callable[["pd.Series[Any]"], str]]


def error_rows(points: pd.DataFrame, by: Sequence[str], statistics: Statistics) -> list[list[str]]:
    """One row of text for each group: names, then ``statistics``. An error is predicted / measured - 1."""
    error = points["predicted_s"] / points["measured_s"] - 1
    return [
        [*map(str, names), *(tell(group) for tell in statistics.values())]
        for names, group in error.groupby([points[name] for name in by], observed=True)
    ]


def skipped_rows(skipped: Counter[tuple[str, str]]) -> list[list[str]]:
    """Why, rows and which, of rows by reason and detail: the most frequent first."""
    reasons: dict[str, list[tuple[str, int]]] = {}
    for (reason, detail), num in skipped.most_common():
        reasons.setdefault(reason, []).append((detail, num))
    rows = [(sum(num for _, num in details), reason, details) for reason, details in reasons.items()]
    return [
        [reason, f"{num:,}", ", ".join(f"{detail} ({of_it:,})" for detail, of_it in details)]
        for num, reason, details in sorted(rows, key=lambda row: -row[0])
    ]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], num_names: int) -> str:
    """A table whose first columns are names, and the others numbers."""
    lines = [columns, ["---"] * num_names + ["---:"] * (len(columns) - num_names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
