import numpy as np
import pytest

from batchsim.errors import ConfigError
from batchsim.latency.fitting import regression
from batchsim.latency.fitting.regression import Regime


def regime(design: list[list[float]], seconds: list[float]) -> Regime:
    sizes = np.arange(1.0, len(seconds) + 1)
    return Regime("batch", ("a_s", "b_s"), np.array(design), np.array(seconds), sizes, sizes)


def test_points_without_a_fit_are_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"batch: no fit is found \(SVD did not converge.*other points"):
        regime([[1.0, np.nan], [1.0, 2.0], [1.0, 3.0]], [1.0, 2.0, 3.0]).solve()


def test_search_for_coefficients_above_zero_that_does_not_end_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nnls(*_: object) -> None:
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr(regression, "nnls", nnls)

    with pytest.raises(ConfigError, match=r"batch: no fit is found \(Maximum number of iterations"):
        regime([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]], [3.0, 2.0, 1.0]).solve()


def test_degenerate_points_are_told_what_they_lack() -> None:
    with pytest.raises(ConfigError, match="batch: 1 points are too few to tell a_s, b_s apart"):
        regime([[1.0, 1.0]], [1.0]).solve()
    with pytest.raises(ConfigError, match="more batch sizes, 1 among them, and more lengths are needed"):
        regime([[1.0, 2.0], [1.0, 2.0]], [1.0, 2.0]).solve()
