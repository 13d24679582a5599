"""What engines that batch at every iteration did: sequences, KV blocks, what iterations consist of.

Numbers of sequences and blocks are per replica, and idle time counts as empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from batchsim.metrics.system import Window, at_most_one, clock_error, ratio, running_s
from batchsim.metrics.tokens import decode_runs
from batchsim.metrics.weighted import Weighted


def running_sequences(iterations: pd.DataFrame, num_replicas: int, window: Window) -> Weighted:
    """Sequences that hold KV blocks on a replica, weighted by seconds of the window."""
    weights_s = running_s(iterations, window).to_numpy()
    idle_s = max(num_replicas * window.length_s - float(weights_s.sum()), 0.0)
    return Weighted.of(np.append(iterations["num_running"], 0), np.append(weights_s, idle_s))


def kv_share(iterations: pd.DataFrame, kv_blocks: Sequence[int]) -> pd.Series[float]:
    """Share of its replica's KV blocks in use at the end of each span, before finished requests leave."""
    capacity_blocks = np.asarray(kv_blocks, dtype=np.int64)[iterations["gpu_id"].to_numpy()]
    return pd.Series(iterations["kv_blocks"] / capacity_blocks, dtype=np.float64)


def kv_use(iterations: pd.DataFrame, kv_blocks: Sequence[int], window: Window) -> float:
    """Time average over all replicas of KV blocks in use / blocks.

    A span counts with what it holds at its end, so this is an upper bound while answers grow.
    """
    held_s = running_s(iterations, window) * kv_share(iterations, kv_blocks)
    use = float(held_s.sum()) / (len(kv_blocks) * window.length_s)
    return at_most_one(
        use, clock_error(iterations, window), "use of KV blocks", "spans overlap or do not fit"
    )


def computed_tokens(iterations: pd.DataFrame) -> pd.Series[int]:
    """Tokens that went through the model in each span: prompt chunks and decodes."""
    return iterations["prefill_tokens"] + decoded_tokens(iterations)


def decoded_tokens(iterations: pd.DataFrame) -> pd.Series[int]:
    """Tokens that each span's decoding sequences gave."""
    return iterations["decode_seqs"].astype(np.int64) * iterations["num_iterations"]


class TokenThroughput(NamedTuple):
    """Tokens per second: output tokens as they are produced, and with them prompts as they are completed."""

    output_tokens_per_s: float
    total_tokens_per_s: float


def token_throughput(
    requests: pd.DataFrame, iterations: pd.DataFrame, preemptions: pd.DataFrame, window: Window
) -> TokenThroughput:
    """Count tokens when they come; the decodes of a span that reaches beyond the window, by its share inside.

    A request has a token at the end of its prefill, one more for a prefill repeated after a preemption, and
    one for each iteration in which it decodes.
    """
    share = running_s(iterations, window) / (iterations["finish_s"] - iterations["start_s"])
    is_first = requests["first_token_s"].between(*window)
    output_tokens = float((decoded_tokens(iterations) * share).sum()) + int(is_first.sum())
    if len(preemptions):
        preempted = requests[requests["request_id"].isin(preemptions["request_id"])]
        runs = decode_runs(preempted, iterations, preemptions)
        is_repeated = runs["has_token_at_start"] & runs["start_s"].between(*window)
        output_tokens += int(is_repeated.sum() - is_first[preempted.index].sum())
    total_tokens = output_tokens + int(requests.loc[is_first, "prompt_tokens"].sum())
    return TokenThroughput(output_tokens / window.length_s, total_tokens / window.length_s)


def recomputed_share(requests: pd.DataFrame, iterations: pd.DataFrame) -> float:
    """Share of all tokens computed that were computed a second time, after a preemption."""
    return ratio(float(requests["recomputed_tokens"].sum()), float(computed_tokens(iterations).sum()))


def prefix_hit_rate(requests: pd.DataFrame) -> float:
    """Share of the prompt tokens of admitted requests that were in the prefix cache when they first were."""
    started = requests[requests["scheduled_s"].notna()]
    return ratio(float(started["cached_tokens"].sum()), float(started["prompt_tokens"].sum()))


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
