"""Speculative decoding: drafts, how many are accepted, and what they cost."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from batchsim.config.section import Section

Share = Annotated[float, Field(ge=0, le=1)]


class SpeculationConfig(Section):
    """Drafts that a pass of the model verifies: several tokens of a sequence in one iteration."""

    num_speculative_tokens: Annotated[int, Field(ge=0, le=100)] = Field(
        0, description="drafts of each sequence in an iteration; 0: none, and the rest does not count"
    )
    acceptance: Share | tuple[Share, ...] | None = Field(
        None,
        description="how many are accepted: the rate of each, if those before it were; or by position, as "
        "vLLM logs it: the share of steps in which the first is, the first two are, and so on",
    )
    draft_ratio: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0,
        description="seconds of one draft of all sequences, as a share of a decode iteration without drafts",
    )
    draft_s: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="seconds of one draft besides")
    draft_latency_file: str | None = Field(
        None, description="latency.json of a draft model: besides, each draft is a decode iteration of it"
    )

    @model_validator(mode="after")
    def _knows_what_is_accepted(self) -> SpeculationConfig:
        num, acceptance = self.num_speculative_tokens, self.acceptance
        if num and acceptance is None:
            raise ValueError(f"num_speculative_tokens is {num}; it needs acceptance, a rate or {num} shares")
        if isinstance(acceptance, tuple):
            if len(acceptance) < num:
                raise ValueError(f"acceptance has {len(acceptance)} shares; {num} drafts need as many")
            if any(later > earlier for earlier, later in pairwise(acceptance)):
                raise ValueError(
                    f"acceptance {list(acceptance)} rises; no more steps can accept two drafts than one"
                )
        return self
