from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.errors import ConfigError
from batchsim.policies.base import Setting
from batchsim.policies.queueing import EarliestDeadline, Fifo, HighestPriority, MultiBin, ShortestFirst
from tests.policies.worlds import Waiting, waiting

LATER_S = 100.0


def two_bins() -> MultiBin:
    queue = MultiBin(2, boundaries=[10])
    queue.prepare(Setting(100))
    return queue


def emptied(queue: Any, bin_: int = 0, now_s: float = 0.0) -> list[int]:
    return [queue.pop(bin_, now_s).request_id for _ in range(queue.waiting(bin_))]


def test_fifo_hands_over_in_order_of_arrival() -> None:
    queue = Fifo()
    for request in waiting(3, 1, 2):
        queue.push(request)

    assert emptied(queue) == [0, 1, 2]


def test_fifo_takes_a_request_back_at_the_head() -> None:
    queue = Fifo()
    for request in waiting(1, 1, 1):
        queue.push(request)
    first = queue.pop(0, 0.0)

    queue.push_back(first, 0)

    assert emptied(queue) == [0, 1, 2]


@pytest.mark.parametrize("make", [Fifo, two_bins, ShortestFirst, EarliestDeadline])
def test_taking_several_is_popping_them_one_by_one(make: Any) -> None:
    queues = [make(), make()]
    for queue in queues:
        for request in waiting(3, 1, 2, 4):
            queue.push(request)

    taken = queues[0].take(0, 3, LATER_S)

    assert [request.request_id for request in taken] == emptied(queues[1], 0, LATER_S)[:3]
    assert queues[0].waiting(0) == 1


def test_multi_bin_sorts_by_predicted_length_an_edge_belonging_to_the_bin_above() -> None:
    queue = two_bins()

    bins = [queue.push(request) for request in waiting(9, 10, 11, 1)]

    assert bins == [0, 1, 1, 0]
    assert bins == [queue.bin_of(tokens) for tokens in (9, 10, 11, 1)]
    assert (emptied(queue, 0), emptied(queue, 1)) == ([0, 3], [1, 2])


@given(st.lists(st.integers(1, 50), min_size=1), st.lists(st.integers(2, 50), max_size=4, unique=True))
def test_pushed_requests_wait_in_the_bin_that_bin_of_names(tokens: list[int], edges: list[int]) -> None:
    queue = MultiBin(len(edges) + 1, boundaries=sorted(edges))
    queue.prepare(Setting(100))

    bins = [queue.push(request) for request in waiting(*tokens)]

    assert bins == [queue.bin_of(length) for length in tokens]


def test_multi_bin_fits_its_edges_on_the_training_lengths() -> None:
    queue = MultiBin(2, boundaries="equal_mass")

    queue.prepare(Setting(100, training_output_tokens=np.array([1, 2, 30, 40])))

    assert list(queue.edges) == [30.0]


def test_multi_bin_without_training_lengths_says_what_to_set() -> None:
    queue = MultiBin(2)

    with pytest.raises(ConfigError, match="training_fraction"):
        queue.prepare(Setting(100))


