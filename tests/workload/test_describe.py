"""A description counts right on small traces and repeats what is known of public ones."""

import json
import math

import numpy as np
import pytest

from batchsim.workload.describe import trace_info
from batchsim.workload.formats import read_trace
from batchsim.workload.generators.synthetic import generate
from batchsim.workload.request import Workload
from tests.shared_data import shared_path


def workload(arrival_s: list[float], prompt_tokens: list[int], output_tokens: list[int]) -> Workload:
    return Workload(
        np.arange(len(arrival_s)), np.array(arrival_s), np.array(prompt_tokens), np.array(output_tokens)
    )


def test_a_small_trace_is_described_exactly() -> None:
    info = trace_info(workload([0.0, 0.5, 3.5, 3.5], [1, 2, 3, 4], [2, 4, 6, 8]))

    assert info["rows"] == 4
    assert info["span_s"] == 3.5
    assert info["mean_rate_per_s"] == pytest.approx(3 / 3.5)
    assert info["iat_cv"] == pytest.approx(np.std([0.5, 3.0, 0.0]) / np.mean([0.5, 3.0, 0.0]))
    assert info["dispersion_1s"] == pytest.approx(np.var([2, 0, 0, 2]) / 1.0)
    assert info["prompt_tokens"] == pytest.approx(
        {"mean": 2.5, "p50": 2.5, "p90": 3.7, "p99": 3.97, "max": 4}
    )
    assert info["length_correlation"] == pytest.approx(1.0)


def test_the_busiest_minute_is_named_with_its_rate() -> None:
    info = trace_info(workload([0.0, 60.0, 119.0, 130.0], [1] * 4, [1] * 4))

    assert info["busiest_minute_s"] == 60.0
    assert info["busiest_minute_rate_per_s"] == pytest.approx(2 / 60)


@pytest.mark.parametrize("arrival_s", [[0.0], [2.0, 2.0]])
def test_what_cannot_be_told_is_none(arrival_s: list[float]) -> None:
    info = trace_info(workload(arrival_s, [1] * len(arrival_s), [1] * len(arrival_s)))

    assert info["mean_rate_per_s"] is None
    assert info["iat_cv"] is None
    assert info["length_correlation"] is None
    json.dumps(info, allow_nan=False)


def test_poisson_arrivals_have_variation_and_dispersion_one() -> None:
    fixed = {"kind": "fixed", "tokens": 1}
    spec = {"kind": "poisson", "rate_per_s": 2.0, "prompt": fixed, "output": fixed}

    info = trace_info(generate(spec, 40_000, np.random.default_rng(5)))

    assert info["iat_cv"] == pytest.approx(1.0, abs=0.03)
    assert info["dispersion_1s"] == pytest.approx(1.0, abs=4 * math.sqrt(2 / 20_000))


@pytest.mark.parametrize(
    ("name", "rate_per_s", "iat_cv", "dispersion_1s", "prompt", "output"),
    [
        (
            "burstgpt1_head400.csv",
            0.0102,
            4.46,
            1.01,
            (544, 353, 1437, 1958, 2126),
            (289, 238, 584, 1425, 2019),
        ),
        ("burstgpt1_span30s_120.csv", 3.97, 2.48, 2.63, (64, 63, 69, 77, 79), (3.7, 3, 7, 7, 7)),
        (
            "azure_llm_2023_code.csv",
            2.566,
            13.15,
            13.2,
            (2048, 1469, 5188, 7436, 7437),
            (28, 13, 55, 252, 1899),
        ),
        (
            "azure_llm_2023_conv.csv",
            5.530,
            1.09,
            1.39,
            (1155, 1020, 2735, 4142, 14050),
            (211, 129, 424, 601, 1000),
        ),
        (
            "mooncake_conversation.jsonl.gz",
            3.401,
            3.03,
            7.89,
            (12035, 6909, 27367, 85400, 126195),
            (343, 350, 597, 1119, 2000),
        ),
        (
            "mooncake_synthetic.jsonl.gz",
            3.906,
            1.01,
            1.09,
            (15326, 11587, 38611, 66456, 191378),
            (149, 69, 389, 768, 893),
        ),
        (
            "sharegpt_llama31_8b_300_lengths.csv",
            10.26,
            0.94,
            0.91,
            (858, 732, 1460, 2765, 3998),
            (653, 632, 770, 784, 1021),
        ),
    ],
)
def test_public_traces_have_their_known_statistics(
    name: str,
    rate_per_s: float,
    iat_cv: float,
    dispersion_1s: float,
    prompt: tuple[float],
    output: tuple[float],
) -> None:
    path = shared_path(f"traces/{name}")

    info = trace_info(read_trace(path))

    assert info["mean_rate_per_s"] == pytest.approx(rate_per_s, rel=0.005)
    assert info["iat_cv"] == pytest.approx(iat_cv, abs=0.006)
    assert info["dispersion_1s"] == pytest.approx(dispersion_1s, abs=0.02)
    assert list(info["prompt_tokens"].values()) == pytest.approx(prompt, abs=1)
    assert list(info["output_tokens"].values()) == pytest.approx(output, abs=1)


@pytest.mark.parametrize(
    ("name", "correlation", "peak_rate_per_s"),
    [
        ("azure_llm_2023_code.csv", 0.00, 10.5),
        ("azure_llm_2023_conv.csv", -0.11, 8.5),
        ("mooncake_conversation.jsonl.gz", 0.07, None),
    ],
)
def test_public_traces_have_their_known_correlation_and_peak(
    name: str, correlation: float, peak_rate_per_s: float | None
) -> None:
    path = shared_path(f"traces/{name}")

    info = trace_info(read_trace(path))

    assert info["length_correlation"] == pytest.approx(correlation, abs=0.006)
    if peak_rate_per_s is not None:
        assert info["busiest_minute_rate_per_s"] == pytest.approx(peak_rate_per_s, abs=0.06)
