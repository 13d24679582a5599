"""What the decode steps of sequences gave, where several tokens come at once."""

from __future__ import annotations

from array import array
from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.records import DECODE_STEP_COLUMNS, empty, table


class StepLog:
    """Steps of speculative decoding, as they are run; without it, none.

    Attributes
    ----------
    steps
        Of each request, by row: for each step, the drafts accepted and the tokens given, in turn.
    tokens
        Of each replica: the tokens given in each iteration that had decodes.
    drafted
        Drafts of each sequence in a step.
    """

    def __init__(self) -> None:
        self.steps: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.tokens: defaultdict[int, array[int]] = defaultdict(lambda: array("q"))
        self.drafted = 0

    def table(self, request_ids: NDArray[np.int64]) -> pd.DataFrame:
        """One row per step, in order of requests."""
        if not self.steps:
            return empty(DECODE_STEP_COLUMNS)
        rows = sorted(self.steps)
        given = np.frombuffer(b"".join(self.steps[row] for row in rows), dtype=np.int8).reshape(-1, 2)
        num_steps = [len(self.steps[row]) // 2 for row in rows]
        columns: dict[str, Any] = {
            "request_id": np.repeat(request_ids[rows], num_steps),
            "drafted": np.full(len(given), self.drafted),
            "accepted": given[:, 0],
            "tokens": given[:, 1],
        }
        return table(DECODE_STEP_COLUMNS, columns)

    def tokens_of(self, spans: pd.DataFrame) -> NDArray[np.int64]:
        """Tokens that the decodes of each span gave, ``(num_spans,)``."""
        gpu_id, decodes = spans["gpu_id"].to_numpy(), spans["decode_seqs"].to_numpy() > 0
        given = np.zeros(len(spans), dtype=np.int64)
        for replica_id, tokens in self.tokens.items():
            given[decodes & (gpu_id == replica_id)] = tokens
        return given
