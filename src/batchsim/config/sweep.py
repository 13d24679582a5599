"""What a sweep file is: runs to cross, and the figure they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from batchsim.config.dotted import flat
from batchsim.config.figure import FigureConfig, OwnFigure
from batchsim.config.section import Section
from batchsim.errors import nearest

Values = Annotated[list[Any], Field(min_length=1)]


#: What a condition may ask for besides settings: the label of a case.
CASE = "case"

#: Most runs of one point: more are a slip of the keyboard.
Replications = Annotated[int, Field(ge=1, le=100_000)]


class WhenConfig(Section):
    """Axes of those points alone that have certain values, or more replications of them."""

    has: dict[str, Values] = Field(
        min_length=1, description="dotted keys, or `case`, to a value or those that it may have"
    )
    grid: dict[str, Values] = Field({}, description="dotted keys to values")
    replications: Replications | None = Field(None, description="runs of each of these points")

    @field_validator("has", mode="before")
    @classmethod
    def _lists(cls, has: object) -> object:
        if not isinstance(has, Mapping):
            return has
        return {key: value if isinstance(value, list) else [value] for key, value in flat(has).items()}

    @field_validator("grid", mode="before")
    @classmethod
    def _flat(cls, grid: object) -> object:
        return flat(grid) if isinstance(grid, Mapping) else grid

    @model_validator(mode="after")
    def _adds_something(self) -> WhenConfig:
        if not self.grid and self.replications is None:
            raise ValueError("adds nothing; it needs a grid or replications")
        return self


class GridConfig(Section):
    """What a sweep varies: a base run, and lists of values by dotted key."""

    base: dict[str, Any] = Field({}, description="the tables of a run configuration")
    grid: dict[str, Values] = Field({}, description="dotted keys to values")
    zip: list[dict[str, Values]] = Field([], description="dotted keys to values that go together, one by one")
    when: list[WhenConfig] = Field([], description="axes of the points alone that have certain values")
    replications: Replications | None = Field(None, description="runs of each point, with other seeds")

    @field_validator("grid", mode="before")
    @classmethod
    def _flat(cls, grid: object) -> object:
        return flat(grid) if isinstance(grid, Mapping) else grid

    @field_validator("zip", mode="before")
    @classmethod
    def _all_flat(cls, zipped: object) -> object:
        if not isinstance(zipped, list):
            return zipped
        return [flat(lists) if isinstance(lists, Mapping) else lists for lists in zipped]

    @field_validator("zip")
    @classmethod
    def _go_together(cls, zipped: list[dict[str, Values]]) -> list[dict[str, Values]]:
        for lists in zipped:
            lengths = {key: len(values) for key, values in lists.items()}
            if len(set(lengths.values())) > 1:
                told = " and ".join(f"{key} has {length}" for key, length in lengths.items())
                raise ValueError(f"lists that go together have the same length; {told}")
        return zipped

    @property
    def axes(self) -> dict[str, list[Any]]:
        """All keys that are varied, cases aside, with their values."""
        axes = dict(self.grid)
        for lists in [*self.zip, *(when.grid for when in self.when)]:
            for key, values in lists.items():
                axes[key] = [*axes.get(key, []), *values]
        return axes


class SweepConfig(GridConfig):
    """Many runs and the figure they make: every case crossed with every combination of the axes."""

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
    full: GridConfig = Field(
        GridConfig(),
        description="what `--full` puts in place of base and grid entries, and of the rest as a whole",
    )

    @model_validator(mode="after")
    def _keeps_what_is_drawn(self) -> SweepConfig:
        figure = self.figure
        if isinstance(figure, OwnFigure) and figure.needs_tables and self.save != "tables":
            raise ValueError(
                f'a figure of kind {figure.kind} is drawn from tables of the runs; set save = "tables"'
            )
        return self

    @model_validator(mode="after")
    def _conditions_can_hold(self) -> SweepConfig:
        """What no point has is most often a slip; that no point is left that has it may be wished."""
        tables = [flat(self.base), flat(self.full.base), *map(flat, self.cases)]
        lists = [{key: [value] for key, value in table.items()} for table in tables]
        lists += [self.axes, self.full.axes, {CASE: [case.get("label", "") for case in self.cases]}]
        for when in [*self.when, *self.full.when]:
            for key, values in when.has.items():
                known = [value for one in lists for value in one.get(key, [])]
                if not known:
                    keys = sorted({name for one in lists for name in one})
                    raise ValueError(
                        f"when asks for {key}, which the sweep does not set; {nearest(key, keys)}"
                    )
                for value in values:
                    if value not in known:
                        told = nearest(str(value), dict.fromkeys(map(str, known)))
                        raise ValueError(f"when asks for {key} = {value}, which no point has; {told}")
        return self
