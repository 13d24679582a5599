"""What an own figure is: the ``[figure]`` table of a sweep file, a model for each kind."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from batchsim.config.section import Section
from batchsim.errors import nearest

#: Times of requests that have a distribution to draw.
REQUEST_TIMES = ("e2e_s", "queueing_s", "ttft_s", "tpot_s")
#: What can be drawn over time.
COURSES = ("waiting", "running", "allowed", "measured_s")
#: The metrics that figures make from columns of results.csv: rates of the steady window, by the GPU.
THROUGHPUT = "throughput_per_gpu_per_s"
OUTPUT_TOKENS = "output_tokens_per_gpu_per_s"


def _as_list(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


def _known(names: Sequence[str], given: list[str]) -> list[str]:
    for name in given:
        if name not in names:
            raise ValueError(f"{name!r} is unknown; {nearest(name, names)}")
    return given


Names = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
_Hue = Annotated[str, Field(description="what has a line of its own: policy, case, or a varied key")]


class Lines(Section):
    """Metrics of the runs over one setting, a panel each, means over seeds with their intervals."""

    needs_tables: ClassVar[bool] = False

    kind: Literal["lines"]
    x: str = Field(description="a varied key")
    y: Names = Field(description="columns of results.csv")
    hue: _Hue = "policy"


class Heatmap(Section):
    """One metric over two settings."""

    needs_tables: ClassVar[bool] = False

    kind: Literal["heatmap"]
    x: str = Field(description="a varied key")
    y: str = Field(description="a varied key")
    value: str = Field(description="a column of results.csv")


class Cdf(Section):
    """Distributions of times of requests, a panel each."""

    needs_tables: ClassVar[bool] = False

    kind: Literal["cdf"]
    x: Annotated[Names, AfterValidator(partial(_known, REQUEST_TIMES))] = Field(
        description=", ".join(REQUEST_TIMES)
    )
    hue: _Hue = "policy"


class OverTime(Section):
    """What went on in the runs, over time, a panel each; needs their tables."""

    needs_tables: ClassVar[bool] = True

    kind: Literal["over_time"]
    y: Annotated[Names, AfterValidator(partial(_known, COURSES))] = Field(description=", ".join(COURSES))
    hue: _Hue = "policy"


OwnFigure = Lines | Cdf | Heatmap | OverTime


def _kind_of(given: Any) -> Any:
    if isinstance(given, OwnFigure):
        return given.kind
    return given.get("kind") if isinstance(given, dict) else "name"


#: A shipped plot by its name, or a table.
FigureConfig = Annotated[
    Annotated[str, Tag("name")]
    | Annotated[Lines, Tag("lines")]
    | Annotated[Cdf, Tag("cdf")]
    | Annotated[Heatmap, Tag("heatmap")]
    | Annotated[OverTime, Tag("over_time")],
    Discriminator(
        _kind_of,
        custom_error_type="figure_kind",
        custom_error_message="write a plot's name, or a table of kind lines, cdf, heatmap, over_time",
    ),
]
