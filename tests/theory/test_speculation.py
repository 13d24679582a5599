"""Speculative decoding against the formulas of Leviathan et al., arXiv 2211.17192, and plain decoding."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from batchsim.latency import LinearIterationLatency
from batchsim.sim.speculation.acceptance import Speculation, acceptance_by_position
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate
from tests.sim.worlds import workload

#: 16 ms a pass, whatever is in it.
CONSTANT = LinearIterationLatency(0.016, 0.0, 0.0, 0.0, 0.0)
#: 16 ms a pass, 1 ms for each token of a prompt, 0.25 ms for each decode.
LINEAR = LinearIterationLatency(0.016, 0.001, 0.0, 0.00025, 0.0)


def run(
    outputs: list[int], latency: LinearIterationLatency = LINEAR, *, seed: int = 0, **drafts: Any
) -> SimulationResult:
    """All there at the start, in plenty of memory."""
    config = {
        "seed": seed,
        "policy": {"preset": "vllm_v1"},
        "engine": {"num_kv_blocks": 10_000, "speculation": drafts},
    }
    return simulate(config, workload([0.0] * len(outputs), outputs, 10), latency=latency)


def decoding_s(result: SimulationResult) -> float:
    request = result.requests.iloc[0]
    return float(request["finish_s"] - request["first_token_s"])


@pytest.mark.parametrize("rate", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("num", [1, 3, 7])
def test_mean_tokens_of_a_step(rate: float, num: int) -> None:
    """Equation 1: (1 - a^(k + 1)) / (1 - a)."""
    drafts = Speculation(num, acceptance_by_position(rate, num), seed=3)

    given = np.concatenate([np.frombuffer(drafts.accepted(request, 400), np.uint8) for request in range(100)])

    error = given.std() / np.sqrt(len(given))
    assert given.mean() + 1 == pytest.approx((1 - rate ** (num + 1)) / (1 - rate), abs=4 * error)


@pytest.mark.parametrize(("rate", "num", "ratio"), [(0.8, 4, 0.05), (0.6, 2, 0.2), (0.3, 5, 0.1)])
def test_speedup_of_one_request_is_that_of_the_paper(rate: float, num: int, ratio: float) -> None:
    """Theorem 3.8: (1 - a^(k + 1)) / ((1 - a) (k c + 1)), where a pass takes as long whatever it verifies."""
    plain = run([20_001], CONSTANT)
    result = run([20_001], CONSTANT, num_speculative_tokens=num, acceptance=rate, draft_ratio=ratio)

    speedup = (1 - rate ** (num + 1)) / ((1 - rate) * (num * ratio + 1))
    steps = result.decode_steps["tokens"]
    error = steps.std() / np.sqrt(len(steps)) / steps.mean()
    assert decoding_s(plain) / decoding_s(result) == pytest.approx(speedup, rel=4 * error)
    assert result.summary["accepted_per_step_mean"] + 1 == pytest.approx(
        (1 - rate ** (num + 1)) / (1 - rate), rel=4 * error
    )


def test_with_every_draft_accepted_a_step_gives_one_token_more() -> None:
    # 10 prompt tokens: 26 ms. Then 9 tokens by 4 in 3 passes of 16 + 4 * 0.25 ms, after 3 drafts of 2 ms.
    result = run([10], num_speculative_tokens=3, acceptance=1.0, draft_s=0.002)

    request = result.requests.iloc[0]
    assert request["first_token_s"] == pytest.approx(0.026)
    assert request["finish_s"] == pytest.approx(0.026 + 3 * 0.023)
    assert result.decode_steps["tokens"].tolist() == [4, 4, 1]
    assert result.decode_steps["accepted"].tolist() == [3, 3, 3]
    assert result.summary["draft_acceptance_rate"] == 1.0
    assert result.summary["tokens_per_step_mean"] == 3.0
    assert result.summary["tpot_mean_s"] == pytest.approx(3 * 0.023 / 9)
    assert result.summary["itl_mean_s"] == pytest.approx(0.023)


def test_with_no_draft_accepted_it_is_plain_decoding_at_the_price_of_verification() -> None:
    outputs = [1, 2, 30, 7, 19]
    price = LinearIterationLatency(0.016, 0.001, 0.0, 4 * 0.00025, 0.0)

    result, plain = run(outputs, num_speculative_tokens=3, acceptance=0.0), run(outputs, price)

    pd.testing.assert_frame_equal(result.requests, plain.requests)
    assert result.decode_steps["tokens"].eq(1).all()


def test_shares_by_position_are_those_of_steps() -> None:
    shares = [0.7, 0.5, 0.1]

    accepted = run([2000] * 10, num_speculative_tokens=3, acceptance=shares).decode_steps["accepted"]

    found = [float((accepted > position).mean()) for position in range(3)]
    assert found == pytest.approx(shares, abs=4 * 0.5 / np.sqrt(len(accepted)))


def test_fewer_drafts_accept_what_more_do() -> None:
    """Common random numbers: the same lots, of which fewer drafts use less."""
    many, few = (Speculation(num, acceptance_by_position(0.7, num)) for num in (5, 2))

    of_many, of_few = (np.frombuffer(one.accepted(7, 500), np.uint8) for one in (many, few))

    assert of_few.tolist() == np.minimum(of_many, 2).tolist()
    assert run([50], seed=1, num_speculative_tokens=2, acceptance=0.5).decode_steps["tokens"].tolist() != (
        run([50], seed=2, num_speculative_tokens=2, acceptance=0.5).decode_steps["tokens"].tolist()
    )
