"""Requests: where they come from, when they arrive, how long they are, and what is predicted about them.

A `Workload` is read (`load_trace` keeps what it has read, `read_trace` reads anew), made (`generate`), or
built from a table of yours; cut and paced (`window`, `filter_rows`, `rescale_time`, `rescale_to_rate`,
`split_training`); and written (`write_trace`). Output lengths are predicted by what `make_predictor`
makes.
"""

from typing import TYPE_CHECKING

from batchsim._lazy import lazy

if TYPE_CHECKING:
    from batchsim.workload.boundaries import fit_boundaries
    from batchsim.workload.describe import trace_info
    from batchsim.workload.formats import read_trace, write_trace
    from batchsim.workload.generators.synthetic import generate
    from batchsim.workload.load import embedded_trace, load_trace
    from batchsim.workload.predictor import (
        Confusion,
        Constant,
        Lognormal,
        NeighbourBin,
        Oracle,
        Predictor,
        PromptRegression,
        make_predictor,
        prediction_quality,
    )
    from batchsim.workload.request import Source, Workload
    from batchsim.workload.transform import filter_rows, rescale_time, rescale_to_rate, split_training, window
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "Confusion",
    "Constant",
    "Lognormal",
    "NeighbourBin",
    "Oracle",
    "Predictor",
    "PromptRegression",
    "Source",
    "Workload",
    "embedded_trace",
    "filter_rows",
    "fit_boundaries",
    "generate",
    "load_trace",
    "make_predictor",
    "prediction_quality",
    "read_trace",
    "rescale_time",
    "rescale_to_rate",
    "split_training",
    "trace_info",
    "window",
    "write_trace",
]
