from __future__ import annotations

from itertools import product

import pytest

from batchsim.errors import ConfigError
from batchsim_calibration.measuring.grid import (
    PROFILES,
    Extent,
    Point,
    Profile,
    extent_of,
    points_of,
    reference_of,
    slots_of,
)

ALL = list(product(PROFILES, ("cpu", "cuda")))


def default_points(profile: Profile, device: str) -> list[Point]:
    return points_of(profile, device, extent_of(profile, device))


@pytest.mark.parametrize(("profile", "device"), ALL)
def test_decodes_fill_a_grid(profile: Profile, device: str) -> None:
    decodes = [point for point in default_points(profile, device) if point.kind == "decode"]

    sizes, contexts = {p.batch_size for p in decodes}, {p.context_tokens for p in decodes}

    assert {(p.batch_size, p.context_tokens) for p in decodes} == set(product(sizes, contexts))


@pytest.mark.parametrize(("profile", "device"), ALL)
def test_mixed_points_lie_where_decodes_and_a_prefill_alone_are_measured(
    profile: Profile, device: str
) -> None:
    points = default_points(profile, device)
    decodes = {(p.batch_size, p.context_tokens) for p in points if p.kind == "decode"}
    prompts = {p.prompt_tokens for p in points if p.kind == "prefill" and p.batch_size == 1}

    mixed = [p for p in points if p.kind == "mixed"]

    assert mixed
    assert {(p.batch_size, p.context_tokens) for p in mixed} <= decodes
    assert {p.prompt_tokens for p in mixed} <= prompts


@pytest.mark.parametrize(("profile", "device"), ALL)
def test_whole_batches_fill_a_grid_over_either_length(profile: Profile, device: str) -> None:
    batches = [point for point in default_points(profile, device) if point.kind == "batch"]
    axes = [{point[place] for point in batches} for place in (1, 2, 3)]

    sums = {prompt + output for prompt, output in product(axes[1], axes[2])}

    assert {point[1:4] for point in batches} == set(product(*axes))
    assert len(sums) == len(axes[1]) * len(axes[2])


@pytest.mark.parametrize(("profile", "device"), ALL)
def test_no_point_is_measured_twice(profile: Profile, device: str) -> None:
    points = default_points(profile, device)

    assert len(set(points)) == len(points)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("profile", ["quick", "full"])
def test_small_and_largest_batches_are_measured(profile: Profile, device: str) -> None:
    for kind in ("decode", "prefill"):
        sizes = {p.batch_size for p in default_points(profile, device) if p.kind == kind}

        assert {1, 2, 3, extent_of(profile, device).batch_size} <= sizes


def test_limits_are_points_themselves() -> None:
    points = points_of("quick", "cpu", extent_of("quick", "cpu", max_batch_size=6, max_tokens=300))

    decodes = [point for point in points if point.kind == "decode"]

    assert sorted({p.batch_size for p in decodes}) == [1, 2, 3, 4, 6]
    assert sorted({p.context_tokens for p in decodes}) == [16, 128, 300]


def test_a_grid_is_halved_until_its_kv_cache_fits() -> None:
    assert extent_of("full", "cuda", kv_tokens=256 * 8192) == Extent(256, 8192)
    assert extent_of("full", "cuda", kv_tokens=150_000) == Extent(32, 4096)


def test_an_extent_without_a_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="make no grid; at least 2 and 24"):
        points_of("full", "cpu", Extent(1, 16))


def test_engines_get_room_for_all_tokens_that_are_stored() -> None:
    points = [
        Point("decode", 4, context_tokens=64),  # one more is stored by the step
        Point("batch", 2, prompt_tokens=60, output_tokens=5),  # the last one is not
        Point("mixed", 4, prompt_tokens=8, context_tokens=8),  # the prompt has a slot of its own
    ]

    assert [slots_of([point]) for point in points] == [Extent(4, 65), Extent(2, 64), Extent(5, 9)]
    assert slots_of(points) == Extent(5, 65)


def test_a_larger_point_is_of_the_same_kind_and_nowhere_smaller() -> None:
    limit = Point("decode", 8, context_tokens=64)

    assert Point("decode", 8, context_tokens=64).is_at_least(limit)
    assert Point("decode", 16, context_tokens=64).is_at_least(limit)
    assert not Point("decode", 16, context_tokens=32).is_at_least(limit)
    assert not Point("mixed", 16, prompt_tokens=8, context_tokens=64).is_at_least(limit)


def test_the_reference_point_is_a_decode_of_medium_size() -> None:
    reference = reference_of(default_points("full", "cpu"))

    assert reference.kind == "decode"
    assert 1 < reference.batch_size < 16
