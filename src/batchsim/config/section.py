"""What all sections of a configuration share: their base, and the types of counts and shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field

Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]

#: Most GPUs (and replicas) of a cluster, and most of anything else that is counted: far beyond what can be
#: simulated, so that a slip of the keyboard is told from a wish.
MOST_GPUS = 65_536
MOST = 10**12
NumGPUs = Annotated[int, Field(ge=1, le=MOST_GPUS)]
#: What a column of the results holds in four bytes.
Count = Annotated[int, Field(ge=1, le=10**9)]
Tokens = Annotated[int, Field(ge=1, le=MOST)]
Rate = Annotated[float, Field(ge=1e-9, le=1e9)]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def keys_at(section: type[Section], path: Sequence[str | int]) -> list[str]:
    """Keys of the section that lies at this path, through tables and lists of tables; none if none does."""
    is_key = False  # of a table of sections, which has any names
    for name in path:
        if isinstance(name, str) and not is_key:
            field = section.model_fields.get(name)
            found = None if field is None else _section_in(field.annotation)
            if field is None or found is None:
                return []
            section, is_key = found, get_origin(field.annotation) is dict
        else:
            is_key = False
    return list(section.model_fields)


def _section_in(kind: Any) -> type[Section] | None:
    """The section that an annotation is of, or holds."""
    if parts := get_args(kind):
        return next(filter(None, map(_section_in, parts)), None)
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None