@pytest.mark.parametrize(
    ("num_bins", "boundaries", "message"),
    [
        (0, "equal_mass", "num_bins is 0"),
        (2.0, "equal_mass", r"num_bins is 2\.0"),
        (3, [10], "1 edges; 3 bins need 2"),
        (3, [10, 10], "must rise"),
        (3, [20, 10], "must rise"),
    ],
)
def test_multi_bin_refuses_bins_that_make_no_sense(num_bins: Any, boundaries: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MultiBin(num_bins, boundaries)


def test_multi_bin_names_the_request_that_made_a_line_so_long() -> None:
    queue = two_bins()
    requests = waiting(1, 20, 1, 1)
    for request in requests:
        queue.push(request)

    queue.discard(requests[0], 0)

    assert queue.nth(0, 1).request_id == 3


def test_shortest_first_hands_over_the_shortest_and_of_equals_the_first() -> None:
    queue = ShortestFirst()
    for request in waiting(3, 1, 2, 1):
        queue.push(request)

    assert emptied(queue) == [1, 3, 2, 0]


def test_shortest_first_promotes_whoever_waited_longer_than_its_limit() -> None:
    queue = ShortestFirst(promote_after_s=10.0)
    for request in waiting(30, 20, 1):
        queue.push(request)

    # At 11 s request 0 has waited 11 s and 1 exactly the limit, which is not longer.
    assert queue.pop(0, 10.0).request_id == 2
    assert queue.pop(0, 11.0).request_id == 0
    assert queue.head(0, 11.0).request_id == 1


def test_promotion_goes_by_arrival_whatever_was_put_back_in_between() -> None:
    queue = ShortestFirst(promote_after_s=10.0)
    for request in waiting(30, 1, 20):
        queue.push(request)
    popped = [queue.pop(0, 5.0) for _ in range(3)]

    for request in reversed(popped[1:]):  # 2 and 0 did not fit
        queue.push_back(request, 0)

    assert queue.oldest(0).request_id == 0
    assert queue.head(0, 11.0).request_id == 0


def test_request_that_comes_back_is_ranked_by_its_new_prediction() -> None:
    queue = ShortestFirst()
    requests = waiting(1, 5)
    for request in requests:
        queue.push(request)
    evicted = queue.pop(0, 0.0)

    evicted.predicted_output_tokens = 10
    queue.push_back(evicted, 0)

    assert emptied(queue) == [1, 0]


def test_request_that_comes_back_counts_once() -> None:
    queue = ShortestFirst()
    for request in waiting(1, 5):
        queue.push(request)

    queue.push_back(queue.pop(0, 0.0), 0)

    assert [queue.nth(0, position).request_id for position in (0, 1)] == [0, 1]
    assert queue.waiting(0) == 2


def test_earliest_deadline_weighs_arrival_against_length() -> None:
    queue = EarliestDeadline(slack_s=1.0, per_token_s=0.5)
    for request in waiting(10, 1, 2):
        queue.push(request)

    # Deadlines 0 + 1 + 5, 1 + 1 + 0.5, 2 + 1 + 1.
    assert emptied(queue) == [1, 2, 0]


def test_earliest_deadline_without_a_price_of_tokens_is_fifo() -> None:
    queue = EarliestDeadline(per_token_s=0.0)
    for request in waiting(10, 1, 2):
        queue.push(request)

    assert emptied(queue) == [0, 1, 2]


@pytest.mark.parametrize("promote_after_s", [0.0, -1.0, float("nan")])
def test_shortest_first_refuses_a_limit_that_is_not_positive(promote_after_s: float) -> None:
    with pytest.raises(ConfigError, match="promote_after_s"):
        ShortestFirst(promote_after_s=promote_after_s)


@pytest.mark.parametrize("given", [{"slack_s": float("nan")}, {"per_token_s": float("inf")}])
def test_earliest_deadline_refuses_what_is_not_finite(given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        EarliestDeadline(**given)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Pushes, pops, returns of what was popped, and requests that give up, in any order."""
    steps = st.tuples(st.sampled_from(["push", "pop", "push_back", "discard"]), st.integers(1, 20))
    return draw(st.lists(steps, max_size=40))


@pytest.mark.parametrize("make", [Fifo, two_bins, ShortestFirst, EarliestDeadline])
@given(histories())
def test_queues_neither_lose_nor_invent_requests(make: Any, history: list[tuple[str, int]]) -> None:
    queue = make()
    present: dict[int, Waiting] = {}
    bins: dict[int, int] = {}
    popped: list[Waiting] = []
    next_id = 0
    for step, number in history:
        occupied = [bin_ for bin_ in range(queue.num_bins) if queue.waiting(bin_)]
        if step == "push":
            request = Waiting(next_id, float(next_id), 1, number)
            bins[next_id] = queue.push(request)
            present[next_id] = request
            next_id += 1
        elif step == "pop" and occupied:
            request = queue.pop(occupied[number % len(occupied)], LATER_S)
            popped.append(present.pop(request.request_id))
        elif step == "push_back" and popped:
            request = popped.pop()
            queue.push_back(request, bins[request.request_id])
            present[request.request_id] = request
        elif step == "discard" and present:
            request = present.pop(list(present)[number % len(present)])
            queue.discard(request, bins[request.request_id])

    for bin_ in range(queue.num_bins):
        expected = sorted(request_id for request_id in present if bins[request_id] == bin_)
        assert queue.waiting(bin_) == len(expected)
        taken = queue.take(bin_, len(expected), LATER_S)
        assert sorted(request.request_id for request in taken) == expected


def test_highest_priority_goes_by_the_smallest_number_then_by_arrival() -> None:
    queue = HighestPriority()
    for index, priority in enumerate([1, 0, 2, 0]):
        queue.push(Waiting(index, float(index), priority=priority))

    assert emptied(queue) == [1, 3, 0, 2]


def test_classes_have_priorities_and_slacks_of_their_own() -> None:
    by_priority = HighestPriority(class_priority={"chat": 0, "batch": 2})
    by_deadline = EarliestDeadline(slack_s=10.0, per_token_s=0.0, class_slack_s={"chat": 0.5})
    for queue in (by_priority, by_deadline):
        for index, slo_class in enumerate(["batch", "", "chat"]):
            queue.push(Waiting(index, float(index), priority=1, slo_class=slo_class))

    assert emptied(by_priority) == [2, 1, 0]
    assert emptied(by_deadline) == [2, 0, 1]


def test_a_deadline_is_the_limit_of_the_class_unless_told_otherwise() -> None:
    queue = EarliestDeadline(per_token_s=0.0, slack_s=100.0, class_slack_s={"chat": 3.0})
    queue.prepare(Setting(100, class_ttft_s={"chat": 0.1, "batch": 1.0}))
    requests = [Waiting(index, slo_class=name) for index, name in enumerate(["chat", "batch", "other"])]

    assert [queue.rank(request) for request in requests] == [3.0, 1.0, 100.0]
