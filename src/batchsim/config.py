"""What a run is: one pydantic model per section of the TOML file. Unknown keys are errors.

Values are checked here for type and range only; whether a preset, a predictor or a file exists is for the
part that uses it. `load_config` turns a dict, a TOML file or a model into a `RunConfig`, with overrides on
top.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from batchsim.errors import ConfigError
from batchsim.figure_config import FigureConfig, OwnFigure
from batchsim.hardware_config import (
    ClusterConfig,
    Count,
    EngineConfig,
    Fraction,
    LatencyConfig,
    Rate,
    ReplicaConfig,
    Section,
)
from batchsim.paths import anchored

Finite = Annotated[float, Field(allow_inf_nan=False)]
Values = Annotated[list[Any], Field(min_length=1)]


#: A limit on a statistic of requests: the mean or any percentile of a time.
STATISTIC_LIMIT = re.compile(r"(e2e|ttft|tpot)_(mean|p[1-9]\d?(\.\d+)?)_ms")


class WorkloadConfig(Section):
    """Which requests arrive when.

    Steps happen in this order: read or generate, filter by ``model`` and ``log_type``, ``window``, set the
    training part aside, ``num_requests`` (or ``num_requests_per_gpu``), then one of ``rate_scale``,
    ``request_rate``, ``request_rate_per_gpu``, ``load``.
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
    model: str | None = Field(None, description="keep rows of this model only")
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

    ``queueing``, ``sizing``, ``batching`` and ``routing`` hold parameters of the preset's answer to that
    question, or replace the answer where they name another ``kind``.
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


class SloConfig(Section):
    """Limits in milliseconds: per request, or on a statistic of many.

    A request is good when it meets ``e2e_ms``, ``ttft_ms`` and ``tpot_ms``, as far as they are given. A limit
    on a statistic, as ``ttft_p95_ms`` or ``e2e_mean_ms``, is one on the run: any percentile, or the mean.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    e2e_ms: PositiveFloat | None = None
    ttft_ms: PositiveFloat | None = None
    tpot_ms: PositiveFloat | None = None

    @model_validator(mode="after")
    def _known_statistics(self) -> SloConfig:
        for key, limit in (self.model_extra or {}).items():
            if not STATISTIC_LIMIT.fullmatch(key):
                raise ValueError(
                    f"unknown limit {key}; known are e2e_ms, ttft_ms, tpot_ms, and limits on a statistic of "
                    "them, e.g. ttft_p95_ms or e2e_mean_ms"
                )
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf:
                raise ValueError(f"{key} is {limit!r}; milliseconds > 0 are needed")
        return self

    @property
    def per_request_ms(self) -> dict[str, float]:
        """Limits per request, by metric: those that are given."""
        limits = {"e2e": self.e2e_ms, "ttft": self.ttft_ms, "tpot": self.tpot_ms}
        return {metric: limit for metric, limit in limits.items() if limit is not None}

    @property
    def statistics_s(self) -> dict[str, float]:
        """Limits on statistics, in seconds, by their names, e.g. ``ttft_p95``."""
        return {key.removesuffix("_ms"): limit / 1000 for key, limit in (self.model_extra or {}).items()}


class MetricsConfig(Section):
    """How the summary is taken."""

    warmup: Literal["auto", "mser5"] | Fraction = Field(
        "auto",
        description="requests cut at the start: until the requests in service have built up, by MSER-5, or a "
        "fixed share",
    )


class RunConfig(Section):
    """Everything a run depends on besides the files it names and the version."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    policy: PolicyConfig = PolicyConfig()
    workload: WorkloadConfig = WorkloadConfig()
    cluster: ClusterConfig = ClusterConfig()
    engine: EngineConfig = EngineConfig()
    latency: LatencyConfig = LatencyConfig()
    predictor: PredictorConfig = PredictorConfig()
    slo: SloConfig = SloConfig()
    metrics: MetricsConfig = MetricsConfig()
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
            *(one.latency_file for one in self.cluster.replicas),
            *(name for one in alike for name in (one.gpu, one.model)),
        ]
        return tuple(name for name in named if name is not None)

    @model_validator(mode="after")
    def _gives_up_before_it_retries(self) -> RunConfig:
        if self.clients.max_retries and self.patience_s is None:
            raise ValueError("clients.max_retries needs patience_s: only an abandoned request is sent again")
        return self


