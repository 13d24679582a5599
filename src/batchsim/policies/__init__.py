"""What is chosen: who is next, how many, what goes in, which replica; and presets, the named combinations.

A `Preset` is four answers, ours or yours; a configuration names it ``module:preset``. The answers stand
in ``queueing`` (`QueueDiscipline`), ``sizing`` (`Sizer`), ``batching`` for batches that run to completion
(`LaunchRule`), ``continuous`` for those that change at every iteration (`IterationRule`), ``routing``
(`Routing`) and ``admission`` (`Admission`); how many replicas there are is answered in ``scaling``, and who
goes where a tier below the GPUs is full in ``eviction`` (`Eviction`). `RankedQueue` and `PlainRule` are for
own queues and iteration rules to derive from.
"""

from typing import TYPE_CHECKING

from batchsim._lazy import lazy

if TYPE_CHECKING:
    from batchsim.policies.admission import AdmitAll, PredictedTTFT, QueueLimit
    from batchsim.policies.base import (
        Admission,
        LaunchRule,
        QueueDiscipline,
        ReplicaView,
        Routing,
        Setting,
        Sizer,
        WaitingRequest,
    )
    from batchsim.policies.batching import FullBatch, Greedy, Timer
    from batchsim.policies.building_blocks import PlainRule, RankedQueue
    from batchsim.policies.continuous import ChunkedPrefill, PrefillFirst, ReserveWhole, StallFree
    from batchsim.policies.eviction import Eviction, Gdsf, Lfu, Lru
    from batchsim.policies.fair_share import FairShare
    from batchsim.policies.presets import PRESETS, Policy, Preset, build, find_preset
    from batchsim.policies.queueing import EarliestDeadline, Fifo, HighestPriority, MultiBin, ShortestFirst
    from batchsim.policies.reports import BatchReport, Decision, IterationReport
    from batchsim.policies.routing import (
        CacheAware,
        Central,
        LeastLoaded,
        LMetric,
        PowerOfTwo,
        PrefixAffinity,
        RoundRobin,
        SessionAffinity,
    )
    from batchsim.policies.sizing import FixedSize, MemoryAware, SloFeedback, Smallest
    from batchsim.policies.steps import IterationRule, RunningRequest, Step
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "PRESETS",
    "Admission",
    "AdmitAll",
    "BatchReport",
    "CacheAware",
    "Central",
    "ChunkedPrefill",
    "Decision",
    "EarliestDeadline",
    "Eviction",
    "FairShare",
    "Fifo",
    "FixedSize",
    "FullBatch",
    "Gdsf",
    "Greedy",
    "HighestPriority",
    "IterationReport",
    "IterationRule",
    "LMetric",
    "LaunchRule",
    "LeastLoaded",
    "Lfu",
    "Lru",
    "MemoryAware",
    "MultiBin",
    "PlainRule",
    "Policy",
    "PowerOfTwo",
    "PredictedTTFT",
    "PrefillFirst",
    "PrefixAffinity",
    "Preset",
    "QueueDiscipline",
    "QueueLimit",
    "RankedQueue",
    "ReplicaView",
    "ReserveWhole",
    "RoundRobin",
    "Routing",
    "RunningRequest",
    "SessionAffinity",
    "Setting",
    "ShortestFirst",
    "Sizer",
    "SloFeedback",
    "Smallest",
    "StallFree",
    "Step",
    "Timer",
    "WaitingRequest",
    "build",
    "find_preset",
]
