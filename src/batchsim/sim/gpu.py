"""A GPU: a batch in, modelled seconds later out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import add
from typing import Literal

import simpy

from batchsim.latency.base import BatchLatency, BatchShape, Domain, refuse_outside
from batchsim.policies.reports import BatchReport
from batchsim.sim.mailbox import LateTimeout, Mailbox, ProcessGen
from batchsim.sim.recording.recorder import Recorder
from batchsim.sim.request import Request


@dataclass(frozen=True, slots=True)
class KVMemory:
    """What fits one GPU: the rule every policy is held to.

    Attributes
    ----------
    capacity_tokens
        KV tokens beside weights and margin.
    layout
        ``padded``: ``n`` requests take ``n * (longest prompt + longest output)``; ``paged``: the plain sum.
    """

    capacity_tokens: int
    layout: Literal["padded", "paged"] = "padded"

    def count_fitting(self, prompt_tokens: Sequence[int], output_tokens: Sequence[int]) -> tuple[int, int]:
        """How many of the first requests fit together, and the tokens they take."""
        num = len(prompt_tokens)
        if num == 1:  # at low load, most batches
            tokens = prompt_tokens[0] + output_tokens[0]
            return (1, tokens) if tokens <= self.capacity_tokens else (0, 0)
        all_tokens = (
            num * (max(prompt_tokens) + max(output_tokens))
            if self.layout == "padded"
            else sum(prompt_tokens) + sum(output_tokens)
        )
        if all_tokens <= self.capacity_tokens:
            return num, all_tokens
        if self.layout == "padded":
            longest = zip(accumulate(prompt_tokens, max), accumulate(output_tokens, max), strict=True)
            taken = [size * (prompt + output) for size, (prompt, output) in enumerate(longest, 1)]
        else:
            taken = list(accumulate(map(add, prompt_tokens, output_tokens)))
        num = bisect_right(taken, self.capacity_tokens)
        return num, taken[num - 1] if num else 0


@dataclass(slots=True)
class Batch:
    """Requests on their way through a GPU together; the scheduler fills it in, the GPU adds the report."""

    requests: list[Request]
    bin: int
    size_limit: int
    is_flush: bool
    report: BatchReport | None = field(default=None)


class GPU:
    """Run one batch at a time for as long as the latency model says.

    Takes `Batch` from `work`; gives it to `completed` when the modelled time has passed, and itself to
    `idle_gpus`. Only here the true output lengths are known. A batch that turns out not to fit memory throws
    out its latest members: they have cost their time, and go back to `inbox` when it ends. A request that
    does not even fit alone is refused.
    """

    def __init__(
        self,
        env: simpy.Environment,
        gpu_id: int,
        latency: BatchLatency,
        memory: KVMemory,
        true_output_tokens: Sequence[int],
        recorder: Recorder,
        *,
        may_extrapolate: bool = False,
    ) -> None:
        self._env = env
        self.gpu_id = gpu_id
        self._latency = latency
        self._memory = memory
        self._true_output_tokens = true_output_tokens
        self._recorder = recorder
        self._may_extrapolate = may_extrapolate
        self._is_bounded = latency.domain != Domain()
        self.work = Mailbox(env)
        self.completed = Mailbox(env)
        self.idle_gpus = Mailbox(env)
        self.inbox = Mailbox(env)

    def connect(self, completed: Mailbox, idle_gpus: Mailbox, inbox: Mailbox) -> None:
        """Share these Stores with a scheduler."""
        self.completed, self.idle_gpus, self.inbox = completed, idle_gpus, inbox

    def run(self) -> ProcessGen:
        """Offer itself, run what comes, repeat."""
        while True:
            self.idle_gpus.deliver(self)
            yield self.work.when()
            for batch in self.work.take_all():
                yield from self._execute(batch)
                self.completed.deliver(batch)

    def _execute(self, batch: Batch) -> ProcessGen:
        requests = batch.requests
        outputs = [self._true_output_tokens[request.request_id] for request in requests]
        prompts = [request.prompt_tokens for request in requests]
        shape = BatchShape(len(requests), max(prompts), max(outputs))
        is_outside = self._is_bounded and not self._latency.domain.contains(*shape)
        if is_outside and not self._may_extrapolate:
            refuse_outside(self._latency, shape)
        first_token_s, total_s = self._latency.batch_time(shape)
        num_fitting, kv_tokens = self._memory.count_fitting(prompts, outputs)

        start_s = self._env.now
        yield LateTimeout(self._env, total_s)
        finish_s = self._env.now

        finished, evicted = requests, requests[num_fitting:]
        if evicted:
            finished, prompts, outputs = requests[:num_fitting], prompts[:num_fitting], outputs[:num_fitting]
        batch.report = BatchReport(
            bin=batch.bin,
            batch_size=shape.batch_size,
            first_token_s=first_token_s,
            total_s=total_s,
            worst_e2e_s=finish_s - min([request.arrival_s for request in requests]),
            output_tokens=shape.output_tokens,
            total_tokens=list(map(add, prompts, outputs)),
        )
        self._recorder.batch(
            finished,
            (
                self.gpu_id,
                batch.bin,
                num_fitting,
                len(evicted),
                batch.size_limit,
                batch.is_flush,
                start_s,
                start_s + first_token_s,
                finish_s,
                shape.prompt_tokens,
                shape.output_tokens,
                sum(prompts),
                sum(outputs),
                kv_tokens,
                is_outside,
            ),
        )
        if evicted:
            self._throw_out(evicted, is_first_too_long=not finished)

    def _throw_out(self, evicted: list[Request], *, is_first_too_long: bool) -> None:
        """Send back what did not fit beside the others; refuse a first request that did not fit alone."""
        if is_first_too_long:
            hopeless = evicted.pop(0)
            needed_tokens = hopeless.prompt_tokens + self._true_output_tokens[hopeless.request_id]
            reason = f"grew to {needed_tokens} KV tokens; one GPU holds {self._memory.capacity_tokens}"
            self._recorder.refuse(hopeless, reason)
        for request in evicted:
            request.is_waiting = True
            request.queue = None
            request.num_evictions += 1
            # What is known now: the answer is longer than was reserved for it (S3, arXiv 2306.06000, doubles
            # too).
            request.predicted_output_tokens *= 2
            self._recorder.evict(request)
        # Last first, so that pushing each back to the head of its bin restores their order.
        self.inbox.deliver_all(reversed(evicted))
