"""What tiers hold: LRU against Che's approximation, and a real trace against independent counts."""

import gzip
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import simpy
from scipy.optimize import brentq

from batchsim.latency import LinearIterationLatency
from batchsim.policies.eviction import Eviction, Gdsf, Lfu, Lru
from batchsim.sim.cluster.link import Link
from batchsim.sim.cluster.tiers import Tier
from batchsim.study.run import simulate
from tests.shared_data import shared_path
from tests.sim.worlds import workload


def store(num_ids: int, eviction: Eviction) -> Tier:
    env = simpy.Environment()
    return Tier(num_ids, 512, eviction, Link(env, 1.0), Link(env, 1.0))


def look_up(tier: Tier, ids: Sequence[int]) -> int:
    """A prompt comes: how many ids from the first on are there; afterwards all are."""
    num = next((num for num, id_ in enumerate(ids) if id_ not in tier), len(ids))
    tier.use(ids)
    come, _ = tier.make_room([id_ for id_ in reversed(ids) if id_ not in tier])
    tier.hold(come)
    return num


def popularity(num_ids: int, exponent: float) -> np.ndarray:
    weights = np.arange(1, num_ids + 1, dtype=float) ** -exponent
    return weights / weights.sum()


def che_hit_ratio(shares: np.ndarray, capacity: int) -> float:
    """Che, Tung and Wang (2002): an id stays for a time that is nearly the same for all."""
    time = brentq(lambda t: -np.expm1(-shares * t).sum() - capacity, 1.0, 1e9)
    return float(shares @ -np.expm1(-shares * time))


def hit_ratio(shares: np.ndarray, tier: Tier, num: int, num_warmup: int) -> float:
    drawn = np.random.default_rng(3).choice(len(shares), size=num, p=shares).tolist()
    found = [look_up(tier, [id_]) for id_ in drawn]
    return float(np.mean(found[num_warmup:]))


@pytest.mark.parametrize(("exponent", "capacity"), [(0.7, 50), (0.9, 200), (1.2, 100)])
def test_lru_finds_as_much_as_ches_approximation_says(exponent: float, capacity: int) -> None:
    shares = popularity(1000, exponent)
    measured = hit_ratio(shares, store(capacity, Lru()), 120_000, 10_000)
    assert measured == pytest.approx(che_hit_ratio(shares, capacity), rel=0.01)


def test_where_popularity_stays_frequency_finds_more_and_no_more_than_all_of_the_most_popular() -> None:
    shares = popularity(1000, 0.9)
    lru, lfu, gdsf = (hit_ratio(shares, store(100, kind()), 60_000, 20_000) for kind in (Lru, Lfu, Gdsf))
    best = float(shares[:100].sum())
    assert lru < gdsf < best
    assert lru < lfu < best


@cache
def conversations() -> list[list[int]]:
    with gzip.open(shared_path("traces/mooncake_conversation.jsonl.gz"), "rt", encoding="utf-8") as lines:
        return [json.loads(line)["hash_ids"] for line in lines]


def counted(prompts: Sequence[Sequence[int]], num_ids: int) -> float:
    """Share of ids found, by an LRU of its own."""
    there: OrderedDict[int, None] = OrderedDict()
    found = 0
    for ids in prompts:
        found += next((num for num, id_ in enumerate(ids) if id_ not in there), len(ids))
        for id_ in reversed(ids):
            if id_ in there:
                there.move_to_end(id_)
        for id_ in reversed(ids):
            if id_ not in there:
                if len(there) == num_ids:
                    there.popitem(last=False)
                there[id_] = None
    return found / sum(map(len, prompts))


@pytest.mark.parametrize(
    ("num_ids", "share"),
    [(10**9, 0.366), (100_000, 0.364), (50_000, 0.355), (30_000, 0.326), (10_000, 0.211), (1000, 0.045)],
)
def test_an_lru_tier_finds_what_the_published_conversations_repeat(num_ids: int, share: float) -> None:
    """The shape of Table 1 of Mooncake (arXiv 2407.00079), of the trace that was published with it."""
    prompts = conversations()
    tier = store(num_ids, Lru())
    found = sum(look_up(tier, ids) for ids in prompts) / sum(map(len, prompts))
    assert found == pytest.approx(share, abs=0.0015)
    assert found == pytest.approx(counted(prompts, num_ids), abs=1e-12)


@pytest.mark.parametrize(("num_ids", "share"), [(10**6, 0.366), (10_000, 0.211)])
def test_a_run_finds_that_too_in_its_cache_and_the_host_below(num_ids: int, share: float) -> None:
    """One prompt after the other, on a GPU that holds hardly more than the longest."""
    prompts = conversations()
    column = np.empty(len(prompts), dtype=object)
    column[:] = prompts
    lengths = np.array([512 * len(ids) + 1 for ids in prompts])
    requests = replace(
        workload(np.arange(len(prompts)) * 10.0, np.ones(len(prompts), dtype=int), lengths),
        extra={"hash_ids": column},
    )
    config = {
        "policy": {"preset": "vllm_v1", "batching": {"max_num_batched_tokens": 200_000}},
        "engine": {"block_size": 512, "num_kv_blocks": 300, "max_model_len": 200_000},
        "cluster": {"tier": [{"name": "host", "capacity_tokens": 512 * num_ids, "write_bytes_per_s": 1e15}]},
        "metrics": {"warmup": 0.0},
    }
    result = simulate(config, requests, latency=LinearIterationLatency(1e-3, 0.0, 0.0, 0.0, 0.0))
    found = result.requests["cached_tokens"].sum() / 512 / sum(map(len, prompts))
    assert found == pytest.approx(share, abs=0.003)
    assert result.summary["tier_host_hit_rate"] > 0.8 * result.summary["prefix_hit_rate"]
