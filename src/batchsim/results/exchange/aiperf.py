"""A run as AIPerf's ``profile_export.jsonl``: one record a line for each request.

Names and units after ``MetricRecordInfo`` and ``MetricRecordMetadata`` in
``src/aiperf/common/models/record_models.py`` of AIPerf, and its "Working with Profile Export Files"; wall
clock times are nanoseconds since the start of the trace, as nothing was sent on any day.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from batchsim.results.exchange.answers import Answers, is_simulated
from batchsim.results.measured_tables import SIMULATOR

_NS_PER_MS = 1e6
#: HTTP status of requests that were not answered, by how they ended.
_CODES = {"refused": 429, "abandoned": 499, "stranded": 504, "failed": 503}


def aiperf_text(manifest: Mapping[str, Any], summary: Mapping[str, Any], answers: Answers) -> str:
    """Return the content of the file."""
    worker = SIMULATOR if is_simulated(manifest) else str(summary.get("policy"))
    return "".join(f"{json.dumps(record, allow_nan=False)}\n" for record in _records(answers, worker))


def _records(answers: Answers, worker: str) -> list[dict[str, Any]]:
    requests = answers.requests
    size = len(requests)
    sessions = requests["session_id"].tolist() if "session_id" in requests else [None] * size
    left_s = requests["left_s"].tolist() if "left_s" in requests else [float("nan")] * size
    numbers: dict[Any, int] = {}
    turns = Counter[int]()
    records = []
    columns = (requests[name].tolist() for name in ("request_id", "prompt_tokens", "output_tokens", "status"))
    for request_id, prompt, output, status, session, left, sent_ns, pieces_ns, reason in zip(
        *columns, sessions, left_s, answers.sent_ns.tolist(), answers.pieces_ns, answers.reasons, strict=True
    ):
        is_turn = session is not None and session == session
        # One without session is alone in one.
        number = numbers.setdefault((is_turn, session if is_turn else request_id), len(numbers))
        cancelled_ns = round(left * 1e9) if left == left else None
        if len(pieces_ns):
            end_ns, metrics = int(pieces_ns[-1]), _metrics(answers, prompt, output, sent_ns, pieces_ns)
        else:
            end_ns, metrics = cancelled_ns or sent_ns, {"error_isl": _value(prompt, "tokens")}
        metadata = {
            "session_num": number,
            "x_request_id": str(request_id),
            "x_correlation_id": str(session) if is_turn else str(request_id),
            "conversation_id": str(session) if is_turn else str(request_id),
            "turn_index": turns[number],
            "request_start_ns": sent_ns,
            "request_ack_ns": None,
            "request_end_ns": end_ns,
            "worker_id": worker,
            "record_processor_id": "batchsim",
            "benchmark_phase": "profiling",
            "was_cancelled": status == "abandoned",
            "cancellation_time_ns": cancelled_ns,
        }
        turns[number] += 1
        error = {"code": _CODES.get(status, 500), "type": status, "message": reason} if reason else None
        records.append({"metadata": metadata, "metrics": metrics, "error": error})
    return records


def _metrics(answers: Answers, prompt: int, output: int, sent_ns: int, pieces_ns: Any) -> dict[str, Any]:
    """Those of one answer: ITL is (request latency - TTFT) / (tokens - 1), ICL all gaps between pieces."""
    latency_ns, first_ns = int(pieces_ns[-1]) - sent_ns, int(pieces_ns[0]) - sent_ns
    metrics = {
        "input_sequence_length": _value(prompt, "tokens"),
        "output_token_count": _value(output, "tokens"),
        "output_sequence_length": _value(output, "tokens"),
        "request_latency": _value(latency_ns / _NS_PER_MS, "ms"),
    }
    if not answers.has_first:
        return metrics
    metrics["time_to_first_token"] = _value(first_ns / _NS_PER_MS, "ms")
    if output > 1 and latency_ns > first_ns:
        gap_ns = (latency_ns - first_ns) / (output - 1)
        metrics["inter_token_latency"] = _value(gap_ns / _NS_PER_MS, "ms")
        metrics["output_token_throughput_per_user"] = _value(1e9 / gap_ns, "tokens/sec/user")
    if answers.has_gaps and len(pieces_ns) > 1:
        metrics["time_to_second_token"] = _value(int(pieces_ns[1] - pieces_ns[0]) / _NS_PER_MS, "ms")
        metrics["inter_chunk_latency"] = _value((np.diff(pieces_ns) / _NS_PER_MS).tolist(), "ms")
    return metrics


def _value(value: Any, unit: str) -> dict[str, Any]:
    return {"value": value, "unit": unit}
