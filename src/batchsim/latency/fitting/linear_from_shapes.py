"""A linear model of the passes that a replay runs, fitted to a model that is not linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from batchsim.errors import ConfigError
from batchsim.latency.base import Domain, Floats, IterationDomain, IterationShape, LatencyInfo
from batchsim.latency.fitting.regression import Regime
from batchsim.latency.linear import LinearIterationLatency


class ManyPasses(Protocol):
    """A model that tells the seconds of many passes at once."""

    @property
    def info(self) -> LatencyInfo:
        """Name and provenance."""

    @property
    def domain(self) -> Domain:
        """The range of whole batches."""

    def iterations_s(self, shapes: Sequence[IterationShape] | Floats) -> Floats:
        """Seconds of passes, ``(num_shapes, 6)`` in the order of `IterationShape`'s fields."""


def linear_from_shapes(
    table: ManyPasses,
    shapes: Sequence[IterationShape] | Floats,
    num_iterations: Sequence[int] | NDArray[np.int64] | None = None,
) -> LinearIterationLatency:
    """Fit the linear model to the table's seconds at the iterations that a replay runs.

    By least squares of seconds, not of relative errors, with coefficients of at least 0: with a constant
    among them, the iterations' total is then that of the table. A coefficient that the shapes do not tell
    apart from those before it stays 0.

    Parameters
    ----------
    shapes
        ``(num_shapes, 6)``, in the order of `IterationShape`'s fields.
    num_iterations
        How often each occurs; once by default.

    Raises
    ------
    ConfigError
        If there are no shapes.
    """
    rows = np.asarray(shapes, dtype=np.float64).reshape(-1, len(IterationShape._fields))
    if not len(rows):
        raise ConfigError("no shapes to fit a linear model to; those of a replay are needed")
    weights = np.ones(len(rows)) if num_iterations is None else np.asarray(num_iterations, dtype=np.float64)
    seconds = table.iterations_s(rows)
    columns = {
        "fixed_s": np.ones(len(rows)),
        "per_prefill_token_s": rows[:, 0],
        "per_prefill_pair_s": rows[:, 4],
        "per_decode_seq_s": rows[:, 1],
        "per_context_token_s": rows[:, 2],
        "per_prefill_seq_s": rows[:, 3],
    }
    names = _independent(columns)
    design = np.column_stack([columns[name] for name in names])
    root = np.sqrt(weights)
    regime = Regime("shapes", names, design * root[:, None], seconds * root, rows[:, 1], rows[:, 2])
    values, warnings = regime.solve()
    coefficients = dict.fromkeys(columns, 0.0) | dict(zip(names, values, strict=True))
    errors = np.abs(design @ values / seconds - 1)
    quality = {
        "num_shapes": len(rows),
        "num_iterations": float(weights.sum()),
        "mape": float(np.average(errors, weights=weights)),
        "max_error": float(errors.max()),
        "total_error": float((weights * (design @ values)).sum() / (weights * seconds).sum() - 1),
        "warnings": warnings,
    }
    ranges = ((int(column.min()), int(column.max())) for column in rows[:, :3].T)
    details = {**table.info.details, "fitted_to": table.info.name, "fit": quality}
    return LinearIterationLatency(
        **coefficients,
        domain=table.domain,
        iteration_domain=IterationDomain(*ranges),
        info=LatencyInfo(f"{table.info.name}, linear", "derived", details),
    )


def _independent(columns: Mapping[str, Floats]) -> tuple[str, ...]:
    """Return the columns that are no sums of others before them."""
    names: tuple[str, ...] = ()
    for name, column in columns.items():
        scaled = [columns[one] / columns[one].max() for one in names]
        if column.any() and np.linalg.matrix_rank([*scaled, column / column.max()]) > len(names):
            names = (*names, name)
    return names
