"""From a configuration to what lies below the KV caches of GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from batchsim.config import RunConfig
from batchsim.errors import ConfigError
from batchsim.policies.eviction import make_eviction
from batchsim.sim.cluster.tiers import TierPlan, TierPlans
from batchsim.sim.engine import Engine
from batchsim.specs import ModelSpec
from batchsim.workload.prefixes import id_column
from batchsim.workload.request import Workload


def tier_plans(
    config: RunConfig, models: Sequence[ModelSpec], engines: Sequence[Engine], workload: Workload
) -> TierPlans | None:
    """What holds the KV that GPUs lose; None where nothing is configured.

    Parameters
    ----------
    models, engines
        Of each replica.

    Raises
    ------
    ConfigError
        Where nothing could be found again, or a shared tier would hold KV of several models.
    """
    given = config.cluster.tier
    if not given:
        return None
    if not any(engine.prefix_caching for engine in engines):
        raise ConfigError(
            f"cluster.tier {given[0].name!r} holds prefixes that the cache of a GPU has lost, but engines of "
            f"policy {config.policy.preset} cache none; engine.prefix_caching = true is needed"
        )
    if id_column(workload.extra) is None:
        raise ConfigError(
            f"cluster.tier {given[0].name!r} holds prefixes, but prompts of {workload.source.name} have no "
            "ids that would tell what they begin with (hash_ids); clients.grow_context makes them of sessions"
        )
    names = {model.name for model in models}
    shared = next((one.name for one in given if one.shared), None)
    if shared is not None and len(names) > 1:
        raise ConfigError(
            f"cluster.tier {shared!r} is shared by replicas that run {' and '.join(sorted(names))}, but KV "
            "of one model is of no use to another; one model is needed"
        )
    plans = []
    for index, one in enumerate(given):
        where = f"cluster.tier[{index}].eviction"
        make_eviction(one.eviction, where)  # what is wrong with it is said before the run
        plans.append(
            TierPlan(
                one.name,
                one.capacity_bytes,
                one.capacity_tokens,
                one.read_bytes_per_s,
                one.write_bytes_per_s,
                one.latency_s,
                one.max_transfers,
                one.shared,
                partial(make_eviction, one.eviction, where),
            )
        )
    return TierPlans(plans, [model.kv_bytes_per_token for model in models])
