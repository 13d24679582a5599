import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.errors import ConfigError
from batchsim.latency.analytic import AffineBatchLatency, NoisyLatency, PhaseBatchLatency
from batchsim.latency.base import BatchShape, Domain, LatencyInfo

PHASE = PhaseBatchLatency(
    prefill_s=0.5,
    prefill_s_per_token=0.25,
    prefill_s_per_token2=0.125,
    decode_s=1.0,
    decode_s_if_batched=0.5,
    decode_s_per_seq=0.25,
    decode_s_per_kv_token=0.0625,
)


@pytest.mark.parametrize(("length", "tokens"), [("output", 4), ("prompt+output", 10)])
def test_affine_time_is_the_formula(length: Any, tokens: int) -> None:
    model = AffineBatchLatency(1.0, 0.5, 0.5, length)

    total_s = model.batch_time(BatchShape(4, 6, 4)).total_s

    assert total_s == 1.0 + 0.5 * tokens * (1 + 0.5 * 3 / 4)


def test_affine_form_does_not_know_the_first_token() -> None:
    assert math.isnan(
        AffineBatchLatency(1.0, 0.5, 0.5, "output").batch_time(BatchShape(1, 1, 1)).first_token_s
    )


def test_affine_time_saturates_in_the_batch_size() -> None:
    model = AffineBatchLatency(0.05965, 0.005742, 0.3157, "output")

    alone, crowd = (model.batch_time(BatchShape(size, 1, 1000)).total_s for size in (1, 10**9))

    assert (crowd - 0.05965) / (alone - 0.05965) == pytest.approx(1.3157)


def test_one_output_token_needs_a_prefill_and_no_decode_step() -> None:
    time = PHASE.batch_time(BatchShape(2, 4, 1))

    assert time.first_token_s == 0.5 + 0.25 * 8 + 0.125 * 2 * 16
    assert time.total_s == time.first_token_s


def test_second_output_token_costs_one_decode_step_over_the_prompts() -> None:
    first_token_s, total_s = PHASE.batch_time(BatchShape(2, 4, 2))

    assert total_s - first_token_s == 1.0 + 0.5 + 0.25 * 2 + 0.0625 * 8


def test_sequence_alone_is_spared_the_cost_of_being_batched() -> None:
    first_token_s, total_s = PHASE.batch_time(BatchShape(1, 4, 2))

    assert total_s - first_token_s == 1.0 + 0.25 + 0.0625 * 4


@given(st.integers(1, 64), st.integers(1, 3000), st.integers(1, 400))
def test_closed_form_of_the_decode_phase_is_the_sum_of_its_steps(
    batch_size: int, prompt: int, output: int
) -> None:
    first_token_s, total_s = PHASE.batch_time(BatchShape(batch_size, prompt, output))

    steps_s = [
        1.0 + 0.5 * (batch_size > 1) + 0.25 * batch_size + 0.0625 * batch_size * (prompt + step)
        for step in range(output - 1)
    ]

    assert total_s - first_token_s == pytest.approx(math.fsum(steps_s), rel=1e-12)


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ((math.nan, 1.0, 0.0, "output"), "alpha_s is nan"),
        ((0.0, -1.0, 0.0, "output"), "beta_s_per_token is -1.0"),
        ((0.0, 1.0, "0.3", "output"), "gamma is '0.3'"),
        ((0.0, 0.0, 0.3, "output"), "must take time"),
        ((0.0, 1.0, 0.3, "prompt"), "length is 'prompt'; known: output, prompt\\+output"),
    ],
)
def test_affine_coefficients_that_make_no_sense_are_refused(
    coefficients: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        AffineBatchLatency(*coefficients)


def test_noise_keeps_the_mean_and_has_the_spread_asked_for() -> None:
    num, sigma = 20_000, 0.3
    exact = AffineBatchLatency(1.0, 1.0, 0.0, "output")
    noisy = NoisyLatency(exact, sigma, np.random.default_rng(3))
    shape = BatchShape(4, 1, 9)

    factors = (
        np.array([noisy.batch_time(shape).total_s for _ in range(num)]) / exact.batch_time(shape).total_s
    )

    # A lognormal factor with mean 1 has variance exp(sigma^2) - 1, its logarithm the mean -sigma^2 / 2.
    assert factors.mean() == pytest.approx(1, abs=4 * math.sqrt(math.expm1(sigma**2) / num))
    assert np.log(factors).mean() == pytest.approx(-(sigma**2) / 2, abs=4 * sigma / math.sqrt(num))
    assert np.log(factors).std() == pytest.approx(sigma, abs=4 * sigma / math.sqrt(2 * num))


def test_noise_stretches_first_token_and_end_alike() -> None:
    exact, noisy = PHASE, NoisyLatency(PHASE, 0.5, np.random.default_rng(1))
    shape = BatchShape(2, 4, 10)

    stretched, plain = noisy.batch_time(shape), exact.batch_time(shape)

    assert stretched.first_token_s != plain.first_token_s
    assert stretched.total_s / plain.total_s == pytest.approx(stretched.first_token_s / plain.first_token_s)


def test_noisy_model_keeps_name_and_range() -> None:
    exact = AffineBatchLatency(1.0, 1.0, 0.0, "output", Domain(batch_size=(1, 4)), LatencyInfo("exact"))

    noisy = NoisyLatency(exact, 0.1, np.random.default_rng(0))

    assert (noisy.info, noisy.domain) == (exact.info, exact.domain)
