"""What carries KV from the replicas that compute prompts to those that decode."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from batchsim.config.section import Count, Section


class KVTransferConfig(Section):
    """Links between replicas, where some compute prompts and others decode."""

    nic_bytes_per_s: PositiveFloat = Field(
        50e9, description="of a replica's network adapters together, each way; the default is 400 Gbit/s"
    )
    fabric_bytes_per_s: PositiveFloat | None = Field(
        None, description="of what all replicas share; left out: never the bottleneck"
    )
    latency_s: Annotated[float, Field(ge=0, le=10)] = Field(0.0, description="of a transfer, once")
    max_transfers: Count | None = Field(
        None,
        description="so many share an adapter, the others wait in order of arrival (1: one after the other); "
        "left out: all share it",
    )
    bytes_per_token: PositiveFloat | None = Field(
        None, description="of KV; left out: what cluster.model has for each token of a prompt"
    )
    overlap: Literal["none", "layers"] = Field(
        "none",
        description="KV is sent when the whole prompt is computed, or each layer's as soon as that is",
    )
