"""Blocks are conserved, whoever shares them: against a model that keeps a list of all blocks."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import simpy
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchsim.errors import ConfigError, PlanError
from batchsim.sim.kv_cache import KVCache


def kv_cache(num_blocks: int, *, blocks_per_id: int = 0) -> KVCache:
    """Blocks of 16 tokens."""
    return KVCache(simpy.Environment(), num_blocks, 16, 16 * blocks_per_id)


def computed(kv: KVCache, ids: list[int]) -> list[Any]:
    """Let a request compute a prefix in blocks of its own and share it."""
    kv.take(len(ids) * kv.blocks_per_id)
    return kv.store(ids)


def test_the_level_is_what_can_be_taken() -> None:
    kv = kv_cache(10)

    kv.take(7)
    kv.give(3)

    assert kv.level == kv.available == 6
    assert kv.used == 4
    assert kv.capacity == kv.num_blocks == 10


def test_taking_more_than_there_is_or_giving_more_than_was_taken_is_a_plan_error() -> None:
    kv = kv_cache(10)
    kv.take(7)

    with pytest.raises(PlanError, match="4 KV blocks were taken where 3 are available"):
        kv.take(4)
    with pytest.raises(PlanError, match="8 KV blocks were given back where 7 are in use"):
        kv.give(8)
    assert kv.available == 3


def test_a_process_may_wait_for_blocks_as_in_any_container() -> None:
    env = simpy.Environment()
    kv = KVCache(env, 4, 16, 16)
    kv.take(2)
    computed(kv, [1, 2])
    waiting = kv.get(3)

    kv.release([1, 2])
    is_early = waiting.triggered
    kv.give(1)

    assert not is_early
    assert waiting.triggered
    assert kv.available == 0
    assert kv.match([1], 1) == 0


def test_ids_of_another_size_than_whole_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine.block_size is 48, .* covers 512 tokens; a divisor of 512"):
        KVCache(simpy.Environment(), 10, 48, 512)


def test_a_match_ends_at_the_first_unknown_id_or_the_limit() -> None:
    kv = kv_cache(8, blocks_per_id=1)
    computed(kv, [1, 2, 4])

    assert kv.match([1, 2, 3, 4], 9) == 2
    assert kv.match([1, 2, 3, 4], 1) == 1
    assert kv.match([1, 2], 9) == 2
    assert kv.match([3, 1], 9) == 0


def test_what_is_released_stays_cached_but_can_be_taken() -> None:
    kv = kv_cache(8, blocks_per_id=2)

    kv.release(computed(kv, [1, 2]))

    assert kv.available == 8
    assert kv.match([1, 2], 2) == 2
    assert kv.num_newly_pinned([1, 2]) == 4


def test_what_two_lease_is_held_until_both_release_it() -> None:
    kv = kv_cache(8, blocks_per_id=2)
    mine = computed(kv, [1, 2])
    kv.lease([1])

    kv.release(mine)

    assert kv.used == 2
    assert kv.num_newly_pinned([1, 2]) == 2
    kv.release([1])
    assert kv.used == 0


def test_blocks_never_used_are_taken_first_then_the_end_of_what_is_longest_unused() -> None:
    kv = kv_cache(6, blocks_per_id=1)
    first, second = computed(kv, [1, 2]), computed(kv, [3, 4])
    kv.release(first)
    kv.release(second)

    kv.take(3)

    assert [kv.match([id_], 1) for id_ in (1, 2, 3, 4)] == [1, 0, 1, 1]


def test_what_was_given_back_waits_behind_what_is_longer_unused() -> None:
    kv = kv_cache(4, blocks_per_id=1)
    kv.take(3)
    kv.release(computed(kv, [1]))
    kv.give(3)

    kv.take(1)

    assert kv.match([1], 1) == 0


def test_what_a_preempted_request_left_is_taken_from_its_end() -> None:
    kv = kv_cache(8, blocks_per_id=1)
    shared = computed(kv, [1, 2])
    kv.take(6)
    kv.give(1)
    left = kv.give_kept(5)
    kv.release(shared)

    kv.take(3)

    assert kv.num_kept(left) == 3
    assert kv.match([1, 2], 2) == 2
    kv.take_kept(left, 2)
    assert kv.num_kept(left) == 1
    kv.take_kept(left, 1)
    assert kv.num_kept(left) == 0
    assert kv.available == 2


def test_what_is_given_first_is_taken_first() -> None:
    kv = kv_cache(4, blocks_per_id=1)
    kv.take(3)
    kv.release(computed(kv, [1]))
    kv.give(3, 3)

    kv.take(3)

    assert kv.match([1], 1) == 1


def test_a_lease_makes_a_prefix_recent() -> None:
    kv = kv_cache(4, blocks_per_id=1)
    for ids in ([1], [2]):
        kv.release(computed(kv, ids))
    kv.lease([1])
    kv.release([1])

    kv.take(3)

    assert [kv.match([id_], 1) for id_ in (1, 2)] == [1, 0]


def test_of_what_two_have_computed_the_older_copy_is_found_as_long_as_it_is_there() -> None:
    kv = kv_cache(6, blocks_per_id=2)
    older, younger = computed(kv, [1]), computed(kv, [1, 2])
    assert kv.used == 6

    kv.release(older)
    assert kv.num_newly_pinned([1]) == 2
    kv.take(2)

    assert kv.match([1, 2], 2) == 2
    assert kv.num_newly_pinned([1]) == 0
    kv.release(younger)
    kv.take(4)
    assert kv.match([1, 2], 2) == 0


def test_an_id_is_evicted_whole_even_if_one_block_lacks() -> None:
    kv = kv_cache(8, blocks_per_id=4)
    kv.release(computed(kv, [1, 2]))

    kv.take(1)
    kv.take(3)

    assert kv.match([1, 2], 2) == 1
    assert kv.available == 4


FREE = ("free", None)
NODES = st.integers(8, 15)  # leaves of a binary tree of prompts; node n continues node n // 2


def prompt(leaf: int) -> list[int]:
    return [leaf >> 3, leaf >> 2, leaf >> 1, leaf]


@dataclass(eq=False)
class Copy:
    """What an id stands for, as somebody computed it."""

    of: int


@dataclass(eq=False)
class Holder:
    """A request as the machine below sees it."""

    private: int
    shared: list[Copy] = field(default_factory=list)
    keys: list[Any] = field(default_factory=list)  # what the cache knows them by
    ids: list[int] = field(default_factory=list)


class AgainstListOfBlocks(RuleBasedStateMachine):
    """What each block without users holds is written down, in the order of the line, and nothing else."""

    @initialize(num_blocks=st.integers(1, 24), blocks_per_id=st.integers(1, 3))
    def start(self, num_blocks: int, blocks_per_id: int) -> None:
        self.kv = kv_cache(num_blocks, blocks_per_id=blocks_per_id)
        self.size = blocks_per_id
        self.line: list[tuple[str, object]] = [FREE] * num_blocks
        self.holders: list[Holder] = []
        self.left: list[object] = []  # by requests that were preempted
        self.copies: dict[int, list[Copy]] = {id_: [] for id_ in range(1, 16)}  # the oldest first

    def users(self, copy: Copy) -> int:
        return sum(copy in holder.shared for holder in self.holders)

    def is_unused(self, id_: int) -> bool:
        return self.is_cached(id_) and ("id", self.copies[id_][0]) in self.line

    def is_cached(self, id_: int) -> bool:
        return bool(self.copies[id_])

    def take(self, holder: Holder, num: int) -> None:
        for _ in range(num):
            content = self.line.pop(0)
            if isinstance(content[1], Copy):  # of no use any more without this block
                self.copies[content[1].of].remove(content[1])
                rest = self.line.count(content)
                self.line = [FREE] * rest + [one for one in self.line if one != content]
        holder.private += num

    @rule(leaf=NODES, num_blocks=st.integers(0, 8), data=st.data())
    def admit(self, leaf: int, num_blocks: int, data: st.DataObject) -> None:
        ids, holder = prompt(leaf), Holder(0)
        num_hits = self.kv.match(ids, 4)
        hits = ids[:num_hits]
        assert hits == ids[: next((index for index, id_ in enumerate(ids) if not self.is_cached(id_)), 4)]
        key = data.draw(st.sampled_from(self.left)) if self.left else None
        num_kept = self.kv.num_kept(key)
        assert num_kept == self.line.count(("kept", key))
        fits = num_blocks + num_kept <= self.kv.available - self.kv.num_newly_pinned(hits)
        pinned = [id_ for id_ in hits if self.is_unused(id_)]
        assert fits == (num_blocks + num_kept <= len(self.line) - len(pinned) * self.size)
        if not fits:
            return
        holder.keys = self.kv.lease(hits)
        if num_kept:
            self.kv.take_kept(key, num_kept)
        self.kv.take(num_blocks)
        holder.shared = [self.copies[id_][0] for id_ in hits]
        taken = [("id", copy) for copy in holder.shared] + [("kept", key)]
        self.line = [one for one in self.line if one not in taken]
        holder.ids, holder.private = ids[num_hits:], num_kept
        self.holders.append(holder)
        self.take(holder, num_blocks)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        ids = holder.ids[: holder.private // self.size]
        ids = ids[: data.draw(st.integers(0, len(ids)))]
        holder.keys += self.kv.store(ids)
        holder.private -= len(ids) * self.size
        for id_ in ids:
            self.copies[id_].append(Copy(id_))
            holder.shared.append(self.copies[id_][-1])
        del holder.ids[: len(ids)]

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), num_blocks=st.integers(1, 8))
    def grow(self, data: st.DataObject, num_blocks: int) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        if num_blocks > len(self.line):
            with pytest.raises(PlanError):
                self.kv.take(num_blocks)
        else:
            self.kv.take(num_blocks)
            self.take(holder, num_blocks)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        num_first = data.draw(st.integers(0, holder.private))
        self.kv.give(num_first, num_first)
        self.line = [FREE] * num_first + self.line
        self.kv.give(holder.private - num_first)
        self.line += [FREE] * (holder.private - num_first)
        self.release(holder)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        num_kept = data.draw(st.integers(0, holder.private))
        self.kv.give(holder.private - num_kept)
        self.line += [FREE] * (holder.private - num_kept)
        if num_kept:
            self.left.append(self.kv.give_kept(num_kept))
            self.line += [("kept", self.left[-1])] * num_kept
        self.release(holder)

    def release(self, holder: Holder) -> None:
        self.kv.release(holder.keys)
        self.holders.remove(holder)
        for copy in reversed(holder.shared):
            if not self.users(copy):
                self.line += [("id", copy)] * self.size

    @invariant()
    def both_agree(self) -> None:
        assert self.kv.available == self.kv.level == len(self.line)
        for leaf in range(1, 16):
            assert self.kv.match([leaf], 1) == self.is_cached(leaf)
            assert self.kv.num_newly_pinned([leaf]) == self.size * self.is_unused(leaf)
        for key in self.left:
            assert self.kv.num_kept(key) == self.line.count(("kept", key))


TestAgainstListOfBlocks = AgainstListOfBlocks.TestCase
TestAgainstListOfBlocks.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_an_id_is_told_as_lost_with_its_last_copy() -> None:
    kv = kv_cache(4, blocks_per_id=1)
    told: list[list[int]] = []
    kv.on_lose = lambda ids: told.append(list(ids))
    kv.take(3)
    first, second, third = kv.store([7]), kv.store([7]), kv.store([8])
    for keys in (first, third, second):
        kv.release(keys)
    kv.take(2)  # the block never used, and the older copy
    assert told == []
    kv.take(2)
    assert told == [[8, 7]]
