"""What a run is: one pydantic model per section of the TOML file. Unknown keys are errors.

Values are checked here for type and range only; whether a preset, a predictor or a file exists is for the
part that uses it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveFloat, model_validator

from batchsim.config.control import AutoscalerConfig, FailuresConfig
from batchsim.config.cost import CostConfig
from batchsim.config.hardware import ClusterConfig, EngineConfig, LatencyConfig, ReplicaConfig
from batchsim.config.section import Count, Finite, Fraction, Rate, Section
from batchsim.config.transfer import KVTransferConfig
from batchsim.errors import nearest

#: A limit on a statistic of requests: the mean or any percentile of a time.
STATISTIC_LIMIT = re.compile(r"(e2e|ttft|tpot)_(mean|p[1-9]\d?(\.\d+)?)_ms")


class TenantConfig(Section):
    """One who sends a share of the requests."""

    name: Annotated[str, Field(min_length=1)]
    share: PositiveFloat = Field(1.0, description="of the requests, beside the shares of the others")
    slo_class: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="the class whose limits hold for its requests"
    )
    priority: Annotated[int, Field(ge=-(10**9), le=10**9)] | None = Field(
        None, description="of its requests; smaller goes first; left out: 0"
    )


class WorkloadConfig(Section):
    """Which requests arrive when.

    Steps happen in this order: read or generate, filter by ``trace_model`` and ``log_type``, ``window``, set
    the training part aside, ``resample_s``, ``num_requests`` (or ``num_requests_per_gpu``), then one of
    ``rate_scale``, ``request_rate``, ``request_rate_per_gpu``, ``load``; then the requests are given
    ``tenants``.
    """

    trace: str | None = Field(None, description="file to replay; the embedded trace if neither is given")
    generator: dict[str, Any] | None = Field(
        None, description="`kind` and its parameters, instead of a trace"
    )
    time_unit: Literal["s", "ms", "us", "ns"] | None = Field(
        None,
        description="of the trace's arrivals, where its columns do not say it; left out: that of its format",
    )
    hash_block_tokens: Count | None = Field(
        None, description="prompt tokens that a prefix id of the trace covers; left out: as its lengths say"
    )
    max_trace_bytes: Count | None = Field(
        None, description="unpacked size from which on a trace is not read; left out: 268435456"
    )
    max_trace_rows: Count | None = Field(
        None, description="rows from which on a trace is not read; left out: 5000000"
    )
    num_requests: Count | None = Field(None, description="keep the first so many")
    num_requests_per_gpu: Count | None = Field(None, description="the same, times the number of GPUs")
    window: tuple[Finite, Finite] | None = Field(None, description="keep arrivals in [start, end) seconds")
    resample_s: PositiveFloat | None = Field(
        None,
        description="put blocks of so many seconds, drawn by the seed from anywhere in the trace, in its "
        "place",
    )
    trace_model: str | None = Field(None, description="keep rows of this model only")
    log_type: str | None = Field(None, description="keep rows of this log type only")
    rate_scale: Rate | None = Field(None, description="compress time by this factor, days and nights with it")
    request_rate: Rate | None = Field(
        None, description="requests per second: every hour of the trace is brought to this mean rate"
    )
    request_rate_per_gpu: Rate | None = Field(None, description="the same, times the number of GPUs")
    load: Annotated[float, Field(ge=1e-6, le=1e6)] | None = Field(
        None, description="request_rate as a share of what `load_of` serves when all requests wait at once"
    )
    load_of: str | None = Field(
        None, description="policy preset that a load is a share of; left out: static_fifo, for all policies"
    )
    training_fraction: Fraction | None = Field(
        None,
        description="share of the requests, first in time, that boundaries and predictors are fitted on and "
        "that is not evaluated; left out: 0.1 where the policy or predictor learns, else 0",
    )

    tenants: tuple[TenantConfig, ...] = Field(
        (),
        description="list of tables `name`, `share`, `slo_class`, `priority`: requests are shared out over "
        "them at random, sessions whole; left out: as the trace or generator says",
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> WorkloadConfig:
        if self.trace is not None and self.generator is not None:
            raise ValueError("give trace or generator, not both")
        if self.num_requests is not None and self.num_requests_per_gpu is not None:
            raise ValueError("give num_requests or num_requests_per_gpu, not both")
        rates = [self.rate_scale, self.request_rate, self.request_rate_per_gpu, self.load]
        if self.generator is not None and (self.time_unit or self.hash_block_tokens):
            raise ValueError(
                "time_unit and hash_block_tokens say how a trace is read; a generator makes none"
            )
        if self.generator is not None and self.resample_s is not None:
            raise ValueError("resample_s draws from a trace; a generator makes other requests for each seed")
        if sum(rate is not None for rate in rates) > 1:
            raise ValueError("give at most one of rate_scale, request_rate, request_rate_per_gpu, load")
        if self.load_of is not None and self.load is None:
            raise ValueError("load_of says what a load is a share of; give load, too")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError("window must be [start, end) with start < end")
        return self


class ClientsConfig(Section):
    """Who sends the requests: the trace alone, or clients that wait for answers and try again."""

    kind: Literal["open_loop", "closed_loop", "sessions"] = Field(
        "open_loop",
        description="requests arrive at their time; or so many clients send them one after another; or the "
        "first of each `session_id` arrives at its time and the next follows its answer",
    )
    concurrency: Count | None = Field(None, description="clients of a closed loop")
    think_time: Literal["exponential", "fixed", "trace"] = Field(
        "exponential", description="law of the time from an answer to the next request; trace: the gap there"
    )
    think_time_s: Annotated[float, Field(ge=0)] = Field(0.0, description="its mean")
    grow_context: bool = Field(False, description="prompts repeat the earlier turns of their session")
    max_retries: Annotated[int, Field(ge=0, le=100)] = Field(
        0, description="an abandoned request is sent so often again"
    )
    retry_after_s: PositiveFloat = Field(1.0, description="after so long, then twice as long each time")

    @model_validator(mode="after")
    def _fits_the_kind(self) -> ClientsConfig:
        if (self.kind == "closed_loop") != (self.concurrency is not None):
            raise ValueError('kind = "closed_loop" and concurrency belong together; give both or neither')
        if self.think_time == "trace" and self.kind != "sessions":
            raise ValueError('think_time = "trace" needs kind = "sessions"')
        if self.think_time == "trace" and self.think_time_s:
            raise ValueError('give think_time = "trace" or think_time_s, not both')
        return self


class PredictorConfig(Section):
    """Where predicted output lengths come from; ``kind`` names it, the rest are its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    kind: str = "oracle"

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything but ``kind``."""
        return dict(self.model_extra or {})


class PolicyConfig(Section):
    """A preset by name, and what differs from it.

    ``queueing``, ``sizing``, ``batching``, ``routing`` and ``admission`` hold parameters of the preset's
    answer to that question, or replace the answer where they name another ``kind``.
    """

    preset: str = "static_fifo"
    batch_size: Count | None = Field(None, description="fixed size, or the upper limit of a dynamic one")
    num_bins: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None, description="bins of a multi-bin queue"
    )
    queueing: dict[str, Any] = Field({})
    sizing: dict[str, Any] = Field({})
    batching: dict[str, Any] = Field({})
    routing: dict[str, Any] = Field({})
    admission: dict[str, Any] = Field({})


class ClassLimits(Section):
    """Limits in milliseconds per request of one class; what is left out is as for all."""

    e2e_ms: PositiveFloat | None = None
    ttft_ms: PositiveFloat | None = None
    tpot_ms: PositiveFloat | None = None


class SloConfig(Section):
    """Limits in milliseconds: per request, or on a statistic of many.

    A request is good when it meets ``e2e_ms``, ``ttft_ms`` and ``tpot_ms``, as far as they are given, for all
    or for its class. A limit on a statistic, as ``ttft_p95_ms`` or ``e2e_mean_ms``, is one on the run: any
    percentile, or the mean.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    e2e_ms: PositiveFloat | None = None
    ttft_ms: PositiveFloat | None = None
    tpot_ms: PositiveFloat | None = None
    classes: dict[str, ClassLimits] = Field(
        {}, description="limits of requests whose `slo_class` has this name, instead of those for all"
    )

    @model_validator(mode="after")
    def _known_statistics(self) -> SloConfig:
        for key, limit in (self.model_extra or {}).items():
            if not STATISTIC_LIMIT.fullmatch(key):
                raise ValueError(
                    f"unknown limit {key}; a limit per request or on a statistic is needed, e.g. ttft_p95_ms "
                    f"or e2e_mean_ms; {nearest(key, type(self).model_fields)}"
                )
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf:
                raise ValueError(f"{key} is {limit!r}; milliseconds > 0 are needed")
        return self

    @property
    def per_request_ms(self) -> dict[str, float]:
        """Limits per request, by metric: those that are given for all."""
        return _given(self)

    @property
    def class_ttft_s(self) -> dict[str, float]:
        """The limit on the time to first token of each class that has its own, in seconds."""
        given = {name: limits.ttft_ms for name, limits in self.classes.items()}
        return {name: limit / 1000 for name, limit in given.items() if limit is not None}

    @property
    def told_ms(self) -> dict[str, float]:
        """Limits per request as people are told of them, e.g. ``TTFT`` and ``TTFT of chat``."""
        of_classes = {
            f"{metric.upper()} of {name}": limit
            for name, limits in self.classes.items()
            for metric, limit in _given(limits).items()
        }
        return {metric.upper(): limit for metric, limit in self.per_request_ms.items()} | of_classes

    @property
    def per_class_ms(self) -> dict[str, dict[str, float]]:
        """Limits per request of each class, by metric, those for all among them."""
        return {name: {**self.per_request_ms, **_given(limits)} for name, limits in self.classes.items()}

    @property
    def statistics_s(self) -> dict[str, float]:
        """Limits on statistics, in seconds, by their names, e.g. ``ttft_p95``."""
        return {key.removesuffix("_ms"): limit / 1000 for key, limit in (self.model_extra or {}).items()}


