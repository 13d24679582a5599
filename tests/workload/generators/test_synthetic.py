"""Arrival processes and length laws have the moments they promise; the config table is checked."""

import math
from typing import Any

import numpy as np
import pytest

from batchsim.errors import ConfigError
from batchsim.workload.generators.arrivals import AllAtOnce, Arrivals, Gamma, OnOff, Poisson
from batchsim.workload.generators.lengths import (
    Empirical,
    ExponentialLength,
    Fixed,
    Lengths,
    LognormalLength,
    UniformLength,
    Zipf,
)
from batchsim.workload.generators.synthetic import generate

NUM = 40_000


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.mark.parametrize(
    ("arrivals", "cv"), [(Poisson(4.0), 1.0), (Gamma(4.0, cv=2.0), 2.0), (Gamma(4.0, cv=0.5), 0.5)]
)
def test_gaps_have_the_rate_and_the_variation_asked(arrivals: Arrivals, cv: float) -> None:
    gaps_s = np.diff(arrivals.sample(NUM, rng()), prepend=0.0)

    assert gaps_s.mean() == pytest.approx(1 / 4, rel=4 * cv / math.sqrt(NUM))
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.05)


def test_gamma_by_shape_and_scale_has_mean_shape_times_scale() -> None:
    gamma = Gamma.from_shape_scale(alpha=0.5, beta=2.0)

    assert gamma.rate_per_s == pytest.approx(1.0)
    assert gamma.cv == pytest.approx(math.sqrt(2))


def test_gamma_counts_disperse_as_the_square_of_the_variation() -> None:
    arrival_s = Gamma.from_shape_scale(alpha=0.5, beta=2.0).sample(200_000, rng())
    per_window = np.bincount((arrival_s // 200).astype(int))[:-1]

    # renewal theory: variance / mean -> CV^2 = 2; of n windows the ratio has a relative sigma of sqrt(2 / n)
    assert per_window.var() / per_window.mean() == pytest.approx(2.0, rel=4 * math.sqrt(2 / len(per_window)))


@pytest.mark.parametrize("off_share", [0.0, 0.25])
def test_on_off_has_its_mean_rate_and_its_share_of_quiet_arrivals(off_share: float) -> None:
    arrival_s = OnOff(rate_per_s=4.0, on_s=2.0, off_s=6.0, off_share=off_share).sample(NUM, rng())

    is_off = arrival_s % 8.0 >= 2.0
    assert np.all(np.diff(arrival_s) >= 0)
    assert arrival_s[-1] == pytest.approx(NUM / 4.0, rel=4 / math.sqrt(NUM))
    assert is_off.mean() == pytest.approx(off_share, abs=4 * 0.5 / math.sqrt(NUM) if off_share else 0.0)


def test_a_workload_is_named_by_what_was_given() -> None:
    lengths = {
        "prompt": {"kind": "lognormal", "mean": 600, "sigma": 1.0},
        "output": {"kind": "fixed", "tokens": 2},
    }

    made = generate({"kind": "poisson", "rate_per_s": 2.0, **lengths}, 5, rng())

    assert made.source.name == (
        "Poisson(rate_per_s=2.0), prompt LognormalLength(sigma=1.0, mean=600), output Fixed(tokens=2)"
    )


def test_all_at_once_is_at_zero() -> None:
    assert AllAtOnce().sample(3, rng()).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("lengths", "mean", "sigma"),
    [
        (Fixed(7), 7.0, 0.0),
        (UniformLength(1, 9), 5.0, math.sqrt(80 / 12)),
        (ExponentialLength(mean=50), 50.0, math.sqrt(50 * 49)),
        (LognormalLength(sigma=0.5, mean=200), 200.0, 200 * math.sqrt(math.exp(0.25) - 1)),
        (LognormalLength(sigma=0.5, median=200), 200 * math.exp(0.125), 227 * math.sqrt(math.exp(0.25) - 1)),
        (Zipf(theta=1.0, max_tokens=2), 4 / 3, math.sqrt(2 / 9)),
        (Empirical([1, 1, 4]), 2.0, math.sqrt(2)),
    ],
)
def test_lengths_have_their_mean(lengths: Lengths, mean: float, sigma: float) -> None:
    tokens = lengths.sample(NUM, rng())

    assert tokens.dtype == np.int64
    assert tokens.min() >= 1
    assert tokens.mean() == pytest.approx(mean, abs=4 * sigma / math.sqrt(NUM))


def test_zipf_follows_its_power_law_and_stops_at_its_end() -> None:
    tokens = Zipf(theta=1.1, max_tokens=1024).sample(NUM, rng())

    share = np.bincount(tokens, minlength=1025) / NUM
    assert len(share) == 1025
    assert share[1] / share[2] == pytest.approx(2**1.1, rel=0.08)
    assert share[1] / share[4] == pytest.approx(4**1.1, rel=0.12)


@pytest.mark.parametrize(
    "lengths", [ExponentialLength(mean=50, max_tokens=60), LognormalLength(sigma=1, mean=50, max_tokens=60)]
)
def test_answers_stop_at_max_tokens(lengths: Lengths) -> None:
    tokens = lengths.sample(NUM, rng())

    assert tokens.max() == 60
    assert np.mean(tokens == 60) > 0.2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Poisson(0.0), "rate_per_s is 0.0; a number > 0"),
        (lambda: Gamma(1.0, cv=float("nan")), "cv is nan"),
        (lambda: OnOff(1.0, 1.0, 1.0, off_share=1.0), "off_share is 1.0"),
        (lambda: Fixed(0), "tokens is 0; a whole number >= 1"),
        (lambda: Poisson(1e-320), r"rate_per_s is 1e-320; a number > 0, from 1e-09 to 1e\+09"),
        (lambda: Fixed(True), "tokens is True"),
        (
            lambda: UniformLength(1, 2**63),
            "high is 9223372036854775808; a whole number >= 1, up to 1,000,000,000",
        ),
        (lambda: UniformLength(5, 4), "high is 4"),
        (lambda: LognormalLength(sigma=1.0), "either mean or median"),
        (lambda: LognormalLength(sigma=1.0, mean=2.0, median=2.0), "either mean or median"),
        (lambda: LognormalLength(sigma=-1.0, mean=2.0), "sigma is -1.0"),
        (lambda: ExponentialLength(mean=0.5), "mean is 0.5"),
        (lambda: Zipf(theta=1.1, max_tokens=0), "max_tokens is 0"),
        (lambda: Empirical([]), "values is"),
        (lambda: Empirical([1, 0]), "values is"),
    ],
)
def test_parameters_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


