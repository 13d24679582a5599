import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.errors import ConfigError
from batchsim.latency.base import BatchShape, IterationShape, LatencyInfo, decode_span_s
from batchsim.latency.roofline import RooflineLatency
from batchsim.specs import GPUSpec, load_gpu, load_model

LLAMA = load_model("llama-3.1-8b")
# The worked example reads all 8.03e9 stored weights: a head twice as wide stands for the input embedding.
LLAMA_ALL_MULTIPLIED = replace(LLAMA, vocab_size=2 * LLAMA.vocab_size)
LAPTOP = load_gpu("rtx4080-laptop")
QWEN = load_model("qwen3-1.7b")


def ideal(model: object, gpu: str | GPUSpec, **changes: float) -> RooflineLatency:
    gpu = load_gpu(gpu) if isinstance(gpu, str) else gpu
    settings = {"compute_efficiency": 1.0, "bandwidth_efficiency": 1.0, "overhead_s": 0.0, **changes}
    return RooflineLatency(model, gpu, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("gpu", "milliseconds"), [("a100-80g", 9.98), ("h100", 6.08)])
def test_decode_step_of_llama_8b_takes_the_worked_time(gpu: str, milliseconds: float) -> None:
    latency = ideal(LLAMA_ALL_MULTIPLIED, gpu)

    step_s = latency.iteration_s(IterationShape(0, 32, 32 * 1024))

    assert step_s * 1000 == pytest.approx(milliseconds, abs=0.006)


@pytest.mark.parametrize(("gpu", "flop_per_s"), [("a100-80g", 312e12), ("h100", 989.4e12)])
def test_prefill_of_llama_8b_takes_the_worked_time(gpu: str, flop_per_s: float) -> None:
    # 32 layers of 218,103,808 weights for each of 1,024 tokens, a head of 525,336,576 for the last one.
    weights = 1024 * 32 * 218_103_808 + 525_336_576
    pairs = 1024 * 512

    prefill_s = ideal(LLAMA, gpu).batch_time(BatchShape(1, 1024, 1)).first_token_s

    assert prefill_s == pytest.approx((2 * weights + 4 * 32 * 32 * 128 * pairs) / flop_per_s, rel=1e-12)


@pytest.mark.parametrize(
    ("model", "share"), [("qwen2.5-0.5b", 0.27), ("qwen2.5-1.5b", 0.15), ("llama-3.1-8b", 0.07)]
)
def test_the_head_is_multiplied_with_one_token_of_a_prompt(model: str, share: float) -> None:
    latency = ideal(load_model(model), "h100")
    pairs = 8192**2 / 2

    alone_s = latency.iteration_s(IterationShape(8192, 0, 0, 1, pairs))
    for_each_s = latency.iteration_s(IterationShape(8192, 0, 0, 8192, pairs))

    assert for_each_s / alone_s == pytest.approx(1 + share, abs=0.035)
    assert latency.iteration_s(IterationShape(8192, 0, 0, 2, pairs)) - alone_s == pytest.approx(
        2 * latency.model.hidden_size * latency.model.vocab_size / latency.gpu.flop_per_s, rel=1e-6
    )


def test_every_decode_is_sampled_from() -> None:
    latency = ideal(QWEN, GPUSpec("fast memory", 10**9, 1e12, 1e18))

    more_s = latency.iteration_s(IterationShape(0, 8, 0)) - latency.iteration_s(IterationShape(0, 7, 0))

    assert more_s == pytest.approx(2 * QWEN.num_multiplied_parameters / 1e12, rel=1e-9)


def test_input_embedding_is_not_read_by_a_decode_step() -> None:
    weights = 2 * (8_030_261_248 - 128256 * 4096)

    step_s = ideal(LLAMA, "a100-80g").iteration_s(IterationShape(0, 32, 32 * 1024))

    assert step_s == pytest.approx((weights + 131_072 * 32 * 1024) / 2039e9, rel=1e-4)


