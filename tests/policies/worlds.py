"""Requests as policies see them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Waiting:
    request_id: int
    arrival_s: float = 0.0
    prompt_tokens: int = 1
    predicted_output_tokens: int = 1
    priority: int = 0
    session_id: int = -1
    prefix_ids: Sequence[int] = ()
    generated_tokens: int = 0


def waiting(*predicted_output_tokens: int) -> list[Waiting]:
    """Requests 0, 1, ... that arrive a second apart."""
    return [Waiting(index, float(index), 1, tokens) for index, tokens in enumerate(predicted_output_tokens)]
