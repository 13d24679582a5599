import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from batchsim.latency.base import IterationShape
from batchsim.latency.roofline import RooflineLatency
from batchsim.metrics.efficiency import Hardware, Work, mbu, mfu, work
from batchsim.metrics.system import Window
from batchsim.specs import GPUSpec, ModelSpec, Sharing, load_gpu, load_model
from tests.metrics.worlds import iteration_table

# 3 layers of 4 * (2 * 2 + 2 * 1) * 5 + 3 * 4 * 10 weights, P = 720, and a head of 4 * 7; 2 bytes each.
MODEL = ModelSpec("small", 3, 4, 2, 1, 5, 10, 7, tied_embeddings=True)
GPU = GPUSpec("slow", 10**9, flop_per_s=1e10, memory_bytes_per_s=5e9)

ITERATIONS = iteration_table(
    [0.0, 2.0],
    [2.0, 8.0],
    num_iterations=[1, 3],
    prefill_tokens=[4, 0],
    prefill_seqs=[2, 0],
    prefill_pairs=[8.0, 0.0],
    decode_seqs=[1, 2],
    context_tokens=[5, 10],
)


DONE = Work(busy_s=8.0, passes=4.0, tokens=11.0, samples=9.0, pairs=49.0, kv_tokens=41.0, decodes=7.0)


def test_work_counts_tokens_and_the_tokens_they_attend_to() -> None:
    done = work(ITERATIONS, Window(0.0, 10.0))

    in_span = 10 + 12 + 14
    assert done == Work(
        busy_s=8.0,
        passes=4.0,
        tokens=5 + 6,
        samples=3 + 6,
        pairs=8 + 5 + in_span,
        kv_tokens=5 + in_span,
        decodes=1 + 6,
    )


def test_a_span_counts_with_the_share_of_its_time_inside_the_window() -> None:
    done = work(ITERATIONS, Window(5.0, 6.0))

    expected = Work(busy_s=1.0, passes=0.5, tokens=1.0, samples=1.0, pairs=6.0, kv_tokens=6.0, decodes=1.0)
    assert done == pytest.approx(expected)


def test_mfu_is_the_arithmetic_of_weights_and_attention_over_the_peak() -> None:
    flop = 2 * 720 * 11 + 2 * 28 * 9 + 4 * 3 * 2 * 5 * 49
    assert mfu(DONE, Hardware(MODEL, GPU), DONE.busy_s) == flop / (8 * 1e10)
    assert mfu(DONE, Hardware(MODEL, GPU, Sharing(tensor_parallel=2)), 16.0) == flop / (16 * 2 * 1e10)


def test_mbu_is_the_weights_of_each_pass_and_the_kv_read_over_the_peak() -> None:
    read_bytes = 4 * 748 * 2 + 41 * (2 * 3 * 1 * 5 * 2)
    assert mbu(DONE, Hardware(MODEL, GPU), DONE.busy_s) == read_bytes / (8 * 5e9)


def test_mfu_counts_the_experts_that_a_token_goes_to_and_mbu_those_that_a_pass_reaches() -> None:
    experts = replace(MODEL, num_experts=4, experts_per_token=2, expert_intermediate_size=5)
    hardware = Hardware(experts, GPU)

    # Instead of 3 * 4 * 10 weights of a block: two experts of 3 * 4 * 5 of four, and a router of 4 * 4.
    flop = 2 * (720 + 3 * 16) * 11 + 2 * 28 * 9 + 4 * 3 * 2 * 5 * 49
    assert mfu(DONE, hardware, 8.0) == flop / (8 * 1e10)
    # A pass of five tokens and three of two, and not four of eleven quarters.
    done = work(ITERATIONS, Window(0.0, 10.0), experts)
    reached = 4 * (1 - 0.5**5) + 3 * 4 * (1 - 0.5**2)
    weights = 4 * (748 - 3 * 120 + 3 * 16) + 3 * 60 * reached
    assert mbu(done, hardware, 8.0) == pytest.approx((weights * 2 + 41 * 60) / (8 * 5e9))


def test_layers_of_a_window_count_the_tokens_in_it() -> None:
    windows = Hardware(replace(MODEL, num_window_layers=2, window_tokens=3), GPU)

    flop = 2 * 720 * 11 + 2 * 28 * 9 + 4 * 2 * 5 * (49 + 2 * 3 * 11)
    assert mfu(DONE, windows, 8.0) == flop / (8 * 1e10)
    assert mbu(DONE, windows, 8.0) == (4 * 748 * 2 + 20 * (41 + 2 * 3 * 7)) / (8 * 5e9)


def test_mfu_of_fp8_weights_is_a_share_of_the_fp8_peak() -> None:
    gpu, model = replace(GPU, fp8_flop_per_s=2e10), replace(MODEL, arithmetic="fp8")

    assert mfu(DONE, Hardware(model, gpu), 8.0) == mfu(DONE, Hardware(MODEL, GPU), 8.0) / 2


def test_no_time_has_no_utilisation() -> None:
    nothing = Work(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    assert math.isnan(mfu(nothing, Hardware(MODEL, GPU), 0.0))
    assert math.isnan(mbu(nothing, Hardware(MODEL, GPU), 0.0))


@pytest.mark.parametrize(
    ("shape", "used"),
    [(IterationShape(0, 32, 32 * 1024), mbu), (IterationShape(4096, 0, 0, 1, 4096**2 / 2), mfu)],
)
def test_a_pass_on_the_roofline_uses_all_of_the_peak_that_bounds_it(
    shape: IterationShape, used: Callable[[Work, Hardware, float], float]
) -> None:
    hardware = Hardware(load_model("llama-3.1-8b"), load_gpu("a100-80g"))
    seconds = RooflineLatency(hardware.model, hardware.gpu, 1.0, 1.0, 0.0).iteration_s(shape)
    iterations = iteration_table([0.0], [seconds], **{k: [v] for k, v in shape._asdict().items()})

    done = work(iterations, Window(0.0, seconds))

    assert used(done, hardware, done.busy_s) == pytest.approx(1.0)
    assert max(mfu(done, hardware, seconds), mbu(done, hardware, seconds)) == pytest.approx(1.0)
