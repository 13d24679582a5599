"""An engine at random, token by token: the tables it would log, and when each token really came.

It admits, chunks, stalls, idles and preempts by dice, so that every order of events occurs. Times are
multiples of 2^-8 s, so that sums of them are exact.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from batchsim.records import Records
from tests.metrics.worlds import (
    NO_PREEMPTIONS,
    engine_records,
    engine_request_table,
    iteration_table,
    preemption_table,
)


@dataclass
class Sequence:
    """A request as the engine sees it."""

    request_id: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    chunks_left: int = 0
    decode_start_s: float = np.nan
    scheduled_s: float = np.nan
    times_s: list[float] = field(default_factory=list)


@dataclass
class Run:
    """Tables of a run, and the true times of the tokens of each request."""

    records: Records
    times_s: list[np.ndarray]


class DiceEngine:
    """One replica; `may_merge` logs equal decode iterations as one span, now and then cut."""

    def __init__(self, gpu_id: int, sequences: list[Sequence], seed: int, *, may_merge: bool) -> None:
        self.gpu_id, self.may_merge = gpu_id, may_merge
        self.rng = np.random.default_rng(seed)
        self.cuts = np.random.default_rng(seed + 1)  # of its own: the same run with and without spans
        self.now_s = 0.0
        self.waiting, self.all = list(sequences), sequences
        self.chunking: list[Sequence] = []
        self.decoding: list[Sequence] = []
        self.swapped: list[Sequence] = []
        self.spans: list[dict[str, Any]] = []
        self.preemptions: list[dict[str, Any]] = []

    def run(self) -> None:
        while self.waiting or self.chunking or self.decoding or self.swapped:
            is_same = self._plan()
            if not self.chunking and not self.decoding:
                self.now_s += self.rng.integers(1, 64) / 64
            else:
                self._iterate(is_same)

    def _plan(self) -> bool:
        """Change who runs; tell whether nothing changed."""
        dice = self.rng.random(4)
        if dice[0] < 0.1 and (running := self.chunking + self.decoding):
            self._preempt(running[self.rng.integers(len(running))])
        elif dice[1] < 0.3 and self.swapped:
            sequence = self.swapped.pop()
            if not sequence.chunks_left:
                sequence.decode_start_s = self.now_s
                self.decoding.append(sequence)
            else:
                self.chunking.append(sequence)
        elif dice[2] < 0.3 and self.waiting and self.waiting[0].arrival_s <= self.now_s:
            sequence = self.waiting.pop(0)
            sequence.chunks_left = int(self.rng.integers(1, 4))
            if np.isnan(sequence.scheduled_s):
                sequence.scheduled_s = self.now_s
            self.chunking.append(sequence)
        elif dice[3] < 0.05:
            self.now_s += self.rng.integers(1, 64) / 64
        else:
            return True
        return False

    def _preempt(self, sequence: Sequence) -> None:
        is_swap = bool(self.rng.random() < 0.5)
        is_decoding = sequence in self.decoding
        (self.decoding if is_decoding else self.chunking).remove(sequence)
        self.swapped.append(sequence) if is_swap else self.waiting.insert(0, sequence)
        self.preemptions.append(
            {
                "request_id": sequence.request_id,
                "gpu_id": self.gpu_id,
                "time_s": self.now_s,
                "mode": "swap" if is_swap else "recompute",
                "decode_start_s": sequence.decode_start_s if is_decoding else np.nan,
            }
        )

    def _iterate(self, is_same: bool) -> None:
        stalls = bool(self.chunking) and self.rng.random() < 0.5
        decoding = [] if stalls else list(self.decoding)
        context_tokens = sum(sequence.prompt_tokens + len(sequence.times_s) - 1 for sequence in decoding)
        num_running = len(self.chunking) + len(self.decoding)
        duration_s = 1 / 8 + len(decoding) / 16 + context_tokens / 256 + len(self.chunking) / 4
        start_s, self.now_s = self.now_s, self.now_s + duration_s
        is_pure = not self.chunking
        for sequence in self.chunking:
            sequence.chunks_left -= 1
        done = [sequence for sequence in self.chunking if not sequence.chunks_left]
        self.chunking = [sequence for sequence in self.chunking if sequence.chunks_left]
        self.decoding += done
        for sequence in decoding + done:
            sequence.times_s.append(self.now_s)
        for sequence in done:
            sequence.decode_start_s = self.now_s
        ended = [one for one in self.decoding if len(one.times_s) == one.output_tokens]
        self.decoding = [one for one in self.decoding if one not in ended]
        if self.may_merge and is_pure and is_same and self.spans and self.spans[-1]["is_open"]:
            self.spans[-1]["num_iterations"] += 1
            self.spans[-1]["finish_s"] = self.now_s
        else:
            self.spans.append(
                {
                    "gpu_id": self.gpu_id,
                    "start_s": start_s,
                    "finish_s": self.now_s,
                    "num_iterations": 1,
                    "first_iteration_s": duration_s,
                    "host_s": 1 / 16,
                    "decode_seqs": len(decoding),
                    "context_tokens": context_tokens,
                    "num_running": num_running,
                }
            )
        self.spans[-1]["is_open"] = is_pure and not ended and self.cuts.random() < 0.8


@cache
def dice_run(seed: int, num_requests: int = 8, num_gpus: int = 1, *, may_merge: bool = True) -> Run:
    rng = np.random.default_rng(seed)
    sequences = [
        Sequence(row, row / 4, int(rng.integers(1, 9)), int(rng.integers(1, 12)))
        for row in range(num_requests)
    ]
    engines = [
        DiceEngine(gpu_id, sequences[gpu_id::num_gpus], seed + gpu_id, may_merge=may_merge)
        for gpu_id in range(num_gpus)
    ]
    for engine in engines:
        engine.run()
    spans = pd.DataFrame([span for engine in engines for span in engine.spans]).drop(columns="is_open")
    preemptions = pd.DataFrame([row for engine in engines for row in engine.preemptions])
    gpu_id = np.arange(num_requests) % num_gpus
    requests = engine_request_table(
        [one.arrival_s for one in sequences],
        gpu_id=gpu_id,
        prompt_tokens=[one.prompt_tokens for one in sequences],
        output_tokens=[one.output_tokens for one in sequences],
        scheduled_s=[one.scheduled_s for one in sequences],
        first_token_s=[one.times_s[0] for one in sequences],
        decode_start_s=[one.decode_start_s for one in sequences],
        finish_s=[one.times_s[-1] for one in sequences],
    )
    return Run(
        engine_records(
            requests,
            iteration_table(**spans.sort_values(["finish_s"], kind="stable").to_dict("series")),
            NO_PREEMPTIONS
            if preemptions.empty
            else preemption_table(**preemptions.sort_values("time_s", kind="stable").to_dict("series")),
            kv_blocks=(100,) * num_gpus,
        ),
        [np.array(one.times_s) for one in sequences],
    )
