import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.latency.base import Domain

SIZES = st.integers(1, 30)
BOUNDS = st.none() | st.tuples(SIZES, SIZES).map(lambda pair: (min(pair), max(pair)))


@pytest.mark.parametrize(
    ("shape", "is_inside"),
    [
        ((1, 10, 5), True),
        ((8, 20, 10), True),
        ((9, 10, 5), False),
        ((1, 9, 6), False),
        ((1, 10, 4), False),
        ((1, 20, 11), False),
    ],
)
def test_bounds_are_inclusive(shape: tuple[int, int, int], is_inside: bool) -> None:
    domain = Domain(batch_size=(1, 8), prompt_tokens=(10, 20), length=(15, 30))

    assert domain.contains(*shape) is is_inside


def test_unbounded_range_contains_everything() -> None:
    sizes = np.array([1, 10**6])

    assert Domain().contains(10**6, 10**6, 10**6)
    assert Domain().contains_all(sizes, sizes, sizes).tolist() == [True, True]


@given(BOUNDS, BOUNDS, BOUNDS, BOUNDS, st.lists(st.tuples(SIZES, SIZES, SIZES), min_size=1, max_size=20))
def test_many_shapes_at_once_get_the_answers_of_one_at_a_time(
    batch_size: tuple[int, int] | None,
    prompt_tokens: tuple[int, int] | None,
    output_tokens: tuple[int, int] | None,
    length: tuple[int, int] | None,
    shapes: list[tuple[int, int, int]],
) -> None:
    domain = Domain(batch_size, prompt_tokens, output_tokens, length)

    together = domain.contains_all(*np.array(shapes).T)

    assert together.tolist() == [domain.contains(*shape) for shape in shapes]
