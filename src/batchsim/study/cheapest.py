"""Which kind of GPU serves requests for the least money: a search for each kind, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from batchsim.config import RunConfig, load_config
from batchsim.errors import ConfigError
from batchsim.specs import load_gpu
from batchsim.specs.names import shipped
from batchsim.study.capacity import Capacity
from batchsim.study.setup.cost import check_priced

Case = TypeVar("Case")


def for_gpus(base: RunConfig, gpus: Sequence[str]) -> dict[str, RunConfig]:
    """Configure the same cluster with each of these kinds of GPU, by the names of their specs.

    Raises
    ------
    ConfigError
        For a kind that is unknown or named twice, a price of one that is not here, replicas that name their
        own, and a latency file, which is of one kind.
    """
    names = [load_gpu(gpu).name for gpu in gpus]
    if len(set(names)) < len(names):
        raise ConfigError(f"GPUs {', '.join(names)} are to be compared; each may be named once")
    for key in ("file", "system"):
        if (named := getattr(base.latency, key)) is not None:
            raise ConfigError(
                f"latency.{key} is {named!s:.60}, of one kind of GPU; leave it out to compare kinds, each "
                "with a roofline of its own"
            )
    check_priced(base.cost, names)
    return {name: _with_gpu(base, name, gpu) for name, gpu in zip(names, gpus, strict=True)}


def cheapest(found: Mapping[Case, Capacity]) -> Case | None:
    """The case in which a request costs least; None where no cost is known."""
    known = {case: one.usd_per_request for case, one in found.items() if one.usd_per_request is not None}
    return min(known, key=lambda case: known[case], default=None)


def _with_gpu(base: RunConfig, name: str, gpu: str) -> RunConfig:
    """The configuration with this GPU, and without prices of others that do not ship."""
    overrides: dict[str, object] = {"cluster.gpu": gpu}
    if isinstance(prices := base.cost.usd_per_gpu_hour, Mapping):
        overrides["cost.usd_per_gpu_hour"] = {
            one: price for one, price in prices.items() if one == name or one in shipped("gpus")
        }
    return load_config(base, overrides)
