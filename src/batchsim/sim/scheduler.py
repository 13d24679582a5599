"""The scheduler: when batches are formed. What is chosen stands in `policies`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import simpy

from batchsim.errors import ConfigError, PlanError
from batchsim.policies.base import LaunchRule, ServiceMeter
from batchsim.policies.guards.checks import kind_of
from batchsim.policies.presets import Policy
from batchsim.records import STRANDED
from batchsim.sim.gpu import GPU, Batch, KVMemory
from batchsim.sim.mailbox import Mailbox, ProcessGen, delay_until
from batchsim.sim.recording.recorder import Recorder
from batchsim.sim.request import Request


class Scheduler:
    """Form batches for the GPUs of one queue.

    Takes `Request` from `inbox`, `GPU` from `idle_gpus` and ended `Batch` from `completed`; gives `Batch` to
    the `work` of an idle GPU, the one idle longest. While all GPUs run, requests wait in the inbox untouched;
    they join the queue before the next batch is formed. Arrivals of the instant at which a batch ends are
    seen by the next.
    """

    def __init__(
        self,
        env: simpy.Environment,
        policy: Policy,
        memory: KVMemory,
        gpus: Sequence[GPU],
        recorder: Recorder,
        *,
        has_gpu_of_its_own: bool = False,
    ) -> None:
        self._env = env
        self._policy_name = policy.name
        self._queue = policy.queueing
        self._meter: ServiceMeter | None = getattr(policy.queueing, "meter", None)
        self._sizer = policy.sizing
        self._rule = cast("LaunchRule", policy.batching)
        self._memory = memory
        self._recorder = recorder
        self._gpus = gpus
        self._gpu_id = gpus[0].gpu_id if has_gpu_of_its_own else -1
        self.num_requests = 0
        self.inbox = Mailbox(env)
        self.inbox.alert = self._notice
        self.idle_gpus = Mailbox(env)
        self.completed = Mailbox(env)
        for gpu in gpus:
            gpu.connect(self.completed, self.idle_gpus, self.inbox)

    @property
    def num_waiting(self) -> int:
        """Requests in the queue or on their way into it."""
        return len(self.inbox.items) + sum(self._queue.waiting(bin_) for bin_ in range(self._queue.num_bins))

    def accepts(self, request: Request) -> bool:
        """Whether the prompt leaves room for an answer."""
        return request.prompt_tokens < self._memory.capacity_tokens

    def kv_blocks(self) -> int:
        """Not known: a batch's memory is that of its padded shape, and has no blocks."""
        raise ConfigError("queues of batches that run to completion know their load in requests only")

    def describe_waiting(self) -> str:
        """Who waits for what, for the message of a stalled run."""
        queue = self._queue
        bins = [
            f"{queue.waiting(bin_)} requests in bin {bin_} (oldest: request {queue.oldest(bin_).request_id}) "
            f"wait for {kind_of(self._rule)} of policy {self._policy_name} to launch them"
            for bin_ in range(queue.num_bins)
            if queue.waiting(bin_)
        ]
        gpus = f"{len(self.idle_gpus.items)} of {len(self._gpus)} GPUs wait for a batch"
        return ", ".join([*bins, gpus])

    def run(self) -> ProcessGen:
        """Learn what ended, queue what came, launch what may go, wait for what could change that."""
        while True:
            self._learn()
            self._enqueue(self.inbox.take_all())
            self._is_last_call = self.inbox.is_closed
            while self.idle_gpus.items and (batch := self._form_batch()):
                gpu: GPU = self.idle_gpus.items.pop(0)
                gpu.work.deliver(batch)
            if self._is_last_call and self._rule.strands and len(self.idle_gpus.items) == len(self._gpus):
                self._strand_leftovers()
            yield from self._wait()

    def _learn(self) -> None:
        for batch in self.completed.take_all():
            self._recorder.decisions(self._sizer.observe(batch.report), self._gpu_id)
            if self._meter is not None:
                self._meter.settle(batch.requests, batch.report.total_tokens)

    def _notice(self) -> None:
        """A request was delivered: refuse it at once if it can never be served."""
        if not self.accepts(self.inbox.items[-1]):
            self._refuse(self.inbox.items.pop())

    def _enqueue(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if request.triggered:
                continue  # gave up on the way
            if request.num_evictions:
                request.queue = self._queue
                self._queue.push_back(request, request.bin)
            elif not self.accepts(request):
                self._refuse(request)
            else:
                request.bin = self._queue.push(request)
                request.queue = self._queue

    def _refuse(self, request: Request) -> None:
        reason = (
            f"a prompt of {request.prompt_tokens} tokens and its answer need more KV tokens than one GPU "
            f"holds, {self._memory.capacity_tokens}"
        )
        self._recorder.refuse(request, reason)

    def _form_batch(self) -> Batch | None:
        """Take the head of the chosen bin, up to the sizer's limit and what memory is predicted to hold."""
        queue, now_s = self._queue, self._env.now
        bin_ = self._rule.next_bin(queue, self._sizer, now_s, is_last_call=False)
        is_flush = bin_ is None and self._is_last_call
        if is_flush:
            bin_ = self._rule.next_bin(queue, self._sizer, now_s, is_last_call=True)
        if bin_ is None:
            return None
        size_limit = self._sizer.batch_size(bin_)
        num_waiting = queue.waiting(bin_)
        if size_limit < 1 or num_waiting < 1:
            raise PlanError(
                f"policy {self._policy_name}: {kind_of(self._rule)}.next_bin chose bin {bin_} with "
                f"{num_waiting} waiting requests and a size limit of {size_limit}; a batch needs at least "
                "one of each"
            )
        candidates = self._take(bin_, min(size_limit, num_waiting))
        num_fitting, _ = self._memory.count_fitting(
            [request.prompt_tokens for request in candidates],
            [request.predicted_output_tokens for request in candidates],
        )
        # A first request that is only predicted not to fit alone gets its chance: the prediction may be
        # wrong.
        requests = candidates[: max(1, num_fitting)]
        for request in reversed(candidates[len(requests) :]):
            queue.push_back(request, bin_)
        for request in requests:
            request.is_waiting = False
        return Batch(requests, bin_, size_limit, is_flush)

    def _strand_leftovers(self) -> None:
        """No more requests come, no batch runs, and the rule leaves the rest unserved."""
        queue = self._queue
        for bin_ in range(queue.num_bins):
            for request in self._take(bin_, queue.waiting(bin_)):
                self._recorder.end(request, STRANDED)

    def _take(self, bin_: int, num: int) -> list[Request]:
        """Take the next of a bin: a queue hands over what was pushed, which is more than a policy sees."""
        return cast("list[Request]", self._queue.take(bin_, num, self._env.now))

    def _wait(self) -> ProcessGen:
        """Wait for an idle GPU if there is none; else for what could make the rule answer otherwise."""
        if not self.idle_gpus.items:
            yield self.idle_gpus.when()
            return
        news = [self.inbox.when(self._rule.num_missing(self._queue, self._sizer))]
        may_matter = self._is_last_call or (self._sizer.adapts and self.num_waiting)
        if may_matter and len(self.idle_gpus.items) < len(self._gpus):
            # A batch that ends may change the size allowed, or be the last before leftovers are stranded.
            news.append(self.completed.when())
        wake_s = self._rule.wake_s(self._queue)
        if wake_s < math.inf:
            news.append(self._env.timeout(delay_until(self._env.now, wake_s)))
        yield news[0] if len(news) == 1 else self._env.any_of(news)
