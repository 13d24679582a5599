"""The control plane: when replicas come and go, and when they fail."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, model_validator

from batchsim.config.section import MOST_GPUS, Section

Law = Literal["fixed", "exponential", "lognormal", "uniform"]
#: Standard deviation / mean.
Variation = Annotated[float, Field(ge=0, le=100)]

_WIDEST_UNIFORM = 1 / math.sqrt(3)


class AutoscalerConfig(Section):
    """When replicas come and go; ``kind`` names the rule, keys not listed are its parameters.

    The replicas of the cluster are the most that there may be.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    kind: str | None = Field(
        None,
        description="`TargetTracking`, `Thresholds`, `Predictive`, or `module:Class`, with its parameters "
        "beside it; left out: all replicas of the cluster are there all the time",
    )
    interval_s: Annotated[float, Field(ge=1e-3)] = Field(30.0, description="between its decisions")
    min_replicas: Annotated[int, Field(ge=0, le=MOST_GPUS)] = Field(
        1, description="fewer are never wanted; 0: to zero; at most are there as many as the cluster has"
    )
    initial_replicas: Annotated[int, Field(ge=0, le=MOST_GPUS)] | None = Field(
        None, description="on at the start; left out: min_replicas"
    )
    cold_start_s: NonNegativeFloat = Field(
        60.0, description="from when a replica is asked for, and paid, until it takes requests; the mean"
    )
    cold_start: Law = Field("fixed", description="its law")
    cold_start_cv: Variation = Field(
        0.5, description="standard deviation / mean of a lognormal or uniform cold start"
    )

    @property
    def parameters(self) -> dict[str, Any]:
        """Those of the rule."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _fits(self) -> AutoscalerConfig:
        if self.kind is None:
            usual = {name: field.default for name, field in type(self).model_fields.items()}
            others = [name for name, value in self.model_dump().items() if value != usual.get(name, ...)]
            if others:
                raise ValueError(f"autoscaler.{others[0]} needs autoscaler.kind, the rule that decides")
        _check_uniform("autoscaler.cold_start", self.cold_start, self.cold_start_cv)
        return self


class Outage(NamedTuple):
    """A failure at a given instant, and the number of the replica."""

    time_s: NonNegativeFloat
    replica: Annotated[int, Field(ge=0, lt=MOST_GPUS)]


class FailuresConfig(Section):
    """When replicas fail, and what becomes of the requests that ran there."""

    time_between_s: PositiveFloat | None = Field(
        None,
        description="mean time that each replica is up before it fails; left out: none fails by itself",
    )
    time_between: Law = Field("exponential", description="its law")
    time_between_cv: Variation = Field(
        0.5, description="standard deviation / mean of a lognormal or uniform time"
    )
    repair_s: NonNegativeFloat | None = Field(
        None, description="mean time until a replica that failed takes requests again; left out: never"
    )
    repair: Law = Field("exponential", description="its law")
    repair_cv: Variation = Field(0.5, description="the same of the repair")
    at: tuple[Outage, ...] = Field(
        (), description="failures at given instants: pairs of seconds and the number of a replica, from 0"
    )
    on_failure: Literal["resume", "retry", "lose"] = Field(
        "resume",
        description="requests that ran go on elsewhere after the tokens they have, whose KV is computed "
        "again; begin anew elsewhere; or have failed. Those that only waited always go elsewhere",
    )
    max_retries: Annotated[int, Field(ge=0, le=10**9)] = Field(
        10, description="a request whose replica failed more often has failed"
    )

    @property
    def is_any(self) -> bool:
        """Whether replicas fail."""
        return self.time_between_s is not None or bool(self.at)

    @model_validator(mode="after")
    def _fits(self) -> FailuresConfig:
        _check_uniform("failures.time_between", self.time_between, self.time_between_cv)
        _check_uniform("failures.repair", self.repair, self.repair_cv)
        return self


def _check_uniform(name: str, law: str, cv: float) -> None:
    if law == "uniform" and cv > _WIDEST_UNIFORM:
        raise ValueError(f"{name}_cv is {cv:g}; a uniform law has at most {_WIDEST_UNIFORM:.4f}, from 0 on")
