"""Serve a trace in real time on vLLM, and tell what happened in the words of a simulation.

`serve` is the loop of vLLM's engine core with requests that arrive at their times, `recorded` makes of its
turns the log of a replay, and `settled` the configuration by which a simulation repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batchsim.config import RunConfig, load_config
from batchsim.errors import ConfigError
from batchsim.records import ITERATION_COLUMNS
from batchsim.streams import stream
from batchsim.workload.request import Workload
from batchsim_calibration.replaying.inbox import Clock, Inbox, Log, Request, WallClock, requests_of
from batchsim_calibration.vllm_engine.engine import Limits
from batchsim_calibration.vllm_engine.passes import Pass, Share
from batchsim_calibration.vllm_engine.points import Core


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the engine's loop: from when it has looked who arrived until it looks again, and its pass.

    The pass may have no shares: vLLM runs an empty one to forget who has finished.
    """

    start_s: float
    finish_s: float
    scheduled: Pass


def settled(limits: Limits, *, version: str, block_size: int, num_kv_blocks: int, seed: int) -> RunConfig:
    """Return the configuration of a simulation that repeats what vLLM serves under these limits."""
    batching = {"max_num_batched_tokens": limits.max_num_batched_tokens, "engine_version": version}
    return load_config(
        {
            "seed": seed,
            "policy": {"preset": "vllm_v1", "batch_size": limits.max_num_seqs, "batching": batching},
            "workload": {"training_fraction": 0.0},
            "engine": {
                "block_size": block_size,
                "num_kv_blocks": limits.num_kv_blocks or num_kv_blocks,
                "prefix_caching": limits.prefix_caching,
                "exact_iterations": True,
            },
        }
    )


def check_fits(workload: Workload, limits: Limits, block_size: int, num_kv_blocks: int) -> None:
    """Raise `ConfigError` if a request would wait for ever: all it comes to hold must fit."""
    blocks = limits.num_kv_blocks or num_kv_blocks
    most_tokens = int((workload.prompt_tokens + workload.output_tokens - 1).max())
    if -(-most_tokens // block_size) > blocks:
        raise ConfigError(
            f"a request comes to hold {most_tokens} tokens; {blocks} KV blocks hold {blocks * block_size}: "
            "cut lengths (--max-prompt, --max-output) or give more blocks"
        )


def warm_up(engine: Core, max_num_batched_tokens: int, max_prompt_tokens: int, seed: int = 0) -> None:
    """Run a pass of each number of tokens that a pass may have.

    A processor makes its kernels for a number of tokens when it meets it first, which takes as long as a
    short pass; a server that has run for a while has met them all.
    """
    rng = stream(seed, "prompts of the warm-up")
    for num_tokens in range(1, max_num_batched_tokens + 1):
        for start in range(0, num_tokens, max_prompt_tokens):
            prompt = rng.integers(engine.vocab_size, size=min(max_prompt_tokens, num_tokens - start)).tolist()
            engine.add(engine.request(f"warm-up-{num_tokens}-{start}", prompt, 1))
        engine.step()
        engine.drain()


def serve(engine: Core, workload: Workload, seed: int = 0, clock: Clock | None = None) -> list[Turn]:
    """Serve a workload, whose requests are made before the clock runs, as another process would make them."""
    rng = stream(seed, "prompts")
    lengths = zip(workload.prompt_tokens.tolist(), workload.output_tokens.tolist(), strict=True)
    made: list[Any] = [
        engine.request(str(number), rng.integers(engine.vocab_size, size=prompt).tolist(), output)
        for number, (prompt, output) in enumerate(lengths)
    ]
    inbox = Inbox(requests_of(workload, workload.output_tokens))
    turns: list[Turn] = []
    engine.log.take()
    clock = clock or WallClock()
    now_s = 0.0
    while True:
        for request in inbox.take(now_s):
            engine.add(made[request.request_id])
        if engine.has_work:
            engine.step()
            finish_s = clock.now()
            turns += (Turn(now_s, finish_s, one) for one in engine.log.take())
            now_s = finish_s
        elif not inbox.is_closed:
            # As if it were exactly that moment: being woken late is part of the pass.
            now_s = inbox.next_s
            clock.sleep_until(now_s)
        else:
            return turns


def recorded(turns: Sequence[Turn], workload: Workload, num_kv_blocks: int) -> Log:
    """Make the log of a replay of what vLLM did in its turns."""
    log = Log(requests_of(workload, workload.output_tokens), workload.output_tokens)
    outputs: list[int] = workload.output_tokens.tolist()
    rows: list[dict[str, Any]] = []
    for turn in turns:
        for name, lost_tokens in turn.scheduled.preempted:
            _preempt(log, log.requests[int(name)], lost_tokens, turn.start_s)
        if turn.scheduled.shares:
            rows.append(_row(turn, log.requests, num_kv_blocks))
            for share in turn.scheduled.shares:
                _take(log.requests[int(share.request_id)], share, turn, outputs)
        elif rows:  # it kept the engine from the next pass
            rows[-1]["finish_s"] = turn.finish_s
    for row in rows:
        row["first_iteration_s"] = row["finish_s"] - row["start_s"]
        log.iterations.append(tuple(row[name] for name in ITERATION_COLUMNS))
    return log


def _preempt(log: Log, request: Request, lost_tokens: int, now_s: float) -> None:
    decode_start_s = request.decode_start_s if request.decodes else math.nan
    log.preemptions.append((request.request_id, 0, now_s, "recompute", decode_start_s, lost_tokens))
    request.decodes = False
    request.most_stored_tokens = max(request.most_stored_tokens, lost_tokens)
    request.num_preemptions += 1


def _row(turn: Turn, requests: Sequence[Request], num_kv_blocks: int) -> dict[str, Any]:
    """One iteration, its duration aside."""
    one = turn.scheduled
    decodes = [share for share in one.shares if requests[int(share.request_id)].decodes]
    chunks = [share for share in one.shares if not requests[int(share.request_id)].decodes]
    return {
        "gpu_id": 0,
        "start_s": turn.start_s,
        "finish_s": turn.finish_s,
        "num_iterations": 1,
        "host_s": one.scheduled_s - one.start_s,
        "prefill_tokens": sum(share.num_tokens for share in chunks),
        "decode_seqs": len(decodes),
        "context_tokens": sum(share.tokens_before for share in decodes),
        "prefill_seqs": len(chunks),
        "prefill_pairs": sum(
            share.num_tokens * (share.tokens_before + share.num_tokens / 2) for share in chunks
        ),
        "longest_tokens": 0,
        "num_running": one.num_running,
        "num_waiting": one.num_waiting,
        "kv_blocks": num_kv_blocks - one.free_blocks,
        "num_preempted": len(one.preempted),
        "is_extrapolated": False,
    }


def _take(request: Request, share: Share, turn: Turn, outputs: Sequence[int]) -> None:
    """What a pass did for a request, token and all."""
    if math.isnan(request.scheduled_s):
        request.scheduled_s = turn.start_s
    stored = share.tokens_before + share.num_tokens
    again = min(stored, request.most_stored_tokens) - share.tokens_before
    request.recomputed_tokens += max(again, 0)
    if not share.yields:
        return
    request.answer.append(0)  # which token it is bears on nothing
    if len(request.answer) == 1:
        request.first_token_s = turn.finish_s
    if not request.decodes:
        request.decodes = True
        request.decode_start_s = turn.finish_s
    if len(request.answer) == outputs[request.request_id]:
        request.finish_s = turn.finish_s
