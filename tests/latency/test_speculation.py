"""Passes that verify drafts, by the family of the model."""

from dataclasses import replace

import numpy as np
import pytest

from batchsim.latency import LinearIterationLatency
from batchsim.latency.base import IterationDomain, IterationShape
from batchsim.latency.noise import NoisyIterationLatency
from batchsim.latency.roofline import RooflineLatency
from batchsim.latency.speculation import SpeculativeLatency
from batchsim.specs import ModelSpec, load_gpu, load_model
from tests.invariants.test_iteration_level import PASSES, TABLE, UNEVEN

LINEAR = LinearIterationLatency(0.01, 0.001, 0.0, 0.002, 0.00001)


WINDOWED = replace(load_model("llama-3.1-8b"), num_window_layers=16, window_tokens=4096)


def roofline(model: str | ModelSpec) -> RooflineLatency:
    spec = load_model(model) if isinstance(model, str) else model
    return RooflineLatency(spec, load_gpu("h100"), 0.6, 0.8, 0.001)


def test_tokens_count_for_all_drafts_and_context_once() -> None:
    model = SpeculativeLatency(LINEAR, 3)

    assert model.iteration_s(IterationShape(0, 2, 500)) == pytest.approx(0.01 + 8 * 0.002 + 0.005)
    assert model.iteration_s(IterationShape(7, 2, 500, 1, 24.5)) == pytest.approx(
        0.01 + 0.007 + 0.016 + 0.005
    )
    assert model.decode_line(2, 500) == (pytest.approx(0.031), 0.0, 1)


def test_a_pass_without_decodes_has_no_drafts() -> None:
    shape = IterationShape(100, 0, 0, 1, 5000.0)

    assert SpeculativeLatency(LINEAR, 3, 0.5, 0.01, LINEAR).iteration_s(shape) == LINEAR.iteration_s(shape)


def test_drafts_cost_a_share_of_decoding_seconds_and_passes_of_the_draft_model() -> None:
    draft = LinearIterationLatency(0.001, 0.0, 0.0, 0.0, 0.000001)
    shape = IterationShape(50, 4, 1000, 1, 1250.0)
    pass_s = SpeculativeLatency(LINEAR, 2).iteration_s(shape)

    decode_s = LINEAR.iteration_s(IterationShape(0, 4, 1000))
    by_share = SpeculativeLatency(LINEAR, 2, draft_ratio=0.1, draft_s=0.003)
    assert by_share.iteration_s(shape) == pytest.approx(pass_s + 2 * 0.1 * decode_s + 2 * 0.003)
    by_model = SpeculativeLatency(LINEAR, 2, draft=draft)
    assert by_model.iteration_s(shape) == pytest.approx(pass_s + 0.002 + 0.001 + 0.001004)


@pytest.mark.parametrize("spec", ["llama-3.1-8b", "mixtral-8x7b", "gpt-oss-20b", "deepseek-v3", WINDOWED])
def test_a_roofline_verifies_one_token_in_the_time_it_decodes_one(spec: str | ModelSpec) -> None:
    model = roofline(spec)
    for shape in (IterationShape(0, 5, 40_000), IterationShape(300, 5, 40_000, 2, 50_000.0)):
        assert model.verification_s(shape, 1) == pytest.approx(model.iteration_s(shape), rel=1e-12)


def test_a_roofline_reads_weights_and_context_once() -> None:
    model, shape = roofline("llama-3.1-8b"), IterationShape(0, 2, 8000)

    assert model.verification_s(shape, 5) == model.iteration_s(shape)  # few tokens: memory-bound
    compute_bound = IterationShape(0, 512, 8000)
    assert model.verification_s(compute_bound, 8) > 3 * model.iteration_s(compute_bound)


def test_drafts_reach_more_experts_and_a_window_is_that_of_a_sequence() -> None:
    experts, window = roofline("mixtral-8x7b"), roofline(WINDOWED)
    shape = IterationShape(0, 1, 30_000)

    assert experts.verification_s(shape, 4) > 1.5 * experts.iteration_s(shape)
    assert window.verification_s(shape, 4) == window.iteration_s(shape)


@pytest.mark.parametrize("table", [TABLE, UNEVEN, PASSES])
def test_a_table_is_read_at_as_many_decodes_of_a_share_of_the_context(table: SpeculativeLatency) -> None:
    model, longest = SpeculativeLatency(table, 3), 30 * model_asks(table)

    read_s = table.iteration_s(IterationShape(0, 8, 40, longest_tokens=-(-longest // 4)))
    assert model.iteration_s(IterationShape(0, 2, 40, longest_tokens=longest)) == pytest.approx(read_s)


def model_asks(table: object) -> bool:
    return bool(getattr(table, "follows_longest", False))


def test_the_range_is_that_of_the_tokens_verified_and_of_the_draft_model() -> None:
    narrow = LinearIterationLatency(
        0.01, 0.001, 0.0, 0.002, 0.0, iteration_domain=IterationDomain(decode_seqs=(0, 8))
    )
    assert SpeculativeLatency(narrow, 3).covers(IterationShape(0, 2, 100))
    assert not SpeculativeLatency(narrow, 3).covers(IterationShape(0, 3, 100))
    drafted = SpeculativeLatency(LINEAR, 3, draft=narrow)
    assert drafted.is_bounded
    assert drafted.covers(IterationShape(0, 8, 100))
    assert not drafted.covers(IterationShape(0, 9, 100))
    assert drafted.covers(IterationShape(9, 0, 0, 1, 40.5))


def test_noise_is_on_all_of_it() -> None:
    model = SpeculativeLatency(LINEAR, 3, draft_s=0.01)
    noisy = NoisyIterationLatency(model, 0.2, np.random.default_rng(0))
    times_s = [noisy.iteration_s(IterationShape(0, 2, 100)) for _ in range(2000)]

    assert np.mean(times_s) == pytest.approx(model.iteration_s(IterationShape(0, 2, 100)), rel=0.03)
