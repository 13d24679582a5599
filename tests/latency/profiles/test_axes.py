import numpy as np

from batchsim.latency.profiles.axes import bending, thinned


def test_gaps_are_halved_down_to_a_step() -> None:
    axis = bending([lambda number: 1.0 + (number > 700)], (1, 512, 1024))

    assert axis == (1, 700, 701, 1024)


def test_axis_tells_every_function_at_once() -> None:
    def parabola(number: int) -> float:
        return 1.0 + number**2

    def line(number: int) -> float:
        return 5.0 + number

    axis = bending([line, parabola], (0, 100), within=0.01)

    between = np.interp(np.arange(101), axis, [parabola(number) for number in axis])
    true = np.array([parabola(number) for number in range(101)])
    assert np.max(np.abs(between / true - 1)) < 0.011
    assert len(axis) < 40
    assert bending([line], (0, 100), within=0.01) == (0, 100)


def test_ends_stay() -> None:
    assert thinned(np.arange(10), np.ones((10, 1))) == [0, 9]
