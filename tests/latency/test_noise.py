import math

import numpy as np
import pytest

from batchsim.errors import ConfigError
from batchsim.latency.base import IterationDomain, IterationShape, LatencyInfo
from batchsim.latency.linear import LinearIterationLatency
from batchsim.latency.noise import NoisyIterationLatency

EXACT = LinearIterationLatency(
    1.0, 0, 0, 0.5, 0.25, iteration_domain=IterationDomain((0, 8)), info=LatencyInfo("exact")
)


def test_noise_keeps_the_mean_and_has_the_spread_asked_for() -> None:
    num, sigma = 20_000, 0.3
    noisy = NoisyIterationLatency(EXACT, sigma, np.random.default_rng(3))

    factors = np.array([noisy.iteration_s(IterationShape(0, 2, 4)) for _ in range(num)]) / 3.0

    # A lognormal factor with mean 1 has variance exp(sigma^2) - 1.
    assert factors.mean() == pytest.approx(1, abs=4 * math.sqrt(math.expm1(sigma**2) / num))
    assert np.log(factors).std() == pytest.approx(sigma, abs=4 * sigma / math.sqrt(2 * num))


def test_every_noisy_iteration_is_an_event_of_its_own() -> None:
    noisy = NoisyIterationLatency(EXACT, 0.3, np.random.default_rng(3))

    lines = [noisy.decode_line(2, 4) for _ in range(3)]

    assert all((line.growth_s, line.num_linear) == (0, 1) for line in lines)
    assert len({line.first_s for line in lines}) == 3


def test_a_span_and_single_iterations_draw_the_same_factors() -> None:
    by_lines, one_by_one = (NoisyIterationLatency(EXACT, 0.3, np.random.default_rng(3)) for _ in range(2))

    times_s = [by_lines.decode_line(2, 4 + 2 * step).first_s for step in range(5)]

    assert times_s == [one_by_one.iteration_s(IterationShape(0, 2, 4 + 2 * step)) for step in range(5)]


def test_noisy_model_keeps_name_and_range() -> None:
    noisy = NoisyIterationLatency(EXACT, 0.1, np.random.default_rng(0))

    assert noisy.info == EXACT.info
    assert noisy.is_bounded
    assert noisy.covers(IterationShape(8, 1, 1))
    assert not noisy.covers(IterationShape(9, 1, 1))


@pytest.mark.parametrize("sigma", [-1, 5.1, 1e308, math.nan])
def test_noise_that_leaves_no_meaning_is_refused(sigma: float) -> None:
    with pytest.raises(ConfigError, match="noise sigma is"):
        NoisyIterationLatency(EXACT, sigma, np.random.default_rng(0))
