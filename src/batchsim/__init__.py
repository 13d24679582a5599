"""Simulate what an LLM serving cluster would do under a batching policy, on its GPUs, over a trace.

``batchsim.simulate({"workload": {"num_requests": 100}})`` gives a `SimulationResult`. What a run is
composed of stands in three rooms:

- `batchsim.policies`: the answers of a scheduler, and presets made of them;
- `batchsim.latency`: how long batches and iterations take;
- `batchsim.workload`: traces, generators and predictors.

Further questions have a module each: `batchsim.study.compare`, ``capacity`` and ``sweep``. What a run
leaves on disk is read by `batchsim.results.store`, what a sweep leaves by `load_sweep`, and
`batchsim.figures` draws sweeps.
"""

from typing import TYPE_CHECKING

from batchsim._lazy import lazy
from batchsim._version import __version__

if TYPE_CHECKING:
    from batchsim import latency as latency
    from batchsim import policies as policies
    from batchsim import workload as workload
    from batchsim.config import RunConfig
    from batchsim.errors import BatchsimError, ConfigError, PlanError, StalledSimulation, TraceError
    from batchsim.latency.store import load_latency
    from batchsim.results.dataset import load_sweep
    from batchsim.study.replications import replicate
    from batchsim.study.result import SimulationResult
    from batchsim.study.run import simulate
    from batchsim.workload.load import load_trace
    from batchsim.workload.request import Workload
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "BatchsimError",
    "ConfigError",
    "PlanError",
    "RunConfig",
    "SimulationResult",
    "StalledSimulation",
    "TraceError",
    "Workload",
    "__version__",
    "load_latency",
    "load_sweep",
    "load_trace",
    "replicate",
    "simulate",
]
