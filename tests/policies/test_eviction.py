"""Who goes: each answer against a search through all there are, and what configurations may ask for."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.errors import ConfigError, PlanError
from batchsim.policies.eviction import Eviction, Gdsf, Lfu, Lru, make_eviction


class Naive:
    """What is there with its number of uses, its size and when it was used last."""

    def __init__(self) -> None:
        self.now = 0
        self.last_rank = 0.0
        self.there: dict[int, dict[str, float]] = {}

    def add(self, id_: int, num_tokens: int) -> None:
        self.now += 1
        self.there[id_] = {"uses": 1, "tokens": num_tokens, "used": self.now, "base": self.last_rank}

    def use(self, id_: int) -> None:
        self.now += 1
        one = self.there[id_]
        one |= {"uses": one["uses"] + 1, "used": self.now, "base": self.last_rank}

    def rank(self, id_: int, kind: type) -> tuple[float, float]:
        one = self.there[id_]
        if kind is Lru:
            return one["used"], 0.0
        if kind is Lfu:
            return one["uses"], one["used"]
        return one["base"] + one["uses"] / one["tokens"], one["used"]

    def pop(self, kind: type) -> int:
        id_ = min(self.there, key=lambda one: self.rank(one, kind))
        self.last_rank = self.rank(id_, kind)[0]
        del self.there[id_]
        return id_


@given(
    st.sampled_from([Lru, Lfu, Gdsf]),
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([1, 3, 16])), max_size=150),
)
def test_those_go_that_a_search_through_all_finds(
    kind: type, capacity: int, seen: list[tuple[int, int]]
) -> None:
    answer: Eviction = kind()
    naive = Naive()
    for id_, num_tokens in seen:
        if id_ in naive.there:
            answer.use(id_)
            naive.use(id_)
            continue
        if len(naive.there) == capacity:
            assert answer.pop() == naive.pop(kind)
        answer.add(id_, num_tokens)
        naive.add(id_, num_tokens)
    while naive.there:
        assert answer.pop() == naive.pop(kind)


def test_a_large_one_goes_before_a_small_one_that_is_used_as_often() -> None:
    answer = Gdsf()
    answer.add(1, 16)
    answer.add(2, 512)
    assert answer.pop() == 2


def test_what_was_used_often_long_ago_goes_in_the_end() -> None:
    """A hundred uses keep an id for ever by frequency alone; with ageing, as many others come and go."""
    left = {}
    for kind in (Lfu, Gdsf):
        answer: Eviction = kind()
        answer.add(0, 1)
        for _ in range(9):
            answer.use(0)
        answer.add(1, 1)
        gone = []
        for id_ in range(2, 30):
            gone.append(answer.pop())
            answer.add(id_, 1)
        left[kind] = 0 in gone
    assert left == {Lfu: False, Gdsf: True}


def test_ranks_of_before_do_not_pile_up() -> None:
    answer = Lfu()
    answer.add(1, 16)
    for _ in range(10_000):
        answer.use(1)
    assert len(answer._heap) < 200


class Oldest:
    """One of others: first in, first out."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def add(self, id_: int, num_tokens: int) -> None:
        self.ids.append(id_)

    def use(self, id_: int) -> None:
        pass

    def pop(self) -> int:
        return self.ids.pop(0)


class Stubborn(Oldest):
    def pop(self) -> int:
        return self.ids[0]


class Lacking:
    def add(self, id_: int, num_tokens: int) -> None:
        pass


def test_own_ones_are_named_by_module_and_class() -> None:
    answer = make_eviction({"kind": f"{__name__}:Oldest"}, "cluster.tier[0].eviction")
    answer.add(1, 16)
    answer.add(2, 16)
    answer.use(1)
    assert answer.pop() == 1


def test_own_ones_must_name_what_is_there() -> None:
    answer = make_eviction({"kind": f"{__name__}:Stubborn"}, "cluster.tier[0].eviction")
    answer.add(1, 16)
    answer.pop()
    answer.add(2, 16)
    with pytest.raises(PlanError, match=r"Stubborn\.pop answered 1; one of the 1 ids"):
        answer.pop()


def test_what_an_own_one_raises_is_told_in_a_sentence() -> None:
    answer = make_eviction({"kind": f"{__name__}:Oldest"}, "cluster.tier[0].eviction")
    with pytest.raises(PlanError, match=r"Oldest\.pop raised IndexError"):
        answer.pop()


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"kind": "LRU"}, "x.kind is 'LRU'"),
        ({"kind": 3}, "x.kind is 3"),
        ({"kind": "Lru", "size": 3}, "x.size is no parameter of Lru"),
        ({"kind": "no_such_module:X"}, "x.kind 'no_such_module:X' cannot be imported"),
        ({"kind": f"{__name__}:Lacking"}, "Lacking has no use, which an Eviction needs"),
        ({"kind": f"{__name__}:pytest"}, "is a module; a class is needed"),
    ],
)
def test_what_cannot_be_made_is_refused(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_eviction(given_, "x")
