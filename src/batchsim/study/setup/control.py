"""From a configuration to the control plane: who decides how many replicas there are, and when they fail."""

from __future__ import annotations

import math
from collections.abc import Sequence

from batchsim.config import AutoscalerConfig, FailuresConfig, RunConfig
from batchsim.errors import ConfigError
from batchsim.policies import presets
from batchsim.policies.guards.checks import unguarded
from batchsim.policies.scaling import build_scaling
from batchsim.sim.cluster.control import Breakdowns, ControlPlane, Scaler
from batchsim.sim.cluster.durations import Durations
from batchsim.sim.cluster.slots import Rescue
from batchsim.streams import stream
from batchsim.study.setup.cluster import Replica


def check_fixed(config: RunConfig) -> None:
    """Raise `ConfigError` if replicas are to come, go or fail in a world where they cannot."""
    if section := _section(config):
        raise ConfigError(
            f"policy {config.policy.preset} runs batches to completion on GPUs that are always there; "
            f"{section} needs a policy that batches at every iteration"
        )


def control_plane(config: RunConfig, replicas: Sequence[Replica]) -> ControlPlane | None:
    """How replicas come, go and fail; None where all are there all the time."""
    section = _section(config)
    if not section:
        return None
    if {one.role for one in replicas} != {"both"}:
        raise ConfigError(
            f"{section} is for replicas that compute prompts and decode; those of role = prefill or decode "
            "are there all the time"
        )
    _check_together(config, section)
    return ControlPlane(
        _scaler(config.autoscaler, config.seed, len(replicas)),
        _breakdowns(config.failures, config.seed, len(replicas)) if config.failures.is_any else None,
    )


def _check_together(config: RunConfig, section: str) -> None:
    """Refuse what has not been thought through beside replicas that come, go and fail."""
    routing = presets.build(config.policy).routing
    name = type(unguarded(routing)).__name__
    if routing is not None and routing.is_central:
        if section == "autoscaler":
            raise ConfigError(f"autoscaler counts who waits at replicas, and with {name} nobody does")
        if config.failures.repair_s is None:
            raise ConfigError(f"{name} needs failures.repair_s: its one queue would wait for ever")
    if not config.failures.is_any:
        return
    if routing is not None and (routing.load == "views" or routing.view_age_s):
        raise ConfigError(
            f"failures need a routing that sees no caches, and replicas as they are; {name} sees more"
        )
    if config.engine.speculation.num_speculative_tokens:
        raise ConfigError("failures take single tokens back; leave engine.speculation out beside them")


def _section(config: RunConfig) -> str:
    if config.autoscaler.kind is not None:
        return "autoscaler"
    return "failures" if config.failures.is_any else ""


def _scaler(given: AutoscalerConfig, seed: int, num_replicas: int) -> Scaler | None:
    if given.kind is None:
        return None
    at_start = given.min_replicas if given.initial_replicas is None else given.initial_replicas
    for name, num in (("min_replicas", given.min_replicas), ("initial_replicas", at_start)):
        if num > num_replicas:
            raise ConfigError(f"autoscaler.{name} is {num}, but the cluster has {num_replicas} replicas")
    rng = stream(seed, "cold_start")
    cold_start = Durations(given.cold_start_s, given.cold_start, given.cold_start_cv, rng)
    rule = build_scaling(given.kind, given.parameters)
    return Scaler(rule, given.interval_s, given.min_replicas, at_start, cold_start)


def _breakdowns(given: FailuresConfig, seed: int, num_replicas: int) -> Breakdowns:
    for time_s, number in given.at:
        if number >= num_replicas:
            raise ConfigError(
                f"failures.at names replica {number} at {time_s:g} s; the cluster has replicas 0 to "
                f"{num_replicas - 1}"
            )
    repair_s = math.inf if given.repair_s is None else given.repair_s
    # Of each replica by itself: whatever the policy, it fails after equal times.
    between, repair = (
        [
            Durations(mean_s, law, cv, stream(seed, f"{name} of replica {number}"))
            for number in range(num_replicas)
        ]
        for name, mean_s, law, cv in (
            ("failures", given.time_between_s or math.inf, given.time_between, given.time_between_cv),
            ("repairs", repair_s, given.repair, given.repair_cv),
        )
    )
    wear = between if given.time_between_s is not None else []
    return Breakdowns(wear, repair, given.at, Rescue(given.on_failure, given.max_retries))
