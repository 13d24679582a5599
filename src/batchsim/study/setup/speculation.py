"""From a configuration to speculative decoding: how many drafts are accepted, and what they cost."""

from __future__ import annotations

from batchsim.config import RunConfig
from batchsim.config.speculation import SpeculationConfig
from batchsim.latency.base import IterationLatency
from batchsim.latency.families import as_iteration_latency
from batchsim.latency.speculation import SpeculativeLatency
from batchsim.latency.store import load_latency
from batchsim.sim.speculation.acceptance import Speculation, acceptance_by_position


def speculation(config: RunConfig) -> Speculation | None:
    """How many drafts are accepted; None where there are none."""
    given = config.engine.speculation
    num, acceptance = given.num_speculative_tokens, given.acceptance
    if not num or acceptance is None:
        return None
    if not isinstance(acceptance, tuple):
        acceptance = acceptance_by_position(acceptance, num)
    return Speculation(num, acceptance[:num], config.seed)


def with_drafts(latency: IterationLatency, given: SpeculationConfig) -> IterationLatency:
    """A model with the time of drafts, and of passes that verify them."""
    if not given.num_speculative_tokens:
        return latency
    file = given.draft_latency_file
    draft = None if file is None else as_iteration_latency(load_latency(file))
    return SpeculativeLatency(latency, given.num_speculative_tokens, given.draft_ratio, given.draft_s, draft)
