"""How long it takes: models of the seconds of a batch or an iteration, and the file they are written in.

Read a model with `load_latency`, or make one and pass it to `batchsim.simulate`. The Protocols are
`BatchLatency` for whole batches and `IterationLatency` for single forward passes, asked with a
`BatchShape` or an `IterationShape`. The packages ``fitting`` and ``profiles`` make models from
measurements.
"""

from typing import TYPE_CHECKING

from batchsim._lazy import lazy

if TYPE_CHECKING:
    from batchsim.latency.analytic import AffineBatchLatency, NoisyLatency, PhaseBatchLatency
    from batchsim.latency.base import (
        BatchLatency,
        BatchShape,
        BatchTime,
        DecodeLine,
        Domain,
        IterationDomain,
        IterationLatency,
        IterationShape,
        LatencyInfo,
        UnevenIterationLatency,
    )
    from batchsim.latency.families import as_batch_latency, as_iteration_latency
    from batchsim.latency.linear import LinearIterationLatency
    from batchsim.latency.lockstep import LockstepLatency
    from batchsim.latency.noise import NoisyIterationLatency
    from batchsim.latency.operators import OperatorTable, OperatorTableLatency
    from batchsim.latency.roofline import RooflineLatency
    from batchsim.latency.store import default_latency, load_latency, save_latency
    from batchsim.latency.tables.grid import TableLatency
    from batchsim.latency.tables.iteration_grid import TableIterationLatency
    from batchsim.latency.tables.table import Calibration, read_calibration
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "AffineBatchLatency",
    "BatchLatency",
    "BatchShape",
    "BatchTime",
    "Calibration",
    "DecodeLine",
    "Domain",
    "IterationDomain",
    "IterationLatency",
    "IterationShape",
    "LatencyInfo",
    "LinearIterationLatency",
    "LockstepLatency",
    "NoisyIterationLatency",
    "NoisyLatency",
    "OperatorTable",
    "OperatorTableLatency",
    "PhaseBatchLatency",
    "RooflineLatency",
    "TableIterationLatency",
    "TableLatency",
    "UnevenIterationLatency",
    "as_batch_latency",
    "as_iteration_latency",
    "default_latency",
    "load_latency",
    "read_calibration",
    "save_latency",
]
