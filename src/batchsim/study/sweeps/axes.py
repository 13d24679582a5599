"""The points of a sweep: what its cases, grid, zipped and conditional axes make when they are crossed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from batchsim.config import SweepConfig, WhenConfig, flat
from batchsim.config.sweep import CASE
from batchsim.errors import ConfigError


class Point(NamedTuple):
    """Settings of one configuration of a sweep.

    Attributes
    ----------
    chosen
        Dotted keys that the sweep varies, as far as this point sets them.
    num_replications
        How many runs it gets.
    """

    case: str
    chosen: Mapping[str, Any]
    num_replications: int


def points(sweep: SweepConfig) -> Iterator[Point]:
    """Cross cases (outermost), the keys of the grid, zipped lists, and the axes of conditions (innermost).

    Raises
    ------
    ConfigError
        For a key that two of them set for one point.
    """
    base = flat(sweep.base)
    cases = [dict(case) for case in sweep.cases]
    labels = [str(case.pop("label", "")) for case in cases]
    _check_keys(sweep, cases)
    axes = [[{key: value} for value in values] for key, values in sweep.grid.items()]
    axes += [_together(lists) for lists in sweep.zip if lists]  # none is left where all its keys are given
    for case, label in zip(cases, labels, strict=True):
        for parts in product(*axes):
            chosen = dict(case)
            for part in parts:
                chosen |= part
            settings = {**base, **chosen, CASE: label}
            for more, num in _conditional(settings, sweep.when, sweep.replications or 1):
                yield Point(label, {**chosen, **more}, num)


def varied_keys(sweep: SweepConfig) -> list[str]:
    """All settings that a sweep varies, cases first."""
    of_cases = [key for case in sweep.cases for key in case if key != "label"]
    return list(dict.fromkeys([*of_cases, *sweep.axes]))


def _together(lists: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _conditional(
    settings: Mapping[str, Any], conditions: Sequence[WhenConfig], num_replications: int
) -> Iterator[tuple[dict[str, Any], int]]:
    """What the conditions that hold add to a point, one after the other: the next may ask for it."""
    if not conditions:
        yield {}, num_replications
        return
    when, *rest = conditions
    if not all(key in settings and settings[key] in values for key, values in when.has.items()):
        yield from _conditional(settings, rest, num_replications)
        return
    for values in product(*when.grid.values()):
        added = dict(zip(when.grid, values, strict=True))
        for more, num in _conditional({**settings, **added}, rest, when.replications or num_replications):
            if both := added.keys() & more.keys():
                raise ConfigError(
                    f"{min(both)} is set by two conditions that hold together; one of them has to leave it"
                )
            yield {**added, **more}, num


def _check_keys(sweep: SweepConfig, cases: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a key that would be set twice, whatever the conditions."""
    places: list[tuple[str, Collection[str]]] = [
        *(("a case", case) for case in cases),
        ("the grid", sweep.grid),
        *(("a zip", lists) for lists in sweep.zip),
        *(("a condition", when.grid) for when in sweep.when),
    ]
    for number, (place, keys) in enumerate(places):
        for other, more in places[number + 1 :]:
            both = set(keys) & set(more)
            if both and (place, other) not in (("a case",) * 2, ("a condition",) * 2):
                raise ConfigError(
                    f"{min(both)} is set by {place} and by {other}; one of them has to leave it"
                )
