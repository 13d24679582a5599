"""Fit latency models to a calibration, and choose by how well they predict points they were not shown.

A high R2 hides errors of tens of per cent at single points: judge a fit by its held-out errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from batchsim.errors import ConfigError
from batchsim.latency.choices import Family, TableLength
from batchsim.latency.fitting.batches import fit_affine, fit_phase, fit_table, misfit_at_largest
from batchsim.latency.fitting.iteration_tables import fit_iteration_table
from batchsim.latency.fitting.iterations import fit_linear
from batchsim.latency.fitting.report import FitReport, need_two_sizes
from batchsim.latency.tables.table import Calibration

__all__ = ["FamilyComparison", "FitReport", "compare_families", "fit"]

#: Families of which a model does for whole batches and for single iterations.
ITERATION_FAMILIES = ("linear", "iteration_table")
#: A family that does for both is taken before one whose held-out error is smaller by no more than this.
NEAR = 0.01


@dataclass(frozen=True, slots=True)
class FamilyComparison:
    """The families side by side.

    Attributes
    ----------
    chosen
        The best, or the one asked for.
    reports
        Of all families that the points allow.
    reasons
        Why they do not allow the others, by family.
    kinds
        The kinds of points by whose held-out errors the families are compared.
    scores
        The mean of these errors, by family: with a batch size held out and with a length held out, over the
        kinds; NaN if all are unknown.
    warnings
        Those of the chosen one, and what is wrong with the classic form if that is another.
    """

    chosen: FitReport
    reports: tuple[FitReport, ...]
    reasons: Mapping[str, str]
    kinds: tuple[str, ...]
    scores: Mapping[str, float]
    warnings: tuple[str, ...]


def fit(
    calibration: Calibration, family: Family = "auto", length: TableLength = "prompt+output"
) -> FitReport:
    """Fit a model.

    Parameters
    ----------
    calibration
        Whole-batch points for ``affine`` and ``table``; prefill and decode points for the others, and mixed
        ones for ``linear`` and ``iteration_table``, if there are any.
    family
        ``auto`` takes the family with the smallest mean held-out error on whole batches, or on prefills and
        decodes if no whole batches were measured; one that does for single iterations too goes before one
        that is better by a percentage point or less. ``auto-iteration`` takes the better of ``linear`` and
        ``iteration_table`` on iterations.
    length
        What the length of a whole batch counts; a ``max_seq_len`` column is taken to hold just that.
        Only ``affine`` and ``table`` have a use for it, and only a table can be over ``prompt,output``.

    Raises
    ------
    ConfigError
        If the points cannot tell the coefficients apart, or do not fill a grid.
    """
    if family in _FITS:
        return _FITS[family](calibration, length)
    return compare_families(calibration, family, length).chosen


def compare_families(
    calibration: Calibration, family: Family = "auto", length: TableLength = "prompt+output"
) -> FamilyComparison:
    """Fit all families that the points allow, and choose; parameters and errors as for `fit`.

    On whole batches all are compared at points they were not shown. A batch size held out is held out of all
    points, of phases and iterations as well (unless these need it). A length held out means nothing to a
    family that was fitted to no whole batches: it counts as it is.
    """
    if family not in get_args(Family):
        raise ConfigError(f"latency family is {family!r}; known: {', '.join(get_args(Family))}")
    if family not in _FITS:
        need_two_sizes(calibration)
    reports: dict[str, FitReport] = {}
    reasons: dict[str, str] = {}
    for name, fit_family in _FITS.items():
        try:
            reports[name] = fit_family(calibration, length)
        except ConfigError as error:
            reasons[name] = str(error)
    if family in reasons:
        raise ConfigError(reasons[family])
    allowed = [reports[name] for name in _candidates(family) if name in reports]
    if not allowed:
        told = "; ".join(f"{name}: {reasons[name]}" for name in _candidates(family))
        raise ConfigError(f"{calibration.name} allows no fit; {told}")
    is_for_iterations = family == "auto-iteration"
    compared = allowed if is_for_iterations else list(reports.values())
    kinds = _common_kinds(compared, with_batches=not is_for_iterations)
    chosen = _best(allowed, kinds)
    warnings = chosen.warnings
    if "affine" in reports and chosen.family != "affine":
        warnings += misfit_at_largest(reports["affine"].qualities[0], calibration)
    scores = {report.family: _score(report, kinds)[1] for report in compared}
    return FamilyComparison(chosen, tuple(reports.values()), reasons, kinds, scores, warnings)


def _candidates(family: Family) -> tuple[str, ...]:
    return {"auto": tuple(_FITS), "auto-iteration": ITERATION_FAMILIES}.get(family, (family,))


def _common_kinds(reports: Sequence[FitReport], *, with_batches: bool) -> tuple[str, ...]:
    """Return the kinds of points by which to compare: whole batches alone where there are any."""
    of_each = [[quality.kind for quality in report.qualities] for report in reports]
    common = [kind for kind in of_each[0] if all(kind in others for others in of_each)]
    if with_batches and "batch" in common:
        return ("batch",)
    return tuple(kind for kind in common if kind != "batch")


def _score(report: FitReport, kinds: tuple[str, ...]) -> tuple[int, float]:
    """Return how many held-out errors are unknown, and the mean of the others."""
    errors = [
        error
        for quality in report.qualities
        if quality.kind in kinds
        for error in (quality.heldout_batch_size_mape, quality.heldout_length_mape)
    ]
    known = [error for error in errors if not math.isnan(error)]
    return len(errors) - len(known), sum(known) / len(known) if known else math.nan


def _best(reports: Sequence[FitReport], kinds: tuple[str, ...]) -> FitReport:
    """Return the one with the fewest unknown errors and, among those, the smallest mean."""
    scores = {report.family: _score(report, kinds) for report in reports}
    num_unknown, smallest = min(scores.values())
    near = [report for report in reports if scores[report.family] <= (num_unknown, smallest + NEAR)]
    near = near or list(reports)  # where no error is known at all
    return min(near, key=lambda one: (one.family not in ITERATION_FAMILIES, scores[one.family]))


_FITS: Mapping[str, Callable[[Calibration, TableLength], FitReport]] = {
    "affine": fit_affine,
    "phase": lambda calibration, _: fit_phase(calibration),
    "table": fit_table,
    "linear": lambda calibration, _: fit_linear(calibration),
    "iteration_table": lambda calibration, _: fit_iteration_table(calibration),
}
