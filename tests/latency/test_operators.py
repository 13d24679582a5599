import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.errors import ConfigError
from batchsim.latency.base import BatchShape, Domain, IterationShape, LatencyInfo
from batchsim.latency.fitting.linear_from_shapes import linear_from_shapes
from batchsim.latency.operators import Lag, OperatorTable, OperatorTableLatency
from batchsim.latency.store import load_latency, save_latency

# Tokens: 1 s and 0.5 s each up to 4, then 2 s each; sequences: 0.25 s each.
BY_TOKENS = OperatorTable(((1, 2, 4, 8),), (1.5, 2.0, 3.0, 11.0))
BY_SEQUENCES = OperatorTable(((1, 4),), (0.25, 1.0))
PREFILL = OperatorTable(((2, 8), (0, 16)), (1.0, 2.0, 4.0, 8.0))
DECODE = OperatorTable(((1, 4), (16, 32, 64)), (1.0, 2.0, 8.0, 2.0, 4.0, 16.0))
MIXED = OperatorTable(((2, 8), (0, 16), (1, 4), (16, 64)), tuple(float(10 + step) for step in range(16)))
MODEL = OperatorTableLatency(
    BY_TOKENS,
    BY_SEQUENCES,
    PREFILL,
    DECODE,
    MIXED,
    Domain(batch_size=(1, 4)),
    LatencyInfo("tiny", "derived", {"gpu": "none"}),
)

UNEVEN = replace(MODEL, decode_lag=Lag((2, 4), (0.5, 0.25)), mixed_lag=Lag((4,), (0.75,)))

SHAPES = st.builds(
    lambda chunk, before, seqs, context, chunks, longest: IterationShape(
        chunk,
        seqs,
        seqs * context,
        chunks if chunk else 0,
        chunk * (before + chunk / 2),
        seqs and context + longest,
    ),
    st.integers(0, 20),
    st.integers(0, 40),
    st.integers(0, 9),
    st.integers(0, 100),
    st.integers(1, 3),
    st.integers(0, 90),
).filter(lambda shape: shape.prefill_tokens + shape.decode_seqs > 0)


def test_decode_adds_what_follows_tokens_sequences_and_contexts() -> None:
    assert MODEL.iteration_s(IterationShape(0, 1, 32)) == 1.5 + 0.25 + 2.0
    assert MODEL.iteration_s(IterationShape(0, 4, 4 * 48)) == 3.0 + 1.0 + (4.0 + 16.0) / 2


def test_prefill_has_an_attention_of_its_own() -> None:
    # A chunk of 2 with 16 tokens before it, of one prompt.
    assert MODEL.iteration_s(IterationShape(2, 0, 0, 1, 2 * (16 + 1))) == 2.0 + 0.25 + 2.0


def test_chunks_beside_decodes_are_looked_up_together() -> None:
    shape = IterationShape(2, 4, 4 * 64, 1, 2 * (16 + 1))

    assert MODEL.iteration_s(shape) == (3.0 + 2 * 2.0) + (1.0 + 0.25) + 17.0


def test_several_prompts_attend_like_one_of_as_many_pairs() -> None:
    # 2 + 2 + 4 tokens have 2 + 2 + 8 pairs; one prompt of sqrt(24) tokens has 12, too.
    prompts = IterationShape(8, 0, 0, 3, 12.0)

    assert MODEL.iteration_s(prompts) == pytest.approx(11.0 + 0.75 + 1.0 + 3.0 * (24**0.5 - 2) / 6)


