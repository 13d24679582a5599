"""Links and pools are the queues they say they are."""

import numpy as np
import pytest
import simpy

from batchsim.latency import LinearIterationLatency
from batchsim.sim.cluster.link import Link, send
from batchsim.study.run import simulate
from tests.sim.worlds import workload
from tests.theory.worlds import Floats, assert_agrees, poisson_arrivals, replicate


def _stays_s(arrival_s: Floats, sizes: Floats, max_transfers: int | None) -> Floats:
    """Seconds of each transfer on a link of one byte a second, the first tenth left out."""
    env = simpy.Environment()
    link = Link(env, 1.0, max_transfers)
    stays_s = np.zeros(len(sizes))

    def sender(index: int) -> simpy.events.ProcessGenerator:
        yield send(env, [link], sizes.item(index))
        stays_s[index] = env.now - arrival_s[index]

    def source() -> simpy.events.ProcessGenerator:
        for index, at_s in enumerate(arrival_s):
            yield env.timeout(at_s - env.now)
            env.process(sender(index))

    env.process(source())
    env.run()
    return stays_s[len(sizes) // 10 :]


@pytest.mark.parametrize(
    ("max_transfers", "stay_s"),
    [
        # Sizes uniform on 0 to 2, of mean 1 and second moment 4/3; rate 0.7.
        pytest.param(1, 1 + 0.7 * (4 / 3) / (2 * 0.3), id="first come, first served: Pollaczek-Khinchine"),
        pytest.param(None, 1 / 0.3, id="shared: as if sizes were exponential"),
    ],
)
def test_a_link_is_a_queue_of_its_discipline(max_transfers: int | None, stay_s: float) -> None:
    def measure(rng: np.random.Generator) -> float:
        return float(
            _stays_s(poisson_arrivals(rng, 0.7, 4000), rng.uniform(0, 2, 4000), max_transfers).mean()
        )

    assert_agrees(replicate(measure, 20, seed=11), stay_s, resolution=0.03)


def test_on_a_shared_link_time_is_in_proportion_to_size() -> None:
    def measure(rng: np.random.Generator) -> list[float]:
        sizes = rng.choice([0.5, 2.0], 4000, p=[2 / 3, 1 / 3])
        stays_s = _stays_s(poisson_arrivals(rng, 0.6, 4000), sizes, None)
        return [float(stays_s[sizes[400:] == size].mean()) for size in (0.5, 2.0)]

    assert_agrees(replicate(measure, 20, seed=12), [0.5 / 0.4, 2.0 / 0.4], resolution=0.03)


#: One at a time on either replica; a token of a prompt 1 ms, a token of an answer 1 ms, nothing else.
TANDEM = {
    "policy": {"preset": "vllm_v1", "batch_size": 1, "batching": {"max_num_batched_tokens": 10**6}},
    "cluster": {"num_gpus": 2, "num_prefill_replicas": 1},
    "engine": {"num_kv_blocks": 10**6},
    "kv_transfer": {"nic_bytes_per_s": 1e15},
    "metrics": {"warmup": 0.0},
    "workload": {"training_fraction": 0.0},
}
PER_TOKEN = LinearIterationLatency(0.0, 0.001, 0.0, 0.001, 0.0)


@pytest.mark.parametrize(("prompt", "answer", "rate_per_s"), [(500, 700, 1.0), (800, 300, 0.9)])
def test_pools_of_one_in_a_row_are_a_tandem_of_single_servers(
    prompt: int, answer: int, rate_per_s: float
) -> None:
    """Burke: what leaves an M/M/1 queue is Poisson, so the second is one as well, and independent."""

    def measure(rng: np.random.Generator) -> list[float]:
        requests = workload(
            poisson_arrivals(rng, rate_per_s, 4000),
            rng.geometric(1 / answer, 4000) + 1,
            rng.geometric(1 / prompt, 4000),
        )
        late = simulate(TANDEM, requests, latency=PER_TOKEN).requests.iloc[400:]
        first_s = late["first_token_s"] - late["arrival_s"]
        second_s = late["finish_s"] - late["first_token_s"]
        return [float(first_s.mean()), float(second_s.mean())]

    theory = [1 / (1000 / tokens - rate_per_s) for tokens in (prompt, answer)]
    assert_agrees(replicate(measure, 16, seed=13), theory, resolution=0.05)
