"""What a sweep file is: runs to cross, and the figure they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from batchsim.config.dotted import flat
from batchsim.config.figure import FigureConfig, OwnFigure
from batchsim.config.section import Section

Values = Annotated[list[Any], Field(min_length=1)]


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
