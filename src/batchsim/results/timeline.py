"""A run as a timeline to look at: Chrome trace events, which Perfetto (ui.perfetto.dev) and Chrome open.

A thread per GPU (or replica) shows what it ran; below are, per replica, the requests that waited and the KV
blocks in use. A batch that runs to completion is one event, and so is a span of equal iterations.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.files import write_whole
from batchsim.records import Records

Event = dict[str, Any]

_PROCESS = 1
_BATCH_ARGS = ("batch_id", "batch_size", "max_prompt_tokens", "max_output_tokens", "num_evicted")
_SPAN_ARGS = ("num_iterations", "decode_seqs", "prefill_seqs", "prefill_tokens", "context_tokens")


def timeline(records: Records) -> dict[str, Any]:
    """Return a run in the Trace Event Format: complete events per GPU, instants, counters, and their names.

    Times are microseconds since the start of the trace, whole nanoseconds. Spans of a GPU never overlap, and
    each kind of event is in order of time per thread.
    """
    return {"displayTimeUnit": "ms", "traceEvents": list(_events(records))}


def write_timeline(records: Records, path: str | Path) -> None:
    """Write `timeline` as JSON, which appears whole or not at all."""
    events = _events(records)
    pieces = iter(lambda: _piece(islice(events, 10_000)), "")
    write_whole(Path(path), '{"displayTimeUnit":"ms","traceEvents":[' + ",\n".join(pieces) + "]}\n")


def _piece(events: Iterable[Event]) -> str:
    return json.dumps(list(events), separators=(",", ":"), allow_nan=False)[1:-1]


def _events(records: Records) -> Iterator[Event]:
    yield from _names(records)
    if not records.is_iteration_level:
        yield from _batches(records.batches)
        return
    for _, spans in records.iterations.groupby("gpu_id"):
        yield from _spans(spans)
        yield from _counters(int(spans["gpu_id"].iloc[0]), spans)
    yield from _preemptions(records.preemptions)


def _names(records: Records) -> Iterator[Event]:
    yield _metadata("process_name", 0, {"name": "batchsim"})
    kind = "replica" if records.is_iteration_level else "GPU"
    for gpu_id in range(records.num_replicas):
        yield _metadata("thread_name", _thread(gpu_id), {"name": f"{kind} {gpu_id}"})
        yield _metadata("thread_sort_index", _thread(gpu_id), {"sort_index": gpu_id})


def _batches(batches: pd.DataFrame) -> Iterator[Event]:
    names = [f"batch of bin {bin_}" for bin_ in batches["bin"].tolist()]
    yield from _complete(names, batches, _BATCH_ARGS)


def span_kinds(spans: pd.DataFrame) -> list[str]:
    """Say of each span of iterations what it computes."""
    has_chunks, has_decodes = spans["prefill_tokens"] > 0, spans["decode_seqs"] > 0
    kinds = np.select([has_chunks & has_decodes, has_chunks], ["prefill and decode", "prefill"], "decode")
    return [str(kind) for kind in kinds]


def _spans(spans: pd.DataFrame) -> Iterator[Event]:
    yield from _complete(span_kinds(spans), spans, _SPAN_ARGS)


def _complete(names: Iterable[str], rows: pd.DataFrame, args: tuple[str, ...]) -> Iterator[Event]:
    start_ns, finish_ns = _ns(rows["start_s"]), _ns(rows["finish_s"])
    columns = [rows[name].tolist() for name in args]
    times = zip((start_ns / 1000).tolist(), ((finish_ns - start_ns) / 1000).tolist(), strict=True)
    threads = _thread(rows["gpu_id"].to_numpy(np.int64)).tolist()
    for name, (ts, dur), thread, *values in zip(names, times, threads, *columns, strict=True):
        yield {
            "name": name,
            "ph": "X",
            "ts": ts,
            "dur": dur,
            "pid": _PROCESS,
            "tid": thread,
            "args": dict(zip(args, values, strict=True)),
        }


def _counters(gpu_id: int, spans: pd.DataFrame) -> Iterator[Event]:
    """Waiting requests from the start of a span on, blocks from its end on; where a replica idles, none."""
    start_ns, finish_ns = _ns(spans["start_s"]), _ns(spans["finish_s"])
    idles = np.append(start_ns[1:] > finish_ns[:-1], True)
    waiting = spans["num_waiting"].to_numpy(np.int64)
    blocks = np.where(idles, 0, spans["kv_blocks"].to_numpy(np.int64))
    times_ns = np.append(start_ns, finish_ns[idles])
    order = np.argsort(times_ns, kind="stable")
    values = np.append(waiting, np.zeros(idles.sum(), np.int64))
    return chain(
        _counter(f"waiting, replica {gpu_id}", "requests", times_ns[order], values[order]),
        _counter(f"KV in use, replica {gpu_id}", "blocks", finish_ns, blocks),
    )


def _counter(name: str, unit: str, times_ns: NDArray[np.int64], values: NDArray[np.int64]) -> Iterator[Event]:
    """Only where the value changes; a counter belongs to the process, so its name says whose it is."""
    changes = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    for ts, value in zip((times_ns[changes] / 1000).tolist(), values[changes].tolist(), strict=True):
        yield {"name": name, "ph": "C", "ts": ts, "pid": _PROCESS, "args": {unit: value}}


def _preemptions(preemptions: pd.DataFrame) -> Iterator[Event]:
    columns = ("request_id", "gpu_id", "time_s", "mode", "lost_tokens")
    for request_id, gpu_id, time_s, mode, lost_tokens in zip(
        *(preemptions[name].tolist() for name in columns), strict=True
    ):
        yield {
            "name": "preemption",
            "ph": "i",
            "s": "t",
            "ts": round(time_s * 1e9) / 1000,
            "pid": _PROCESS,
            "tid": _thread(gpu_id),
            "args": {"request_id": request_id, "mode": mode, "lost_tokens": lost_tokens},
        }


def _metadata(name: str, thread: int, args: Event) -> Event:
    return {"name": name, "ph": "M", "pid": _PROCESS, "tid": thread, "args": args}


def _thread(gpu_id: Any) -> Any:
    # Thread 0 is the idle thread of a kernel to those who read such files.
    return gpu_id + 1


def _ns(seconds: pd.Series[float]) -> NDArray[np.int64]:
    """Whole nanoseconds, so that a span ends exactly where the next begins."""
    rounded: NDArray[np.int64] = np.rint(seconds.to_numpy() * 1e9).astype(np.int64)
    return rounded
