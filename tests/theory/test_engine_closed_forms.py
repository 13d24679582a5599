"""Engines that batch at every iteration: what a formula says about them, exactly or on average."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from scipy import stats

from batchsim.metrics.requests import e2e_s, tpot_s, ttft_s
from batchsim.metrics.summary import laws
from batchsim.policies.presets import PRESETS
from batchsim.records import Records
from batchsim.workload.request import Workload
from tests.iteration.reference import Coefficients
from tests.iteration.worlds import run_plainly
from tests.sim.worlds import workload
from tests.theory.worlds import (
    TOKENS_PER_S,
    Floats,
    assert_agrees,
    poisson_arrivals,
    replicate,
    requests_of,
)

#: Presets that admit in order of arrival.
IN_ORDER = ["vllm_v0", "vllm_v0_swap", "vllm_v1", "sarathi", "orca"]

#: An iteration takes a token's time, whatever is in it.
A_TOKEN = Coefficients(fixed_s=1 / TOKENS_PER_S)


def checked_run(
    requests: Workload, latency: Coefficients, policy: Mapping[str, Any], **engine: Any
) -> Records:
    records = run_plainly(requests, latency, policy, **engine)
    residuals = laws(records)
    assert residuals == pytest.approx(dict.fromkeys(residuals, 0.0), abs=1e-9)
    return records


def waits_s(records: Records) -> Floats:
    """Time from arrival to admission, in arrival order."""
    return (records.requests["scheduled_s"] - records.requests["arrival_s"]).to_numpy()


def test_presets_in_order_are_all_there_are() -> None:
    by_queue = [
        name
        for name, preset in PRESETS.items()
        if preset.is_iteration_level and type(preset.queueing).__name__ == "Fifo"
    ]

    assert sorted([*IN_ORDER, "dynamic_batching"]) == sorted(by_queue)


@pytest.mark.parametrize("preset", IN_ORDER)
def test_lone_request_takes_its_prefill_and_a_step_per_later_token(preset: str) -> None:
    latency = Coefficients(fixed_s=0.5, per_prefill_token_s=0.125, per_decode_seq_s=0.25, launch_s=0.25)

    requests = checked_run(workload([3.0], [41], [300]), latency, {"preset": preset}).requests

    assert ttft_s(requests).tolist() == [0.75 + 300 * 0.125]
    assert e2e_s(requests).tolist() == [0.75 + 300 * 0.125 + 40 * 1.0]
    assert tpot_s(requests).tolist() == [1.0]


@pytest.mark.parametrize("preset", ["vllm_v1", "sarathi"])
@settings(max_examples=10)
@given(prompt_tokens=st.integers(1, 200), chunk=st.integers(1, 40))
def test_lone_prompt_takes_as_many_iterations_as_chunks(preset: str, prompt_tokens: int, chunk: int) -> None:
    latency = Coefficients(fixed_s=1.0, per_prefill_token_s=0.125)
    policy = {"preset": preset, "batch_size": 1, "batching": {"max_num_batched_tokens": chunk}}

    records = checked_run(workload([0.0], [1], [prompt_tokens]), latency, policy)

    num_chunks = math.ceil(prompt_tokens / chunk)
    assert records.iterations["prefill_tokens"].gt(0).sum() == num_chunks
    assert records.requests["first_token_s"].tolist() == [num_chunks + 0.125 * prompt_tokens]


@pytest.mark.parametrize("preset", IN_ORDER)
def test_full_engine_decodes_as_fast_as_its_step_allows(preset: str) -> None:
    # arXiv 2503.05248, 30 ms + 0.22 ms per sequence: 90 of them have 49.8 ms, or 1807 tokens/s.
    latency = Coefficients(fixed_s=0.03, per_decode_seq_s=0.00022)
    requests = workload(np.zeros(180), np.full(180, 400))

    records = checked_run(requests, latency, {"preset": preset, "batch_size": 90})

    iterations = records.iterations
    full = iterations[(iterations["decode_seqs"] == 90) & (iterations["prefill_tokens"] == 0)]
    tokens = 90 * full["num_iterations"].sum()
    assert tokens >= 2 * 90 * 398
    assert tokens / (full["finish_s"] - full["start_s"]).sum() == pytest.approx(90 / 0.0498)


@pytest.mark.parametrize("preset", ["vllm_v0", "vllm_v1", "sarathi"])
@settings(max_examples=10)
@given(
    prompt_tokens=st.integers(1, 20),
    output_tokens=st.integers(1, 20),
    block_size=st.integers(1, 8),
    num_blocks=st.integers(1, 60),
)
def test_as_many_sequences_as_fit_at_their_longest_never_preempt(
    preset: str, prompt_tokens: int, output_tokens: int, block_size: int, num_blocks: int
) -> None:
    spare = preset == "vllm_v0"  # where each that decodes asks for a free block, needed or not
    fit = (num_blocks - spare) // math.ceil((prompt_tokens + output_tokens) / block_size)
    assume(fit > 0)
    requests = workload(np.zeros(3 * fit), np.full(3 * fit, output_tokens), prompt_tokens)
    policy = {"preset": preset, "batch_size": fit}

    records = checked_run(requests, A_TOKEN, policy, num_blocks=num_blocks, block_size=block_size)

    assert (records.requests["status"] == "finished").all()
    assert records.preemptions.empty


@pytest.mark.parametrize("preset", ["vllm_v0", "vllm_v1", "sarathi"])
def test_one_sequence_more_than_fits_may_preempt(preset: str) -> None:
    requests = workload(np.zeros(3), np.full(3, 4), 4)
    policy = {"preset": preset, "batch_size": 3}

    records = checked_run(requests, A_TOKEN, policy, num_blocks=4, block_size=4)

    assert not records.preemptions.empty


def test_engine_whose_step_does_not_depend_on_the_batch_is_a_queue_without_waiting() -> None:
    # M/G/infinity: with 4 arrivals/s of 1 s each, the number in service has Poisson's law with mean 4. An
    # arrival waits for the boundary before, half an iteration of 5 ms if there is one under way.
    mean = 4 * (1 + 0.0025 * (1 - math.exp(-4)))

    def measure(rng: np.random.Generator) -> list[float]:
        requests = workload(poisson_arrivals(rng, 4.0, 1500), rng.integers(50, 351, 1500))
        records = checked_run(requests, Coefficients(fixed_s=0.005), {"preset": "vllm_v1"})
        in_system = num_in_system(records, rng.uniform(10, requests.arrival_s[-1], 20_000))
        return [in_system.mean(), in_system.var(), np.mean(in_system <= 2), np.mean(in_system <= 5)]

    replications = replicate(measure, 8, seed=11)

    assert_agrees(
        replications, [mean, mean, stats.poisson.cdf(2, mean), stats.poisson.cdf(5, mean)], resolution=0.05
    )


def num_in_system(records: Records, at_s: ArrayLike) -> Floats:
    requests = records.requests
    arrived, gone = (np.searchsorted(np.sort(requests[name]), at_s) for name in ("arrival_s", "finish_s"))
    return (arrived - gone).astype(np.float64)


@pytest.mark.parametrize("preset", IN_ORDER)
def test_every_single_wait_of_one_at_a_time_is_that_of_lindleys_recursion(preset: str) -> None:
    rng = np.random.default_rng(12)
    arrivals_s = np.sort(np.round(rng.uniform(0, 4000, 1000), 1))  # with ties
    requests = requests_of(arrivals_s, rng.lognormal(1, 0.7, 1000))

    records = checked_run(requests, A_TOKEN, {"preset": preset, "batch_size": 1})

    free_s, expected = 0.0, []
    for arrival_s, tokens in zip(arrivals_s, requests.output_tokens, strict=True):
        expected.append(max(0.0, free_s - arrival_s))
        free_s = max(arrival_s, free_s) + tokens / TOKENS_PER_S
    assert waits_s(records) == pytest.approx(np.array(expected), abs=1e-6)


def test_one_at_a_time_has_the_wait_of_pollaczek_and_khinchine() -> None:
    def measure(rng: np.random.Generator) -> float:
        requests = requests_of(poisson_arrivals(rng, 0.04, 1500), rng.uniform(1, 20, 1500))
        return float(waits_s(checked_run(requests, A_TOKEN, {"preset": "vllm_v1", "batch_size": 1})).mean())

    replications = replicate(measure, 10, seed=13)

    second_moment = (1 + 20 + 400) / 3
    assert_agrees(replications, 0.04 * second_moment / 2 / (1 - 0.04 * 10.5), resolution=0.05)


def test_shortest_first_one_at_a_time_has_the_waits_of_cobhams_formula_by_size() -> None:
    # The continuous-size limit of priority queues: W(x) = rate * E[S^2] / 2 / (1 - rate * E[S; S < x])^2.
    policy = {"preset": "vllm_v1", "batch_size": 1, "queueing": {"kind": "ShortestFirst"}}
    bins = (1, 10, 18)

    def measure(rng: np.random.Generator) -> list[float]:
        service_s = rng.uniform(1, 20, 2500)
        requests = requests_of(poisson_arrivals(rng, 0.06, 2500), service_s)
        waits = waits_s(checked_run(requests, A_TOKEN, policy))
        return [waits[(low <= service_s) & (service_s < low + 2)].mean() for low in bins]

    replications = replicate(measure, 8, seed=14)

    sizes = 1 + np.arange(1_900_000) / 100_000
    load_below = 0.06 * np.cumsum(sizes) / len(sizes)
    waits = 0.06 * (1 + 20 + 400) / 3 / 2 / (1 - load_below) ** 2
    expected = [waits[(low <= sizes) & (sizes < low + 2)].mean() for low in bins]
    assert_agrees(replications, expected, resolution=0.07)
