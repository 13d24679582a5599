"""Requests as policies see them."""

from collections.abc import Sequence
from dataclasses import dataclass

from batchsim.policies.base import WaitingRequest


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
    tenant: str = ""
    slo_class: str = ""


def waiting(*predicted_output_tokens: int) -> list[Waiting]:
    """Requests 0, 1, ... that arrive a second apart."""
    return [Waiting(index, float(index), 1, tokens) for index, tokens in enumerate(predicted_output_tokens)]


class View:
    """A replica as a router sees it, with the same cached for every request."""

    def __init__(
        self,
        num_requests: int = 0,
        num_waiting: int = 0,
        prompt_tokens: int = 0,
        kv_blocks: int = 0,
        cached: int = 0,
    ) -> None:
        self.num_requests = num_requests
        self.num_running = num_requests - num_waiting
        self.num_waiting = num_waiting
        self.waiting_prompt_tokens = prompt_tokens
        self.kv_blocks = kv_blocks
        self.block_size = 16
        self._cached = cached

    def cached_tokens(self, request: WaitingRequest) -> int:
        return self._cached
