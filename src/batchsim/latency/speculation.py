"""What an iteration takes in which every decode verifies drafts."""

from __future__ import annotations

from dataclasses import dataclass

from batchsim.latency.base import (
    DecodeLine,
    IterationLatency,
    IterationShape,
    LatencyInfo,
    decode_span_s,
    follows_longest,
    verifies,
)


@dataclass(frozen=True, slots=True)
class SpeculativeLatency:
    """Drafts first, one after the other; then one pass of the model, in which each decode has several tokens.

    The pass of a model that tells how long that takes (`latency.base.VerifyingLatency`: the roofline) is as
    it says. Of any other, a decode with ``k`` drafts counts as ``k + 1`` decodes that share its context: what
    follows tokens is that of all of them, the KV of the sequence is read once. So a table is read at ``k +
    1`` times as many decodes of a ``(k + 1)``-th of the context: right for linear layers and the output head,
    which sees all tokens, and for the traffic of attention, not for its arithmetic.

    All sequences have all drafts, at the end of their answers too, as in vLLM. Drafting begins with what the
    draft model has stored: its part of prompts is left out.

    Attributes
    ----------
    model
        Of the passes.
    num_tokens
        Drafts of a sequence, ``k``.
    draft_ratio, draft_s
        What a draft of all sequences takes: a share of the time in which the model would decode them, one
        token each, and seconds besides.
    draft
        The draft model, which takes a decode iteration for each draft.
    """

    model: IterationLatency
    num_tokens: int
    draft_ratio: float = 0.0
    draft_s: float = 0.0
    draft: IterationLatency | None = None

    @property
    def info(self) -> LatencyInfo:
        """That of the model."""
        return self.model.info

    @property
    def is_bounded(self) -> bool:
        """Where either is."""
        return self.model.is_bounded or (self.draft is not None and self.draft.is_bounded)

    @property
    def follows_longest(self) -> bool:
        """As the model does."""
        return follows_longest(self.model)

    def covers(self, shape: IterationShape) -> bool:
        """Whether the pass lies in the range of the model, and drafting in that of the draft model."""
        if self.draft is not None and shape.decode_seqs and not self.draft.covers(_decodes_of(shape)):
            return False
        return self.model.covers(self._pass(shape))

    def iteration_s(self, shape: IterationShape) -> float:
        """Seconds of the drafts and of the pass."""
        model = self.model
        if not shape.decode_seqs:
            return model.iteration_s(shape)
        if verifies(model):
            pass_s = model.verification_s(shape, self.num_tokens + 1)
        else:
            pass_s = model.iteration_s(self._pass(shape))
        drafting_s = self.num_tokens * self.draft_s
        if self.draft_ratio:
            drafting_s += self.num_tokens * self.draft_ratio * model.iteration_s(_decodes_of(shape))
        if self.draft is not None:
            drafting_s += decode_span_s(self.draft, self.num_tokens, shape.decode_seqs, shape.context_tokens)
        return pass_s + drafting_s

    def decode_line(self, decode_seqs: int, context_tokens: int, longest_tokens: int = 0) -> DecodeLine:
        """Seconds of one iteration: how far sequences have grown after it, nobody can tell."""
        shape = IterationShape(0, decode_seqs, context_tokens, longest_tokens=longest_tokens)
        return DecodeLine(self.iteration_s(shape), 0.0, 1)

    def _pass(self, shape: IterationShape) -> IterationShape:
        tokens_each = self.num_tokens + 1
        return shape._replace(
            decode_seqs=tokens_each * shape.decode_seqs,
            longest_tokens=-(-shape.longest_tokens // tokens_each),
        )


def _decodes_of(shape: IterationShape) -> IterationShape:
    """The decodes of a pass alone."""
    return IterationShape(0, shape.decode_seqs, shape.context_tokens, longest_tokens=shape.longest_tokens)
