import math
from dataclasses import dataclass
from functools import cache

import pytest

from batchsim.latency.base import IterationShape, LatencyInfo
from batchsim.latency.passes import PassTableLatency
from batchsim.latency.profiles.pass_sampling import Range, held_out_errors, sample_passes

MOST = Range(max_tokens=2048, max_seqs=64, max_context=4096)


@dataclass
class Kernels:
    """Steps where tiles end, attention by pairs, and decodes that get cheaper from 16 on."""

    jump_s: float = 0.01

    def tokens_s(self, tokens: int) -> float:
        return 0.01 + 1e-5 * tokens + self.jump_s * (tokens > 256)

    def decodes_s(self, decode_seqs: int) -> float:
        return 0.008 + 1e-4 * decode_seqs

    def prefill_s(self, num_prompts: int, chunk: int, before: int) -> float:
        return 1e-4 + num_prompts * chunk * (1e-8 * (before + chunk / 2) + 1e-6)

    def decode_s(self, decode_seqs: int, context: int) -> float:
        return 1e-4 + 2e-8 * decode_seqs * context * (1.5 if decode_seqs < 16 else 1.0)


@cache
def sampled(kind: type[Kernels]) -> PassTableLatency:
    return sample_passes(kind(), MOST, LatencyInfo("made up", "derived", {}))


def test_table_tells_the_estimator_between_its_points() -> None:
    model = sampled(Kernels)

    errors = model.info.details["interpolation"]
    assert isinstance(errors, dict)
    assert errors["mean_error"] < 1e-4
    assert errors["max_error"] < 1e-3


def test_steps_stay_where_they_are() -> None:
    model = sampled(Kernels)

    before, after = (model.iteration_s(IterationShape(num, 0, 0, 1, num**2 / 2)) for num in (256, 257))
    assert after - before == pytest.approx(0.01, rel=0.01)


def test_straight_lines_keep_their_ends_alone() -> None:
    model = sampled(Kernels)

    assert model.by_decodes.axes == ((1, 64),)


def test_error_says_when_a_table_is_of_something_else() -> None:
    model = sampled(Kernels)

    errors = held_out_errors(model, Kernels(jump_s=1.0), MOST)

    worst = errors["worst_pass"]
    assert isinstance(worst, dict)
    assert errors["max_error"] > 0.5  # type: ignore[operator]
    assert worst["prompts"] * worst["chunk"] + worst["decodes"] > 256


@dataclass
class Ends(Kernels):
    """Attention whose kernel changes with the end of a prompt, not with its chunk, and one of its tokens."""

    def prefill_s(self, num_prompts: int, chunk: int, before: int) -> float:
        end = before + chunk
        pair_s = 1e-8 if end <= 1000 else 2e-8
        of_tokens_s = 1e-4 * math.ceil(num_prompts * chunk / 100)
        return of_tokens_s + num_prompts * pair_s * chunk * (end - chunk / 2)


@dataclass
class TopK(Kernels):
    """Attention to no more than so many tokens."""

    def prefill_s(self, num_prompts: int, chunk: int, before: int) -> float:
        return 1e-3 + num_prompts * chunk * 1e-7 * min(before + chunk, 512)


def test_kernels_that_change_with_the_end_of_a_prompt_are_told_to_the_token() -> None:
    kernels, model = Ends(), sampled(Ends)

    assert model.by_prompt_tokens is not None
    for chunk, before in ((101, 899), (101, 900), (350, 650), (350, 651)):
        shape = IterationShape(2 * chunk, 0, 0, 2, 2 * chunk * (before + chunk / 2))
        time_s = kernels.tokens_s(2 * chunk) + kernels.prefill_s(2, chunk, before)
        assert model.iteration_s(shape) == pytest.approx(time_s, rel=1e-3)


def test_attention_that_follows_no_pairs_has_its_own_grid() -> None:
    model = sampled(TopK)

    assert model.by_prompt_tokens is None
    errors = model.info.details["interpolation"]
    assert isinstance(errors, dict)
    assert errors["mean_error"] < 0.005
    assert errors["max_error"] < 0.06


def test_range_ends_where_it_was_asked_to() -> None:
    model = sampled(Kernels)

    assert model.covers(IterationShape(2048, 64, 64 * 4096, 1, 2048**2 / 2))
    assert not model.covers(IterationShape(2049, 0, 0, 1, 2049**2 / 2))
    assert not model.covers(IterationShape(0, 65, 65))
    assert not model.covers(IterationShape(0, 64, 64 * 4097))
