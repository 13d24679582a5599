"""A run as `vllm bench serve --save-result --save-detailed` writes one: a JSON object.

Names, units and formulas after ``benchmark`` and ``calculate_metrics`` in ``vllm/benchmarks/serve.py``: lists
with a value per request, seconds; statistics, milliseconds. Texts, of which there are none, are empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchsim.config import flat, load_config
from batchsim.metrics.requests import e2e_s, tpot_s, ttft_s
from batchsim.metrics.system import is_good
from batchsim.records import FINISHED, arrays, has_status, rows
from batchsim.results.exchange.answers import Answers, is_simulated, seconds

#: As with ``--metric-percentiles 90,95,99``.
_PERCENTILES = (90, 95, 99)


def vllm_bench_text(manifest: Mapping[str, Any], summary: Mapping[str, Any], answers: Answers) -> str:
    """Return the content of the file."""
    requests = arrays(answers.requests)
    is_finished = has_status(requests, FINISHED)
    answered = rows(requests, is_finished)
    gaps = [seconds(np.diff(pieces_ns)) for pieces_ns in answers.pieces_ns]
    prompts, outputs = (int(answered[name].sum()) for name in ("prompt_tokens", "output_tokens"))
    times = {"ttft": ttft_s(answered), "tpot": tpot_s(answered), "itl": [], "e2el": e2e_s(answered)}
    if answers.has_gaps:
        times["itl"] = list(chain.from_iterable(gaps))
    duration_s = _duration_s(answers)
    num_finished, good = int(is_finished.sum()), _num_good(manifest, requests)
    tree = {
        **_head(manifest, summary, answers),
        "duration": duration_s,
        "completed": num_finished,
        "failed": len(is_finished) - num_finished,
        "total_input_tokens": prompts,
        "total_output_tokens": outputs,
        "request_throughput": _per_s(num_finished, duration_s),
        "request_goodput": None if good is None else _per_s(good, duration_s),
        "output_throughput": _per_s(outputs, duration_s),
        "total_token_throughput": _per_s(prompts + outputs, duration_s),
        "input_lens": requests["prompt_tokens"].tolist(),
        "output_lens": np.where(is_finished, requests["output_tokens"], 0).tolist(),
        "ttfts": [
            seconds(pieces_ns[0] - sent_ns) if len(pieces_ns) else 0.0
            for sent_ns, pieces_ns in zip(answers.sent_ns, answers.pieces_ns, strict=True)
        ],
        "itls": gaps,
        "start_times": seconds(answers.sent_ns),
        "generated_texts": [""] * len(is_finished),
        "errors": list(answers.reasons),
        **_peaks(answers),
        **{key: value for name in times for key, value in _statistics(name, times[name]).items()},
    }
    return json.dumps(tree, allow_nan=False) + "\n"


def _head(manifest: Mapping[str, Any], summary: Mapping[str, Any], answers: Answers) -> dict[str, Any]:
    """What was run; ``backend`` and what vLLM would have from ``--metadata`` say that it is a simulation."""
    model = str(summary.get("latency_model"))
    rate_per_s = summary.get("request_rate_per_s")
    told = flat(manifest)
    return {
        "date": _date(manifest.get("created")),
        "endpoint_type": "batchsim",
        "backend": "batchsim",
        "label": summary.get("policy"),
        "model_id": model,
        "tokenizer_id": model,
        "num_prompts": len(answers.requests),
        "simulated": is_simulated(manifest),
        "policy": summary.get("policy"),
        "num_gpus": summary.get("num_gpus"),
        "latency_provenance": summary.get("latency_provenance"),
        "workload": summary.get("workload"),
        "seed": summary.get("seed"),
        "batchsim_version": told.get("versions.batchsim"),
        "request_rate": "inf" if rate_per_s is None else rate_per_s,
        "burstiness": None,  # of a trace, nobody knows
        "max_concurrency": told.get("config.clients.concurrency"),
    }


def _date(created: Any) -> str | None:
    """As vLLM writes one."""
    try:
        return datetime.fromisoformat(created).strftime("%Y%m%d-%H%M%S")
    except (TypeError, ValueError):
        return None


def _duration_s(answers: Answers) -> float:
    """From the first request to the last piece of an answer."""
    ends_ns = [int(pieces_ns[-1]) for pieces_ns in answers.pieces_ns if len(pieces_ns)]
    return (max(ends_ns) - int(answers.sent_ns.min())) / 1e9 if ends_ns else 0.0


def _per_s(amount: float, duration_s: float) -> float:
    return amount / duration_s if duration_s else 0.0


def _num_good(manifest: Mapping[str, Any], requests: Mapping[str, Any]) -> int | None:
    """Requests within their limits; None without limits, as without ``--goodput``."""
    told = {key: value for key, value in flat(manifest).items() if key.startswith("config.slo.")}
    slo = load_config(None, {key.removeprefix("config."): value for key, value in told.items()}).slo
    good = is_good(requests, slo)
    return None if good is None else int(np.count_nonzero(good))


def _statistics(name: str, times_s: Iterable[float] | NDArray[np.float64]) -> dict[str, float]:
    """In milliseconds, of what is known: nothing where nothing is."""
    times_ms = np.asarray(times_s, np.float64) * 1e3
    times_ms = times_ms[~np.isnan(times_ms)]
    if not len(times_ms):
        return {}
    percentiles = zip(_PERCENTILES, np.percentile(times_ms, _PERCENTILES).tolist(), strict=True)
    return {
        f"mean_{name}_ms": float(times_ms.mean()),
        f"median_{name}_ms": float(np.median(times_ms)),
        f"std_{name}_ms": float(times_ms.std()),
        **{f"p{percentage}_{name}_ms": value for percentage, value in percentiles},
    }


def _peaks(answers: Answers) -> dict[str, float]:
    """Most pieces in a second from the first request on, and most requests under way in any part of one."""
    spans_ns = [
        (int(sent_ns), pieces_ns)
        for sent_ns, pieces_ns in zip(answers.sent_ns, answers.pieces_ns, strict=True)
        if len(pieces_ns)
    ]
    if not spans_ns:
        return {"max_output_tokens_per_s": 0.0, "max_concurrent_requests": 0}
    start_ns = min(sent_ns for sent_ns, _ in spans_ns)
    ends_ns = np.array([(sent_ns, pieces_ns[-1] + 10**9) for sent_ns, pieces_ns in spans_ns])  # its last, too
    come_and_go = ((ends_ns - start_ns) // 10**9).ravel()
    steps = np.tile([1, -1], len(spans_ns))
    under_way = np.cumsum(steps[np.lexsort((steps, come_and_go))])  # who goes makes room
    _, in_second = np.unique(
        (np.concatenate([pieces_ns for _, pieces_ns in spans_ns]) - start_ns) // 10**9, return_counts=True
    )
    return {
        "max_output_tokens_per_s": float(in_second.max()),
        "max_concurrent_requests": int(under_way.max()),
    }
