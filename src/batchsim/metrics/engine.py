"""What engines that batch at every iteration did: sequences, KV blocks, what iterations consist of.

Numbers of sequences and blocks are per replica, and idle time counts as empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from batchsim.metrics.system import Window, at_most_one, clock_error, inside, ratio, running_s
from batchsim.metrics.tokens import DecodeRuns, decode_runs, lost_runs
from batchsim.metrics.weighted import Floats, Ints, Weighted
from batchsim.records import FAILURES, Columns, Records, arrays, rows


def running_sequences(iterations: Columns[Any], num_replicas: float, window: Window) -> Weighted:
    """Sequences that hold KV blocks on a replica, weighted by seconds of the window."""
    weights_s = running_s(iterations, window)
    idle_s = max(num_replicas * window.length_s - float(weights_s.sum()), 0.0)
    return Weighted.of(np.append(iterations["num_running"], 0), np.append(weights_s, idle_s))


def kv_share(iterations: Columns[Any], kv_blocks: Sequence[int]) -> Floats:
    """Share of its replica's KV blocks in use at the end of each span, before finished requests leave.

    Shape ``(num_spans,)``.
    """
    capacity_blocks = np.asarray(kv_blocks, dtype=np.int64)[np.asarray(iterations["gpu_id"])]
    share: Floats = np.asarray(iterations["kv_blocks"]) / capacity_blocks
    return share


def kv_use(
    iterations: Columns[Any], kv_blocks: Sequence[int], window: Window, num_replicas: float | None = None
) -> float:
    """Time average over all replicas, or so many on average, of KV blocks in use / blocks.

    A span counts with what it holds at its end, so this is an upper bound while answers grow.
    """
    held_s = running_s(iterations, window) * kv_share(iterations, kv_blocks)
    use = float(held_s.sum()) / ((num_replicas or len(kv_blocks)) * window.length_s)
    error = clock_error(len(held_s), window)
    return at_most_one(use, error, "use of KV blocks", "spans overlap or do not fit")


def computed_tokens(iterations: Columns[Any]) -> Ints:
    """Tokens that went through the model in each span, ``(num_spans,)``: prompt chunks and decodes.

    Of drafts, those that were accepted.
    """
    return np.asarray(iterations["prefill_tokens"], dtype=np.int64) + decoded_tokens(iterations)


def decoded_tokens(iterations: Columns[Any]) -> Ints:
    """Tokens that each span's decoding sequences gave, ``(num_spans,)``: one each, unless they had drafts."""
    if "decode_tokens" in iterations:
        return np.asarray(iterations["decode_tokens"], dtype=np.int64)
    return decode_steps(iterations)


def decode_steps(iterations: Columns[Any]) -> Ints:
    """Decoding sequences of all iterations of each span, ``(num_spans,)``."""
    decode_seqs = np.asarray(iterations["decode_seqs"], dtype=np.int64)
    return decode_seqs * np.asarray(iterations["num_iterations"], dtype=np.int64)


class TokenThroughput(NamedTuple):
    """Tokens per second: output tokens as they are produced, and with them prompts as they are completed."""

    output_tokens_per_s: float
    total_tokens_per_s: float


def token_throughput(
    requests: Columns[Any], iterations: Columns[Any], preemptions: Columns[Any], window: Window
) -> TokenThroughput:
    """Count tokens when they come; the decodes of a span that reaches beyond the window, by its share inside.

    A request has a token at the end of its prefill, one more for a prefill repeated after a preemption, and
    those of each iteration in which it decodes: one, or with drafts several. Tokens that were lost as a
    replica failed are none.
    """
    share = running_s(iterations, window) / np.asarray(iterations["finish_s"] - iterations["start_s"])
    is_first = inside(requests["first_token_s"], window)
    output_tokens = float((decoded_tokens(iterations) * share).sum()) + np.count_nonzero(is_first)
    if len(preemptions["request_id"]):
        is_preempted = np.isin(requests["request_id"], preemptions["request_id"])
        runs = decode_runs(rows(requests, is_preempted), iterations, preemptions)
        is_repeated = runs.has_token_at_start & inside(runs.start_s, window)
        output_tokens += np.count_nonzero(is_repeated) - np.count_nonzero(is_first & is_preempted)
        if any((preemptions["mode"] == one).any() for one in FAILURES):
            output_tokens -= _lost_tokens(lost_runs(requests, iterations, preemptions), iterations, share)
    total_tokens = output_tokens + int(np.asarray(requests["prompt_tokens"])[is_first].sum())
    return TokenThroughput(output_tokens / window.length_s, total_tokens / window.length_s)


