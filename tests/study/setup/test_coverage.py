import numpy as np
import pandas as pd
import pytest

import batchsim
from batchsim.errors import ConfigError
from batchsim.latency.analytic import AffineBatchLatency
from batchsim.latency.base import Domain, IterationDomain, LatencyInfo
from batchsim.latency.linear import LinearIterationLatency
from batchsim.study.setup.coverage import cut_to_range
from batchsim.workload.request import Workload


def workload(prompt_tokens: list[int], output_tokens: list[int]) -> Workload:
    return Workload.from_frame(
        pd.DataFrame(
            {
                "arrival_s": np.arange(len(prompt_tokens), dtype=float),
                "prompt_tokens": prompt_tokens,
                "output_tokens": output_tokens,
            }
        )
    )


def affine(domain: Domain) -> AffineBatchLatency:
    return AffineBatchLatency(0.1, 0.001, 0.2, "prompt+output", domain=domain, info=LatencyInfo("small"))


def linear(iteration_domain: IterationDomain) -> LinearIterationLatency:
    return LinearIterationLatency(1.0, 0.01, 0.0, 0.1, 0.0, iteration_domain=iteration_domain)


def test_any_batch_of_a_trace_that_was_cut_lies_inside() -> None:
    rng = np.random.default_rng(0)
    model = affine(Domain(batch_size=(1, 16), prompt_tokens=(16, 1024), length=(16, 1026)))
    given = workload(*(rng.integers(1, 900, 500).tolist() for _ in range(2)))

    cut = cut_to_range(given, model)

    longest = int(cut.prompt_tokens.max()), int(cut.output_tokens.max())
    assert 0 < len(cut) < len(given)
    assert model.domain.contains(16, *longest)
    assert cut.prompt_tokens.min() >= 16


def test_a_range_of_the_sum_is_shared_so_that_most_requests_stay() -> None:
    model = affine(Domain(length=(2, 100)))

    cut = cut_to_range(workload([90, 60, 60, 60, 10], [10, 20, 30, 40, 80]), model)

    assert cut.request_id.tolist() == [1, 2, 3]
    assert "kept 3 of 5 requests (60.0%)" in cut.source.notices[-1]


def test_a_trace_is_cut_to_the_iterations_that_were_measured() -> None:
    model = linear(IterationDomain(prefill_tokens=(0, 50), context_tokens=(0, 60)))

    cut = cut_to_range(workload([50, 51, 50, 50], [12, 1, 13, 1]), model)

    assert cut.request_id.tolist() == [0, 3]


def test_a_trace_that_lies_outside_whole_is_refused() -> None:
    with pytest.raises(ConfigError, match="no request of in memory lies in the range of latency model small"):
        cut_to_range(workload([50, 60], [1, 1]), affine(Domain(prompt_tokens=(1, 10))))


def test_a_refusal_says_how_many_lie_outside_and_what_to_do() -> None:
    model = affine(Domain(batch_size=(1, 8), length=(2, 100)))

    with pytest.raises(ConfigError) as refused:
        batchsim.simulate({}, workload([90, 60, 150, 60], [10, 20, 30, 40]), latency=model)

    message = str(refused.value)
    assert "150 prompt and 30 output tokens lies outside: --extrapolate" in message
    assert "1 of the 4 requests (25.0%) lie outside by themselves" in message
    assert "batchsim trace convert TRACE CUT.csv --fit-latency LATENCY.json keeps" in message


def test_where_only_the_size_is_outside_the_size_is_told() -> None:
    model = affine(Domain(batch_size=(1, 2), length=(2, 100)))
    crowd = workload([60] * 40, [20] * 40).with_arrivals(np.zeros(40))

    with pytest.raises(ConfigError, match="--batch-size 2 keeps their size inside") as refused:
        batchsim.simulate({}, crowd, latency=model)

    assert "trace convert" not in str(refused.value)


def test_an_engine_outside_its_range_says_the_same() -> None:
    model = linear(IterationDomain(context_tokens=(0, 60)))

    with pytest.raises(ConfigError, match=r"--extrapolate .* 1 of the 2 requests \(50.0%\) lie outside"):
        batchsim.simulate({"policy": {"preset": "vllm_v1"}}, workload([50, 50], [10, 30]), latency=model)


def test_requests_of_a_generator_have_no_trace_to_cut() -> None:
    workload = {"generator": {"kind": "burstgpt_like"}, "num_requests": 50}

    with pytest.raises(ConfigError, match=r"lie outside by themselves$"):
        batchsim.simulate({"workload": workload}, latency=affine(Domain(length=(2, 100))))
