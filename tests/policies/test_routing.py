import numpy as np

from batchsim.policies.base import Setting
from batchsim.policies.routing import LeastLoaded, PowerOfTwo, RoundRobin
from tests.policies.worlds import Waiting

REQUEST = Waiting(0)


def test_round_robin_takes_replicas_in_turn_whatever_their_load() -> None:
    routing = RoundRobin()

    assert [routing.choose(REQUEST, [9, 0, 0]) for _ in range(4)] == [0, 1, 2, 0]


def test_least_loaded_takes_the_lowest_number_of_the_smallest() -> None:
    assert LeastLoaded().choose(REQUEST, [3, 1, 2, 1]) == 1


def test_power_of_two_never_takes_the_only_fullest_and_reaches_all_others() -> None:
    routing = PowerOfTwo()
    routing.prepare(Setting(1, rng=np.random.default_rng(0)))

    chosen = {routing.choose(REQUEST, [5, 1, 9, 5]) for _ in range(200)}

    assert chosen == {0, 1, 3}


def test_power_of_two_repeats_itself_for_the_same_stream() -> None:
    runs = []
    for _ in range(2):
        routing = PowerOfTwo()
        routing.prepare(Setting(1, rng=np.random.default_rng(3)))
        runs.append([routing.choose(REQUEST, [0] * 8) for _ in range(50)])

    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 4


def test_power_of_two_of_one_is_that_one() -> None:
    assert PowerOfTwo().choose(REQUEST, [7]) == 0
