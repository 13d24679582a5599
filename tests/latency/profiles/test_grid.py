import numpy as np
import pytest

from batchsim.errors import TraceError
from batchsim.latency.profiles.grid import fill_gaps, from_neighbours, interpolation_errors

AXES = [np.array([0, 10, 20]), np.array([0, 1, 4])]
PLANE = np.add.outer(AXES[0] * 0.5, AXES[1] * 2.0) + 1


def test_points_of_a_plane_are_told_exactly_by_their_neighbours() -> None:
    estimate = from_neighbours(AXES, PLANE)

    corners = np.ix_([0, 2], [0, 2])
    assert np.isnan(estimate[corners]).all()
    assert np.nanmax(np.abs(estimate - PLANE)) == pytest.approx(0, abs=1e-12)


def test_gap_takes_the_mean_of_what_both_axes_say() -> None:
    values = PLANE.copy()
    values[1, 1] = np.nan
    values[0, 1] += 4  # along the first axis: 2 more

    assert fill_gaps(AXES, values)[1, 1] == pytest.approx(PLANE[1, 1] + (2 + 0) / 2)


def test_gaps_beside_gaps_are_filled_in_turn() -> None:
    values = PLANE.copy()
    values[1, :] = np.nan
    values[:, 1] = np.nan

    assert fill_gaps(AXES, values) == pytest.approx(PLANE)


def test_gap_at_a_corner_is_refused_by_place() -> None:
    values = PLANE.copy()
    values[2, 2] = np.nan

    with pytest.raises(TraceError, match=r"no points around \(20, 4\)"):
        fill_gaps(AXES, values)


def test_errors_are_those_of_points_left_out() -> None:
    axis, values = [np.array([0, 1, 2])], np.array([1.0, 4.0, 3.0])

    errors = interpolation_errors(axis, values)

    assert errors == {"num_points": 1, "mean_error": -0.5, "mape": 0.5, "p95_error": 0.5}
    assert interpolation_errors([np.array([0, 1])], np.array([1.0, 2.0])) == {"num_points": 0}
