"""A roofline of models with experts, windows and latents, on GPUs that share them in several ways."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.errors import ConfigError
from batchsim.latency.base import IterationShape, decode_span_s
from batchsim.latency.roofline import RooflineLatency
from batchsim.specs import GPUSpec, ModelSpec, load_gpu, load_model

DENSE = ModelSpec("dense", 4, 64, 8, 2, 8, 128, 100, tied_embeddings=False)
EXPERTS = replace(DENSE, num_experts=8, experts_per_token=2, expert_intermediate_size=32)
WINDOWS = replace(DENSE, num_window_layers=3, window_tokens=16)
LATENT = replace(DENSE, num_kv_heads=1, kv_lora_rank=16, qk_rope_head_dim=2, v_head_dim=8)
LINEAR = replace(DENSE, num_linear_layers=3, linear_layer_parameters=5000, linear_state_bytes=9000)

SLOW_MEMORY = GPUSpec("slow memory", 10**9, 1e19, 1e9, link_bytes_per_s=1e18, link_latency_s=1e-9)
SLOW_ARITHMETIC = GPUSpec("slow arithmetic", 10**9, 1e10, 1e18, link_bytes_per_s=1e18, link_latency_s=1e-9)


def ideal(model: ModelSpec, gpu: GPUSpec, **sharing: int) -> RooflineLatency:
    return RooflineLatency(model, gpu, 1.0, 1.0, 0.0, **sharing)


def decode_s(latency: RooflineLatency, seqs: int, context_tokens: int = 0) -> float:
    return latency.iteration_s(IterationShape(0, seqs, context_tokens))


def test_a_pass_reads_the_experts_that_its_tokens_reach() -> None:
    latency = ideal(EXPERTS, SLOW_MEMORY)
    expert_bytes = 4 * 3 * 64 * 32 * 2

    for seqs, reached in ((1, 2), (2, 8 * (1 - 0.75**2)), (100, 8)):
        expected_s = (EXPERTS.every_pass_bytes + reached * expert_bytes) / 1e9
        assert decode_s(latency, seqs) == pytest.approx(expected_s, rel=1e-9)


def test_a_token_is_multiplied_with_the_experts_it_goes_to() -> None:
    latency = ideal(EXPERTS, SLOW_ARITHMETIC)

    flop = 2 * (EXPERTS.num_layer_parameters + 64 * 100)
    assert EXPERTS.num_layer_parameters == 4 * (64 * 8 * (16 + 4) + 64 * 8 + 2 * 3 * 64 * 32)
    assert decode_s(latency, 3) == pytest.approx(3 * flop / 1e10, rel=1e-6)


def test_a_layer_of_a_window_reads_and_scores_no_more_than_that() -> None:
    kv_bytes = 2 * 2 * 8 * 2

    reading = ideal(WINDOWS, SLOW_MEMORY)
    grown_s = decode_s(reading, 2, 100) - decode_s(reading, 2, 0)
    assert grown_s == pytest.approx(kv_bytes * (100 + 3 * 2 * 16) / 1e9, rel=1e-9)
    scoring = ideal(WINDOWS, SLOW_ARITHMETIC)
    grown_s = decode_s(scoring, 2, 100) - decode_s(scoring, 2, 0)
    assert grown_s == pytest.approx(4 * 8 * 8 * (100 + 3 * 2 * 16) / 1e10, rel=1e-6)
    long_s, short_s = (
        scoring.iteration_s(IterationShape(tokens, 0, 0, 1, tokens**2 / 2)) for tokens in (1000, 10)
    )
    pairs = (1000**2 - 10**2) / 2 + 3 * (1000 * 16 - 10**2 / 2)
    weights = 2 * 990 * DENSE.num_layer_parameters
    assert long_s - short_s == pytest.approx((weights + 4 * 8 * 8 * pairs) / 1e10, rel=1e-6)


def test_latents_are_read_once_and_scored_by_every_head() -> None:
    reading, scoring = ideal(LATENT, SLOW_MEMORY), ideal(LATENT, SLOW_ARITHMETIC)

    assert decode_s(reading, 1, 1000) - decode_s(reading, 1) == pytest.approx(4 * 18 * 2 * 1000 / 1e9)
    scored_s = decode_s(scoring, 1, 1000) - decode_s(scoring, 1)
    assert scored_s == pytest.approx(4 * 2 * 8 * (18 + 16) * 1000 / 1e10, rel=1e-6)
    shapes = [IterationShape(10, 0, 0, 1, pairs) for pairs in (1050.0, 50.0)]
    later_s, first_s = map(scoring.iteration_s, shapes)
    assert later_s - first_s == pytest.approx(4 * 2 * 8 * (8 + 8) * 1000 / 1e10, rel=1e-6)


def test_a_state_is_read_for_each_sequence() -> None:
    latency = ideal(LINEAR, SLOW_MEMORY)

    assert decode_s(latency, 3) - decode_s(latency, 2) == pytest.approx(9000 / 1e9, rel=1e-6)


def test_quantised_weights_are_multiplied_at_their_rate() -> None:
    gpu = replace(SLOW_ARITHMETIC, fp8_flop_per_s=4e10)
    quantised = replace(DENSE, bytes_per_weight=1, bytes_per_kept_weight=2, arithmetic="fp8")
    shape = IterationShape(0, 1, 0)

    layers_s, head_s = 2 * DENSE.num_layer_parameters / 1e10, 2 * 64 * 100 / 1e10
    assert ideal(DENSE, gpu).iteration_s(shape) == pytest.approx(layers_s + head_s, rel=1e-6)
    assert ideal(quantised, gpu).iteration_s(shape) == pytest.approx(layers_s / 4 + head_s, rel=1e-6)
    assert ideal(quantised, SLOW_ARITHMETIC).iteration_s(shape) == pytest.approx(layers_s + head_s, rel=1e-6)


def test_heads_that_more_gpus_share_are_copied() -> None:
    one, two, four = (
        decode_s(latency, 1, 10**6) - decode_s(latency, 1)
        for latency in (ideal(DENSE, SLOW_MEMORY, tensor_parallel=num) for num in (1, 2, 4))
    )

    assert two == pytest.approx(one / 2)
    assert four == pytest.approx(one / 2)


def test_latents_are_computed_on_every_gpu() -> None:
    one_s, eight_s = (decode_s(ideal(LATENT, SLOW_MEMORY, tensor_parallel=num), 1) for num in (1, 8))

    latents_s = 2 * 4 * LATENT.kv_parameters / 1e9
    assert eight_s == pytest.approx((one_s - latents_s) / 8 + latents_s, rel=1e-3)


def test_stages_divide_arithmetic_among_as_many_groups_as_there_are_sequences() -> None:
    one, four = ideal(DENSE, SLOW_ARITHMETIC), ideal(DENSE, SLOW_ARITHMETIC, pipeline_parallel=4)

    assert decode_s(four, 8, 800) == pytest.approx(decode_s(one, 8, 800) / 4, rel=1e-3)
    assert decode_s(four, 2, 800) == pytest.approx(decode_s(one, 2, 800) / 2, rel=1e-3)
    assert decode_s(four, 1, 800) == pytest.approx(decode_s(one, 1, 800), rel=1e-3)


def test_each_group_of_a_pipeline_reads_the_weights() -> None:
    one, four = ideal(DENSE, SLOW_MEMORY), ideal(DENSE, SLOW_MEMORY, pipeline_parallel=4)

    assert decode_s(four, 8) == pytest.approx(decode_s(one, 8), rel=1e-3)
    read_s, quarter_s = (decode_s(each, 8, 8000) - decode_s(each, 8) for each in (one, four))
    assert quarter_s == pytest.approx(read_s / 4, rel=1e-3)


def test_groups_with_attention_of_their_own_wait_for_the_fullest_and_share_experts() -> None:
    alone, two = ideal(EXPERTS, SLOW_MEMORY), ideal(EXPERTS, SLOW_MEMORY, data_parallel=2)
    expert_s = EXPERTS.reached_bytes / 1e9

    reached = EXPERTS.reached_experts
    three_s = decode_s(alone, 2, 20) - reached(2) * expert_s + reached(3) * expert_s / 2
    assert decode_s(two, 3, 30) == pytest.approx(three_s, rel=1e-3)


def test_experts_elsewhere_are_reached_over_the_link() -> None:
    link = replace(SLOW_MEMORY, memory_bytes_per_s=1e18, link_bytes_per_s=1e6)
    shape, token_bytes = IterationShape(0, 8, 0), 64 * 2

    gathered, sent = (
        ideal(EXPERTS, link, data_parallel=4, expert_parallel=degree).iteration_s(shape) for degree in (1, 4)
    )

    # Two of eight tokens on each of four GPUs, there and back in four layers.
    assert gathered == pytest.approx(2 * 4 * 2 * 3 * token_bytes / 1e6, rel=1e-3)
    assert sent == pytest.approx(2 * 4 * 2 * 4 * (1 - 0.75**2) * 0.75 * token_bytes / 1e6, rel=1e-3)


@given(
    st.sampled_from([EXPERTS, WINDOWS, LATENT, LINEAR, replace(WINDOWS, num_experts=8, experts_per_token=2,
                                                              expert_intermediate_size=32)]),
    st.sampled_from([(1, 1, 1), (2, 1, 1), (1, 3, 1), (1, 1, 3), (2, 2, 2)]),
    st.floats(1e10, 1e16),
    st.floats(1e9, 1e14),
    st.integers(0, 200),
    st.integers(1, 100),
    st.integers(0, 10**4),
)  # fmt: skip
def test_a_span_is_the_sum_of_its_iterations(
    model: ModelSpec,
    sharing: tuple[int, int, int],
    flop_per_s: float,
    bytes_per_s: float,
    num_iterations: int,
    seqs: int,
    context_tokens: int,
) -> None:
    tensor, pipeline, data = sharing
    gpu = replace(SLOW_MEMORY, flop_per_s=flop_per_s, memory_bytes_per_s=bytes_per_s)
    latency = ideal(
        model,
        gpu,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        data_parallel=data if model.num_experts else 1,
    )

    each_s = [decode_s(latency, seqs, context_tokens + step * seqs) for step in range(num_iterations)]

    span_s = decode_span_s(latency, num_iterations, seqs, context_tokens)
    assert span_s == pytest.approx(math.fsum(each_s), rel=1e-11)


def test_a_span_has_few_lines() -> None:
    latency = ideal(WINDOWS, SLOW_MEMORY)

    assert latency.decode_line(10, 0).num_linear == 17
    assert latency.decode_line(10, 200).num_linear == math.inf


def test_sharing_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="data_parallel is 2, but dense has no experts"):
        ideal(DENSE, SLOW_MEMORY, data_parallel=2)
    lonely = replace(SLOW_MEMORY, link_bytes_per_s=None)
    with pytest.raises(
        ConfigError, match="pipeline_parallel is 2; GPU slow memory must have link_bytes_per_s"
    ):
        ideal(DENSE, lonely, pipeline_parallel=2)


@pytest.mark.parametrize(
    ("model", "gpu", "sharing"),
    [
        ("deepseek-v3", "h200", {"tensor_parallel": 8}),
        ("deepseek-v3", "b200", {"data_parallel": 8, "expert_parallel": 8}),
        ("qwen3-235b-a22b-fp8", "h200", {"tensor_parallel": 4}),
        ("gpt-oss-120b", "h100", {}),
        ("mixtral-8x7b", "h100", {"tensor_parallel": 2}),
    ],
)
def test_decoding_takes_milliseconds(model: str, gpu: str, sharing: dict[str, int]) -> None:
    latency = ideal(load_model(model), load_gpu(gpu), **sharing)

    one_s, many_s = decode_s(latency, 8, 8000), decode_s(latency, 256, 256_000)

    assert 0.5e-3 < one_s < many_s < 0.1