@pytest.mark.parametrize(("context_tokens", "milliseconds"), [(0, 7.97), (512, 8.10)])
def test_decode_floor_of_qwen3_on_a_laptop_is_the_worked_time(
    context_tokens: int, milliseconds: float
) -> None:
    latency = ideal(QWEN, "rtx4080-laptop")

    assert latency.iteration_s(IterationShape(0, 1, context_tokens)) * 1000 == pytest.approx(
        milliseconds, abs=0.006
    )


def test_pass_of_one_prompt_takes_its_prefill_time() -> None:
    latency = ideal(QWEN, "h100", overhead_s=0.002)

    pass_s = latency.iteration_s(IterationShape(700, 0, 0, 1, 700 * 700 / 2))

    assert pass_s == pytest.approx(latency.batch_time(BatchShape(1, 700, 1)).first_token_s, rel=1e-12)


@given(
    st.floats(1e10, 1e16),
    st.floats(1e9, 1e14),
    st.integers(0, 300),
    st.integers(1, 512),
    st.integers(0, 10**6),
)
def test_span_by_lines_is_the_sum_of_its_iterations(
    flop_per_s: float, bytes_per_s: float, num_iterations: int, decode_seqs: int, context_tokens: int
) -> None:
    latency = ideal(QWEN, GPUSpec("any", 10**9, flop_per_s, bytes_per_s), overhead_s=0.001)

    span_s = decode_span_s(latency, num_iterations, decode_seqs, context_tokens)

    assert span_s == pytest.approx(
        one_by_one_s(latency, num_iterations, decode_seqs, context_tokens), rel=1e-12
    )


def one_by_one_s(
    latency: RooflineLatency, num_iterations: int, decode_seqs: int, context_tokens: int
) -> float:
    return math.fsum(
        latency.iteration_s(IterationShape(0, decode_seqs, context_tokens + step * decode_seqs))
        for step in range(num_iterations)
    )


def bound_by_compute(latency: RooflineLatency, context_tokens: int) -> bool:
    """Whether twice the bandwidth leaves a decode step of 16 sequences as it is."""
    gpu = replace(latency.gpu, memory_bytes_per_s=2 * latency.gpu.memory_bytes_per_s)
    shape = IterationShape(0, 16, context_tokens)
    return replace(latency, gpu=gpu).iteration_s(shape) == latency.iteration_s(shape)


@pytest.mark.parametrize("flop_per_byte", [17, 15, 12])
def test_span_that_crosses_from_one_bound_to_the_other_has_two_lines(flop_per_byte: int) -> None:
    # With 16 query heads to 8 KV heads a KV token asks for two FLOPs a byte, in a batch of 16 a weight for
    # 16: below a ridge of 16 the span starts bound by arithmetic, and ends bound by memory as contexts grow.
    latency = ideal(QWEN, GPUSpec("ridge", 10**9, flop_per_byte * 1e11, 1e11))
    num_iterations = 2000

    span_s = decode_span_s(latency, num_iterations, 16, 0)

    assert span_s == pytest.approx(one_by_one_s(latency, num_iterations, 16, 0), rel=1e-12)
    assert not bound_by_compute(latency, 16 * num_iterations)
    num_linear = latency.decode_line(16, 0).num_linear
    if flop_per_byte < 16:
        assert bound_by_compute(latency, 16 * (int(num_linear) - 1))
        assert not bound_by_compute(latency, 16 * int(num_linear))
    else:
        assert math.isinf(num_linear)


