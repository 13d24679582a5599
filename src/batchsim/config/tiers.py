"""Where KV goes that does not fit a GPU: host memory, a disk, a pool of all replicas."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any

from pydantic import Field, model_validator

from batchsim.config.section import Count, Section, Tokens

#: Below: GB/s are meant.
BytesPerS = Annotated[float, Field(ge=1e5, le=1e18)]


class TierConfig(Section):
    """A store for the KV of prefixes that the one above has lost."""

    name: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$", max_length=30)] = Field(
        description="what it is called in the results: letters, digits and underscores"
    )
    capacity_bytes: Annotated[float, Field(gt=0, le=1e18)] | None = Field(
        None, description="bytes of KV that it holds, of each replica unless it is shared"
    )
    capacity_tokens: Tokens | None = Field(None, description="the same, in tokens")
    read_bytes_per_s: BytesPerS = Field(
        25e9, description="of what comes up from it; the default is PCIe 4.0 x16"
    )
    write_bytes_per_s: BytesPerS = Field(25e9, description="of what goes down into it")
    latency_s: Annotated[float, Field(ge=0, le=10)] = Field(0.0, description="of a copy, once, each way")
    max_transfers: Count | None = Field(
        None,
        description="so many copies share its bandwidth, each way, the others wait in order of arrival; left "
        "out: all share it",
    )
    shared: bool = Field(False, description="one for all replicas, not one for each")
    eviction: dict[str, Any] = Field(
        {"kind": "Lru"},
        description="`kind` of who goes when it is full, and its parameters (docs/policies.md)",
    )

    @model_validator(mode="after")
    def _has_a_capacity(self) -> TierConfig:
        if (self.capacity_bytes is None) == (self.capacity_tokens is None):
            raise ValueError("give capacity_bytes or capacity_tokens")
        return self


def check_tiers(tiers: tuple[TierConfig, ...]) -> None:
    """Raise `ValueError` for two of one name, or one that only some replicas reach through a shared one."""
    names = [one.name for one in tiers]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two of cluster.tier are called {twice!r}; each needs a name of its own")
    for above, below in pairwise(tiers):
        if above.shared and not below.shared:
            raise ValueError(
                f"cluster.tier {below.name!r} is one for each replica, but lies below {above.name!r}, which "
                "is shared; what is shared comes last"
            )
