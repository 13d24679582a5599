"""A link is the queue it says it is."""

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from batchsim.sim.cluster.link import Link, send


def _ends_s(arrivals: list[tuple[float, float]], max_transfers: int | None, rate: float = 1.0) -> list[float]:
    """When transfers of so many bytes, sent at their times, are through one link."""
    env = simpy.Environment()
    link = Link(env, rate, max_transfers)
    ends_s = [0.0] * len(arrivals)

    def sender(index: int, at_s: float, num_bytes: float) -> simpy.events.ProcessGenerator:
        yield env.timeout(at_s)
        yield send(env, [link], num_bytes)
        ends_s[index] = env.now

    for index, (at_s, num_bytes) in enumerate(arrivals):
        env.process(sender(index, at_s, num_bytes))
    env.run()
    assert link.is_idle
    return ends_s


def _reference_ends_s(arrivals: list[tuple[float, float]], max_transfers: float) -> list[float]:
    """The same by stepping from event to event, all shares computed anew at each."""
    left = [num_bytes for _, num_bytes in arrivals]
    ends_s = [np.nan] * len(arrivals)
    order = sorted(range(len(arrivals)), key=lambda index: (arrivals[index][0], index))
    now_s, active, queue, upcoming = 0.0, list[int](), list[int](), list(order)
    while active or queue or upcoming:
        while upcoming and arrivals[upcoming[0]][0] <= now_s:
            queue.append(upcoming.pop(0))
        while queue and len(active) < max_transfers:
            active.append(queue.pop(0))
        to_arrival_s = arrivals[upcoming[0]][0] - now_s if upcoming else np.inf
        to_end_s = min((left[index] * len(active) for index in active), default=np.inf)
        step_s = min(to_arrival_s, to_end_s)
        for index in active:
            left[index] -= step_s / len(active)
        now_s += step_s
        for index in [one for one in active if left[one] < 1e-12]:
            active.remove(index)
            ends_s[index] = now_s
    return ends_s


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=12),
    st.sampled_from([1, 2, 3, None]),
)
def test_transfers_end_as_if_every_share_were_computed_anew(
    arrivals: list[tuple[int, int]], limit: int | None
) -> None:
    given = [(at / 2, float(size)) for at, size in arrivals]
    given.sort(key=lambda one: one[0])
    expected = _reference_ends_s(given, np.inf if limit is None else limit)
    assert _ends_s(given, limit) == pytest.approx(expected, rel=1e-9)


PATHS = st.sampled_from([(0,), (1,), (0, 1), (1, 0, 2), (0, 2)])


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9), PATHS), min_size=1, max_size=12),
    st.lists(st.sampled_from([1.0, 2.0, 0.7]), min_size=3, max_size=3),
    st.sampled_from([1, 2, None]),
)
def test_a_transfer_is_through_when_each_link_of_its_path_has_carried_it(
    sent: list[tuple[int, int, tuple[int, ...]]], rates: list[float], limit: int | None
) -> None:
    sent.sort(key=lambda one: one[0])
    env = simpy.Environment()
    links = [Link(env, rate, limit) for rate in rates]
    ends_s = [0.0] * len(sent)

    def sender(
        index: int, at_s: float, num_bytes: float, path: tuple[int, ...]
    ) -> simpy.events.ProcessGenerator:
        yield env.timeout(at_s)
        yield send(env, [links[one] for one in path], num_bytes)
        ends_s[index] = env.now

    for index, (at, size, path) in enumerate(sent):
        env.process(sender(index, at / 2, float(size), path))
    env.run()

    expected = [0.0] * len(sent)
    for number, rate in enumerate(rates):
        mine = [index for index, one in enumerate(sent) if number in one[2]]
        arrivals = [(sent[index][0] / 2, sent[index][1] / rate) for index in mine]
        for index, end_s in zip(mine, _reference_ends_s(arrivals, limit or np.inf), strict=True):
            expected[index] = max(expected[index], end_s)
    assert ends_s == pytest.approx(expected, rel=1e-9)
    assert all(link.is_idle for link in links)


def test_a_path_is_as_slow_as_its_slowest_link_and_counts_its_latency_once() -> None:
    env = simpy.Environment()
    path = [Link(env, 4.0), Link(env, 2.0), Link(env, 8.0)]
    transfer = send(env, path, 8.0, latency_s=0.5)
    env.run(transfer)
    assert env.now == pytest.approx(4.5)
    assert all(link.is_idle for link in path)


def test_nothing_in_the_way_takes_the_latency_alone() -> None:
    env = simpy.Environment()
    env.run(send(env, [], 1e9, latency_s=0.25))
    assert env.now == 0.25