class GridConfig(Section):
    """What a sweep varies: a base run, and lists of values by dotted key."""

    base: dict[str, Any] = Field({}, description="the tables of a run configuration")
    grid: dict[str, Values] = Field({}, description="dotted keys to values")

    @field_validator("grid", mode="before")
    @classmethod
    def _flat(cls, grid: object) -> object:
        return flat(grid) if isinstance(grid, Mapping) else grid


class SweepConfig(GridConfig):
    """Many runs and the figure they make: every case crossed with every combination of the grid."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$", description="of the folder with the results")
    title: str = Field("", description="above the figure")
    figure: FigureConfig | None = Field(
        None,
        description="name of a shipped plot, or a table that describes one; left out: tables only",
    )
    save: Literal["summary", "tables"] = Field("summary", description="what is kept of a run")
    cases: list[dict[str, Any]] = Field(
        [{}], min_length=1, description="settings that go together; `label` names them in the results"
    )
    full: GridConfig = Field(GridConfig(), description="what `--full` puts in place of base and grid entries")

    @model_validator(mode="after")
    def _keeps_what_is_drawn(self) -> SweepConfig:
        figure = self.figure
        if isinstance(figure, OwnFigure) and figure.needs_tables and self.save != "tables":
            raise ValueError(
                f'a figure of kind {figure.kind} is drawn from tables of the runs; set save = "tables"'
            )
        return self


#: Characters of a value, and levels of tables in tables, beyond which a file holds no settings.
_MOST_SHOWN = 200
_MOST_NESTED = 30

S = TypeVar("S", bound=Section)


def load_config(
    given: RunConfig | Mapping[str, Any] | str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Read a run configuration.

    Parameters
    ----------
    given
        A `RunConfig`, a (nested) mapping, or the path of a TOML file, in whose folder the files that it names
        are; defaults alone if ``None``.
    overrides
        Dotted keys to values that win over ``given``, e.g. ``{"cluster.num_gpus": 4}``.

    Raises
    ------
    ConfigError
        One sentence that names the file, the key, the value and what would be accepted.
    """
    where = "configuration"
    if given is None:
        tree: dict[str, Any] = {}
    elif isinstance(given, RunConfig):
        tree = given.model_dump(exclude_unset=True)
    elif isinstance(given, Mapping):
        tree = _copy(given)
    else:
        where = str(given)
        tree = read_toml(Path(given))
        for key, value in flat(tree).items():
            if (found := anchored(key, value, Path(given).parent)) is not value:
                set_dotted(tree, key, found)
    for key, value in (overrides or {}).items():
        set_dotted(tree, key, value)
    return validate(RunConfig, tree, where)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file as a dict, or raise `ConfigError` with a sentence."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
        if not _is_nested_at_most(_MOST_NESTED, tree):
            raise RecursionError
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: holds more than {_MOST_NESTED} tables or lists in each other") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML ({' '.join(str(error).split())})") from error
    return tree


def set_dotted(tree: dict[str, Any], key: str, value: object) -> None:
    """Set ``tree["a"]["b"] = value`` for the key ``a.b``, making tables on the way."""
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{key}: {parent} is a value, not a table")
    tree[last] = value


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested tables into dotted keys: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def validate(section: type[S], tree: Mapping[str, Any], where: str) -> S:
    """Build a section, with pydantic's report cut down to one sentence about the first fault."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"])) or "table"
        is_told = fault["type"] == "missing" or isinstance(fault["input"], Mapping)  # of a whole table
        shown = "" if is_told else f" is {_short(repr(fault['input']))}"
        message = f"{_short(key)}{shown}: {_lower_first(fault['msg'])}"
        raise ConfigError(f"{where}: {' '.join(message.split())}") from error


def _is_nested_at_most(levels: int, value: Any) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels >= 0 and all(_is_nested_at_most(levels - 1, one) for one in inside)


def _short(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _lower_first(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
