"""A request as the processes pass it on."""

from __future__ import annotations

import simpy

from batchsim.policies.base import QueueDiscipline


class Request(simpy.Event):
    """An event that fires when the request ends, with one of `records.STATUSES`: ``yield request`` waits.

    It carries what a scheduler may know. How many tokens it will really produce only the GPU finds out.
    """

    bin = -1
    num_evictions = 0
    is_waiting = True  # not part of a running batch
    queue: QueueDiscipline | None = None  # the one it was put into, if it was

    def __init__(
        self,
        env: simpy.Environment,
        request_id: int,
        arrival_s: float,
        prompt_tokens: int,
        predicted_output_tokens: int,
    ) -> None:
        super().__init__(env)
        self.request_id = request_id
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.predicted_output_tokens = predicted_output_tokens

    def end(self, status: str) -> None:
        """Fire. Where nobody waits, the event is done at once and costs the kernel nothing."""
        if self.callbacks:
            self.succeed(status)
        else:
            self._ok = True
            self._value = status
            self.callbacks = None  # type: ignore[assignment]  # SimPy's own mark of a processed event

    def leave_queue(self) -> None:
        """Get out of the line it waits in, if it has reached one."""
        if self.queue is not None:
            self.queue.discard(self, self.bin)
