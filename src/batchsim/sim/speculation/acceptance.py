"""How many drafts a step accepts: by lot, the same whatever else happens in a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from batchsim.streams import stream


@dataclass(frozen=True, slots=True)
class Speculation:
    """Drafts are proposed, and one pass of the model verifies them all (Leviathan et al., arXiv 2211.17192).

    A step of a sequence gives the drafts that are accepted, up to the first that is not, and one token of the
    model's own after these.

    Attributes
    ----------
    num_tokens
        Drafts of each sequence in a step; vLLM's ``num_speculative_tokens``.
    acceptance
        Share of steps in which the first draft is accepted, the first and the second, and so on: as vLLM logs
        them by position. They do not rise, ``(num_tokens,)``.
    seed
        Of the run.
    """

    num_tokens: int
    acceptance: tuple[float, ...]
    seed: int = 0

    def accepted(self, request_id: int, num_tokens: int) -> bytes:
        """Drafts that a step accepts which begins after 1, 2, ... tokens of an answer, ``(num_tokens,)``.

        They depend on the seed, the request and the tokens before, not on when or where the step is run.
        """
        drawn = stream(self.seed, "speculation", request_id).random(num_tokens)
        rising = np.asarray(self.acceptance[::-1])
        return (self.num_tokens - np.searchsorted(rising, drawn, side="right")).astype(np.uint8).tobytes()


def acceptance_by_position(rate: float, num_tokens: int) -> tuple[float, ...]:
    """Shares of steps where each draft is accepted at the same rate, whichever were before it."""
    return tuple(rate**position for position in range(1, num_tokens + 1))
