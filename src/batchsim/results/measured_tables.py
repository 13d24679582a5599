"""Measured results that benchmarks of serving engines leave behind, as tables of requests.

Which benchmark a file is of is seen from its keys. Field names and units after their sources and
documentation: `vllm/benchmarks/serve.py` of vLLM, `bench_serving.py` of SGLang,
`guidellm/schemas/request_stats.py` of GuideLLM, and "Working with Profile Export Files" of AIPerf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.errors import BatchsimError, TraceError
from batchsim.files import parsed_json, read_text
from batchsim.results.derived_arrivals import derived_arrivals
from batchsim.workload.columns import numbers, refuse, shown, since_first_s, whole_numbers
from batchsim.workload.request import Source, Workload

#: Columns of the tables; times in seconds since the first request was sent.
COLUMNS = ("request_id", "arrival_s", "first_token_s", "finish_s", "prompt_tokens", "output_tokens")
#: The worker of simulated requests in AIPerf's records.
SIMULATOR = "batchsim"

_READ = (
    "vLLM bench JSON (--save-detailed), SGLang bench JSONL (--output-details), GuideLLM JSON and AIPerf "
    "profile_export.jsonl"
)
_MAX_BYTES = 256 << 20  # answers' texts are among what they hold
#: Shorter times are none of a request, longer ones none of a benchmark; float64 tells both apart.
_SHORTEST_S, _LONGEST_S = 1e-6, 1e8
_UNITS_PER_S: Mapping[str, float] = {"s": 1.0, "sec": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredRun:
    """One run of a benchmark.

    Attributes
    ----------
    tool
        What wrote it.
    requests
        One row per answered request, `COLUMNS`; ``request_id`` is its place in the file, from 0;
        ``first_token_s`` is NaN where it is not told.
    notices
        What was inferred, left out, or is missing.
    has_arrivals
        Whether the arrivals are those of the run; else they are drawn, so that distributions of times may be
        compared, but neither single requests nor throughput.
    num_left_out
        Requests of the file that are not in it: failed, unfinished, or of the warm-up.
    is_simulated
        Whether `batchsim export` wrote it of a simulation: nothing of it was measured.
    """

    tool: str
    requests: pd.DataFrame
    notices: tuple[str, ...] = ()
    has_arrivals: bool = True
    num_left_out: int = 0
    is_simulated: bool = False

    def workload(self, name: str) -> Workload:
        """Return the requests as they were sent."""
        sent = self.requests[["request_id", "arrival_s", "prompt_tokens", "output_tokens"]]
        return Workload.from_frame(sent, Source(name, notices=self.notices))


def read_measured(path: str | Path) -> list[MeasuredRun]:
    """Read the measured results in a file, of one run or several.

    Raises
    ------
    ConfigError, TraceError
        In one sentence, if it is none of the known files, or a value in it cannot be.
    """
    path = Path(path)
    documents = _documents(path)
    first = documents[0] if isinstance(documents[0], dict) else {}
    read = _reader(first)
    if read is None:
        summary = " (a summary of all requests is not enough)" if _SUMMARY & first.keys() else ""
        raise TraceError(f"{path}: holds no measured requests in a known form{summary}; read are {_READ}")
    trees = [_object(one, f"{path}, run or line {place}") for place, one in enumerate(documents, 1)]
    runs = read(trees, path.name)
    worker = metadata.get("worker_id") if isinstance(metadata := first.get("metadata"), dict) else None
    if first.get("simulated") is not True and worker != SIMULATOR:
        return runs
    told = f"{path.name}: its times were simulated by batchsim, not measured"
    return [replace(run, is_simulated=True, notices=(*run.notices, told)) for run in runs]


def measured_trace(path: str | Path) -> Workload | None:
    """Return the requests of a measured run as a trace; None of a file that is no measured result.

    Raises
    ------
    TraceError
        If the file holds several runs, or does not tell when the requests were sent.
    """
    path = Path(path)
    try:
        documents = _documents(path)
    except BatchsimError:
        return None
    if not isinstance(documents[0], dict) or _reader(documents[0]) is None:
        return None
    runs = read_measured(path)
    if len(runs) > 1:
        raise TraceError(f"{path}: holds {len(runs)} measured runs; a trace is made of one")
    if not runs[0].has_arrivals:
        raise TraceError(f"{path}: does not tell when its requests were sent; start_times are needed")
    return runs[0].workload(path.name)


def _reader(document: Mapping[str, Any]) -> _Reader | None:
    return next((read for keys, read in _FORMATS if keys <= document.keys()), None)


def _documents(path: Path) -> list[Any]:
    """One JSON object, or one a line; ``NaN`` and ``Infinity``, which Python writes, become text."""
    text = read_text(path, max_bytes=_MAX_BYTES)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) > 1 and lines[0][1].strip().endswith("}"):
        return [parsed_json(line, f"{path}, line {number}", parse_constant=str) for number, line in lines]
    return [parsed_json(text, path, parse_constant=str)]


def _vllm_or_sglang(documents: Sequence[Mapping[str, Any]], where: str) -> list[MeasuredRun]:
    """Lists with a value per request, seconds. A request that failed has no output tokens.

    It ends with its last token: TTFT and the gaps between its tokens, `itls`, together. ``start_times`` (of a
    clock with any zero) are when it was sent; SGLang and older vLLM do not tell them.
    """
    return [
        _bench(tree, where if len(documents) == 1 else f"{where}, run {place}")
        for place, tree in enumerate(documents, 1)
    ]


_BENCH_COLUMNS = {
    "input_lens": "prompt_tokens",
    "output_lens": "output_tokens",
    "ttfts": "ttft",
    "itls": "itls",
    "start_times": "start_times",
}


def _bench(tree: Mapping[str, Any], where: str) -> MeasuredRun:
    names = [name for name in _BENCH_COLUMNS if name != "start_times" or tree.get(name) is not None]
    lists = [_list(tree, name, where) for name in names]
    if len({len(values) for values in lists}) > 1:
        raise TraceError(f"{where}: {', '.join(names)} are not equally long; a value per request is needed")
    columns = [_BENCH_COLUMNS[name] for name in names]
    rows = {
        place: dict(zip(columns, row, strict=True)) for place, row in enumerate(zip(*lists, strict=True), 1)
    }
    answered = {
        place: row
        for place, row in rows.items()
        if row["output_tokens"] != 0 or row["output_tokens"] is False
    }
    table = _table(list(answered.values()), list(answered), where)
    latency_s = numbers(table, "ttft", where) + _sums(table["itls"], where)
    arrival_s, remarks, has_arrivals = _sent_s(tree, table, latency_s, where)
    tool = "vLLM bench" if "tokenizer_id" in tree else "SGLang bench"
    notices = [
        f"{where}: read as of {tool}, times in seconds; a request ends with its last token",
        *_left_out(len(rows) - len(answered), where),
        *remarks,
    ]
    return _run(
        tool,
        table.assign(latency=latency_s),
        arrival_s,
        notices,
        where,
        has_arrivals=has_arrivals,
        num_left_out=len(rows) - len(answered),
    )


def _sent_s(
    tree: Mapping[str, Any], table: pd.DataFrame, latency_s: NDArray[np.float64], where: str
) -> tuple[NDArray[np.float64], list[str], bool]:
    """When requests were sent, what is to be said of it, and whether it is so or drawn."""
    if "start_times" not in table:
        arrival_s, remark, is_exact = derived_arrivals(tree, latency_s, where)
        return arrival_s, [remark], is_exact
    remark = f"{where}: max_concurrency held requests back until others ended; they are simulated as sent"
    arrival_s = since_first_s(table[["start_times"]].infer_objects(), "start_times", where, 1.0)
    return arrival_s, [remark] if tree.get("max_concurrency") is not None else [], True


def _guidellm(documents: Sequence[Mapping[str, Any]], where: str) -> list[MeasuredRun]:
    """Per benchmark of a report the requests by how they ended: Unix times in seconds, TTFT in ms.

    ``request_start_time`` and ``request_end_time``; ``start_time`` and ``end_time`` in older versions.
    """
    benchmarks = [one for tree in documents for one in _list(tree, "benchmarks", where)]
    if not benchmarks:
        raise TraceError(f"{where}: benchmarks is empty; at least one is needed")
    return [
        _guidellm_benchmark(_object(one, place), place)
        for number, one in enumerate(benchmarks, 1)
        for place in [where if len(benchmarks) == 1 else f"{where}, benchmark {number}"]
    ]


def _guidellm_benchmark(benchmark: Mapping[str, Any], where: str) -> MeasuredRun:
    requests = _object(benchmark.get("requests"), f"{where}, requests")
    num_left_out = sum(
        len(_list(requests, name, where)) for name in ("incomplete", "errored") if requests.get(name)
    )
    rows = [
        {
            "start": one.get("request_start_time", one.get("start_time")),
            "end": one.get("request_end_time", one.get("end_time")),
            "time_to_first_token_ms": one.get("time_to_first_token_ms"),
            "prompt_tokens": one.get("prompt_tokens"),
            "output_tokens": one.get("output_tokens"),
        }
        for one in (_object(one, f"{where}, a request") for one in _list(requests, "successful", where))
    ]
    table = _table(rows, range(1, len(rows) + 1), where)
    is_told = table["time_to_first_token_ms"].notna()
    raw = table.assign(latency=numbers(table, "end", where) - numbers(table, "start", where), ttft=None)
    raw.loc[is_told, "ttft"] = numbers(table[is_told], "time_to_first_token_ms", where) / 1000
    arrival_s = since_first_s(table, "start", where, 1.0)
    notices = [
        f"{where}: read as of GuideLLM, starts and ends in Unix seconds, first tokens in ms",
        *_left_out(num_left_out, where),
    ]
    return _run("GuideLLM", raw, arrival_s, notices, where, num_left_out=num_left_out)


def _aiperf(documents: Sequence[Mapping[str, Any]], where: str) -> list[MeasuredRun]:
    """One record per request: Unix nanoseconds, and metrics that name their units.

    Those of the warm-up are told from those of the profile by their ``benchmark_phase``.
    """
    rows, places, num_left_out, num_warmup = [], [], 0, 0
    for place, record in enumerate(documents, 1):
        row = f"{where}, row {place}"
        metadata = _object(record.get("metadata"), f"{row}, metadata")
        metrics = _object(record.get("metrics"), f"{row}, metrics")
        if metadata.get("benchmark_phase", "profiling") != "profiling":
            num_warmup += 1
        elif record.get("error") is not None or metadata.get("was_cancelled"):
            num_left_out += 1
        else:
            places.append(place)
            rows.append(
                {
                    "request_start_ns": metadata.get("request_start_ns"),
                    "prompt_tokens": _metric(metrics, "input_sequence_length", row).get("value"),
                    "output_tokens": _metric(metrics, "output_sequence_length", row).get("value"),
                    "ttft": _seconds(_metric(metrics, "time_to_first_token", row), row),
                    "latency": _seconds(_metric(metrics, "request_latency", row), row),
                }
            )
    table = _table(rows, places, where)
    notices = [
        f"{where}: read as of AIPerf, starts in Unix nanoseconds, times in the units that they name",
        *_left_out(num_left_out, where),
    ]
    if num_warmup:
        notices.append(f"{where}: {num_warmup} requests of the warm-up are left out")
    arrival_s = since_first_s(table[["request_start_ns"]].infer_objects(), "request_start_ns", where, 1e9)
    return [_run("AIPerf", table, arrival_s, notices, where, num_left_out=num_left_out + num_warmup)]


def _run(
    tool: str,
    raw: pd.DataFrame,
    arrival_s: NDArray[np.float64],
    notices: Sequence[str],
    where: str,
    *,
    has_arrivals: bool = True,
    num_left_out: int = 0,
) -> MeasuredRun:
    """Make the table from the lengths, ``latency`` and ``ttft`` in seconds (missing where not told)."""
    if arrival_s.max() > _LONGEST_S:
        raise TraceError(
            f"{where}: requests are sent over {arrival_s.max():g} s; at most {_LONGEST_S:g} s are read"
        )
    latency_s = numbers(raw, "latency", where, _SHORTEST_S, _LONGEST_S)
    output_tokens = whole_numbers(raw, "output_tokens", where)
    first_s = arrival_s + _ttft_s(raw, latency_s, output_tokens, where)
    table = pd.DataFrame(
        {
            "request_id": raw.index.to_numpy(np.int64) - 1,
            "arrival_s": arrival_s,
            "first_token_s": first_s,
            "finish_s": arrival_s + latency_s,
            "prompt_tokens": whole_numbers(raw, "prompt_tokens", where),
            "output_tokens": output_tokens,
        }
    )
    if num_unknown := int(np.isnan(first_s).sum()):
        untold = (
            f"{where}: when the first token came is not told of {num_unknown} of {len(raw)} requests, whose "
            "TTFT and TPOT are not compared"
        )
        notices = [*notices, untold]
    return MeasuredRun(tool, table, tuple(notices), has_arrivals, num_left_out)


def _ttft_s(
    raw: pd.DataFrame, latency_s: NDArray[np.float64], output_tokens: NDArray[np.int64], where: str
) -> NDArray[np.float64]:
    """Times to the first token; NaN also for an answer that came in one piece, which does not tell."""
    is_told = raw["ttft"].notna().to_numpy()
    ttft_s = np.full(len(raw), math.nan)
    ttft_s[is_told] = numbers(raw[is_told], "ttft", where, _SHORTEST_S, _LONGEST_S)
    is_late = ttft_s > latency_s + _SHORTEST_S
    if is_late.any():
        row = int(is_late.argmax())
        raise TraceError(
            f"{where}, row {raw.index[row]}: the first token comes after {ttft_s[row]:g} s, the last after "
            f"{latency_s[row]:g} s; the first must not be later"
        )
    is_one_piece = (output_tokens > 1) & (latency_s - ttft_s < _SHORTEST_S)
    return np.where(is_one_piece, math.nan, ttft_s)


def _metric(metrics: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    """Value and unit of a metric of AIPerf, nothing of one that is not there."""
    return _object(metrics[name], f"{where}, {name}") if name in metrics else {}


def _seconds(metric: Mapping[str, Any], where: str) -> Any:
    """Seconds of a metric; what is no number is left to those who check columns."""
    value, unit = metric.get("value"), metric.get("unit")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    units_per_s = _UNITS_PER_S.get(unit) if isinstance(unit, str) else None
    if units_per_s is None:
        raise TraceError(f"{where}: unit of a time is {shown(unit)}; ns, us, ms or s is needed")
    return value / units_per_s


def _left_out(num: int, where: str) -> list[str]:
    """Say that requests are left out, which is no small thing: the prediction is without them."""
    if not num:
        return []
    return [f"{where}: {num} failed or unfinished requests are left out, though the engine had them, too"]


def _table(rows: list[dict[str, Any]], places: Sequence[int], where: str) -> pd.DataFrame:
    """Values of the answered requests as they stand, by their places in the file, from 1."""
    if not rows:
        raise TraceError(f"{where}: no request was answered; at least one is needed")
    return pd.DataFrame(rows, index=pd.Index(places), dtype=object)


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TraceError(f"{where}: {shown(value)} stands where an object is needed")
    return value


def _list(tree: Mapping[str, Any], name: str, where: str) -> list[Any]:
    value = tree.get(name)
    if not isinstance(value, list):
        raise TraceError(f"{where}: {name} is {shown(value)}; a list is needed")
    return value


def _sums(column: pd.Series, where: str) -> NDArray[np.float64]:
    """Sums of lists of numbers >= 0."""
    for position, values in enumerate(column):
        if not isinstance(values, list) or not all(map(_is_time, values)):
            refuse(column, position, where, "a list of numbers >= 0 is needed")
    return np.array([sum(map(float, values)) for values in column])


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


_Reader = Callable[[Sequence[Mapping[str, Any]], str], list[MeasuredRun]]

#: Keys of an object of each kind of file, and what reads it.
_FORMATS: tuple[tuple[frozenset[str], _Reader], ...] = (
    (frozenset({"input_lens", "output_lens", "ttfts", "itls"}), _vllm_or_sglang),
    (frozenset({"benchmarks"}), _guidellm),
    (frozenset({"metadata", "metrics"}), _aiperf),
)
#: Keys of the same benchmarks' summaries.
_SUMMARY = {"request_throughput", "mean_ttft_ms", "request_latency"}