def test_later_chunk_of_a_prompt_pays_for_the_tokens_before_it() -> None:
    # With a memory that costs nothing, pairs alone make the difference.
    latency = ideal(QWEN, GPUSpec("fast memory", 10**9, 1e12, 1e18))

    whole_s = latency.iteration_s(IterationShape(1000, 0, 0, 1, 1000 * 500))
    chunks_s = [latency.iteration_s(IterationShape(500, 0, 0, 1, pairs)) for pairs in (500 * 250, 500 * 750)]

    sampled_s = 2 * QWEN.hidden_size * QWEN.vocab_size / 1e12  # an engine asks after each chunk
    assert sum(chunks_s) == pytest.approx(whole_s + sampled_s, rel=1e-12)
    assert chunks_s[1] - chunks_s[0] == pytest.approx(250_000 * 4 * 28 * 16 * 128 / 1e12, rel=1e-9)


def test_batch_takes_a_prefill_and_a_span_over_its_prompts() -> None:
    latency = ideal(QWEN, "l4", overhead_s=0.002)

    first_token_s, total_s = latency.batch_time(BatchShape(8, 300, 50))

    assert total_s - first_token_s == pytest.approx(decode_span_s(latency, 49, 8, 2400), rel=1e-12)


def test_every_pass_pays_the_overhead() -> None:
    without, with_overhead = ideal(QWEN, "l4"), ideal(QWEN, "l4", overhead_s=0.5)
    shape = BatchShape(4, 100, 11)

    assert with_overhead.batch_time(shape).total_s - without.batch_time(shape).total_s == pytest.approx(
        11 * 0.5
    )


def test_two_gpus_halve_the_time_and_add_two_all_reduces_a_layer() -> None:
    link = replace(load_gpu("l4"), link_bytes_per_s=1e9, link_latency_s=0.001)
    shape = IterationShape(100, 4, 800, 1, 5000)

    one, two = (ideal(QWEN, link, tensor_parallel=num).iteration_s(shape) for num in (1, 2))

    # Rings of two GPUs send half of the activations twice: 104 tokens of 2048 values of two bytes.
    all_reduce_s = 104 * 2048 * 2 / 1e9 + 0.001
    assert two == pytest.approx(one / 2 + 2 * 28 * all_reduce_s, rel=1e-12)


def test_all_reduce_of_many_gpus_sends_each_byte_nearly_twice() -> None:
    link = replace(load_gpu("h100"), link_bytes_per_s=1e9, link_latency_s=0.001)

    batches = [
        ideal(QWEN, link, tensor_parallel=8).decode_line(seqs, 0).first_s for seqs in (1, 2)
    ]  # bound by weights, so that a sequence more costs but its all-reduces

    assert batches[1] - batches[0] == pytest.approx(2 * 28 * 2 * 7 / 8 * 2048 * 2 / 1e9, rel=1e-9)


def test_gpus_without_a_known_link_cannot_share_a_model() -> None:
    lonely = GPUSpec("lonely", 10**9, 1e12, 1e11)

    with pytest.raises(ConfigError, match="tensor_parallel is 2; GPU lonely must have link_bytes_per_s"):
        ideal(QWEN, lonely, tensor_parallel=2)


def test_roofline_has_no_range() -> None:
    latency = ideal(QWEN, "l4")

    assert not latency.is_bounded
    assert latency.covers(IterationShape(10**6, 10**6, 10**9))


def test_roofline_is_called_derived_and_named_after_what_it_models() -> None:
    info = ideal(QWEN, "l4").info

    assert (info.provenance, info.name) == ("derived", "roofline of qwen3-1.7b on l4")


def test_roofline_cannot_be_called_measured() -> None:
    with pytest.raises(ConfigError, match="computed, not measured"):
        RooflineLatency(QWEN, LAPTOP, 0.5, 0.7, 0.0, info=LatencyInfo("x", "measured"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compute_efficiency": 0.0}, "compute_efficiency is 0.0; a finite number > 0"),
        ({"bandwidth_efficiency": 1.5}, "bandwidth_efficiency is 1.5; a share of at most 1"),
        ({"overhead_s": -1.0}, "overhead_s is -1.0"),
        ({"tensor_parallel": 0}, "tensor_parallel is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ideal(QWEN, "l4", **changes)
