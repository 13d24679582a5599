"""The own policies of `docs/examples` do what they say."""

import numpy as np
import pytest

from batchsim.config import PolicyConfig
from batchsim.policies.base import Setting
from batchsim.policies.presets import Preset, build
from batchsim.policies.routing import LeastLoaded
from batchsim.policies.sizing import FixedSize
from batchsim.study.run import simulate
from batchsim.workload.request import Workload
from tests.iteration.reference import Coefficients
from tests.iteration.worlds import run_plainly
from tests.policies.examples import fastserve
from tests.policies.worlds import Waiting
from tests.sim.worlds import workload

#: Each iteration takes a second, whatever is in it: a prompt that is computed again costs nothing.
A_SECOND = Coefficients(1.0, 0.0, 0.0, 0.0, 0.0)


def finish_s(requests: Workload, preset: str, **policy: object) -> np.ndarray:
    records = run_plainly(requests, A_SECOND, {"preset": preset, "batch_size": 1, **policy})
    return records.requests["finish_s"].to_numpy()


def shortest_remaining(arrival_s: np.ndarray, output_tokens: np.ndarray) -> np.ndarray:
    """Finish times on one seat, a token a second, worked out token by token."""
    left, finished, now = output_tokens.tolist(), np.zeros(len(arrival_s)), 0
    while any(left):
        present = [one for one in range(len(left)) if left[one] and arrival_s[one] <= now]
        now += 1
        if present:
            chosen = min(present, key=lambda one: (left[one], arrival_s[one], one))
            left[chosen] -= 1
            finished[chosen] = now
    return finished


@pytest.mark.parametrize("seed", range(5))
def test_srpt_serves_each_token_as_worked_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrival_s, output_tokens = np.sort(rng.integers(0, 60, 20)), rng.integers(1, 12, 20)

    finished = finish_s(workload(arrival_s, output_tokens, 4), "srpt:srpt")

    assert finished.tolist() == shortest_remaining(arrival_s, output_tokens).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_no_policy_has_a_smaller_mean_on_one_seat_than_srpt(seed: int) -> None:
    rng = np.random.default_rng(seed)
    requests = workload(np.sort(rng.integers(0, 60, 20)), rng.geometric(0.2, 20), 4)

    mean_s = finish_s(requests, "srpt:srpt").mean()

    others = ("sjf", "vllm_v1", "sarathi", "fastserve:fastserve")
    assert all(mean_s <= finish_s(requests, name).mean() + 1e-9 for name in others)
    assert mean_s < finish_s(requests, "sarathi").mean()


def test_fastserve_demotes_who_has_had_a_quantum() -> None:
    # Quanta of 2, 4 and 8 tokens on one seat. A has its 2, and gives way to B, which came at 1 s; B has 2,
    # is on A's level now, and keeps the seat for its last token. C comes at 6 s, on the first level, and so
    # does D at 11 s, when A has had its 4 as well.
    requests = workload([0, 1, 6, 11], [9, 3, 1, 1], 1)

    finished = finish_s(requests, fastserve_policy(quantum_tokens=2, num_levels=3))

    assert finished.tolist() == [14.0, 5.0, 7.0, 12.0]


def test_in_fastserve_who_is_demoted_gives_way_without_an_arrival() -> None:
    # B waits on level 1 from the start, for its long prompt, and gets the seat when A leaves level 1 at 6 s.
    requests = workload([0, 0], [9, 1], [1, 200])

    finished = finish_s(
        requests, fastserve_policy(quantum_tokens=2, prompt_tokens_per_token=64, num_levels=3)
    )

    assert finished.tolist() == [10.0, 7.0]


def fastserve_policy(**levels: int) -> str:
    """The preset with other levels, under a name of its own."""
    own = fastserve.Levels(**levels)
    fastserve.tested = Preset(
        fastserve.FeedbackQueue(own), FixedSize(1), fastserve.Feedback(levels=own), LeastLoaded()
    )
    return "fastserve:tested"


def test_a_long_prompt_skips_the_levels_whose_quantum_it_would_use_up() -> None:
    levels = fastserve.Levels(quantum_tokens=16, prompt_tokens_per_token=64, num_levels=4)

    entries = [levels.entry(Waiting(0, prompt_tokens=tokens)) for tokens in (1, 1024, 1025, 2049, 10**6)]

    assert entries == [0, 0, 1, 2, 3]


def test_levels_count_the_tokens_of_each_quantum() -> None:
    levels = fastserve.Levels(quantum_tokens=2, num_levels=3)

    places = [
        (levels.of(one), levels.tokens_left(one))
        for one in (Waiting(0, generated_tokens=tokens) for tokens in (0, 1, 2, 5, 6, 100))
    ]

    assert places == [(0, 2), (0, 1), (1, 4), (1, 1), (2, float("inf")), (2, float("inf"))]


@pytest.mark.parametrize("name", ["my_policy:mine", "my_policy:batches", "srpt:srpt", "fastserve:fastserve"])
def test_every_example_runs(name: str) -> None:
    rng = np.random.default_rng(0)
    requests = workload(
        np.cumsum(rng.exponential(0.05, 60)), rng.integers(1, 40, 60), rng.integers(1, 300, 60)
    )

    result = simulate({"policy": {"preset": name}, "workload": {"training_fraction": 0.0}}, requests)

    assert (result.requests["status"] == "finished").all()
    assert result.summary["policy"] == name


def test_the_template_answers_are_asked() -> None:
    policy = build(PolicyConfig(preset="my_policy:mine", sizing={"slow_s": 0.5, "size": 8}))

    for request in (Waiting(0, 0.0, 900), Waiting(1, 1.0, 5), Waiting(2, 2.0, 300)):
        policy.queueing.push(request)
    policy.sizing.prepare(Setting(100))

    assert [one.request_id for one in policy.queueing.take(0, 3, 3.0)] == [1, 2, 0]
    assert policy.sizing.batch_size(0) == 8
    assert policy.routing.choose(Waiting(3), [2, 0, 0]) == 1
