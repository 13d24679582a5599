"""Clients that wait for answers: closed loops, sessions, patience and retries, worked out by hand."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchsim.config import load_config
from batchsim.errors import ConfigError, StalledSimulation
from batchsim.latency.linear import LinearIterationLatency
from batchsim.records import ABANDONED, FINISHED, Records
from batchsim.sim.arrivals.client import make_clients
from batchsim.sim.simulation import run_replicas, run_simulation
from batchsim.streams import stream
from batchsim.study.setup.cluster import batch_cluster, engines, prepare_policies, replicas
from batchsim.workload.request import Workload
from batchsim.workload.sessions import grow_context
from tests.sim.worlds import PLENTY, LinearLatency, workload

ONE_SECOND = LinearLatency(fixed_s=1.0)
TWO_SECONDS = LinearLatency(fixed_s=2.0)
ONE_BY_ONE = {"preset": "static_fifo", "batch_size": 1}


def serve(
    requests: Workload,
    latency: Any,
    clients: Mapping[str, Any] | None = None,
    policy: Mapping[str, Any] = ONE_BY_ONE,
    **given_config: Any,
) -> pd.DataFrame:
    """Run batches to completion; return the requests."""
    config = load_config(
        {
            "cluster": {"kv_capacity_tokens": PLENTY},
            **given_config,
            "policy": policy,
            "clients": clients or {},
        }
    )
    policies = prepare_policies(config, [config.policy], [PLENTY], requests.take(slice(0)))
    sent_by = make_clients(config.clients, requests, stream(config.seed, "clients"))
    records = run_simulation(
        requests,
        requests.output_tokens,
        policies,
        batch_cluster(config, latency),
        config.patience_s,
        clients=sent_by,
    )
    return records.requests


def serve_with_engine(
    requests: Workload, clients: Mapping[str, Any], *, is_exact: bool = False, **given_config: Any
) -> Records:
    """One replica of four seats whose iterations take a second and a bit."""
    config = load_config(
        {
            "policy": {"preset": "vllm_v1", "batch_size": 4, "batching": {"max_num_batched_tokens": 64}},
            "engine": {"num_kv_blocks": 200, "exact_iterations": is_exact},
            "clients": clients,
            **given_config,
        }
    )
    cluster = replicas(config, LinearIterationLatency(1.0, 0.01, 0.0, 0.125, 0.001))
    policies = prepare_policies(config, [one.policy for one in cluster], [3200], requests.take(slice(0)))
    sent_by = make_clients(config.clients, requests, stream(config.seed, "clients"))
    return run_replicas(
        requests,
        requests.output_tokens,
        policies,
        engines(config, cluster),
        config.patience_s,
        clients=sent_by,
    )


def in_sessions(session_id: list[Any], arrival_s: list[float], **tokens: Any) -> Workload:
    requests = workload(arrival_s, tokens.get("output_tokens", 1), tokens.get("prompt_tokens", 1))
    return replace(requests, extra={"session_id": np.array(session_id, dtype=object)})


def num_in_flight(requests: pd.DataFrame) -> int:
    """The most at any time; one who leaves makes room for one who comes."""
    changes = [(end_s, -1) for end_s in requests["finish_s"]] + [(at_s, 1) for at_s in requests["arrival_s"]]
    return int(np.cumsum([change for _, change in sorted(changes)]).max())


# Closed loop


@pytest.mark.parametrize(
    ("concurrency", "response_s"),
    [
        (1, 1.0),
        (2, 1.0),  # 2 / (1 + 3) a second: the server idles half of the time
        (4, 1.0),  # just enough to keep it busy
        (8, 5.0),  # N / X - Z = 8 / 1 - 3
    ],
)
def test_closed_loop_obeys_the_interactive_response_time_law(concurrency: int, response_s: float) -> None:
    clients = {
        "kind": "closed_loop",
        "concurrency": concurrency,
        "think_time": "fixed",
        "think_time_s": 3.0,
    }

    requests = serve(workload([0.0] * 80, 1), ONE_SECOND, clients)

    later = requests.iloc[concurrency:]
    per_cycle = later["arrival_s"].to_numpy()[concurrency:] - later["arrival_s"].to_numpy()[:-concurrency]
    assert (later["finish_s"] - later["arrival_s"] == response_s).all()
    assert (per_cycle == response_s + 3.0).all()  # N requests in R + Z seconds
    assert num_in_flight(requests) == concurrency


def test_closed_loop_sends_the_rows_in_order_whatever_their_arrival_times() -> None:
    clients = {"kind": "closed_loop", "concurrency": 2}

    requests = serve(workload([0.0, 50.0, 60.0, 99.0], [8, 2, 2, 2]), LinearLatency(per_token_s=0.5), clients)

    # One after another: the second client waits 4 s for its first answer, and 1 s for each of the others.
    assert requests["request_id"].tolist() == [0, 1, 2, 3]
    assert requests["arrival_s"].tolist() == [0.0, 0.0, 4.0, 5.0]
    assert requests["finish_s"].tolist() == [4.0, 5.0, 6.0, 7.0]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.lists(st.integers(1, 20), min_size=1, max_size=30),
    st.sampled_from([0.0, 0.5, 4.0]),
    st.integers(0, 5),
)
def test_closed_loop_never_has_more_in_flight_than_clients(
    concurrency: int, output_tokens: list[int], think_time_s: float, seed: int
) -> None:
    clients = {"kind": "closed_loop", "concurrency": concurrency, "think_time_s": think_time_s}

    requests = serve(
        workload([0.0] * len(output_tokens), output_tokens),
        LinearLatency(per_token_s=0.25),
        clients,
        {"preset": "static_fifo", "batch_size": 3},
        seed=seed,
    )

    assert (requests["status"] == FINISHED).all()
    assert requests["arrival_s"].is_monotonic_increasing
    assert num_in_flight(requests) <= concurrency


def test_seed_decides_the_think_times_and_nothing_else_does() -> None:
    clients = {"kind": "closed_loop", "concurrency": 3, "think_time_s": 2.0}
    requests = workload([0.0] * 30, 1)

    first, again = (serve(requests, ONE_SECOND, clients, seed=1) for _ in range(2))
    other = serve(requests, ONE_SECOND, clients, seed=2)

    pd.testing.assert_frame_equal(first, again)
    assert first["arrival_s"].tolist() != other["arrival_s"].tolist()


def test_clients_who_wait_for_a_batch_they_cannot_fill_stall() -> None:
    policy = {"preset": "multi_bin", "num_bins": 1, "batch_size": 4}
    clients = {"kind": "closed_loop", "concurrency": 2}

    with pytest.raises(StalledSimulation, match="8 requests are unfinished"):
        serve(workload([0.0] * 8, 1), ONE_SECOND, clients, policy)


def test_last_batch_is_flushed_once_all_requests_are_sent() -> None:
    policy = {"preset": "multi_bin", "num_bins": 1, "batch_size": 2}
    clients = {"kind": "closed_loop", "concurrency": 2}

    requests = serve(workload([0.0] * 5, 1), ONE_SECOND, clients, policy)

    assert requests["finish_s"].tolist() == [1.0, 1.0, 2.0, 2.0, 3.0]


# Sessions


def test_a_turn_follows_the_answer_before_it_after_the_think_time() -> None:
    clients = {"kind": "sessions", "think_time": "fixed", "think_time_s": 5.0}
    requests = in_sessions(["a", "a", "b", None, "a"], [0.0, 1.0, 1.5, 20.0, 30.0])

    served = serve(requests, ONE_SECOND, clients)

    # a: 0-1, 6-7, 12-13; b when it comes, at 1.5; the request without session at 20.
    assert served["request_id"].tolist() == [0, 2, 1, 4, 3]
    assert served["arrival_s"].tolist() == [0.0, 1.5, 6.0, 12.0, 20.0]
    assert served["finish_s"].tolist() == [1.0, 2.5, 7.0, 13.0, 21.0]


def test_think_time_of_the_trace_is_the_gap_between_its_arrivals() -> None:
    clients = {"kind": "sessions", "think_time": "trace"}

    served = serve(in_sessions(["a", "b", "a", "a"], [0.0, 1.0, 4.0, 4.5]), TWO_SECONDS, clients)

    # a: 0-2, 4 s later, when it is alone; 0.5 s after that ends. b waits for a.
    assert served["arrival_s"].tolist() == [0.0, 1.0, 6.0, 8.5]
    assert served["finish_s"].tolist() == [2.0, 4.0, 8.0, 10.5]


def test_sessions_of_one_turn_are_served_as_if_replayed() -> None:
    requests = in_sessions(list("abcdef"), [0.0, 0.1, 0.7, 1.9, 2.0, 9.3], output_tokens=[3, 1, 4, 1, 5, 9])
    latency = LinearLatency(fixed_s=0.3, per_token_s=0.1)

    pd.testing.assert_frame_equal(
        serve(requests, latency, {"kind": "sessions", "think_time_s": 7.0}), serve(requests, latency)
    )


def test_sessions_need_somebody_who_has_one() -> None:
    requests = workload([0.0, 0.1], [3, 1])

    with pytest.raises(ConfigError, match=r'clients.kind is "sessions", but in memory has none: a column'):
        serve(requests, ONE_SECOND, {"kind": "sessions"})


def test_a_turn_follows_the_answer_before_it_after_the_delay_of_the_trace() -> None:
    plain = in_sessions(["a", "b", "a"], [0.0, 0.0, 0.5], output_tokens=8)
    requests = replace(plain, extra={**plain.extra, "delay_s": np.array([np.nan, np.nan, 3.0])})

    served = serve_with_engine(requests, {"kind": "sessions"}).requests.set_index("request_id")

    assert served["arrival_s"][2] == served["finish_s"][0] + 3.0


def test_a_grown_prompt_finds_the_turn_before_it_in_the_prefix_cache() -> None:
    clients = {"kind": "sessions", "think_time": "fixed", "think_time_s": 1.0}
    requests = in_sessions(["a", "b", "a"], [0.0, 0.5, 1.0], prompt_tokens=[40, 40, 5], output_tokens=8)

    grown = serve_with_engine(grow_context(requests), clients).requests

    assert grown["prompt_tokens"].tolist() == [40, 40, 53]
    assert grown["cached_tokens"].tolist() == [0, 0, 32]


@pytest.mark.parametrize("think_time_s", [0.0, 2.5])
@pytest.mark.parametrize(
    "clients", [{"kind": "closed_loop", "concurrency": 3}, {"kind": "sessions"}], ids=["closed", "sessions"]
)
def test_engines_give_clients_the_same_answers_iteration_by_iteration(
    clients: dict[str, Any], think_time_s: float
) -> None:
    clients = {**clients, "think_time_s": think_time_s}
    rng = np.random.default_rng(5)
    requests = in_sessions(
        rng.integers(0, 5, 40).tolist(),
        np.sort(rng.uniform(0, 60, 40)).tolist(),
        output_tokens=rng.integers(1, 30, 40),
        prompt_tokens=rng.integers(1, 50, 40),
    )

    spans = serve_with_engine(requests, clients).requests
    exact = serve_with_engine(requests, clients, is_exact=True).requests

    pd.testing.assert_frame_equal(spans, exact, rtol=1e-9)


# Patience and retries


def test_abandoned_request_comes_back_after_waits_that_double() -> None:
    requests = serve(
        workload([0.0, 1.0], [24, 1]),
        LinearLatency(per_token_s=0.5),
        {"max_retries": 3, "retry_after_s": 1.5},
        patience_s=0.5,
    )

    # The second waits 1.0-1.5, 3.0-3.5 and 6.5-7.0, then comes at 13.0, when the first has ended at 12.
    assert requests["num_retries"].tolist() == [0, 3]
    assert requests["status"].tolist() == [FINISHED, FINISHED]
    assert requests["arrival_s"].tolist() == [0.0, 1.0]
    assert requests["finish_s"].tolist() == [12.0, 13.5]


def test_request_is_lost_when_its_last_try_fails() -> None:
    requests = serve(
        workload([0.0, 1.0], [24, 1]),
        LinearLatency(per_token_s=0.5),
        {"max_retries": 2, "retry_after_s": 1.5},
        patience_s=0.5,
    )

    assert requests["num_retries"].tolist() == [0, 2]
    assert requests["status"].tolist() == [FINISHED, ABANDONED]


def test_batch_waits_for_a_retry_that_may_fill_it() -> None:
    policy = {"preset": "multi_bin", "num_bins": 1, "batch_size": 2}

    requests = serve(
        workload([0.0, 2.0], 1),
        ONE_SECOND,
        {"max_retries": 1, "retry_after_s": 1.0},
        policy,
        patience_s=1.5,
    )

    # The first gives up at 1.5 and meets the second at 2.5.
    assert requests["scheduled_s"].tolist() == [2.5, 2.5]


@pytest.mark.parametrize("kind", ["Fifo", "ShortestFirst", "EarliestDeadline"])
def test_every_discipline_tells_a_retry_from_the_try_that_was_given_up(kind: str) -> None:
    requests = workload([0.0, 1.0, 3.0, 3.5, 20.0], [60, 8, 1, 1, 1], 10)
    policy = {"preset": "vllm_v1", "batch_size": 1, "queueing": {"kind": kind}}

    records = serve_with_engine(
        requests,
        {"max_retries": 6, "retry_after_s": 0.5},
        is_exact=True,  # so that it is asked at every iteration
        policy=policy,
        patience_s=5.0,
    )

    # The first runs for a minute and more; all others come again and again until one finds a seat.
    assert records.requests["num_retries"].iloc[1:].min() >= 4
    assert (records.requests["status"] == FINISHED).sum() >= 2
    ran = records.requests.dropna(subset="scheduled_s").sort_values("scheduled_s")
    assert (ran["scheduled_s"].to_numpy()[1:] >= ran["finish_s"].to_numpy()[:-1]).all()


def test_turns_are_served_by_when_they_are_sent_not_by_their_place_in_the_trace() -> None:
    clients = {"kind": "sessions", "think_time": "fixed", "think_time_s": 2.0}
    policy = {**ONE_BY_ONE, "queueing": {"kind": "ShortestFirst"}}
    requests = in_sessions(["a", "a", "b", "c"], [0.0, 0.0, 1.5, 2.0], output_tokens=[2, 8, 8, 8])

    served = serve(requests, LinearLatency(per_token_s=0.5), clients, policy)

    # The second turn of a comes at 3.0, when b runs until 5.5; c was there before it.
    assert served["request_id"].tolist() == [0, 2, 3, 1]
    assert served["scheduled_s"].tolist() == [0.0, 1.5, 5.5, 9.5]


def test_router_stays_for_a_retry_after_the_last_arrival() -> None:
    policy = {**ONE_BY_ONE, "routing": {"kind": "RoundRobin"}}
    config = load_config(
        {
            "policy": policy,
            "cluster": {"num_gpus": 2, "kv_capacity_tokens": PLENTY},
            "clients": {"max_retries": 1, "retry_after_s": 4.0},
            "patience_s": 1.0,
        }
    )
    requests = workload([0.0, 0.0, 0.5], [8, 8, 1])
    policies = prepare_policies(config, [config.policy] * 2, [PLENTY] * 2, requests.take(slice(0)))

    records = run_simulation(
        requests,
        requests.output_tokens,
        policies,
        batch_cluster(config, LinearLatency(per_token_s=0.5)),
        config.patience_s,
        clients=make_clients(config.clients, requests, stream(0, "clients")),
    )

    assert records.requests["status"].tolist() == [FINISHED] * 3
    assert records.requests["scheduled_s"].tolist() == [0.0, 0.0, 5.5]


def test_next_turn_follows_one_that_was_abandoned() -> None:
    clients = {"kind": "sessions", "think_time": "fixed", "think_time_s": 5.0}
    requests = in_sessions(["a", "b", "b"], [0.0, 1.0, 2.0], output_tokens=[8, 1, 1])

    served = serve(requests, LinearLatency(per_token_s=0.5), clients, patience_s=1.0)

    assert served["status"].tolist() == [FINISHED, ABANDONED, FINISHED]
    assert served["arrival_s"].tolist() == [0.0, 1.0, 7.0]


def test_engine_forgets_a_request_that_gives_up_before_it_is_admitted() -> None:
    requests = workload([0.0] * 5, 20, 10)

    records = serve_with_engine(requests, {"max_retries": 1, "retry_after_s": 1.0}, patience_s=2.0)

    # Four seats for some 30 s: the fifth waits for two and, a second later, again for two.
    assert records.requests["status"].tolist() == [FINISHED] * 4 + [ABANDONED]
    assert records.requests["num_retries"].tolist() == [0] * 4 + [1]


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ({"kind": "closed_loop"}, "concurrency belong together"),
        ({"concurrency": 3}, "concurrency belong together"),
        ({"think_time": "trace"}, 'needs kind = "sessions"'),
        ({"kind": "sessions", "think_time": "trace", "think_time_s": 1.0}, "not both"),
        ({"max_retries": 2}, "needs patience_s"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(clients: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config({"clients": clients})

    assert "\n" not in str(caught.value)
