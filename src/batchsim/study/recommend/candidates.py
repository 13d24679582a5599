"""What is compared: every kind of GPU with every policy and every combination of settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from batchsim.config import RunConfig, load_config
from batchsim.errors import ConfigError, nearest
from batchsim.specs import load_gpu
from batchsim.study.cheapest import for_gpus
from batchsim.study.compare import for_policies
from batchsim.study.setup.cost import gpu_usd_per_hour
from batchsim.study.setup.hardware import adopt_hardware

#: Settings that are usually varied, by short names, and what is tried where nothing is said.
USUAL: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "num_gpus": ("cluster.num_gpus", (1, 2, 4, 8, 16)),
    "tensor_parallel": ("cluster.tensor_parallel", (1, 2, 4, 8)),
    "pipeline_parallel": ("cluster.pipeline_parallel", (1, 2)),
    "batch_size": ("policy.batch_size", (64, 256)),
    "num_bins": ("policy.num_bins", (2, 4, 8)),
    "max_num_batched_tokens": ("policy.batching.max_num_batched_tokens", (512, 2048, 8192)),
    "gpu_memory_utilization": ("engine.gpu_memory_utilization", (0.85, 0.9, 0.95)),
    "prefix_caching": ("engine.prefix_caching", (False, True)),
}
#: Sections that are the question, not an answer to it.
_ASKED = ("workload", "slo", "cost", "seed", "metrics")
_SHORT = {key: name for name, (key, _) in USUAL.items()}
#: More than anybody waits for.
_MOST_CANDIDATES = 100_000


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One of the configurations that are compared.

    Attributes
    ----------
    settings
        In what it differs from others: policy, GPU, and the varied keys by their short names.
    config
        With the hardware that counts.
    usd_per_hour
        Of all its GPUs.
    """

    settings: Mapping[str, Any]
    config: RunConfig
    usd_per_hour: float
    notices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As a person would call it."""
        return name_of(self.settings)


class Unfit(NamedTuple):
    """A combination that cannot be configured, and why."""

    settings: Mapping[str, Any]
    reason: str


def name_of(settings: Mapping[str, Any]) -> str:
    """Settings in words: "vllm_v1 on h100, num_gpus 2"."""
    head = str(settings["policy"]) + (f" on {settings['gpu']}" if "gpu" in settings else "")
    rest = [f"{key} {value}" for key, value in settings.items() if key not in ("policy", "gpu")]
    return ", ".join([head, *rest])


def make_candidates(
    base: RunConfig, gpus: Sequence[str], policies: Sequence[str], vary: Mapping[str, Sequence[Any]]
) -> tuple[list[Candidate], list[Unfit]]:
    """Configure every combination; those with a lower price come first.

    Parameters
    ----------
    gpus
        Names of specs; none: the one that ``base`` has.
    vary
        Settings to their values: short names of `USUAL`, or dotted keys; no values: the usual ones.

    Returns
    -------
    candidates, unfit
        Those whose price is known, and the combinations that are no cluster, or have no price.

    Raises
    ------
    ConfigError
        For a key without values, too many combinations, an unknown policy or GPU; and where none is left.
    """
    grid = {_SHORT.get(key, key): (_dotted(key), _values(key, values)) for key, values in vary.items()}
    num_values = [len(values) for _, values in grid.values()]
    kinds = for_gpus(base, gpus) if gpus else {None: base}
    num = math.prod([len(kinds), len(policies), *num_values])
    if num > _MOST_CANDIDATES:
        raise ConfigError(f"{num:,} configurations are to be compared; at most {_MOST_CANDIDATES:,} can be")
    found: list[Candidate] = []
    unfit: list[Unfit] = []
    for gpu, of_kind in kinds.items():
        for policy, config in for_policies(of_kind, policies).items():
            for chosen in product(*(values for _, values in grid.values())):
                settings = {"policy": policy} | ({} if gpu is None else {"gpu": gpu})
                settings |= dict(zip(grid, chosen, strict=True))
                keys = (key for key, _ in grid.values())
                try:
                    found.append(_candidate(config, settings, dict(zip(keys, chosen, strict=True))))
                except ConfigError as error:
                    unfit.append(Unfit(settings, str(error)))
    if not found:
        others = "" if gpus else "; GPUs to choose from are given by --gpu (gpus), e.g. h100,l40s"
        raise ConfigError(f"none of the {num:,} configurations can be compared: {unfit[0].reason}{others}")
    return sorted(found, key=lambda one: one.usd_per_hour), unfit


def _dotted(key: str) -> str:
    dotted = USUAL[key][0] if key in USUAL else key
    if "." not in dotted and dotted not in RunConfig.model_fields:
        raise ConfigError(f"{key} names no setting to vary; {nearest(key, USUAL)} (or any by its dotted key)")
    if dotted.partition(".")[0] in _ASKED:
        raise ConfigError(
            f"{dotted} is the same for all configurations that are compared, and cannot be varied"
        )
    return dotted


def _values(key: str, given: Sequence[Any]) -> Sequence[Any]:
    short = _SHORT.get(key, key)
    values = list(given) or list(USUAL[short][1] if short in USUAL else ())
    if not values:
        raise ConfigError(f"which values of {key} are to be tried is not said; write {key}=VALUE,VALUE,...")
    if any(value in values[:place] for place, value in enumerate(values)):
        raise ConfigError(f"{key} is to be {', '.join(map(str, values))}; each value may be given once")
    return values


def _candidate(base: RunConfig, settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> Candidate:
    config, notices = adopt_hardware(load_config(base, overrides))
    return Candidate(settings, config, _usd_per_hour(config), tuple(notices))


def _usd_per_hour(config: RunConfig) -> float:
    cluster = config.cluster
    gpus = [(cluster.num_gpus, cluster.gpu)]
    if cluster.replicas:
        gpus = [
            (one.count * cluster.sharing(one).num_gpus, one.gpu or cluster.gpu) for one in cluster.replicas
        ]
    total = 0.0
    for num, gpu in gpus:
        name = load_gpu(gpu).name
        usd = gpu_usd_per_hour(config.cost, name)
        if usd is None:
            raise ConfigError(f"no price of {name} is known; cost.usd_per_gpu_hour gives one")
        total += num * usd
    return total
