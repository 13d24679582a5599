"""A replay in which batches run to completion, padded to their longest prompt and answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch.nn.functional import pad

from batchsim.errors import ConfigError, PlanError
from batchsim.policies.base import LaunchRule
from batchsim.policies.presets import Policy
from batchsim.policies.reports import BatchReport
from batchsim.records import REFUSED, STRANDED
from batchsim_calibration.replaying.inbox import Clock, Inbox, Log, Request
from batchsim_calibration.serving.engine import Chunk, Engine


@dataclass(frozen=True, slots=True)
class KVCapacity:
    """KV tokens that a batch may hold: each member as many as the longest (padded), or its own (paged)."""

    tokens: int
    layout: Literal["padded", "paged"]

    def tokens_of(self, lengths: Sequence[tuple[int, int]]) -> int:
        """Tokens that requests with these prompts and answers hold in the end."""
        if self.layout == "paged" or not lengths:
            return sum(prompt + output for prompt, output in lengths)
        longest_prompt = max(prompt for prompt, _ in lengths)
        return len(lengths) * (longest_prompt + max(output for _, output in lengths))

    def num_fitting(self, lengths: Sequence[tuple[int, int]]) -> int:
        """How many of the first requests fit together."""
        num = len(lengths)
        while self.tokens_of(lengths[:num]) > self.tokens:
            num -= 1
        return num


@dataclass(slots=True)
class _Batch:
    requests: list[Request]
    bin: int
    size_limit: int
    is_flush: bool


class BatchReplay:
    """Run a trace through an engine in batches that a policy forms.

    All prompts of a batch, padded to the longest, are one forward pass; then all members decode until the
    longest answer is there, and all finish with it. What policy and bookkeeping take between two batches is
    part of the second. A batch that turns out to hold more KV than is allowed is run all the same; its latest
    members, whose answers do not count then, go back to the queue.

    Parameters
    ----------
    prompts, output_tokens
        Token ids and true answer length of each request, by number.

    Raises
    ------
    ConfigError
        If the longest prompt and the longest answer together do not fit a slot of the engine.
    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        log: Log,
        prompts: Sequence[torch.Tensor],
        output_tokens: Sequence[int],
        clock: Clock,
        *,
        capacity: KVCapacity,
    ) -> None:
        self._engine = engine
        self._queue = policy.queueing
        self._sizer = policy.sizing
        self._rule = cast("LaunchRule", policy.batching)
        self._log = log
        self._prompts = prompts
        self._output_tokens = output_tokens
        self._clock = clock
        self._capacity = capacity
        self._thrown_out: list[Request] = []
        tokens = max(len(prompt) for prompt in prompts) + max(output_tokens) - 1
        if tokens > engine.max_tokens:
            raise ConfigError(
                f"a batch of the longest prompt and the longest answer holds {tokens} tokens a row; the "
                f"engine was made for {engine.max_tokens}: cut lengths (--max-prompt, --max-output) or raise "
                "--max-tokens"
            )

    def run(self) -> None:
        """Serve all requests that the policy does not leave unserved."""
        inbox = Inbox(self._log.requests)
        now_s = 0.0
        while True:
            self._enqueue_thrown_out()
            for request in inbox.take(now_s):
                self._receive(request)
            if batch := self._form_batch(now_s, is_last_call=inbox.is_closed):
                now_s = self._execute(batch, now_s)
            elif not inbox.is_closed or (self._num_waiting and not self._rule.strands):
                now_s = self._sleep(now_s, inbox.next_s)
            else:
                self._strand_leftovers(now_s)
                return

    @property
    def _num_waiting(self) -> int:
        return sum(self._queue.waiting(bin_) for bin_ in range(self._queue.num_bins))

    def _sleep(self, now_s: float, next_arrival_s: float) -> float:
        """Wait for what can change the rule's answer."""
        due_s = self._rule.wake_s(self._queue)
        wake_s = min(next_arrival_s, due_s if due_s > now_s else math.inf)
        if wake_s == math.inf:
            raise PlanError(f"{self._num_waiting} requests wait, and {self._rule} launches none of them")
        self._clock.sleep_until(wake_s)
        return wake_s

    def _receive(self, request: Request) -> None:
        if request.prompt_tokens < self._capacity.tokens:
            request.bin = self._queue.push(request)
        else:
            self._refuse(
                request,
                f"a prompt of {request.prompt_tokens} tokens and its answer need more KV tokens than one GPU "
                f"holds, {self._capacity.tokens}",
            )

    def _refuse(self, request: Request, reason: str) -> None:
        request.status, request.refusal, request.bin = REFUSED, reason, -1

    def _enqueue_thrown_out(self) -> None:
        """Last first, so that pushing each back to the head of its bin restores their order."""
        for request in reversed(self._thrown_out):
            self._queue.push_back(request, request.bin)
        self._thrown_out = []

    def _form_batch(self, now_s: float, *, is_last_call: bool) -> _Batch | None:
        """Take the head of the bin that the rule chooses, as far as size and predicted memory allow."""
        queue, sizer = self._queue, self._sizer
        bin_ = self._rule.next_bin(queue, sizer, now_s, is_last_call=False)
        is_flush = bin_ is None and is_last_call
        if is_flush:
            bin_ = self._rule.next_bin(queue, sizer, now_s, is_last_call=True)
        if bin_ is None:
            return None
        size_limit = sizer.batch_size(bin_)
        taken = cast("list[Request]", queue.take(bin_, min(size_limit, queue.waiting(bin_)), now_s))
        predicted = [(request.prompt_tokens, request.predicted_output_tokens) for request in taken]
        # The first gets its chance even if it is predicted not to fit alone: the prediction may be wrong.
        num = max(1, self._capacity.num_fitting(predicted))
        for request in reversed(taken[num:]):
            queue.push_back(request, bin_)
        return _Batch(taken[:num], bin_, size_limit, is_flush)

    def _execute(self, batch: _Batch, start_s: float) -> float:
        """Run a batch; return when it was over."""
        members = batch.requests
        lengths = [(one.prompt_tokens, self._output_tokens[one.request_id]) for one in members]
        prompt_tokens, output_tokens = map(max, zip(*lengths, strict=True))
        first_token_s, finish_s = self._compute(members, prompt_tokens, output_tokens)

        num = self._capacity.num_fitting(lengths)
        finished, evicted = members[:num], members[num:]
        report = BatchReport(
            bin=batch.bin,
            batch_size=len(members),
            first_token_s=first_token_s - start_s,
            total_s=finish_s - start_s,
            worst_e2e_s=finish_s - min(one.arrival_s for one in members),
            output_tokens=output_tokens,
            total_tokens=[sum(length) for length in lengths[:num]],
        )
        for request in finished:
            request.batch_id, request.batch_size = len(self._log.batches), num
            request.scheduled_s, request.first_token_s, request.finish_s = start_s, first_token_s, finish_s
        self._log.batches.append(
            (
                len(self._log.batches),
                0,
                batch.bin,
                num,
                len(evicted),
                batch.size_limit,
                batch.is_flush,
                start_s,
                first_token_s,
                finish_s,
                prompt_tokens,
                output_tokens,
                sum(prompt for prompt, _ in lengths[:num]),
                sum(output for _, output in lengths[:num]),
                self._capacity.tokens_of(lengths[:num]),
                False,
            )
        )
        self._throw_out(evicted, is_first_too_long=not finished)
        self._log.decide(finish_s, -1, self._sizer.observe(report))
        return finish_s

    def _compute(
        self, members: Sequence[Request], prompt_tokens: int, output_tokens: int
    ) -> tuple[float, float]:
        """Prefill and decode; return the times of first token and end."""
        engine, slots = self._engine, range(len(members))
        prompts = [self._prompts[one.request_id] for one in members]
        engine.step(
            [
                Chunk(slot, pad(ids, (0, prompt_tokens - len(ids))), completes=True)
                for slot, ids in zip(slots, prompts, strict=True)
            ],
            (),
        )
        first_token_s = self._clock.now()
        for _ in range(output_tokens - 1):
            engine.step((), slots)
        for slot in slots:
            engine.clear(slot)
        return first_token_s, self._clock.now()

    def _throw_out(self, evicted: list[Request], *, is_first_too_long: bool) -> None:
        """Send back what did not fit beside the others; refuse a first request that did not fit alone."""
        if is_first_too_long:
            hopeless = evicted.pop(0)
            tokens = hopeless.prompt_tokens + self._output_tokens[hopeless.request_id]
            self._refuse(hopeless, f"grew to {tokens} KV tokens; one GPU holds {self._capacity.tokens}")
        for request in evicted:
            request.num_evictions += 1
            request.predicted_output_tokens *= 2  # longer than was thought, that much is known now
        self._thrown_out = evicted

    def _strand_leftovers(self, now_s: float) -> None:
        """No more come, and the rule leaves the rest unserved."""
        for bin_ in range(self._queue.num_bins):
            for request in self._queue.take(bin_, self._queue.waiting(bin_), now_s):
                leftover = cast("Request", request)
                leftover.status, leftover.bin = STRANDED, -1
