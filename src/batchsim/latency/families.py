"""The families of latency models that files name, and which of them tell the time of what.

To add one, write its dataclass and name it in `FAMILIES`; nothing else knows families. What it needs:

- a frozen dataclass whose annotations say how its coefficients stand in a file (see `coefficients`), and
  whose ``__post_init__`` raises `ConfigError` for values that make no times;
- a field ``info: LatencyInfo``; its ``details`` hold, under names of the family's own, what is known besides:
  where a grid was sampled, how it was interpolated there ... What changes times is a coefficient;
- a ``domain`` of whole batches, and an ``iteration_domain`` if there is one: arguments where the file gives
  the range, fields with ``init=False`` where the coefficients do, as the axes of a table;
- the methods of `BatchLatency` and, if it tells the time of single iterations, of `IterationLatency`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from batchsim.errors import ConfigError
from batchsim.latency.analytic import AffineBatchLatency, PhaseBatchLatency
from batchsim.latency.base import BatchLatency, IterationLatency
from batchsim.latency.linear import LinearIterationLatency
from batchsim.latency.operators import OperatorTableLatency
from batchsim.latency.passes import PassTableLatency
from batchsim.latency.roofline import RooflineLatency
from batchsim.latency.tables.grid import TableLatency
from batchsim.latency.tables.iteration_grid import TableIterationLatency

FAMILIES: Mapping[str, type[BatchLatency]] = {
    "affine": AffineBatchLatency,
    "phase": PhaseBatchLatency,
    "table": TableLatency,
    "roofline": RooflineLatency,
    "linear": LinearIterationLatency,
    "iteration_table": TableIterationLatency,
    "operators": OperatorTableLatency,
    "passes": PassTableLatency,
}


def as_iteration_latency(model: BatchLatency | IterationLatency) -> IterationLatency:
    """Return the model as one of iterations; `ConfigError` if it tells the time of whole batches only."""
    return cast("IterationLatency", _with("decode_line", model, "whole batches", "single iterations"))


def as_batch_latency(model: BatchLatency | IterationLatency) -> BatchLatency:
    """Return the model as one of whole batches; `ConfigError` if it tells the time of iterations only."""
    return cast("BatchLatency", _with("batch_time", model, "single iterations", "whole batches"))


def _with(method: str, model: BatchLatency | IterationLatency, told: str, wanted: str) -> object:
    if not hasattr(model, method):
        capable = ", ".join(name for name, kind in FAMILIES.items() if hasattr(kind, method))
        raise ConfigError(
            f"latency model {model.info.name} tells the time of {told} only; this policy needs that of "
            f"{wanted}: choose a model of one of the families {capable}"
        )
    return model