FIXED = {"kind": "fixed", "tokens": 10}


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "poisson", "rate_per_s": 2.0},
        {"kind": "gamma", "rate_per_s": 2.0, "cv": 3},
        {"kind": "on_off", "rate_per_s": 2, "on_s": 1, "off_s": 3},
        {"kind": "all_at_once"},
    ],
)
def test_every_kind_makes_the_number_asked_and_says_it_is_synthetic(spec: dict[str, Any]) -> None:
    workload = generate({**spec, "prompt": FIXED, "output": FIXED}, 5, rng())

    assert len(workload) == 5
    assert workload.source.kind == "synthetic"


def test_burstgpt_like_requests_never_fail() -> None:
    workload = generate({"kind": "burstgpt_like", "num_days": 2}, 3_000, rng())

    assert len(workload) == 3_000
    assert workload.arrival_s[0] == 0
    assert workload.output_tokens.min() >= 1
    assert set(workload.extra) == {"model", "log_type"}


def test_another_arrival_process_leaves_the_lengths_alone() -> None:
    lengths = {
        "prompt": {"kind": "zipf", "theta": 1.1, "max_tokens": 99},
        "output": {"kind": "exponential", "mean": 9},
    }

    smooth = generate({"kind": "poisson", "rate_per_s": 2.0, **lengths}, 50, rng())
    bursty = generate({"kind": "gamma", "rate_per_s": 2.0, "cv": 4.0, **lengths}, 50, rng())

    assert smooth.prompt_tokens.tolist() == bursty.prompt_tokens.tolist()
    assert smooth.output_tokens.tolist() == bursty.output_tokens.tolist()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "poison", "rate_per_s": 1}, r"kind is 'poison'; did you mean poisson\?"),
        ({"rate_per_s": 1}, r"kind is None; known: poisson"),
        (
            {"kind": "poisson", "rate": 1, "prompt": FIXED, "output": FIXED},
            r"'rate' is unknown; did you mean rate_per_s\?",
        ),
        (
            {"kind": "poisson", "prompt": FIXED, "output": FIXED},
            "generator poisson: parameter rate_per_s is missing",
        ),
        ({"kind": "all_at_once", "rate_per_s": 1, "prompt": FIXED, "output": FIXED}, "there are none"),
        (
            {"kind": "poisson", "rate_per_s": "2", "prompt": FIXED, "output": FIXED},
            "rate_per_s is '2'; a number > 0",
        ),
        ({"kind": "poisson", "rate_per_s": 1, "output": FIXED}, "generator.prompt is None; a table such as"),
        (
            {"kind": "poisson", "rate_per_s": 1, "prompt": FIXED, "output": {"kind": "log-normal"}},
            r"mean lognormal\?",
        ),
        (
            {"kind": "poisson", "rate_per_s": 1, "prompt": {"kind": "fixed"}, "output": FIXED},
            "tokens is missing",
        ),
        ({"kind": "burstgpt_like", "num_days": 0}, "num_days is 0"),
        ({"kind": "burstgpt_like", "rate_per_s": 1}, "'rate_per_s' is unknown"),
    ],
)
def test_a_wrong_table_is_one_sentence_with_the_nearest_name(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(spec, 5, rng())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"rate_per_s": 1e-9},
            r"generator poisson: the last request arrives at .* s; at most 1e\+10 s is needed",
        ),
        (
            {"output": {"kind": "lognormal", "mean": 5.0, "sigma": 1e200}},
            r"sigma is 1e\+200; a number >= 0, up to 10",
        ),
        (
            {"output": {"kind": "lognormal", "median": 1e9, "sigma": 3}},
            "gives lengths beyond 1,000,000,000 t",
        ),
        ({"output": {"kind": "zipf", "theta": 1, "max_tokens": 10**9}}, "a whole number up to 10,000,000, e"),
        ({"prompt": {"kind": "exponential", "mean": 1e300}}, "gives lengths beyond 1,000,000,000 tokens"),
    ],
)
def test_what_no_trace_may_hold_is_not_made(spec: dict[str, Any], message: str) -> None:
    fixed = {"kind": "fixed", "tokens": 5}

    with pytest.raises(ConfigError, match=message):
        generate({"kind": "poisson", "rate_per_s": 1.0, "prompt": fixed, "output": fixed, **spec}, 100, rng())
