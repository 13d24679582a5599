"""Routings that see caches: what they find of shared prefixes, and what that is worth."""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

from batchsim.latency import LinearIterationLatency
from batchsim.study.run import simulate
from batchsim.workload.request import Workload
from tests.shared_data import shared_path

#: 5 ms a pass, and 0.1 ms for each token of a prompt.
LATENCY = LinearIterationLatency(0.005, 1e-4, 0.0, 1e-4, 0.0)


def shared_prefixes(num: int = 1200, num_families: int = 24) -> Workload:
    """Families of prompts that begin with the same 640 tokens and go on with 160 of their own."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(1 / 30, num)),
            "prompt_tokens": 800,
            "output_tokens": rng.integers(20, 60, num),
        }
    )
    families = rng.integers(0, num_families, num)
    frame["prefix_ids"] = [
        [100 * family + position for position in range(40)] + [10**6 + 100 * row + own for own in range(10)]
        for row, family in enumerate(families.tolist())
    ]
    return Workload.from_frame(frame)


@cache
def served(kind: str, view_age_s: float = 0.0) -> tuple[float, float]:
    """Share of prompt tokens found in a cache, and mean TTFT.

    A replica's cache has 16,000 tokens, the prefixes of all families together 15,360.
    """
    routing: dict[str, Any] = {"kind": kind, **({"view_age_s": view_age_s} if view_age_s else {})}
    result = simulate(
        {
            "policy": {"preset": "vllm_v1", "routing": routing},
            "workload": {"training_fraction": 0.0},
            "cluster": {"num_gpus": 4},
            "engine": {"num_kv_blocks": 1000, "prefix_caching": True},
            "metrics": {"warmup": 0.1},
        },
        shared_prefixes(),
        latency=LATENCY,
    )
    requests = result.requests
    hit = float(requests["cached_tokens"].sum() / requests["prompt_tokens"].sum())
    return hit, result.summary["ttft_mean_s"]


@pytest.mark.parametrize(("kind", "gain"), [("CacheAware", 1.1), ("LMetric", 1.3), ("PrefixAffinity", 1.3)])
def test_who_looks_at_caches_finds_more_than_who_looks_at_loads(kind: str, gain: float) -> None:
    hit, ttft_s = served(kind)
    blind_hit, blind_ttft_s = served("LeastLoaded")

    assert hit > gain * blind_hit
    assert ttft_s < blind_ttft_s


@pytest.mark.parametrize("kind", ["CacheAware", "LMetric", "PrefixAffinity", "LeastLoaded"])
def test_old_views_send_crowds_and_find_no_more(kind: str) -> None:
    now, a_second_ago = served(kind), served(kind, 1.0)

    assert a_second_ago[0] <= now[0]
    assert a_second_ago[1] > 1.5 * now[1]


@cache
def on_mooncake(kind: str, view_age_s: float = 0.0) -> tuple[float, float]:
    """The same of the first 4,000 requests of a published trace, on eight H100."""
    path = shared_path("traces/mooncake_conversation.jsonl.gz")
    routing: dict[str, Any] = {"kind": kind, **({"view_age_s": view_age_s} if view_age_s else {})}
    result = simulate(
        {
            "policy": {"preset": "vllm_v1", "routing": routing},
            "workload": {"trace": str(path), "num_requests": 4000},
            "cluster": {"gpu": "h100", "model": "llama-3.1-8b", "num_gpus": 8},
            "latency": {"outside": "extrapolate"},
            "metrics": {"warmup": 0.1},
        }
    )
    requests = result.requests
    hit = float(requests["cached_tokens"].sum() / requests["prompt_tokens"].sum())
    return hit, result.summary["ttft_mean_s"]


def test_on_a_published_trace_caches_that_are_seen_are_used_and_prompts_begin_sooner() -> None:
    blind_hit, blind_ttft_s = on_mooncake("LeastLoaded")
    for kind in ("CacheAware", "LMetric"):
        hit, ttft_s = on_mooncake(kind)
        assert hit > 1.4 * blind_hit
        assert ttft_s < blind_ttft_s
    assert on_mooncake("CacheAware", 10.0)[1] > 2 * on_mooncake("CacheAware")[1]
