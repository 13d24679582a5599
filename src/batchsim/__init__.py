"""Simulate what an LLM serving cluster would do under a batching policy, on a measured GPU, over a trace."""

from batchsim._version import __version__
from batchsim.config import RunConfig
from batchsim.errors import BatchsimError, ConfigError, PlanError, StalledSimulation, TraceError
from batchsim.latency.store import load_latency
from batchsim.study.run import SimulationResult, simulate
from batchsim.workload.load import load_trace
from batchsim.workload.request import Workload

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
    "load_trace",
    "simulate",
]
