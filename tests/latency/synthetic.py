"""Made-up calibrations of the shape of real ones: synthetic, with the noise of a machine that others use."""

import itertools
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchsim.latency.base import IterationShape
from batchsim.latency.linear import LinearIterationLatency
from batchsim.latency.tables.table import RAW_COLUMNS, TOKENS_OF_KIND

SIZES, PROMPTS, CONTEXTS = (1, 2, 3, 4, 8, 16, 32, 64), (16, 64, 128, 256, 512, 1024), (16, 128, 512, 1024)
MAX_PASS_TOKENS = 4096

Engine = Callable[[IterationShape], float]
Point = tuple[str, int, Any, Any, Any]  # as the first of RAW_COLUMNS; None where a kind has no such count

LINEAR = LinearIterationLatency(8e-3, 1.2e-4, 1e-7, 2.2e-4, 9e-7, 4e-4, if_several_tokens_s=2e-3)


def kneed(shape: IterationShape) -> float:
    """What GPUs do: up to 96 tokens a pass takes as long as reading the weights does."""
    tokens = shape.prefill_tokens + shape.decode_seqs
    attention_s = 2e-9 * shape.prefill_pairs + 3e-8 * shape.context_tokens + 1e-4 * shape.prefill_seqs
    return 1e-3 + 5e-5 * max(tokens, 96) + attention_s


def points() -> list[Point]:
    """Return a grid of all kinds, without prefills that do not fit one pass."""
    return [
        *(
            ("prefill", b, p, None, None)
            for b, p in itertools.product(SIZES, PROMPTS)
            if b * p <= MAX_PASS_TOKENS
        ),
        *(("decode", b, None, None, c) for b, c in itertools.product(SIZES, CONTEXTS)),
        *(("mixed", b, p, None, c) for b, c, p in itertools.product((1, 8, 64), (128, 1024), (16, 64, 256))),
        *(("batch", b, p, n, None) for b, p, n in itertools.product(SIZES, (16, 64), (8, 24, 96))),
    ]


def seconds(engine: Engine, point: Point) -> float:
    kind, size, prompt, output, context = point
    pairs = (prompt or 0) ** 2 / 2
    if kind == "prefill":
        return engine(IterationShape(size * prompt, 0, 0, size, size * pairs))
    if kind == "batch":
        steps = (engine(IterationShape(0, size, size * (prompt + step))) for step in range(output - 1))
        return seconds(engine, ("prefill", size, prompt, None, None)) + sum(steps)
    return engine(IterationShape(prompt or 0, size, size * context, int(kind == "mixed"), pairs))


def trials(engine: Engine, seed: int = 0, kinds: Collection[str] = tuple(TOKENS_OF_KIND)) -> pd.DataFrame:
    """Return five raw trials of each point, spread by a twentieth; one in fifty takes a third longer."""
    rng = np.random.default_rng(seed)
    rows = []
    for point in points():
        if point[0] in kinds:
            time_s = seconds(engine, point)
            factors = np.exp(0.05 * rng.standard_normal(5)) * (1 + (rng.random(5) < 0.02) / 3)
            rows += [(*point, trial, time_s * factor, "ok") for trial, factor in enumerate(factors, start=1)]
    return pd.DataFrame(rows, columns=RAW_COLUMNS)


def write_calibration(path: Path, engine: Engine, seed: int = 0) -> Path:
    """Write raw trials, and beside them that they are synthetic."""
    trials(engine, seed).to_csv(path, index=False)
    path.with_suffix(".json").write_text(json.dumps({"kind": "synthetic"}), encoding="utf-8")
    return path
