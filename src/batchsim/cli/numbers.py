"""Numbers as people read them: few digits, and how far their intervals reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def milliseconds(value_ms: float, sign: str = "") -> str:
    """Four significant digits, but never fewer than whole milliseconds: 45,010, 12.35, 0.1235.

    Less than a nanosecond is rounding, and 0.
    """
    value_ms = value_ms if abs(value_ms) >= 1e-6 else 0.0
    rounded = float(f"{value_ms:.4g}")
    digits = 3 - math.floor(math.log10(abs(rounded))) if rounded else 1
    return f"{value_ms:{sign},.{max(digits, 0)}f}"


def signed(value: float, digits: int | None) -> str:
    """A difference with its sign; digits as in `ROWS`."""
    return milliseconds(value, "+") if digits is None else f"{value:+,.{digits}f}"


def number(value: float | None, factor: float, digits: int | None) -> str:
    """A number in the unit of a row of the summary table; a dash where there is none."""
    if value is None:
        return "-"
    return milliseconds(value * factor) if digits is None else f"{value * factor:,.{digits}f}"


def cell(summary: Mapping[str, Any], key: str, factor: float, digits: int | None) -> str:
    """A number, and behind ± how far its interval over replications reaches, to two digits."""
    value = number(summary.get(key), factor, digits)
    if num_replications(summary) < 2:
        return value
    from batchsim.metrics.statistics import ci95_keys

    mean, low, high = (summary.get(name) for name in (key, *ci95_keys(key)))
    if mean is None or low is None or high is None:
        return value
    # An end that cannot be is nearer than the other.
    return f"{value} ± {_two_digits(max(high - mean, mean - low) * factor)}"


def _two_digits(value: float) -> str:
    rounded = float(f"{value:.2g}")
    digits = 1 - math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{rounded:,.{max(digits, 0)}f}"


def num_replications(summary: Mapping[str, Any]) -> int:
    """Of how many runs these are the means."""
    return int(summary.get("num_replications", 1))


def duration(seconds: float | None) -> str:
    """About how long, for people: 40 s, 3 min, 2 h 5 min; nothing where nobody knows."""
    if seconds is None:
        return "?"
    if seconds < 10:
        return f"{max(seconds, 0.1):.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"
