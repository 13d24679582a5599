"""The requests of each replication: the same for all candidates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from batchsim.config import RunConfig, WorkloadConfig
from batchsim.errors import ConfigError
from batchsim.policies import presets
from batchsim.streams import stream
from batchsim.study.replications import replication_seed
from batchsim.study.run import training_fraction
from batchsim.workload.load import prepare
from batchsim.workload.predictor import make_predictor
from batchsim.workload.request import Workload

#: Requests of a replication where the configuration does not say how many.
DEFAULT_NUM_REQUESTS = 1000


class Draw(NamedTuple):
    """A configuration that is to be simulated once, and the requests if it does not make its own."""

    config: RunConfig
    workload: Workload | None


class Draws:
    """Replications of any candidate; the same number is the same requests and the same randomness for all.

    A generator makes the requests of each anew, from its seed; so are the blocks of a trace drawn that is
    resampled (``workload.resample_s``). Any other trace is paced as a whole and cut into
    consecutive parts, taken in an order drawn at random: the first few are then no morning of it, but a
    sample. A part has its own seed, whenever it is taken.

    Attributes
    ----------
    most
        Replications there are: parts of the trace, or as many as are asked for.
    num_requests
        Of each.
    are_parts
        Whether they are parts of one trace.
    population
        Parts that the trace has; None where there are as many replications as one likes.
    """

    def __init__(self, config: RunConfig, most: int, workload: Workload | None = None) -> None:
        """Read the trace, if there is one.

        Raises
        ------
        ConfigError, TraceError
            For a pace that depends on the cluster, a trace that cannot be read, and one with fewer requests
            than a replication takes.
        """
        given = config.workload
        fixed = (given.request_rate_per_gpu, given.load, given.num_requests_per_gpu)
        if any(one is not None for one in fixed):
            raise ConfigError(
                "all candidates are to meet the same requests: leave out workload.request_rate_per_gpu, "
                "workload.load and workload.num_requests_per_gpu; workload.request_rate gives a pace to all"
            )
        self.num_requests = given.num_requests or DEFAULT_NUM_REQUESTS
        self.are_parts = given.resample_s is None and (workload is not None or given.generator is None)
        self._workload = workload
        self.most = most
        self.population: int | None = None
        if self.are_parts:
            self._cut(config, most, workload)

    def draw(self, config: RunConfig, k: int) -> Draw:
        """Replication k of a candidate."""
        given = config.workload
        if not self.are_parts:
            update = {"num_requests": self.num_requests}
            return Draw(_seeded(config, k, given.model_copy(update=update)), self._workload)
        part = int(self._order[k])
        start = self._num_training + part * self.num_requests
        rows = np.r_[: self._num_training, start : start + self.num_requests]
        fraction = self._num_training / len(rows)
        alone = WorkloadConfig(training_fraction=fraction, tenants=given.tenants)
        return Draw(_seeded(config, part, alone), self._everything.take(rows))

    def _cut(self, config: RunConfig, most: int, workload: Workload | None) -> None:
        whole = config.workload.model_copy(update={"num_requests": None, "tenants": ()})
        rng = stream(config.seed, "workload")
        _, self._everything = prepare(whole, config.cluster.num_gpus, rng, workload)
        fraction = training_fraction(config, presets.build(config.policy), make_predictor(config.predictor))
        total = len(self._everything)
        self._num_training = max(1, round(fraction * total)) if fraction else 0
        num_parts = (total - self._num_training) // self.num_requests
        if num_parts < 2:
            raise ConfigError(
                f"{self._everything.source.name} has {total - self._num_training:,} requests to evaluate, "
                f"{num_parts} of the parts of {self.num_requests:,} that replications take; give a smaller "
                "workload.num_requests"
            )
        self._order = stream(config.seed, "parts").permutation(num_parts)
        self.most, self.population = min(most, num_parts), num_parts


def _seeded(config: RunConfig, k: int, workload: WorkloadConfig) -> RunConfig:
    return config.model_copy(update={"seed": replication_seed(config.seed, k), "workload": workload})
