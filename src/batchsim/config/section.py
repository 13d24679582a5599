"""What all sections of a configuration share: their base, and the types of counts and shares."""

from __future__ import annotations

from typing import Annotated

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
