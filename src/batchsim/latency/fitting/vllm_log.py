"""Iterations out of the log of a vLLM server: its own lines, or those of a scheduler that logs.

Two forms are read, told apart by what the lines hold; all other lines are skipped.

- vLLM's, of a server started with ``--enable-logging-iteration-details`` (0.19 and later): prompts and their
  tokens, decodes, milliseconds. How long contexts are, and how far back prompt tokens attend, is not in them.
- JSON objects that the schedulers of ``batchsim_calibration.vllm_engine.serve`` write: of each request the
  tokens computed, those before, and those known; start and end.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchsim.errors import TraceError
from batchsim.files import MAX_BYTES, read_bytes
from batchsim.latency.base import RECORDED_FIELDS, IterationShape

#: What begins a line of vLLM's, and what a whole one looks like.
_BEGINNING = re.compile(r"Iteration\(\d+\): ")
_LINE = re.compile(
    r"Iteration\(\d+\): (\d{1,9}) context requests, (\d{1,9}) context tokens, (\d{1,9}) generation requests, "
    r"(\d{1,9}) generation tokens, iteration elapsed time: (\d{1,9}\.\d+) ms(?P<rest>.*)"
)
#: The flag that makes a server write them.
FLAG = "--enable-logging-iteration-details"
#: What lines of a server do not tell.
UNTOLD = ("context_tokens", "prefill_pairs")


@dataclass(frozen=True, slots=True, eq=False)
class EngineLog:
    """Iterations in the order of a log.

    Attributes
    ----------
    passes
        One row each: the fields of `RECORDED_FIELDS`, NaN where the log does not tell, and ``time_s``.
    untold
        Fields that the log does not tell.
    skipped
        Iterations left out, by why.
    sha256
        Of the file.
    """

    name: str
    passes: pd.DataFrame
    untold: tuple[str, ...]
    skipped: Mapping[str, int]
    sha256: str


def read_vllm_log(path: str | Path, *, max_bytes: int = MAX_BYTES) -> EngineLog:
    """Read the iterations of a log.

    Raises
    ------
    TraceError
        If there are none, or a line of theirs cannot be read.
    """
    path = Path(path)
    content = read_bytes(path, max_bytes=max_bytes, error=TraceError)
    # What is not ours in it may hold anything.
    lines = content.decode("utf-8", "replace").split("\n")
    server = [(number, line) for number, line in enumerate(lines, 1) if _BEGINNING.search(line)]
    ours = [(number, line) for number, line in enumerate(lines, 1) if line.startswith('{"start_s"')]
    if server and ours:
        raise TraceError(f"{path}: holds lines of a server and of a logging scheduler; give one of the two")
    # A server that is stopped may leave half a line.
    is_cut = bool(lines[-1])
    whole = [(number, line) for number, line in server or ours if number < len(lines) or not is_cut]
    skipped: Counter[str] = Counter()
    rows = _server_rows(path, whole, skipped) if server else _scheduler_rows(path, whole, skipped)
    if not rows:
        left_out = ", ".join(f"{num} {why}" for why, num in skipped.items())
        raise TraceError(
            f"{path}: no iterations in it{f' but {left_out}' if left_out else ''}; start vLLM with {FLAG}, "
            "which makes it write a line for each"
        )
    passes = pd.DataFrame(rows, columns=[*RECORDED_FIELDS, "time_s"]).astype(np.float64)
    digest = hashlib.sha256(content).hexdigest()
    return EngineLog(path.name, passes, UNTOLD if server else (), dict(skipped), digest)


def _server_rows(
    path: Path, lines: Iterable[tuple[int, str]], skipped: Counter[str]
) -> list[tuple[float, ...]]:
    rows: list[tuple[float, ...]] = []
    for number, line in lines:
        match = _LINE.search(line)
        if match is None:
            raise TraceError(
                f"{path}, line {number}: {line.strip()!r:.120} is no whole line of an iteration; mend or "
                "delete it"
            )
        prompts, prompt_tokens, decodes, decoded = map(int, match.groups()[:4])
        time_s = float(match[5]) / 1000
        why = _why_not(match["rest"], prompts, prompt_tokens, decodes, decoded, time_s)
        if why:
            skipped[why] += 1
        else:
            rows.append((prompt_tokens, decodes, math.nan, prompts, math.nan, time_s))
    return rows


def _why_not(
    rest: str, prompts: int, prompt_tokens: int, decodes: int, decoded: int, time_s: float
) -> str | None:
    """Why an iteration is no measurement of what latency models know."""
    if rest.lstrip().startswith("(dummy)"):
        return "that are dummies of data parallelism"
    if "encoder inputs" in rest:
        return "with encoder inputs"
    if decoded != decodes:
        return "of several tokens a decode (speculative decoding)"
    if (not decodes and not prompt_tokens) or bool(prompts) != bool(prompt_tokens):
        return "without tokens"
    return None if time_s > 0 else "of 0.00 ms"


def _scheduler_rows(
    path: Path, lines: list[tuple[int, str]], skipped: Counter[str]
) -> list[tuple[float, ...]]:
    passes = [_parsed(path, number, line) for number, line in lines]
    rows = []
    for index, one in enumerate(passes):
        after = passes[index + 1]["start_s"] if index + 1 < len(passes) else -math.inf
        # With work left the engine goes on at once; else it waits for the next request.
        goes_on = one["num_left"] > 0 and after > one["start_s"]
        time_s = (after if goes_on else one["finish_s"]) - one["start_s"]
        if not one["shares"]:
            skipped["without tokens"] += 1
        elif not time_s > 0:
            skipped["that end before they start"] += 1
        else:
            rows.append((*_shape_of(one["shares"])[: len(RECORDED_FIELDS)], time_s))
    return rows


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        tree = json.loads(line)
        shares = [[int(count) for count in share] for share in tree["shares"]]
        if any(len(share) != 3 or min(share) < 0 for share in shares):
            raise ValueError("a share has other than three counts")
        times = {name: float(tree[name]) for name in ("start_s", "finish_s")}
        if not all(map(math.isfinite, times.values())):
            raise ValueError("a time is not finite")
        return {**times, "shares": shares, "num_left": int(tree["num_left"])}
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise TraceError(
            f"{path}, line {number}: is no pass of a logging scheduler ({error!s:.80}); mend or delete it"
        ) from error


def _shape_of(shares: Iterable[list[int]]) -> IterationShape:
    """Sum up; who computes the last known token, one alone, decodes, or has a prompt of one token."""
    prefill_tokens = decode_seqs = context_tokens = prefill_seqs = 0
    pairs = 0.0
    for num_tokens, before, known in shares:
        if num_tokens == 1 and before and before + 1 == known:
            decode_seqs += 1
            context_tokens += before
        else:
            prefill_tokens += num_tokens
            prefill_seqs += 1
            pairs += num_tokens * (before + num_tokens / 2)
    return IterationShape(prefill_tokens, decode_seqs, context_tokens, prefill_seqs, pairs)
