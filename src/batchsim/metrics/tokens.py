"""When each token came, read back from the log of spans: the gaps between tokens, and each request's worst.

The prompt's completion gives a request its first token; from then on it gets one at the end of every
iteration with decoding sequences, as long as its *decode run* lasts: until it is preempted or finishes. A run
that begins with a (repeated) prefill has a token at its very start, one that begins with a swap-in has not.
Runs begin and end where spans do, so that a run is a range of spans and nothing here loops over tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from batchsim.metrics.weighted import Floats, Ints, Weighted, expand
from batchsim.records import FINISHED


def itl(requests: pd.DataFrame, iterations: pd.DataFrame, preemptions: pd.DataFrame) -> Weighted:
    """Inter-token latency: the gaps between successive tokens of each request, all tokens pooled.

    Whatever held a token up is in its gap: prefills of others, preemption. Only finished requests among
    ``requests`` count; ``iterations`` and ``preemptions`` may hold those of others as well.
    """
    return _pooled(*_runs_and_spans(requests, iterations, preemptions))


def worst_gap_s(
    requests: pd.DataFrame, iterations: pd.DataFrame, preemptions: pd.DataFrame
) -> pd.Series[float]:
    """Longest time between two successive tokens of each request; NaN for one-token answers, unfinished."""
    return _worst(requests, *_runs_and_spans(requests, iterations, preemptions))


def itl_and_worst_gap_s(
    requests: pd.DataFrame, iterations: pd.DataFrame, preemptions: pd.DataFrame
) -> tuple[Weighted, pd.Series[float]]:
    """Both of the above, for one reading of the log."""
    runs, spans_of = _runs_and_spans(requests, iterations, preemptions)
    worst_s = _worst(requests, runs, spans_of)  # first: it needs most memory on the way
    return _pooled(runs, spans_of), worst_s


def num_tokens(requests: pd.DataFrame, iterations: pd.DataFrame, preemptions: pd.DataFrame) -> pd.Series[int]:
    """Output tokens of each request as the log has them; 0 for those that did not finish."""
    runs = decode_runs(requests, iterations, preemptions)
    by_row = (runs["num_decoded"] + runs["has_token_at_start"]).groupby(runs["row"]).sum()
    return by_row.reindex(range(len(requests)), fill_value=0).set_axis(requests.index)


def token_times_s(
    request_id: int, requests: pd.DataFrame, iterations: pd.DataFrame, preemptions: pd.DataFrame
) -> Floats:
    """When each token of one finished request came, shape ``(output_tokens,)``."""
    request = requests[requests["request_id"] == request_id]
    decoding = iterations[iterations["decode_seqs"] > 0]
    times_s = [np.empty(0)]
    for _, run in decode_runs(request, iterations, preemptions).iterrows():
        spans = decoding[decoding["gpu_id"] == run["gpu_id"]].iloc[run["first_span"] : run["stop_span"]]
        times_s += [np.repeat(run["start_s"], run["has_token_at_start"]), iteration_ends_s(spans)]
    return np.concatenate(times_s)


def iteration_ends_s(iterations: pd.DataFrame) -> Floats:
    """When each iteration of these spans ended, shape ``(sum of num_iterations,)``."""
    spans = _spans(iterations)
    span, index = expand(spans.num_iterations)
    ends_s: Floats = spans.first_s[span] * (index + 1) + spans.growth_s[span] * (index * (index + 1) / 2)
    ends_s += spans.start_s[span]
    ends_s[np.cumsum(spans.num_iterations) - 1] = spans.finish_s  # not off by a rounding
    return ends_s


def decode_runs(requests: pd.DataFrame, iterations: pd.DataFrame, preemptions: pd.DataFrame) -> pd.DataFrame:
    """List the decode runs of finished requests that gave any token, by request and time.

    Returns
    -------
    pandas.DataFrame
        ``row``: of the request in ``requests``; ``gpu_id``; ``start_s``; ``has_token_at_start``;
        ``first_span, stop_span``: its spans, as a range of those of the replica that have decoding
        sequences; ``num_decoded``: the tokens of these; ``wait_s``: from the last token of the run before to
        its first, NaN in a first run; ``entry_s``: from the token at its start to its first decoded one,
        NaN where either is missing.
    """
    return _runs_and_spans(requests, iterations, preemptions)[0]


class _Spans(NamedTuple):
    """Spans of one replica: iteration ``j`` takes ``first_s + j * growth_s``."""

    start_s: Floats
    finish_s: Floats
    num_iterations: Ints
    first_s: Floats
    growth_s: Floats

    @property
    def gap_s(self) -> Floats:
        """From the end of the span before to the end of the first iteration; NaN in the first span."""
        before_s: Floats = np.concatenate([[np.nan], self.finish_s[:-1]])
        return self.start_s + self.first_s - before_s


def _spans(iterations: pd.DataFrame) -> _Spans:
    start_s, finish_s = iterations["start_s"].to_numpy(), iterations["finish_s"].to_numpy()
    first_s = iterations["first_iteration_s"].to_numpy()
    num_iterations = iterations["num_iterations"].to_numpy(dtype=np.int64)
    steps = num_iterations * (num_iterations - 1) / 2
    growth_s = (finish_s - start_s - num_iterations * first_s) / np.where(steps > 0, steps, np.inf)
    return _Spans(start_s, finish_s, num_iterations, first_s, growth_s)


def _spans_by_replica(iterations: pd.DataFrame) -> dict[Any, _Spans]:
    """Those with decoding sequences."""
    columns = ["start_s", "finish_s", "num_iterations", "first_iteration_s"]
    gpu_id = iterations["gpu_id"].to_numpy()
    decodes = (iterations["decode_seqs"] > 0).to_numpy()
    rows = iterations[columns]
    return {one: _spans(rows[decodes & (gpu_id == one)]) for one in np.unique(gpu_id[decodes]).tolist()}


def _runs_and_spans(
    requests: pd.DataFrame, iterations: pd.DataFrame, preemptions: pd.DataFrame
) -> tuple[pd.DataFrame, dict[Any, _Spans]]:
    spans_of = _spans_by_replica(iterations)
    runs = _stays(requests, preemptions)
    size = len(runs)
    first_span, stop_span, num_decoded = (np.zeros(size, dtype=np.int64) for _ in range(3))
    first_end_s, last_end_s = np.full(size, np.nan), np.full(size, np.nan)
    for gpu_id, spans in spans_of.items():
        rows = np.flatnonzero(runs["gpu_id"] == gpu_id)
        first = np.searchsorted(spans.finish_s, runs["start_s"].to_numpy()[rows], side="right")
        stop = np.searchsorted(spans.finish_s, runs["end_s"].to_numpy()[rows], side="right")
        iterations_before = np.concatenate([[0], np.cumsum(spans.num_iterations)])
        first_span[rows], stop_span[rows] = first, stop
        num_decoded[rows] = iterations_before[stop] - iterations_before[first]
        first, stop, rows = first[stop > first], stop[stop > first], rows[stop > first]
        first_end_s[rows] = spans.start_s[first] + spans.first_s[first]
        last_end_s[rows] = spans.finish_s[stop - 1]
    has_token_at_start, start_s = runs["has_token_at_start"], runs["start_s"]
    runs = runs.drop(columns="end_s").assign(
        first_span=first_span,
        stop_span=stop_span,
        num_decoded=num_decoded,
        entry_s=(first_end_s - start_s).where(has_token_at_start),
        wait_s=start_s.where(has_token_at_start, first_end_s),  # its first token, for now
    )
    last_token_s = pd.Series(last_end_s, runs.index).fillna(start_s)
    has_tokens = has_token_at_start | (num_decoded > 0)
    if not has_tokens.all():
        runs, last_token_s = runs[has_tokens], last_token_s[has_tokens]
    before_s = last_token_s.shift().where(runs["row"] == runs["row"].shift())
    return runs.assign(wait_s=runs["wait_s"] - before_s), spans_of


def _stays(requests: pd.DataFrame, preemptions: pd.DataFrame) -> pd.DataFrame:
    """From when to when each finished request decoded, by request and time."""
    row_of_id = pd.Index(requests["request_id"]).get_indexer(preemptions["request_id"])
    is_finished = (requests["status"] == FINISHED).to_numpy()
    counted = (row_of_id >= 0) & is_finished[row_of_id] if len(requests) else np.zeros(0, dtype=np.bool_)
    earlier, rows = preemptions[counted], np.flatnonzero(is_finished)
    last = requests.iloc[rows]
    stays = pd.DataFrame(
        {
            "row": np.concatenate([row_of_id[counted], rows]),
            "gpu_id": np.concatenate([earlier["gpu_id"], last["gpu_id"]]),
            "start_s": np.concatenate([earlier["decode_start_s"], last["decode_start_s"]]),
            "end_s": np.concatenate([earlier["time_s"], last["finish_s"]]),
            "is_swapped_out": np.concatenate(
                [earlier["mode"] == "swap", np.zeros(len(last), dtype=np.bool_)]
            ),
        }
    ).sort_values("row", kind="stable", ignore_index=True)  # the last run of a request stays its last
    has_run = stays["start_s"].notna()
    is_swapped_in = (stays["is_swapped_out"] & has_run).shift(fill_value=False)
    is_swapped_in &= stays["row"] == stays["row"].shift()
    stays["has_token_at_start"] = ~is_swapped_in
    return stays[has_run].drop(columns="is_swapped_out")


def _pooled(runs: pd.DataFrame, spans_of: dict[Any, _Spans]) -> Weighted:
    apart_s = (runs[name].to_numpy() for name in ("wait_s", "entry_s"))
    parts = [Weighted.of(seconds, np.isfinite(seconds)) for seconds in apart_s]
    for gpu_id, spans in spans_of.items():
        parts += _gaps_in_runs(spans, runs[runs["gpu_id"] == gpu_id])
    return Weighted.pooled(parts)


def _worst(requests: pd.DataFrame, runs: pd.DataFrame, spans_of: dict[Any, _Spans]) -> pd.Series[float]:
    inside_s = np.full(len(runs), np.nan)
    for gpu_id, spans in spans_of.items():
        rows = np.flatnonzero((runs["gpu_id"] == gpu_id) & (runs["num_decoded"] > 0))
        first, stop = runs["first_span"].to_numpy()[rows], runs["stop_span"].to_numpy()[rows]
        longest_later_s = np.where(
            spans.num_iterations > 1,
            spans.first_s + np.maximum(spans.growth_s, spans.growth_s * (spans.num_iterations - 1)),
            np.nan,
        )
        # Its first span's first gap reaches back to before the run: that one is ``entry_s``.
        in_later_spans_s = _range_max(np.fmax(spans.gap_s, longest_later_s), first + 1, stop)
        inside_s[rows] = np.fmax(longest_later_s[first], in_later_spans_s)
    worst_s = runs.assign(inside_s=inside_s)[["wait_s", "entry_s", "inside_s"]].max(axis=1)
    by_row = worst_s.groupby(runs["row"]).max()
    return by_row.reindex(range(len(requests))).set_axis(requests.index).rename("worst_gap_s")


def _gaps_in_runs(spans: _Spans, runs: pd.DataFrame) -> list[Weighted]:
    """Gaps between decoded tokens of the same run: up to the first of each span, and within spans."""
    size = len(spans.finish_s)
    joins = np.bincount(runs["first_span"], minlength=size + 1)
    leaves = np.bincount(runs["stop_span"], minlength=size + 1)
    num_decoding = np.cumsum(joins - leaves)[:size]
    num_new = np.bincount(runs.loc[runs["num_decoded"] > 0, "first_span"], minlength=size)
    return [
        Weighted.of(spans.gap_s, num_decoding - num_new),
        Weighted.of(spans.first_s + spans.growth_s, num_decoding, spans.growth_s, spans.num_iterations - 1),
    ]


def _range_max(values: Floats, start: Ints, stop: Ints) -> Floats:
    """Largest of ``values[start:stop]`` for many ranges, NaN for an empty one.

    A table of the maxima over ``2**level`` values is doubled in place; two of its entries cover a range.
    """
    longest = np.full(len(start), np.nan)
    level_of = np.frexp(np.maximum(stop - start, 0))[1] - 1
    table = values.copy()
    for level in range(int(level_of.max(initial=-1)) + 1):
        rows = np.flatnonzero(level_of == level)
        width = 1 << level
        longest[rows] = np.fmax(table[start[rows]], table[stop[rows] - width])
        table[:-width] = np.fmax(table[:-width], table[width:])
    return longest
