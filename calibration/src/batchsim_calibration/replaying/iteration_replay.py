"""A replay in which requests join and leave at every iteration of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from batchsim.errors import ConfigError, PlanError
from batchsim.policies.presets import Policy
from batchsim.policies.reports import IterationReport
from batchsim.policies.steps import IterationRule, Step
from batchsim.records import ITERATION_COLUMNS, REFUSED
from batchsim_calibration.replaying.inbox import Clock, Inbox, Log, Request
from batchsim_calibration.replaying.step import NextIteration
from batchsim_calibration.serving.engine import Chunk, Engine

#: The columns that `NextIteration.shape` fills.
_SHAPE = ("prefill_tokens", "decode_seqs", "context_tokens", "prefill_seqs", "prefill_pairs")


class IterationReplay:
    """Run a trace through an engine, one forward pass at a time, as a policy has it.

    An iteration begins when the loop has looked at its inbox and ends when it looks again, so the time that
    policy and bookkeeping take is part of it. With nothing to do the loop sleeps until the next arrival and
    goes on as if it were exactly that moment: being woken late is part of the iteration too. What is
    preempted is computed again.

    Parameters
    ----------
    prompts, output_tokens
        Token ids and true answer length of each request, by number.

    Raises
    ------
    ConfigError
        If a request that would be admitted does not fit a slot of the engine.
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
        num_blocks: int,
        block_size: int,
    ) -> None:
        self._engine = engine
        self._policy = policy
        self._rule = cast("IterationRule", policy.batching)
        self._log = log
        self._prompts = prompts
        self._output_tokens = output_tokens
        self._clock = clock
        self._next = NextIteration(policy.queueing, num_blocks, block_size, self._rule.spare_blocks)
        self._free_slots = list(reversed(range(engine.num_slots)))
        for request in log.requests:
            self._check_slot(request)

    def run(self) -> None:
        """Serve all requests."""
        inbox, step = Inbox(self._log.requests), self._next
        now_s = 0.0
        while True:
            for request in inbox.take(now_s):
                self._receive(request)
            self._plan(now_s)
            if step.chunks or step.decoding:
                now_s = self._iterate(now_s)
            elif step.preemptions:
                continue  # made room by giving up all that ran
            elif not inbox.is_closed:
                now_s = inbox.next_s
                self._clock.sleep_until(now_s)
            elif step.num_waiting:
                raise PlanError(
                    f"{step.num_waiting} requests wait, nothing runs, and {self._rule} admits none of them"
                )
            else:
                return

    def _receive(self, request: Request) -> None:
        if self._fits(request):
            request.bin = self._policy.queueing.push(request)
        else:
            request.status = REFUSED
            held = self._usable_blocks * self._next.block_size
            request.refusal = f"may hold {self._most_tokens(request)} KV tokens; a request can have {held}"

    @property
    def _usable_blocks(self) -> int:
        return self._rule.usable_blocks(self._next.num_blocks)

    def _fits(self, request: Request) -> bool:
        return -(-self._most_tokens(request) // self._next.block_size) <= self._usable_blocks

    def _most_tokens(self, request: Request) -> int:
        """KV tokens it may come to hold; the last token of an answer is never stored."""
        answer_tokens = self._output_tokens[request.request_id] - 1
        return request.prompt_tokens + max(answer_tokens, self._rule.reserved_tokens(request))

    def _check_slot(self, request: Request) -> None:
        tokens = request.prompt_tokens + self._output_tokens[request.request_id] - 1
        if tokens > self._engine.max_tokens and self._fits(request):
            raise ConfigError(
                f"request {request.request_id} comes to hold {tokens} tokens; the engine was made for "
                f"{self._engine.max_tokens}: cut lengths (--max-prompt, --max-output) or raise --max-tokens"
            )

    def _plan(self, now_s: float) -> None:
        step = self._next
        step.begin(now_s)
        if step.is_undecided:
            step.max_running = self._policy.sizing.batch_size(0, step.num_decoding)
            # A rule names only requests it was shown, so those are `Request`, whatever else a `Step` holds.
            self._rule.plan(cast("Step", step))
        for request, *_ in step.preemptions:
            self._give_slot_back(request)
        self._log.preemptions += [
            (request.request_id, 0, now_s, "recompute", *what) for request, *what in step.preemptions
        ]

    def _iterate(self, start_s: float) -> float:
        """Run the iteration; return when it was over."""
        step, clock = self._next, self._clock
        shape, chunks, decoding = step.shape, list(step.chunks), list(step.decoding)
        num_running, num_waiting = step.num_running, step.num_waiting
        work = [self._chunk(request) for request in chunks]
        step.store()
        used_blocks = step.num_blocks - step.free_blocks

        called_s = clock.now()
        tokens = self._engine.step(work, [cast("int", request.slot) for request in decoding])
        finish_s = clock.now()

        completed = [request for request, chunk in zip(chunks, work, strict=True) if chunk.completes]
        finished = [
            request
            for request in [*decoding, *completed]
            if self._take_token(request, tokens[cast("int", request.slot)], finish_s)
        ]
        duration_s = finish_s - start_s
        row = {
            "gpu_id": 0,
            "start_s": start_s,
            "finish_s": finish_s,
            "num_iterations": 1,
            "first_iteration_s": duration_s,
            "host_s": max(called_s - start_s, 0.0),
            **dict(zip(_SHAPE, shape, strict=True)),
            "longest_tokens": 0,  # of interest to some latency models, but nothing that was decided by
            "num_running": num_running,
            "num_waiting": num_waiting,
            "kv_blocks": used_blocks,
            "num_preempted": step.num_preempted,
            "is_extrapolated": False,
        }
        self._log.iterations.append(tuple(row[name] for name in ITERATION_COLUMNS))
        num_decodes = len(decoding)
        report = IterationReport(
            1,
            duration_s,
            num_decodes and num_decodes + len(completed),
            num_decodes or step.num_decoding,
            [one.prompt_tokens + self._output_tokens[one.request_id] for one in finished],
        )
        for controller in self._policy.controllers:
            self._log.decide(finish_s, 0, controller.observe_iterations(report))
        return finish_s

    def _chunk(self, request: Request) -> Chunk:
        """Return what of prompt and answer the iteration stores; the request has a slot from now on."""
        if request.slot is None:
            request.slot = self._free_slots.pop()
        ids = self._prompts[request.request_id]
        if request.answer:
            ids = torch.cat([ids, torch.tensor(request.answer, device=ids.device)])
        start = request.stored_tokens
        stop = start + request.chunk_tokens
        return Chunk(request.slot, ids[start:stop], completes=stop == len(ids))

    def _take_token(self, request: Request, token: int, now_s: float) -> bool:
        """Add a token to an answer; say whether it was the last."""
        request.answer.append(token)
        if len(request.answer) == 1:
            request.first_token_s = now_s
        if not request.decodes:
            request.decodes = True
            request.decode_start_s = now_s
        if len(request.answer) < self._output_tokens[request.request_id]:
            return False
        request.finish_s = now_s
        self._next.leave(request)
        self._give_slot_back(request)
        return True

    def _give_slot_back(self, request: Request) -> None:
        if request.slot is not None:
            self._engine.clear(request.slot)
            self._free_slots.append(request.slot)
            request.slot = None