def _given(limits: ClassLimits | SloConfig) -> dict[str, float]:
    by_metric = {"e2e": limits.e2e_ms, "ttft": limits.ttft_ms, "tpot": limits.tpot_ms}
    return {metric: limit for metric, limit in by_metric.items() if limit is not None}


class MetricsConfig(Section):
    """How the summary is taken."""

    warmup: Literal["auto", "mser5"] | Fraction = Field(
        "auto",
        description="requests cut at the start: until service and queue have built up, by MSER-5, or a fixed "
        "share",
    )


class RunConfig(Section):
    """Everything a run depends on besides the files it names and the version."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    policy: PolicyConfig = PolicyConfig()
    workload: WorkloadConfig = WorkloadConfig()
    cluster: ClusterConfig = ClusterConfig()
    engine: EngineConfig = EngineConfig()
    kv_transfer: KVTransferConfig = KVTransferConfig()
    autoscaler: AutoscalerConfig = AutoscalerConfig()
    failures: FailuresConfig = FailuresConfig()
    latency: LatencyConfig = LatencyConfig()
    predictor: PredictorConfig = PredictorConfig()
    slo: SloConfig = SloConfig()
    metrics: MetricsConfig = MetricsConfig()
    cost: CostConfig = CostConfig()
    clients: ClientsConfig = ClientsConfig()
    patience_s: PositiveFloat | None = Field(
        None, description="a request still waiting after this long is abandoned"
    )

    @property
    def files(self) -> tuple[str, ...]:
        """The files it names; a GPU or model that is shipped is none, but stands here as well."""
        alike: list[ClusterConfig | ReplicaConfig] = [self.cluster, *self.cluster.replicas]
        named = [
            self.workload.trace,
            self.latency.file,
            self.engine.speculation.draft_latency_file,
            *(one.latency_file for one in self.cluster.replicas),
            *(name for one in alike for name in (one.gpu, one.model)),
        ]
        return tuple(name for name in named if name is not None)

    @model_validator(mode="before")
    @classmethod
    def _pools_are_replicas(cls, given: Any) -> Any:
        """Read ``[[pool]]`` as ``[[cluster.replicas]]``."""
        if not isinstance(given, Mapping) or "pool" not in given:
            return given
        cluster = given.get("cluster", {})
        if not isinstance(cluster, Mapping) or "replicas" in cluster:
            raise ValueError("give pool or cluster.replicas, which are the same, not both")
        rest = {key: value for key, value in given.items() if key != "pool"}
        return {**rest, "cluster": {**cluster, "replicas": given["pool"]}}

    @model_validator(mode="after")
    def _gives_up_before_it_retries(self) -> RunConfig:
        if self.clients.max_retries and self.patience_s is None:
            raise ValueError("clients.max_retries needs patience_s: only an abandoned request is sent again")
        return self
