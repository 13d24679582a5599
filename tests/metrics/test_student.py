import pytest
from scipy import stats

from batchsim.metrics.student import t_quantile, two_sided_p


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 19, 100, 1001])
@pytest.mark.parametrize("probability", [0.5, 0.75, 0.975, 0.9995])
def test_quantiles_are_those_of_scipy(probability: float, degrees: int) -> None:
    expected = float(stats.t.ppf(probability, degrees))

    # older scipy itself was off by as much as 2e-9
    assert t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert stats.t.cdf(t_quantile(probability, degrees), degrees) == pytest.approx(probability, rel=1e-13)


@pytest.mark.parametrize("degrees", [1, 2, 9, 30])
@pytest.mark.parametrize("t", [-3.0, 0.0, 0.7, 12.0])
def test_p_values_are_those_of_scipy(t: float, degrees: int) -> None:
    assert two_sided_p(t, degrees) == pytest.approx(float(2 * stats.t.sf(abs(t), degrees)), abs=1e-13)
