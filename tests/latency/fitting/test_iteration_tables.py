import itertools
from typing import Any

import pandas as pd
import pytest

from batchsim.errors import ConfigError
from batchsim.latency.base import Domain, IterationShape, LatencyInfo
from batchsim.latency.fitting.iteration_tables import iteration_table
from batchsim.latency.fitting.iterations import iteration_shapes
from batchsim.latency.linear import LinearIterationLatency


def points(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    columns = ["kind", "batch_size", "prompt_tokens", "context_tokens", "mean_s"]
    return pd.DataFrame(rows, columns=columns).astype(
        {"prompt_tokens": "float64", "context_tokens": "float64"}
    )


ROWS: list[tuple[Any, ...]] = [
    ("prefill", 1, 64, None, 3.0),
    ("prefill", 4, 16, None, 5.0),
    ("prefill", 1, 128, None, 7.0),
    *(
        ("decode", seqs, None, context, 1.0 + seqs + context / 100)
        for seqs in (1, 4)
        for context in (100, 200)
    ),
]


def test_calibration_becomes_a_table_that_returns_its_points() -> None:
    table, measured = iteration_table(points([*ROWS, ("mixed", 4, 64, 200, 8.5)]), Domain(), LatencyInfo())

    assert table.prefill_tokens == (0, 64, 128)
    assert (table.decode_seqs, table.mean_context_tokens) == ((0, 1, 4), (100, 200))
    assert table.iteration_s(IterationShape(64, 0, 0, 1)) == pytest.approx(3.0)
    assert table.iteration_s(IterationShape(64, 0, 0, 4)) == pytest.approx(5.0)
    assert table.iteration_s(IterationShape(0, 4, 800)) == 7.0
    assert table.iteration_s(IterationShape(64, 4, 800, 1)) == pytest.approx(8.5)
    assert measured == 1 / 8


def test_prompts_beside_decodes_take_both_times_less_the_shortest_pass() -> None:
    table, measured = iteration_table(points([ROWS[0], *ROWS[2:]]), Domain(), LatencyInfo())

    assert table.iteration_s(IterationShape(128, 4, 800)) == 7.0 + 7.0 - 3.0
    assert measured == 0


def test_gap_in_the_decode_grid_is_named() -> None:
    with pytest.raises(ConfigError, match=r"lacks the decode point at batch size and context \(4, 200\)"):
        iteration_table(points(ROWS[:-1]), Domain(), LatencyInfo())


def test_grid_too_large_to_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchsim.latency.fitting.iteration_tables.MAX_GRID", 7)

    with pytest.raises(ConfigError, match="2 prefills by 4 decodes are too many for a table"):
        iteration_table(points(ROWS), Domain(), LatencyInfo())


def test_pairs_and_prompts_are_told_by_passes_of_as_many_tokens() -> None:
    truth = LinearIterationLatency(3e-3, 2e-5, 4e-9, 1e-4, 5e-8, 2e-4)
    prompts = [("prefill", num, 512 // num, None, 0.0) for num in (1, 2, 4)]
    chunks = [("chunk", 1, tokens, before, 0.0) for tokens, before in itertools.product((64, 512), (0, 4096))]
    rows = points([*ROWS[3:], ("prefill", 1, 64, None, 0.0), *prompts, *chunks])
    rows["mean_s"] = list(map(truth.iteration_s, iteration_shapes(rows)))

    table, _ = iteration_table(rows, Domain(), LatencyInfo())

    assert table.pair_s == pytest.approx(4e-9, rel=1e-6)
    assert table.prompt_s == pytest.approx(2e-4, rel=1e-6)
    unseen = IterationShape(512, 4, 600, 3, 512 * 7000.0)
    assert table.iteration_s(unseen) == pytest.approx(truth.iteration_s(unseen), rel=0.01)


def test_what_no_pair_of_passes_tells_costs_nothing() -> None:
    table, _ = iteration_table(points([ROWS[0], *ROWS[2:]]), Domain(), LatencyInfo())

    assert (table.pair_s, table.prompt_s) == (0, 0)
