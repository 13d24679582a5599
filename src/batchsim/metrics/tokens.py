"""When each token came, read back from the log of spans: the gaps between tokens, and each request's worst.

The prompt's completion gives a request its first token; from then on it gets one at the end of every
iteration with decoding sequences, as long as its *decode run* lasts: until it is preempted or finishes. A run
that begins with a (repeated) prefill has a token at its very start, one that begins with a swap-in or after a
pause has not.
One that a failing replica ends has its tokens up to then; where the request begins anew, or never finishes,
they are lost, and none of the request's.
Runs begin and end where spans do, so that a run is a range of spans and nothing here loops over tokens.
With drafts an iteration is a span, and gives a request several tokens at once: a *step* of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from batchsim.metrics.weighted import Floats, Ints, Weighted, expand
from batchsim.records import FAILURES, FINISHED, Columns, has_status, rows

Table = Columns[Any]
Mask = NDArray[np.bool_]


def itl(requests: Table, iterations: Table, preemptions: Table) -> Weighted:
    """Inter-token latency: the gaps between successive tokens of each request, all tokens pooled.

    Whatever held a token up is in its gap: prefills of others, preemption. Tokens of a step come together and
    count as one, as in vLLM's benchmark, which takes the time between the chunks of a stream. Only finished
    requests among ``requests`` count; ``iterations`` and ``preemptions`` may hold those of others as well.
    """
    return _pooled(*_runs_and_spans(requests, iterations, preemptions))


def worst_gap_s(requests: Table, iterations: Table, preemptions: Table) -> Floats:
    """Longest time between two successive tokens of each request, ``(num_requests,)``.

    NaN for one-token answers and unfinished ones.
    """
    return _worst(requests, *_runs_and_spans(requests, iterations, preemptions))


def itl_and_worst_gap_s(requests: Table, iterations: Table, preemptions: Table) -> tuple[Weighted, Floats]:
    """Both of the above, for one reading of the log."""
    runs, spans_of = _runs_and_spans(requests, iterations, preemptions)
    worst_s = _worst(requests, runs, spans_of)  # first: it needs most memory on the way
    return _pooled(runs, spans_of), worst_s


def num_tokens(
    requests: Table, iterations: Table, preemptions: Table, decode_steps: pd.DataFrame | None = None
) -> Ints:
    """Output tokens of each request as the log has them, ``(num_requests,)``; 0 for those unfinished."""
    runs = decode_runs(requests, iterations, preemptions)
    found = np.zeros(len(requests["request_id"]), dtype=np.int64)
    np.add.at(found, runs.row, tokens_of_runs(runs, requests, decode_steps) + runs.has_token_at_start)
    return found


def tokens_of_runs(runs: DecodeRuns, requests: Table, decode_steps: pd.DataFrame | None) -> Ints:
    """Tokens of each decode run after that at its start, ``(num_runs,)``: one for each iteration.

    With `decode_steps` (`records.DECODE_STEP_COLUMNS`), those of as many steps.
    """
    if decode_steps is None or not len(decode_steps):
        return runs.num_decoded
    step_ids = decode_steps["request_id"].to_numpy()
    up_to = np.concatenate([[0], np.cumsum(decode_steps["tokens"].to_numpy(), dtype=np.int64)])
    # Those of a request stand together: from where to where, and how many its runs before have had.
    is_next = step_ids[1:] != step_ids[:-1]
    bounds = np.flatnonzero(np.concatenate([[True], is_next, [True]]))
    place = pd.Index(step_ids[bounds[:-1]]).get_indexer(
        pd.Index(np.asarray(requests["request_id"])[runs.row])
    )
    before = np.cumsum(runs.num_decoded) - runs.num_decoded
    is_first = np.diff(runs.row, prepend=-1) > 0
    before -= before[is_first][np.cumsum(is_first) - 1]
    end = bounds[place + 1]
    first = np.minimum(bounds[place] + before, end)
    last = np.minimum(first + runs.num_decoded, end)
    given: Ints = np.where(place >= 0, up_to[last] - up_to[first], 0)
    return given


def token_times_s(
    request_id: int,
    requests: Table,
    iterations: Table,
    preemptions: Table,
    decode_steps: pd.DataFrame | None = None,
) -> Floats:
    """When each token of one finished request came, shape ``(output_tokens,)``; those of a step together."""
    request = rows(requests, np.asarray(requests["request_id"]) == request_id)
    return next(answer_times_s(request, iterations, preemptions, decode_steps), np.empty(0))


def answer_times_s(
    requests: Table, iterations: Table, preemptions: Table, decode_steps: pd.DataFrame | None = None
) -> Iterator[Floats]:
    """When the tokens of each request came, request by request; none of those that did not finish.

    With ``decode_steps`` every token of a step has its time, else a step has one: what a stream shows of it.
    """
    runs, spans_of = _runs_and_spans(requests, iterations, preemptions)
    ends_of = {
        gpu_id: (_ends_s(spans), np.concatenate([[0], np.cumsum(spans.num_iterations)]))
        for gpu_id, spans in spans_of.items()
    }
    ids = np.asarray(requests["request_id"])
    tokens_of: dict[Any, pd.Series[int]] = {}
    if decode_steps is not None and len(decode_steps):
        tokens_of = dict(iter(decode_steps.groupby("request_id")["tokens"]))
    bounds = np.searchsorted(runs.row, np.arange(len(ids) + 1))
    for request_id, (start, stop) in zip(ids.tolist(), pairwise(bounds.tolist()), strict=True):
        decoded_s = [np.empty(0)]
        for run in range(start, stop):
            if runs.num_decoded[run]:
                ends_s, before = ends_of[runs.gpu_id[run]]
                decoded_s.append(ends_s[before[runs.first_span[run]] : before[runs.stop_span[run]]])
        at_start_s = runs.start_s[start:stop][runs.has_token_at_start[start:stop]]
        after_s = np.concatenate(decoded_s)
        if request_id in tokens_of:
            after_s = np.repeat(after_s, tokens_of[request_id])
        yield np.sort(np.concatenate([at_start_s, after_s]))


def iteration_ends_s(iterations: Table) -> Floats:
    """When each iteration of these spans ended, shape ``(sum of num_iterations,)``."""
    return _ends_s(_spans(iterations))


class DecodeRuns(NamedTuple):
    """The decode runs of finished requests that gave any token, by request and time; ``(num_runs,)`` each.

    Attributes
    ----------
    row
        Of the request in the table.
    gpu_id
        The replica.
    start_s
        When it began.
    has_token_at_start
        Whether it did with a token.
    first_span, stop_span
        Its spans, as a range of those of the replica that have decoding sequences.
    num_decoded
        The tokens of these.
    entry_s
        From the token at its start to its first decoded one, NaN where either is missing.
    wait_s
        From the last token of the run before to its first, NaN in a first run.
    """

    row: Ints
    gpu_id: Ints
    start_s: Floats
    has_token_at_start: Mask
    first_span: Ints
    stop_span: Ints
    num_decoded: Ints
    entry_s: Floats
    wait_s: Floats


def decode_runs(requests: Table, iterations: Table, preemptions: Table) -> DecodeRuns:
    """List the decode runs of finished requests."""
    return _runs_and_spans(requests, iterations, preemptions)[0]


def lost_runs(requests: Table, iterations: Table, preemptions: Table) -> DecodeRuns:
    """List the decode runs whose tokens were lost: as replicas failed, and requests began anew or ended.

    ``wait_s`` means nothing here.
    """
    return _runs_and_spans(requests, iterations, preemptions, is_lost=True)[0]


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


def _spans(iterations: Table, which: Mask | slice = slice(None)) -> _Spans:
    start_s, finish_s, first_s, num_iterations = (
        np.asarray(iterations[name])[which]
        for name in ("start_s", "finish_s", "first_iteration_s", "num_iterations")
    )
    num_iterations = num_iterations.astype(np.int64)
    steps = num_iterations * (num_iterations - 1) / 2
    growth_s = (finish_s - start_s - num_iterations * first_s) / np.where(steps > 0, steps, np.inf)
    return _Spans(start_s, finish_s, num_iterations, first_s, growth_s)


def _spans_by_replica(iterations: Table) -> dict[int, _Spans]:
    """Those with decoding sequences."""
    gpu_id, decodes = np.asarray(iterations["gpu_id"]), np.asarray(iterations["decode_seqs"]) > 0
    return {one: _spans(iterations, decodes & (gpu_id == one)) for one in np.unique(gpu_id[decodes]).tolist()}


def _ends_s(spans: _Spans) -> Floats:
    span, index = expand(spans.num_iterations)
    ends_s: Floats = spans.first_s[span] * (index + 1) + spans.growth_s[span] * (index * (index + 1) / 2)
    ends_s += spans.start_s[span]
    ends_s[np.cumsum(spans.num_iterations) - 1] = spans.finish_s  # not off by a rounding
    return ends_s


def _runs_and_spans(
    requests: Table, iterations: Table, preemptions: Table, *, is_lost: bool = False
) -> tuple[DecodeRuns, dict[int, _Spans]]:
    spans_of = _spans_by_replica(iterations)
    stays = _stays(requests, preemptions, is_lost=is_lost)
    size = len(stays.row)
    first_span, stop_span, num_decoded = (np.zeros(size, dtype=np.int64) for _ in range(3))
    first_end_s, last_end_s = np.full(size, np.nan), np.full(size, np.nan)
    for gpu_id, spans in spans_of.items():
        some = np.flatnonzero(stays.gpu_id == gpu_id)
        first = np.searchsorted(spans.finish_s, stays.start_s[some], side="right")
        stop = np.searchsorted(spans.finish_s, stays.end_s[some], side="right")
        iterations_before = np.concatenate([[0], np.cumsum(spans.num_iterations)])
        first_span[some], stop_span[some] = first, stop
        num_decoded[some] = iterations_before[stop] - iterations_before[first]
        first, stop, some = first[stop > first], stop[stop > first], some[stop > first]
        first_end_s[some] = spans.start_s[first] + spans.first_s[first]
        last_end_s[some] = spans.finish_s[stop - 1]
    has_token = stays.has_token_at_start
    entry_s = np.where(has_token, first_end_s - stays.start_s, np.nan)
    first_token_s = np.where(has_token, stays.start_s, first_end_s)
    last_token_s = np.where(np.isnan(last_end_s), stays.start_s, last_end_s)
    gave = has_token | (num_decoded > 0)
    row = stays.row[gave]
    wait_s = np.full(len(row), np.nan)
    wait_s[1:] = np.where(row[1:] == row[:-1], first_token_s[gave][1:] - last_token_s[gave][:-1], np.nan)
    columns = (stays.gpu_id, stays.start_s, has_token, first_span, stop_span, num_decoded, entry_s)
    return DecodeRuns._make([row, *(column[gave] for column in columns), wait_s]), spans_of


class _Stays(NamedTuple):
    """From when to when requests decoded, by request and time."""

    row: Ints
    gpu_id: Ints
    start_s: Floats
    end_s: Floats
    has_token_at_start: Mask


def _stays(requests: Table, preemptions: Table, *, is_lost: bool) -> _Stays:
    """Those whose tokens the finished requests have, or those whose tokens were lost."""
    is_finished = has_status(requests, FINISHED)
    row_of_id = pd.Index(requests["request_id"]).get_indexer(pd.Index(preemptions["request_id"]))
    counted = row_of_id >= 0
    if not is_lost:
        counted[counted] = is_finished[row_of_id[counted]]
    finished = np.flatnonzero(is_finished)
    # By request; the last stay of one, which ended with it, stays its last.
    order = np.argsort(np.concatenate([row_of_id[counted], finished]), kind="stable")

    def joined(of_preemption: ArrayLike, of_request: ArrayLike) -> NDArray[Any]:
        columns = np.asarray(of_preemption)[counted], np.asarray(of_request)[finished]
        return np.concatenate(columns)[order]

    mode, never = preemptions["mode"], np.zeros_like(is_finished)
    row = joined(row_of_id, np.arange(len(is_finished)))
    gpu_id = joined(preemptions["gpu_id"], requests["gpu_id"])
    start_s = joined(preemptions["decode_start_s"], requests["decode_start_s"])
    end_s = joined(preemptions["time_s"], requests["finish_s"])
    has_failed = joined(np.any([mode == one for one in FAILURES], axis=0), never)
    keeps_kv = joined(mode != "recompute", never) & ~has_failed
    which = _is_lost(row, joined(mode == "restart", never), is_finished) == is_lost
    has_run = ~np.isnan(start_s)
    which &= has_run | has_failed  # a failure takes away what was swapped out as well
    row, gpu_id, start_s, end_s, keeps_kv, has_run = (
        column[which] for column in (row, gpu_id, start_s, end_s, keeps_kv, has_run)
    )
    goes_on = np.zeros_like(keeps_kv)
    goes_on[1:] = keeps_kv[:-1] & (row[1:] == row[:-1])
    return _Stays._make(column[has_run] for column in (row, gpu_id, start_s, end_s, ~goes_on))


def _is_lost(row: Ints, restarts: Mask, is_finished: Mask) -> Mask:
    """Of stays by request and time, whether the request began anew after it, or never finished."""
    last = np.full(len(is_finished), -1)
    last[row[restarts]] = np.flatnonzero(restarts)  # of several, the last is written last
    lost: Mask = (np.arange(len(row)) <= last[row]) | ~is_finished[row]
    return lost


def _pooled(runs: DecodeRuns, spans_of: dict[int, _Spans]) -> Weighted:
    parts = [Weighted.of(seconds, np.isfinite(seconds)) for seconds in (runs.wait_s, runs.entry_s)]
    for gpu_id, spans in spans_of.items():
        parts += _gaps_in_runs(spans, runs, runs.gpu_id == gpu_id)
    return Weighted.pooled(parts)


def _worst(requests: Table, runs: DecodeRuns, spans_of: dict[int, _Spans]) -> Floats:
    worst_s = np.fmax(runs.wait_s, runs.entry_s)
    for gpu_id, spans in spans_of.items():
        some = np.flatnonzero((runs.gpu_id == gpu_id) & (runs.num_decoded > 0))
        first, stop = runs.first_span[some], runs.stop_span[some]
        longest_later_s = np.where(
            spans.num_iterations > 1,
            spans.first_s + np.maximum(spans.growth_s, spans.growth_s * (spans.num_iterations - 1)),
            np.nan,
        )
        # Its first span's first gap reaches back to before the run: that one is ``entry_s``.
        in_later_spans_s = _range_max(np.fmax(spans.gap_s, longest_later_s), first + 1, stop)
        inside_s = np.fmax(longest_later_s[first], in_later_spans_s)
        worst_s[some] = np.fmax(worst_s[some], inside_s)
    of_request_s = np.full(len(requests["request_id"]), np.nan)
    np.fmax.at(of_request_s, runs.row, worst_s)
    return of_request_s


def _gaps_in_runs(spans: _Spans, runs: DecodeRuns, which: Mask) -> list[Weighted]:
    """Gaps between decoded tokens of the same run: up to the first of each span, and within spans."""
    size = len(spans.finish_s)
    joins = np.bincount(runs.first_span[which], minlength=size + 1)
    leaves = np.bincount(runs.stop_span[which], minlength=size + 1)
    num_decoding = np.cumsum(joins - leaves)[:size]
    num_new = np.bincount(runs.first_span[which & (runs.num_decoded > 0)], minlength=size)
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
        some = np.flatnonzero(level_of == level)
        width = 1 << level
        longest[some] = np.fmax(table[start[some]], table[stop[some] - width])
        table[:-width] = np.fmax(table[:-width], table[width:])
    return longest
