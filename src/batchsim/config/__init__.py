"""Configurations: what a run, a sweep and a figure are, and how they are read.

`load_config` turns a dict, a TOML file or a model into a `RunConfig`, with overrides on top.
"""

from typing import TYPE_CHECKING

from batchsim._lazy import lazy

if TYPE_CHECKING:
    from batchsim.config.control import AutoscalerConfig, FailuresConfig
    from batchsim.config.cost import CostConfig
    from batchsim.config.dotted import flat, set_dotted
    from batchsim.config.hardware import ClusterConfig, EngineConfig, LatencyConfig, ReplicaConfig
    from batchsim.config.load import load_config, read_toml, validate
    from batchsim.config.run import (
        ClientsConfig,
        MetricsConfig,
        PolicyConfig,
        PredictorConfig,
        RunConfig,
        SloConfig,
        TenantConfig,
        WorkloadConfig,
    )
    from batchsim.config.sweep import GridConfig, SweepConfig, WhenConfig
    from batchsim.config.tiers import TierConfig
else:
    __getattr__, __dir__ = lazy(__name__)  # what a sweep is need not be built for a run

__all__ = [
    "AutoscalerConfig",
    "ClientsConfig",
    "ClusterConfig",
    "CostConfig",
    "EngineConfig",
    "FailuresConfig",
    "GridConfig",
    "LatencyConfig",
    "MetricsConfig",
    "PolicyConfig",
    "PredictorConfig",
    "ReplicaConfig",
    "RunConfig",
    "SloConfig",
    "SweepConfig",
    "TenantConfig",
    "TierConfig",
    "WhenConfig",
    "WorkloadConfig",
    "flat",
    "load_config",
    "read_toml",
    "set_dotted",
    "validate",
]
