"""How fast must requests come for an engine to be busy for such a share of the time?"""

from __future__ import annotations

import math

from batchsim.config import RunConfig
from batchsim.errors import ConfigError
from batchsim.metrics.system import Window, busy_fraction
from batchsim.streams import stream
from batchsim.study.run import simulate
from batchsim.study.setup.hardware import AnyLatency
from batchsim.workload.load import prepare
from batchsim.workload.request import Workload
from batchsim.workload.transform import rescale_to_rate

#: Halvings of the range of rates; the last step is below a thousandth.
_NUM_HALVINGS = 24


def requests_of(config: RunConfig) -> Workload:
    """Make the requests that a configuration asks for, at its own pace."""
    _, workload = prepare(config.workload, 1, stream(config.seed, "workload"))
    return workload


def paced(config: RunConfig, workload: Workload, latency: AnyLatency, busy: float) -> tuple[Workload, float]:
    """Rescale time so that one engine is busy for a share of it, from the first arrival to the last finish.

    Returns
    -------
    tuple
        The workload, and its rate in requests per second.

    Raises
    ------
    ConfigError
        If no pace does it, as of requests so few that the last one's answer is most of the time.
    """
    if not 0 < busy < 1:
        raise ConfigError(f"busy is {busy:g}; a share of the time between 0 and 1 is needed")
    tree = config.model_dump()
    tree["workload"] = {"training_fraction": 0.0}

    def busy_at(rate_per_s: float) -> float:
        result = simulate(tree, rescale_to_rate(workload, rate_per_s), latency=latency)
        requests = result.requests
        span = Window(float(requests["arrival_s"].min()), float(requests["finish_s"].max()))
        operations = result.iterations if result.records.is_iteration_level else result.batches
        return busy_fraction(operations, 1, span)

    low, high = 1e-3, 1e-3
    while busy_at(high) < busy:
        low, high = high, high * 4
        if high > 1e6:
            raise ConfigError(f"no request rate keeps the engine busy for {busy:.0%} of the time")
    for _ in range(_NUM_HALVINGS):
        middle = math.sqrt(low * high)
        if busy_at(middle) < busy:
            low = middle
        else:
            high = middle
    return rescale_to_rate(workload, high), high