def test_what_is_shorter_than_the_first_point_takes_the_time_of_that() -> None:
    assert MODEL.iteration_s(IterationShape(1, 0, 0, 1, 0.5)) == 1.5 + 0.25 + 1.0
    assert MODEL.decode_line(4, 4 * 3) == (3.0 + 1.0 + 2.0, 0.0, (4 * 16 - 4 * 3) // 4 + 1)


def test_beyond_the_last_point_the_slope_from_half_of_it_goes_on() -> None:
    # From 4 tokens (3 s) to 8 (11 s): 2 s a token.
    ten = MODEL.iteration_s(IterationShape(10, 0, 0, 1, 50.0))
    eight = MODEL.iteration_s(IterationShape(8, 0, 0, 1, 32.0))

    assert ten - eight == pytest.approx(2 * 2.0 + 2 * (4.0 - 1.0) / 6)


@pytest.mark.parametrize("model", [MODEL, UNEVEN])
@given(st.lists(SHAPES, min_size=1, max_size=20))
def test_many_shapes_at_once_take_what_each_takes(
    model: OperatorTableLatency, shapes: list[IterationShape]
) -> None:
    together = model.iterations_s(shapes)

    assert together == pytest.approx([model.iteration_s(shape) for shape in shapes], rel=1e-12)


@pytest.mark.parametrize("model", [MODEL, UNEVEN])
@given(st.integers(1, 9), st.integers(0, 800), st.integers(0, 200))
def test_line_equals_the_iterations_along_it(
    model: OperatorTableLatency, decode_seqs: int, context_tokens: int, longer: int
) -> None:
    longest = context_tokens // decode_seqs + longer
    first_s, growth_s, num_linear = model.decode_line(decode_seqs, context_tokens, longest)

    steps = range(int(min(num_linear, 50)))
    shapes = [
        IterationShape(0, decode_seqs, context_tokens + step * decode_seqs, longest_tokens=longest + step)
        for step in steps
    ]
    assert first_s + growth_s * np.array(steps) == pytest.approx(model.iterations_s(shapes), rel=1e-9)


def test_uneven_decodes_take_a_share_of_the_way_to_the_longest() -> None:
    even = MODEL.iteration_s(IterationShape(0, 4, 4 * 32))
    alike = UNEVEN.iteration_s(IterationShape(0, 4, 4 * 32, longest_tokens=32))
    uneven = UNEVEN.iteration_s(IterationShape(0, 4, 4 * 32, longest_tokens=64))

    assert alike == even
    assert uneven - even == 0.25 * (16.0 - 4.0)


def test_beside_chunks_decodes_lag_by_a_share_of_their_own() -> None:
    chunk = (2, 4, 4 * 16, 1, 2 * (16 + 1))

    uneven_s, even_s = (model.iteration_s(IterationShape(*chunk, 64)) for model in (UNEVEN, MODEL))

    assert uneven_s - even_s == 0.75 * 1.0  # from a context of 16 to one of 64


def test_share_between_two_numbers_of_decodes_lies_between_theirs() -> None:
    at_three = IterationShape(0, 3, 3 * 32, longest_tokens=64)

    added_s = UNEVEN.iteration_s(at_three) - MODEL.iteration_s(at_three)

    longest_s, mean_s = (MODEL.iteration_s(IterationShape(0, 3, 3 * num)) for num in (64, 32))
    assert added_s == pytest.approx(0.375 * (longest_s - mean_s))


def test_one_decode_never_lags() -> None:
    assert UNEVEN.iteration_s(IterationShape(0, 1, 32, longest_tokens=64)) == 1.5 + 0.25 + 2.0


@pytest.mark.parametrize(
    "lag",
    [
        Lag((), ()),
        Lag((2, 4), (0.5,)),
        Lag((4, 2), (0.1, 0.1)),
        Lag((2,), (1.5,)),
        Lag((2, 10**9), (0.1, 0.2)),
    ],
)
def test_lag_that_makes_no_sense_is_refused(lag: Lag) -> None:
    with pytest.raises(ConfigError, match=r"decode_lag is .*; increasing whole numbers > 1"):
        replace(MODEL, decode_lag=lag)


def test_last_line_has_no_end() -> None:
    assert MODEL.decode_line(1, 64).num_linear == math.inf


def test_range_ends_with_the_tables() -> None:
    assert MODEL.is_bounded
    assert MODEL.covers(IterationShape(0, 4, 4 * 64))
    assert MODEL.covers(IterationShape(1, 0, 0, 1, 0.5))
    assert MODEL.covers(IterationShape(4, 4, 4 * 64, 0, 4 * (16 + 2)))
    assert not MODEL.covers(IterationShape(0, 4, 4 * 64 + 1))
    assert not MODEL.covers(IterationShape(0, 5, 5))
    assert not MODEL.covers(IterationShape(9, 0, 0, 1, 40.5))
    assert not MODEL.covers(IterationShape(2, 0, 0, 1, 2 * (17 + 1)))
    assert not MODEL.covers(IterationShape(5, 4, 4, 1, 12.5))  # 9 tokens in all
    assert not MODEL.covers(IterationShape(4, 4, 4, 1, 8.0))  # 5 sequences in all
    assert not MODEL.covers(IterationShape(2, 1, 65, 1, 2.0))
    assert not MODEL.covers(IterationShape(0, 4, 4 * 16, longest_tokens=65))
    assert not MODEL.covers(IterationShape(2, 4, 4 * 16, 1, 2.0, 65))


def test_table_that_falls_below_zero_outside_is_refused_there() -> None:
    falling = OperatorTable(((1, 4), (16, 32)), (9.0, 1.0, 9.0, 1.0))
    model = replace(MODEL, decode=falling)

    first_s, growth_s, num_linear = model.decode_line(1, 32)

    assert first_s + (num_linear - 1) * growth_s > 0
    with pytest.raises(ConfigError, match="too far from the tables"):
        model.iteration_s(IterationShape(0, 1, 60))


def test_padded_batch_takes_a_prefill_and_the_decodes_after_it() -> None:
    first_token_s, total_s = MODEL.batch_time(BatchShape(2, 4, 3))

    assert first_token_s == MODEL.iteration_s(IterationShape(8, 0, 0, 2, 16.0))
    steps_s = [MODEL.iteration_s(IterationShape(0, 2, tokens)) for tokens in (8, 10)]
    assert total_s - first_token_s == pytest.approx(sum(steps_s), rel=1e-12)


@pytest.mark.parametrize("model", [MODEL, UNEVEN])
def test_file_gives_back_identical_seconds(model: OperatorTableLatency, tmp_path: Path) -> None:
    save_latency(model, tmp_path / "latency.json")

    loaded = load_latency(tmp_path / "latency.json")

    assert loaded == model
    assert isinstance(loaded, OperatorTableLatency)
    shape = IterationShape(3, 3, 111, 1, 7.5, 60)
    assert loaded.iteration_s(shape) == model.iteration_s(shape)


def test_sum_of_operators_cannot_claim_to_be_measured() -> None:
    with pytest.raises(ConfigError, match="computed, not measured"):
        replace(MODEL, info=LatencyInfo("tiny", "measured"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (OperatorTable(((1, 2),), (1.0,)), "by_tokens holds 1 times; its axes ask for 2"),
        (OperatorTable(((1,),), (1.0,)), r"by_tokens: tokens are \[1\]; two or more"),
        (OperatorTable(((2, 1),), (1.0, 2.0)), "by_tokens: tokens are"),
        (OperatorTable(((1, 2),), (1.0, 0.0)), "by_tokens holds a time that is not a finite number > 0"),
        (OperatorTable(((1, 2), (1, 2)), (1.0,) * 4), "by_tokens has 2 axes; 1 are needed: tokens"),
    ],
)
def test_table_that_makes_no_sense_is_refused(table: OperatorTable, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(MODEL, by_tokens=table)


def linear_model() -> OperatorTableLatency:
    """0.01 + 0.001 tokens + 0.002 sequences + 1e-5 context tokens, up to 8 sequences."""
    seqs, context = (1, 8), (1, 100)
    attention = tuple(1e-5 * num * mean for num in seqs for mean in context)
    tiny = 1e-12
    return OperatorTableLatency(
        OperatorTable(((1, 16),), (0.01 + 0.001, 0.01 + 0.016)),
        OperatorTable(((1, 16),), (0.002, 0.032)),
        OperatorTable(((1, 16), (0, 16)), (tiny,) * 4),
        OperatorTable((seqs, context), attention),
        OperatorTable(((1, 16), (0, 16), seqs, context), attention * 4),
    )


def test_linear_fit_recovers_a_table_that_is_linear() -> None:
    shapes = [IterationShape(0, num, num * mean) for num in (1, 3, 8) for mean in (10, 50, 100)]
    shapes += [IterationShape(8, num, num * 20, 1, pairs) for num in (2, 4) for pairs in (32.0, 80.0)]

    fitted = linear_from_shapes(linear_model(), shapes)

    assert fitted.per_decode_seq_s == pytest.approx(0.003, rel=1e-6)
    assert fitted.per_context_token_s == pytest.approx(1e-5, rel=1e-6)
    # The chunk's sequence, too, counts with its tokens: all chunks are alike.
    assert fitted.per_prefill_token_s == pytest.approx(0.001 + 0.002 / 8, rel=1e-6)
    assert fitted.per_prefill_pair_s == pytest.approx(0, abs=1e-9)
    assert fitted.info.provenance == "derived"
    assert fitted.iteration_domain.prefill_tokens == (0, 8)


def test_linear_fit_keeps_the_total_time_of_the_iterations() -> None:
    rng = np.random.default_rng(3)
    shapes = [
        IterationShape(int(chunk), int(num), int(num * mean), 1, float(chunk * chunk))
        for chunk, num, mean in zip(
            rng.integers(2, 9, 40), rng.integers(1, 5, 40), rng.integers(16, 65, 40), strict=True
        )
    ] + [IterationShape(0, int(num), int(num * 40)) for num in (1, 2, 3, 4)]
    times = rng.integers(1, 9, len(shapes)).tolist()

    fitted = linear_from_shapes(MODEL, shapes, times)

    linear_s = sum(num * fitted.iteration_s(shape) for num, shape in zip(times, shapes, strict=True))
    table_s = sum(num * MODEL.iteration_s(shape) for num, shape in zip(times, shapes, strict=True))
    assert linear_s == pytest.approx(table_s, rel=1e-9)


def test_linear_fit_needs_shapes() -> None:
    with pytest.raises(ConfigError, match="no shapes to fit"):
        linear_from_shapes(MODEL, [])


def test_axis_of_which_every_number_is_held_ends_in_time() -> None:
    with pytest.raises(ConfigError, match=r"by_tokens: tokens are .* from 0 to 1048576 are needed"):
        replace(MODEL, by_tokens=OperatorTable(((1, 10**11),), (1.0, 2.0)))
    with pytest.raises(
        ConfigError, match=r"mixed holds a time that is not a finite number > 0, up to 1e\+09"
    ):
        replace(MODEL, mixed=replace_last(MIXED, 1e300))


def replace_last(table: OperatorTable, time_s: float) -> OperatorTable:
    return OperatorTable(table.axes, (*table.seconds[:-1], time_s))