def _lost_tokens(lost: DecodeRuns, iterations: Columns[Any], share: Floats) -> float:
    """Decoded tokens of these runs, with the share of each span that counts."""
    if not len(lost.row):
        return 0.0
    tokens = share * np.asarray(iterations["num_iterations"])
    num_lost, decodes = 0.0, np.asarray(iterations["decode_seqs"]) > 0
    for gpu_id in np.unique(lost.gpu_id):
        runs = lost.gpu_id == gpu_id
        of_replica = tokens[decodes & (np.asarray(iterations["gpu_id"]) == gpu_id)]
        up_to = np.concatenate([[0.0], np.cumsum(of_replica)])
        num_lost += float((up_to[lost.stop_span[runs]] - up_to[lost.first_span[runs]]).sum())
    return num_lost


def recomputed_share(requests: Columns[Any], iterations: Columns[Any]) -> float:
    """Share of all tokens computed that were computed a second time, after a preemption."""
    return ratio(float(np.sum(requests["recomputed_tokens"])), float(computed_tokens(iterations).sum()))


def prefix_hit_rate(requests: Columns[Any]) -> float:
    """Share of the prompt tokens of admitted requests that were in the prefix cache when they first were."""
    started = ~np.isnan(np.asarray(requests["scheduled_s"]))
    cached, given = (np.asarray(requests[name])[started].sum() for name in ("cached_tokens", "prompt_tokens"))
    return ratio(float(cached), float(given))


def speculation_parts(records: Records) -> dict[str, float]:
    """Tokens and accepted drafts per step, over all steps of the run; nothing where there were no drafts.

    A step is one of one sequence. An accepted draft counts though the answer ended before it, so that 1 +
    ``accepted_per_step_mean``, vLLM's mean acceptance length, is ``(1 - a^(k + 1)) / (1 - a)`` for ``k``
    drafts, each accepted at the rate ``a`` (arXiv 2211.17192, equation 1). The tokens given are fewer:
    answers end.
    """
    steps = arrays(records.decode_steps)
    num = len(steps["tokens"])
    if not num:
        return {}
    tokens, accepted, drafted = (
        float(steps[name].sum(dtype=np.int64)) for name in ("tokens", "accepted", "drafted")
    )
    return {
        "tokens_per_step_mean": tokens / num,
        "accepted_per_step_mean": accepted / num,
        "draft_acceptance_rate": ratio(accepted, drafted),
    }


def composition(iterations: pd.DataFrame, num_bins: int) -> pd.DataFrame:
    """What iterations consist of over time, in equal bins from the first start to the last finish.

    Returns
    -------
    pandas.DataFrame
        A row per bin: ``start_s, end_s``; ``iterations, prefill_tokens, decode_tokens`` of all replicas, a
        span's spread evenly over its time; ``busy, decode_seqs``: time averages of the replicas running and
        of the sequences decoding on all of them.
    """
    edges_s = np.linspace(iterations["start_s"].min(), iterations["finish_s"].max(), num_bins + 1)
    bins = pd.DataFrame({"start_s": edges_s[:-1], "end_s": edges_s[1:]})
    seconds = iterations["finish_s"] - iterations["start_s"]
    amounts = iterations[["gpu_id", "start_s", "finish_s", "prefill_tokens"]].assign(
        iterations=iterations["num_iterations"],
        decode_tokens=decoded_tokens(iterations),
        busy=seconds,
        decode_seqs=seconds * iterations["decode_seqs"],
    )
    names = ["iterations", "prefill_tokens", "decode_tokens", "busy", "decode_seqs"]
    bins[names] = 0.0
    for _, spans in amounts.groupby("gpu_id"):
        ends_s = spans[["start_s", "finish_s"]].to_numpy().ravel()
        for name in names:
            # At the start and at the end of each span, in turn: the amount so far.
            so_far = np.repeat(np.concatenate([[0.0], spans[name].cumsum()]), 2)[1:-1]
            bins[name] += np.diff(np.interp(edges_s, ends_s, so_far))
    length_s = bins["end_s"] - bins["start_s"]
    return bins.assign(busy=bins["busy"] / length_s, decode_seqs=bins["decode_seqs"] / length_s)
