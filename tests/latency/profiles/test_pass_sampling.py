from dataclasses import dataclass

import pytest

from batchsim.latency.base import IterationShape, LatencyInfo
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


def test_table_tells_the_estimator_between_its_points() -> None:
    model = sample_passes(Kernels(), MOST, LatencyInfo("made up", "derived", {}))

    errors = model.info.details["interpolation"]
    assert isinstance(errors, dict)
    assert errors["mean_error"] < 0.002
    assert errors["max_error"] < 0.01


def test_steps_stay_where_they_are() -> None:
    model = sample_passes(Kernels(), MOST, LatencyInfo("made up", "derived", {}))

    before, after = (model.iteration_s(IterationShape(num, 0, 0, 1, num**2 / 2)) for num in (256, 257))
    assert after - before == pytest.approx(0.01, rel=0.01)


def test_straight_lines_keep_their_ends_alone() -> None:
    model = sample_passes(Kernels(), MOST, LatencyInfo("made up", "derived", {}))

    assert model.by_decodes.axes == ((1, 64),)


def test_error_says_when_a_table_is_of_something_else() -> None:
    model = sample_passes(Kernels(), MOST, LatencyInfo("made up", "derived", {}))

    errors = held_out_errors(model, Kernels(jump_s=1.0), MOST)

    assert errors["max_error"] > 0.5


def test_range_ends_where_it_was_asked_to() -> None:
    model = sample_passes(Kernels(), MOST, LatencyInfo("made up", "derived", {}))

    assert model.covers(IterationShape(2048, 64, 64 * 4096, 1, 2048**2 / 2))
    assert not model.covers(IterationShape(2049, 0, 0, 1, 2049**2 / 2))
    assert not model.covers(IterationShape(0, 65, 65))
    assert not model.covers(IterationShape(0, 64, 64 * 4097))
