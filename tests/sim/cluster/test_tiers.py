"""Tiers below the KV cache: by hand, and as laws."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from batchsim.errors import ConfigError
from batchsim.latency import LinearIterationLatency
from batchsim.metrics.summary import laws
from batchsim.policies.eviction import Lru
from batchsim.records import FINISHED
from batchsim.results.store import load_run
from batchsim.sim.cluster import tiers as tiers_module
from batchsim.sim.cluster.link import Link
from batchsim.sim.cluster.tiers import Tier
from batchsim.study.result import SimulationResult
from batchsim.study.run import simulate
from batchsim.workload.request import Workload
from tests.sim.worlds import workload

#: Bytes of a token's KV of the default model: bandwidths are told in tokens.
TOKEN_BYTES = 28_672
#: 10 ms a pass, and 1 ms for each token of a prompt.
LATENCY = LinearIterationLatency(0.01, 0.001, 0.0, 0.0, 0.0)
#: No two passes take the same time.
UNEVEN = LinearIterationLatency(0.00973, 0.00107, 0.0, 0.00031, 0.000073)


def with_ids(requests: Workload, ids: list[list[int]], id_tokens: int = 16) -> Workload:
    column = np.empty(len(ids), dtype=object)
    column[:] = ids
    return replace(requests, extra={f"hash_ids_{id_tokens}": column})


def tier(name: str = "host", **given: Any) -> dict[str, Any]:
    """A thousand tokens a second each way, and plenty of room."""
    return {
        "name": name,
        **({} if "capacity_bytes" in given else {"capacity_tokens": 10_000}),
        "read_bytes_per_s": 1000.0 * TOKEN_BYTES,
        "write_bytes_per_s": 1000.0 * TOKEN_BYTES,
        **given,
    }


def run(
    arrivals_s: list[float],
    outputs: list[int],
    prompts: list[list[int]],
    *,
    tiers: list[dict[str, Any]],
    num_kv_blocks: int = 6,
    replicas: int = 1,
    **config: Any,
) -> SimulationResult:
    """Prompts of whole ids, on a replica whose cache holds little more than one of them."""
    lengths = [16 * len(ids) for ids in prompts]
    given = {
        "policy": {"preset": "vllm_v1"},
        "engine": {"num_kv_blocks": num_kv_blocks, **config.pop("engine", {})},
        "cluster": {"num_gpus": replicas, "tier": tiers},
        **config,
    }
    return simulate(given, with_ids(workload(arrivals_s, outputs, lengths), prompts), latency=LATENCY)


A, B = [1, 2, 3, 4], [5, 6, 7, 8]


def test_what_the_cache_loses_goes_down_and_comes_up_again() -> None:
    """B takes the blocks of A but for the first; the next A finds two of the others below.

    The last block of a prompt is computed anyway.
    """
    result = run([0.0, 1.0, 2.0], [3, 3, 3], [A, B, A], tiers=[tier()])
    down, up = (result.kv_copies.query(which) for which in ("request_id < 0", "request_id >= 0"))
    assert down["num_tokens"].iloc[:2].tolist() == [32, 16]  # for the prompt of B, and for its answer
    assert down["finish_s"].iloc[:2].tolist() == pytest.approx([1.032, 1.084 + 0.016])
    assert up[["request_id", "num_tokens"]].to_numpy().tolist() == [[2, 32]]
    assert up["finish_s"].tolist() == pytest.approx([2.032])
    request = result.requests.iloc[2]
    assert request["scheduled_s"] == 2.0
    assert request["cached_tokens"] == 48
    assert request["first_token_s"] == pytest.approx(2.032 + 0.026)  # 16 tokens are left
    summary = result.summary
    assert summary["tier_host_hit_rate"] == pytest.approx(32 / 192)
    assert summary["prefix_hit_rate"] == pytest.approx(48 / 192)
    assert summary["tier_host_read_bytes"] == 32 * TOKEN_BYTES
    assert summary["tier_host_written_bytes"] == pytest.approx(down["num_tokens"].sum() * TOKEN_BYTES)
    assert summary["num_tier_waits"] == 1
    assert summary["tier_wait_mean_s"] == pytest.approx(0.032)
    assert summary["ttft_tier_mean_s"] == pytest.approx(0.032 / 3)


def test_without_tiers_nothing_is_told_of_them() -> None:
    result = run([0.0, 1.0], [3, 3], [A, A], tiers=[])
    assert not len(result.kv_copies)
    assert not [key for key in result.summary if "tier" in key]
    assert "kv_copies" not in result.tables


def test_copies_are_saved_and_read_back(tmp_path: Path) -> None:
    result = run([0.0, 1.0, 2.0], [3, 3, 3], [A, B, A], tiers=[tier()])
    _, summary, tables = load_run(result.save(tmp_path / "run"))
    assert tables["kv_copies"].equals(result.kv_copies)
    assert summary["tier_host_hit_rate"] == result.summary["tier_host_hit_rate"]


def test_an_id_that_is_still_below_is_not_written_again() -> None:
    """A and B take turns: after the first time, nothing goes down but blocks not seen there before."""
    result = run([0.0, 1.0, 2.0, 3.0, 4.0], [1] * 5, [A, B, A, B, A], tiers=[tier()])
    down = result.kv_copies.query("request_id < 0")
    assert down["num_tokens"].sum() <= 8 * 16
    assert result.summary["tier_host_hit_rate"] == pytest.approx(3 * 16 / 320)


def test_an_idle_replica_is_woken_by_what_it_waits_for() -> None:
    """Between two arrivals nothing else happens: the only replica sleeps until the next."""
    result = run([0.0, 1.0, 2.0, 50.0], [3, 3, 3, 3], [A, B, A, B], tiers=[tier()])
    assert result.requests["finish_s"].iloc[2] < 3.0


def test_copies_share_the_link() -> None:
    """Two requests on two replicas read from one pool: each gets half of it."""
    alone = run([0.0, 1.0, 2.0], [3, 3, 3], [A, B, A], tiers=[tier("pool", shared=True)])
    both = run(
        [0.0, 0.0, 1.0, 1.0, 2.0, 2.0],
        [3] * 6,
        [A, [11, 12, 13, 14], B, [15, 16, 17, 18], A, [11, 12, 13, 14]],
        tiers=[tier("pool", shared=True)],
        replicas=2,
        policy={"preset": "vllm_v1", "routing": {"kind": "RoundRobin"}},
    )
    assert both.summary["tier_wait_mean_s"] == pytest.approx(2 * alone.summary["tier_wait_mean_s"])


def test_a_shared_tier_has_what_another_replica_lost() -> None:
    routing = {"preset": "vllm_v1", "routing": {"kind": "RoundRobin"}}
    # Replica 0 computes A and loses it to B; replica 1 is asked for A later.
    times_s, prompts = [0.0, 0.1, 1.0, 2.0], [A, [21], [*B, 9], A]
    hits = {
        shared: run(
            times_s, [3] * 4, prompts, tiers=[tier(shared=shared)], replicas=2, policy=routing
        ).summary["tier_host_hit_rate"]
        for shared in (False, True)
    }
    assert hits == {False: 0.0, True: pytest.approx(48 / 224)}


def test_what_lies_on_the_disk_passes_the_links_of_the_host() -> None:
    """The host holds two ids of A, and a disk the third, which it lost.

    Until that has passed the host's link, each has half of it; the disk is four times as slow.
    """
    slow = tier("disk", read_bytes_per_s=250.0 * TOKEN_BYTES, latency_s=0.5)
    prompts = [A, B, [9, 10, 11, 12, 13], A]
    result = run([0.0, 10.0, 20.0, 30.0], [1] * 4, prompts, tiers=[tier(capacity_tokens=32), slow])
    up = result.kv_copies.query("request_id == 3").set_index("tier")
    assert up["num_tokens"].to_dict() == {0: 32, 1: 16}
    assert up["finish_s"].to_dict() == pytest.approx({0: 30.048, 1: 30.0 + 16 / 250 + 0.5})
    assert result.summary["tier_host_hit_rate"] == pytest.approx(32 / 272)
    assert result.summary["tier_disk_hit_rate"] == pytest.approx(16 / 272)
    assert result.summary["tier_wait_mean_s"] == pytest.approx(0.564)
    assert result.requests["first_token_s"].iloc[3] == pytest.approx(30.564 + 0.026)


def test_bytes_are_those_of_the_model() -> None:
    by_bytes = run([0.0, 1.0, 2.0], [3] * 3, [A, B, A], tiers=[tier(capacity_bytes=17.5 * TOKEN_BYTES)])
    by_tokens = run([0.0, 1.0, 2.0], [3] * 3, [A, B, A], tiers=[tier(capacity_tokens=16)])
    assert by_bytes.kv_copies.equals(by_tokens.kv_copies)
    assert not by_bytes.kv_copies.equals(run([0.0, 1.0, 2.0], [3] * 3, [A, B, A], tiers=[tier()]).kv_copies)


def test_what_is_swapped_out_takes_its_share_of_the_link() -> None:
    """The same copies down last longer beside those of a preempted request, and these beside them."""

    def world(preset: str, tokens_per_s: float = 100.0) -> SimulationResult:
        return run(
            [0.0, 1.0, 1.001],
            [3, 40, 40],
            [A, [5, 6], [7, 8]],
            tiers=[tier(write_bytes_per_s=tokens_per_s * TOKEN_BYTES)],
            num_kv_blocks=7,
            policy={"preset": preset, "batching": {"watermark": 0.0}},
            engine={"prefix_caching": True},
        )

    swapped, dropped = world("vllm_v0_swap"), world("vllm_v0")
    assert (swapped.preemptions["mode"] == "swap").any()
    first_s = swapped.preemptions["time_s"].min()
    assert (swapped.requests["status"] == FINISHED).all()
    copies = [one.kv_copies.query(f"request_id < 0 and finish_s > {first_s}") for one in (swapped, dropped)]
    assert copies[0]["start_s"].iloc[0] == copies[1]["start_s"].iloc[0]
    assert copies[0]["finish_s"].iloc[0] > copies[1]["finish_s"].iloc[0]

    # At 1.244 s, 48 tokens go down: alone in 48 ms, beside 3.3 and 24.5 that are left of others in 758 ms.
    for result, end_s in ((world("vllm_v0_swap", 1000.0), 1.244 + 0.048 + 0.01), (swapped, 2.002 + 0.01)):
        waited = result.iterations[result.iterations["num_preempted"] == 1].iloc[0]
        assert (waited["start_s"], waited["finish_s"]) == pytest.approx((1.244, end_s))
        assert waited["first_iteration_s"] == pytest.approx(end_s - 1.244)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"cluster": {"tier": [tier()]}, "policy": {"preset": "static_fifo"}}, "batches to completion"),
        ({"cluster": {"tier": [tier()]}, "engine": {"prefix_caching": False}}, "cache none"),
        ({"cluster": {"tier": [tier(), tier()]}}, "two of cluster.tier are called 'host'"),
        ({"cluster": {"tier": [tier(shared=True), tier("disk")]}}, "what is shared comes last"),
        ({"cluster": {"tier": [{"name": "host"}]}}, "give capacity_bytes or capacity_tokens"),
        (
            {"cluster": {"tier": [tier(eviction={"kind": "Lur"})]}},
            r"cluster.tier\[0\].eviction.kind is 'Lur'",
        ),
        ({"cluster": {"tier": [tier(name="my host")]}}, "name"),
    ],
)
def test_what_makes_no_sense_is_refused(config: dict[str, Any], message: str) -> None:
    requests = with_ids(workload([0.0], [3], [64]), [A])
    with pytest.raises(ConfigError, match=message):
        simulate({"policy": {"preset": "vllm_v1"}, **config}, requests, latency=LATENCY)


def test_a_workload_without_ids_has_nothing_to_keep() -> None:
    given = {"policy": {"preset": "vllm_v1"}, "cluster": {"tier": [tier()]}}
    with pytest.raises(ConfigError, match="have no ids"):
        simulate(given, workload([0.0], [3], [64]), latency=LATENCY)


def test_a_store_makes_room_when_a_copy_begins_and_has_it_when_that_is_there() -> None:
    env = simpy.Environment()
    store = Tier(2, 16, Lru(), Link(env, 1.0), Link(env, 1.0))
    assert store.make_room([1, 2, 3]) == ([1, 2], [])  # both on their way: no room for a third
    assert 1 not in store
    store.hold([1, 2])
    store.use([1])
    assert store.make_room([2, 3]) == ([3], [1])  # 2 came again
    assert (1 in store, 2 in store, 3 in store, store.used) == (False, True, False, 2)


PRESETS = ("vllm_v1", "vllm_v0", "vllm_v0_swap", "sarathi", "orca", "sjf", "multi_bin_continuous")


@st.composite
def tiers_of(draw: st.DrawFn) -> list[dict[str, Any]]:
    num = draw(st.integers(1, 3))
    first_shared = draw(st.integers(0, num))
    return [
        {
            "name": f"t{level}",
            "capacity_tokens": draw(st.sampled_from([7, 24, 64, 1000])),
            "read_bytes_per_s": draw(st.sampled_from([103.7, 911.3, 50_013.9])) * unit,
            "write_bytes_per_s": draw(st.sampled_from([97.3, 1013.1, 49_999.7])) * unit,
            "latency_s": draw(st.sampled_from([0.0, 0.00417])),
            "max_transfers": draw(st.sampled_from([None, 1])),
            "shared": level >= first_shared,
            "eviction": {"kind": draw(st.sampled_from(["Lru", "Lfu", "Gdsf"]))},
        }
        for level, unit in enumerate([TOKEN_BYTES, 1.0173 * TOKEN_BYTES, 0.9871 * TOKEN_BYTES][:num])
    ]


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, Any], Workload]:
    """Any policy, little memory, few different prompts, tiers of any kind.

    No copy ends with an iteration, at an instant that rounding would part.
    """
    preset = draw(st.sampled_from(PRESETS))
    batching: dict[str, Any] = {}
    if preset == "orca":
        batching = {"reserve": "predicted"}
    elif preset == "vllm_v1":
        batching = draw(st.sampled_from([{}, {"allocate": "chunk"}, {"allocate": "prompt"}]))
        batching = {**batching, "max_num_batched_tokens": draw(st.sampled_from([8, 64]))}
    elif preset.startswith("vllm_v0"):
        batching = {"max_num_batched_tokens": draw(st.sampled_from([8, 64]))}
    policy: dict[str, Any] = {"preset": preset, "batch_size": draw(st.integers(1, 6)), "batching": batching}
    if preset == "multi_bin_continuous":
        policy["queueing"] = {"num_bins": 2, "boundaries": [6]}
    blocks = draw(st.integers(15, 26))
    id_tokens = draw(st.sampled_from([4, 8]))
    cluster: dict[str, Any] = {"num_gpus": draw(st.sampled_from([1, 1, 2]))}
    if cluster["num_gpus"] == 2:
        cluster["num_prefill_replicas"] = draw(st.integers(0, 1))
    config = {
        "policy": policy,
        "cluster": {**cluster, "tier": draw(tiers_of())},
        "engine": {
            "num_kv_blocks": blocks,
            "prefix_caching": True,
            "async_scheduling": draw(st.booleans()),
            "launch_s": 0.00107,
            "block_size": 4,
            "frontend_s": draw(st.sampled_from([0.0, 0.0131])),
        },
        "kv_transfer": {"nic_bytes_per_s": 1009.7 * TOKEN_BYTES},
        "patience_s": draw(st.sampled_from([None, None, 0.3317])),
    }
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num = draw(st.integers(1, 40))
    arrivals_s = np.append(np.cumsum(rng.exponential(draw(st.sampled_from([0.03, 0.2])), num)), 1000.0)
    # A few stories, told from the beginning to somewhere; the last is new, and needs nearly all blocks.
    stories = [list(range(10 * one, 10 * one + 5)) for one in range(draw(st.integers(2, 6)))]
    prompts = [stories[rng.integers(len(stories))][: rng.integers(6)] for _ in range(num)] + [[]]
    lengths = [id_tokens * len(ids) + int(rng.integers(1, 8)) for ids in prompts]
    lengths[-1] = 4 * blocks - 12
    outputs = [*rng.integers(1, 13, num).tolist(), 3]
    if not cluster.get("num_prefill_replicas") and draw(st.booleans()):
        times_s = np.sort(rng.uniform(0, arrivals_s[-2] + 0.5, 2)).tolist()
        at = [(time_s, int(rng.integers(cluster["num_gpus"]))) for time_s in times_s]
        config["failures"] = {"at": at, "repair": "fixed", "repair_s": 0.09331}
    return config, with_ids(workload(arrivals_s, outputs, lengths), prompts, id_tokens)


@settings(max_examples=50, deadline=None)
@given(worlds())
def test_laws_hold_blocks_come_back_and_spans_are_exact(world: tuple[dict[str, Any], Workload]) -> None:
    config, requests = world
    built: list[Tier] = []

    class Watched(Tier):
        """Never holds more than it has room for."""

        def __init__(self, num_ids: int, *given: Any) -> None:
            super().__init__(num_ids, *given)
            self.capacity = num_ids
            self.num_in = self.num_out = 0
            built.append(self)

        def make_room(self, ids: Any) -> tuple[list[int], list[int]]:
            come, gone = super().make_room(ids)
            self.num_in += len(come)
            self.num_out += len(gone)
            assert self.used <= self.capacity
            assert self.used == self.num_in - self.num_out
            return come, gone

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiers_module, "Tier", Watched)
        spans = simulate(config, requests, latency=UNEVEN)
    if config["patience_s"] is None:
        assert (spans.requests["status"] == FINISHED).all()
    assert spans.requests["status"].iloc[-1] == FINISHED
    assert laws(spans.records) == pytest.approx(dict.fromkeys(laws(spans.records), 0.0), abs=1e-9)
    copies = spans.kv_copies
    is_up = copies["request_id"] >= 0
    for level in range(len(config["cluster"]["tier"])):
        is_here = copies["tier"] == level
        assert spans.summary[f"tier_t{level}_written_bytes"] == copies["num_bytes"][is_here & ~is_up].sum()
    assert copies["num_tokens"][is_up].sum() <= spans.requests["prompt_tokens"].sum() * (
        1 + spans.requests["num_preemptions"].max() + 2 * ("failures" in config)
    )
    exact = simulate(config, requests, latency=UNEVEN, overrides={"engine.exact_iterations": True})
    for column in ("scheduled_s", "first_token_s", "decode_start_s", "finish_s"):
        np.testing.assert_allclose(spans.requests[column], exact.requests[column], rtol=0, atol=1e-9)
    for column in ("request_id", "gpu_id", "tier", "num_tokens"):
        assert copies[column].tolist() == exact.kv_copies[column].tolist()
    np.testing.assert_allclose(copies["finish_s"], exact.kv_copies["finish_s"], rtol=0, atol=1e-9)
    again = simulate(config, requests, latency=UNEVEN)
    assert again.requests.equals(spans.requests)
    assert again.kv_copies.equals(copies)
