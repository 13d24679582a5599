import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.errors import ConfigError
from batchsim.latency.base import Domain, IterationShape, LatencyInfo, decode_span_s
from batchsim.latency.operators import OperatorTable
from batchsim.latency.passes import PassTableLatency
from batchsim.latency.store import load_latency, save_latency

MODEL = PassTableLatency(
    by_tokens=OperatorTable(((1, 9),), (1.0, 5.0)),
    by_decodes=OperatorTable(((1, 4),), (0.5, 2.0)),
    prefill=OperatorTable(((1, 4), (2, 8), (0, 16)), (1.0, 2.0, 4.0, 8.0, 4.0, 8.0, 16.0, 32.0)),
    decode=OperatorTable(((1, 4), (16, 32, 64)), (1.0, 2.0, 8.0, 2.0, 4.0, 16.0)),
    domain=Domain(batch_size=(1, 4)),
    info=LatencyInfo("tiny", "derived", {"gpu": "none"}),
)


#: Attention of prompts by their ends: one of 4 tokens alone takes 4 s, so many of 8 take 16 s.
ENDS = replace(
    MODEL,
    prefill=OperatorTable(((1, 4), (4, 8)), (4.0, 16.0, 8.0, 16.0)),
    by_prompt_tokens=OperatorTable(((1, 8),), (1.0, 8.0)),
)


def prompts(num: int, chunk: int, before: int, decode_seqs: int = 0, context: int = 0) -> IterationShape:
    tokens = num * chunk
    return IterationShape(tokens, decode_seqs, decode_seqs * context, num, tokens * (before + chunk / 2))


def test_decodes_alone_have_their_own_time_beside_attention() -> None:
    assert MODEL.iteration_s(IterationShape(0, 4, 4 * 48)) == 2.0 + (4.0 + 16.0) / 2


def test_prompts_and_decodes_add_up() -> None:
    alone = MODEL.iteration_s(prompts(1, 2, 16))
    beside = MODEL.iteration_s(prompts(1, 2, 16, 4, 64))

    assert alone == 1.5 + 2.0
    assert beside == 3.5 + 2.0 + 16.0


def test_several_prompts_are_no_long_one() -> None:
    # Four of two tokens, against one of eight: a quarter of the pairs, and four of everything else.
    assert MODEL.iteration_s(prompts(4, 2, 0)) == 4.5 + 4.0
    assert MODEL.iteration_s(prompts(1, 8, 0)) == 4.5 + 4.0
    assert MODEL.iteration_s(prompts(4, 2, 16)) == 4.5 + 8.0


def test_chunk_takes_its_share_of_the_pairs_up_to_its_end() -> None:
    whole_s, chunk_s = ENDS.iteration_s(prompts(1, 8, 0)), ENDS.iteration_s(prompts(1, 4, 4))

    assert whole_s == 4.5 + 8.0 + 16.0
    assert chunk_s == 2.5 + 4.0 + 0.75 * 16.0
    assert ENDS.iteration_s(prompts(4, 1, 3)) == 2.5 + 4.0 + 7 / 16 * 8.0


def test_ends_are_covered_as_far_as_the_tables_go() -> None:
    assert ENDS.covers(prompts(1, 5, 3))
    assert not ENDS.covers(prompts(1, 5, 4))
    assert not replace(ENDS, by_tokens=OperatorTable(((1, 99),), (1.0, 5.0))).covers(prompts(2, 5, 0))


def test_prompts_that_differ_count_as_so_many_of_their_mean() -> None:
    # 2 and 6 tokens have 2 + 18 pairs: as two of 4 after half a token.
    mixed = MODEL.iteration_s(IterationShape(8, 0, 0, 2, 20.0))
    alike = MODEL.iteration_s(IterationShape(8, 0, 0, 2, 8 * (0.5 + 2)))

    assert mixed == alike


@given(st.integers(1, 8), st.integers(0, 800), st.integers(1, 200))
def test_span_is_the_sum_of_its_iterations(seqs: int, context: int, num: int) -> None:
    one_by_one = math.fsum(MODEL.iteration_s(IterationShape(0, seqs, context + j * seqs)) for j in range(num))

    assert decode_span_s(MODEL, num, seqs, context) == pytest.approx(one_by_one, rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "is_covered"),
    [
        (prompts(1, 5, 0, 4, 64), True),
        (prompts(1, 6, 0, 4, 64), False),  # ten tokens
        (prompts(1, 8, 17), False),
        (prompts(5, 1, 0), False),
        (IterationShape(0, 5, 5), False),
        (IterationShape(0, 4, 4 * 65), False),
    ],
)
def test_covers_ends_where_a_table_does(shape: IterationShape, is_covered: bool) -> None:
    assert MODEL.covers(shape) is is_covered


@pytest.mark.parametrize("model", [MODEL, ENDS])
def test_file_gives_an_equal_model(model: PassTableLatency, tmp_path: Path) -> None:
    save_latency(model, tmp_path / "latency.json")

    assert load_latency(tmp_path / "latency.json") == model


def test_table_of_other_axes_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="prefill has 2 axes; 3 are needed: prompts, chunk, tokens before it"
    ):
        replace(MODEL, prefill=MODEL.decode)


def test_attention_by_ends_has_two_axes() -> None:
    with pytest.raises(
        ConfigError, match="prefill has 3 axes; 2 are needed: prompts, tokens up to their end"
    ):
        replace(ENDS, prefill=MODEL.prefill)


def test_sum_of_tables_is_not_called_measured() -> None:
    with pytest.raises(ConfigError, match="computed, not measured"):
        replace(MODEL, info=LatencyInfo("tiny", "measured"))


def test_slope_that_leads_below_zero_is_refused() -> None:
    falling = replace(MODEL, by_tokens=OperatorTable(((1, 9),), (50.0, 1.0)))

    with pytest.raises(ConfigError, match="too far from the tables"):
        falling.iteration_s(prompts(4, 10, 0))
