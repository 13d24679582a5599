import pytest

from batchsim.latency.base import IterationShape
from batchsim.latency.linear import LinearIterationLatency
from batchsim.sim.engine import Engine

LATENCY = LinearIterationLatency(0.5, 0.25, 0.0, 0.125, 0.0)
SHAPE = IterationShape(4, 2, 20)
PASS_S = 0.5 + 4 * 0.25 + 2 * 0.125


@pytest.mark.parametrize("is_async", [False, True])
def test_an_engine_that_idled_takes_longer_once(is_async: bool) -> None:
    engine = Engine(LATENCY, 100, wake_s=0.25, is_async=is_async)

    assert engine.iteration_s(SHAPE, is_first=True)[0] == PASS_S + 0.25
    assert engine.iteration_s(SHAPE, is_first=False)[0] == PASS_S


@pytest.mark.parametrize("launch_s", [0.0, 0.125])
def test_decodes_after_a_rest_are_longer_in_their_first_iteration_alone(launch_s: float) -> None:
    engine = Engine(LATENCY, 100, wake_s=0.25, launch_s=launch_s)

    first_s, _, num_equal, *_ = engine.decode_line(2, 20, is_first=True)

    assert (first_s, num_equal) == (0.75 + 0.25 + launch_s, 1)
    assert engine.decode_line(2, 20, is_first=False)[0] == 0.75 + launch_s
