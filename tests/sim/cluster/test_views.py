"""What routers see of replicas, now and some time ago: by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest

from batchsim.errors import ConfigError
from batchsim.latency import LinearIterationLatency
from batchsim.policies.base import ReplicaView, Setting, WaitingRequest
from batchsim.policies.continuous import ChunkedPrefill
from batchsim.policies.presets import Preset
from batchsim.policies.queueing import Fifo
from batchsim.policies.sizing import FixedSize
from batchsim.records import Records
from batchsim.study.run import simulate
from batchsim.workload.request import Workload
from tests.sim.worlds import workload

#: 100 ms a pass, whatever is in it.
A_PASS = LinearIterationLatency(0.1, 0.0, 0.0, 0.0, 0.0)


@dataclass
class Watch:
    """Send all to the first replica but prompts of so many tokens, and write down what is seen of it."""

    load = "views"
    view_age_s: float = 0.0
    elsewhere_tokens: int = 0

    def prepare(self, setting: Setting) -> None:
        SEEN.clear()

    def choose(self, request: WaitingRequest, loads: Sequence[ReplicaView]) -> int:
        view = loads[0]
        SEEN.append(
            (
                view.num_requests,
                view.num_running,
                view.num_waiting,
                view.waiting_prompt_tokens,
                view.kv_blocks,
                view.cached_tokens(request),
            )
        )
        return int(request.prompt_tokens == self.elsewhere_tokens)


SEEN: list[tuple[int, ...]] = []
WATCH = Preset(Fifo(), FixedSize(2), ChunkedPrefill(), Watch())


def seen(
    requests: Workload, age_s: float = 0.0, elsewhere_tokens: int = 0, **config: Any
) -> list[tuple[int, ...]]:
    """What is seen of the first replica at each arrival."""
    routing = {"view_age_s": age_s, "elsewhere_tokens": elsewhere_tokens}
    simulate(
        {
            "policy": {"preset": f"{__name__}:WATCH", "routing": routing},
            "workload": {"training_fraction": 0.0},
            "cluster": {"num_gpus": 2},
            "engine": {"block_size": 16, "num_kv_blocks": 100, **config.pop("engine", {})},
            **config,
        },
        requests,
        latency=A_PASS,
    )
    return list(SEEN)


def with_prefixes(requests: Workload, ids: list[list[int]]) -> Workload:
    frame = requests.to_frame()
    frame["prefix_ids"] = pd.Series(ids)
    return Workload.from_frame(frame)


#: The first decodes from 0.1 s on, the second comes while it does, the third finds no seat, the fourth looks.
FOUR = workload([0.0, 0.25, 0.45, 0.55], [20, 20, 20, 20], [31, 40, 50, 10])


def test_a_view_counts_who_runs_who_waits_and_what_they_hold() -> None:
    assert seen(FOUR) == [
        (0, 0, 0, 0, 0, 0),
        # At 0.25 s the second token of its answer is being made, for which it has 32 tokens stored: 2 blocks,
        # and a third for the next one.
        (1, 1, 0, 0, 3, 0),
        (2, 2, 0, 0, 6, 0),
        (3, 2, 1, 50, 10, 0),
    ]


def test_who_comes_during_an_iteration_waits_for_its_end() -> None:
    together = workload([0.0, 0.01, 0.02], [2, 2, 2], [16, 16, 16])

    assert [one[:4] for one in seen(together)] == [(0, 0, 0, 0), (1, 1, 0, 0), (2, 1, 1, 16)]


def test_of_a_prompt_under_way_what_is_left_still_waits() -> None:
    prompts = workload([0.0, 0.05, 0.15], [2, 2, 2], [250, 16, 16])
    budget = {"preset": f"{__name__}:WATCH", "batching": {"max_num_batched_tokens": 100}}

    assert [one[3] for one in seen(prompts, policy=budget)] == [0, 150, 50 + 16]


def test_an_old_view_shows_what_was_there_then() -> None:
    assert seen(FOUR, 0.2) == [
        (0, 0, 0, 0, 0, 0),
        (1, 1, 0, 0, 2, 0),  # at 0.05 s
        (2, 1, 1, 40, 6, 0),  # at 0.25 s, as the second had come
        (2, 2, 0, 0, 6, 0),  # at 0.35 s
    ]


def test_before_the_run_there_was_nobody() -> None:
    assert seen(FOUR, 10.0) == [(0, 0, 0, 0, 0, 0)] * 4


SHARED = [[1, 2], [1, 2], [1, 3], [7, 2]]


def test_the_real_cache_is_seen_up_to_the_first_id_that_lacks() -> None:
    prompts = with_prefixes(workload([0.0, 1.0, 2.0, 3.0], [1] * 4, [32, 40, 32, 32]), SHARED)

    # Of a prompt that is cached whole, the last block is computed again.
    assert [one[5] for one in seen(prompts)] == [0, 32, 16, 0]
    assert [one[5] for one in seen(prompts, engine={"prefix_caching": False})] == [0, 0, 0, 0]


def test_what_was_evicted_is_not_seen_any_more_but_by_an_old_view() -> None:
    # The second needs all blocks, so the ids of the first are gone when the third comes.
    prompts = with_prefixes(
        workload([0.0, 1.0, 2.0], [1, 1, 1], [32, 96, 40]), [[1, 2], [3, 4, 5, 6, 7, 8], [1, 2]]
    )
    small = {"engine": {"num_kv_blocks": 6}}

    assert [one[5] for one in seen(prompts, **small)] == [0, 0, 0]
    assert [one[5] for one in seen(prompts, 1.5, **small)] == [0, 0, 32]
    assert [one[5] for one in seen(prompts, 0.5, **small)] == [0, 0, 0]


def test_what_decodes_evict_within_a_span_is_seen_at_once() -> None:
    """The answer of the second grows into the blocks of the first, at 2.7 and at 4.3 s."""
    prompts = with_prefixes(
        workload([0.0, 1.0, 1.95, 3.05, 4.55], [1, 40, 1, 1, 1], [32, 48, 40, 40, 40]),
        [[1, 2], [3, 4, 5], [1, 2], [1, 2], [1, 2]],
    )
    for age_s, expected in ((0.0, [32, 16, 0]), (0.5, [32, 32, 16])):
        for is_exact in (False, True):
            engine = {"num_kv_blocks": 6, "exact_iterations": is_exact}
            looked = seen(prompts, age_s, elsewhere_tokens=40, engine=engine)
            assert [one[5] for one in looked[2:]] == expected


def test_one_that_gives_up_is_seen_no_more() -> None:
    requests = workload([0.0, 0.01, 0.02, 0.03, 0.9], [30] * 5, [16] * 5)
    assert seen(requests, patience_s=0.5)[-1][:3] == (2, 2, 0)
    assert seen(requests, 0.3, patience_s=0.5)[-1][:3] == (2, 2, 0)
    assert seen(requests, 0.6, patience_s=0.5)[-1][:3] == (4, 2, 2)


@pytest.mark.parametrize("routing", [{"kind": "LMetric"}, {"kind": "LeastLoaded", "view_age_s": 1.0}])
def test_batches_that_run_to_completion_are_not_seen_so(routing: dict[str, Any]) -> None:
    config = {"policy": {"preset": "static_fifo", "routing": routing}, "cluster": {"num_gpus": 2}}

    with pytest.raises(ConfigError, match="know their load in requests only, and as it is now"):
        simulate(config, workload([0.0, 1.0], [1, 1]))


@pytest.mark.parametrize("is_exact", [False, True])
def test_blocks_that_decodes_took_within_a_span_are_a_load(is_exact: bool) -> None:
    """At 4.95 s the first, of 10 tokens, has become 59, and the second, of 40 at 4 s, is 49."""
    config = {
        "policy": {"preset": "vllm_v1", "routing": {"kind": "LeastLoaded", "by": "kv_blocks"}},
        "workload": {"training_fraction": 0.0},
        "cluster": {"num_gpus": 2},
        "engine": {"block_size": 1, "num_kv_blocks": 500, "exact_iterations": is_exact},
    }
    records = simulate(config, workload([0.0, 4.0, 4.95], [100] * 3, [10, 40, 5]), latency=A_PASS).records

    assert records.requests["gpu_id"].tolist() == [0, 1, 1]


def test_old_news_sends_a_crowd_to_who_was_idle() -> None:
    """Of requests that come a tenth of a second apart, six go to each in turn before that is known."""
    requests = workload(np.arange(20) / 10, [50] * 20, 1)
    config = {"workload": {"training_fraction": 0.0}, "cluster": {"num_gpus": 4}}

    def sent(age_s: float) -> list[int]:
        policy = {"preset": "vllm_v1", "routing": {"kind": "LeastLoaded", "view_age_s": age_s}}
        records: Records = simulate({**config, "policy": policy}, requests, latency=A_PASS).records
        return records.requests["gpu_id"].tolist()

    assert sent(0.0) == [0, 1, 2, 3] * 5
    assert sent(0.55) == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 2
